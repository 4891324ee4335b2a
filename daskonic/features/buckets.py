"""Rows in batches of similar length, so that little padding travels.

Rows of one call are ordered by the lengths that they are padded to, which are few: a ladder of
geometric steps. Workers that know nothing of each other so send requests of equal shapes, which is
what a server's dynamic batching can join.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from daskonic.ragged import Counts

__all__ = ["Batch", "Buckets", "Ragged", "Shape", "Which", "ladder", "split"]

Which = slice | npt.NDArray[np.int64]
"""Rows: a range, or their numbers."""

Shape = tuple[int, ...]
"""Padded length of each group of inputs; the one with most bytes comes first."""

GROWTH = Fraction(6, 5)
STEP = 4
REQUEST_NBYTES = 32 * 1024
"""Padding that is rather sent than one more request: calls of 100 jets make 4 requests, and a quarter of their bytes
is padding; those of 30 make 2."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one request.

    Attributes
    ----------
    which : slice or array of int64
    n_rows : int
    lengths : dict of str to int
        Length that each variable-length input is padded to; an input that is not named has its plan's.
    """

    which: Which
    n_rows: int
    lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)


def split(n_rows: int, rows_per_request: int) -> Iterator[slice]:
    """Row ranges of the batches; none for no rows, and the last one as short as it is."""
    for start in range(0, n_rows, rows_per_request):
        yield slice(start, min(start + rows_per_request, n_rows))


@functools.lru_cache(maxsize=256)
def ladder(full: int) -> tuple[int, ...]:
    """Lengths that rows are padded to: 4, 8, ... 20, 24, then about a fifth more each, at last ``full``.

    With the lengths of real jets this wastes a tenth: half a step, on average.
    """
    steps, length = [], STEP
    while length < full:
        steps.append(length)
        length = max(length + STEP, math.ceil(length * GROWTH / STEP) * STEP)
    return (*steps, full)


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Inputs whose rows have the same lengths, and may be sent as short as they are.

    Attributes
    ----------
    lengths : array of int64, [n_rows]
        Items of each row, none more than ``full``.
    full : int
        Length that they are padded to when nothing is saved.
    inputs : tuple of (name, full length of this input, bytes of an item)
    """

    lengths: Counts
    full: int
    inputs: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, counts: Counts, inputs: Sequence[tuple[str, int | None, int]]) -> Ragged:
        """From the items of each row; where no length is given, the longest row of the call decides."""
        longest = int(counts.max(initial=1))
        reach = next(step for step in ladder(2 * longest + STEP) if step >= longest)
        full = max(length or reach for _, length, _ in inputs)
        return cls(
            np.minimum(counts, full), full, tuple((name, n or reach, nbytes) for name, n, nbytes in inputs)
        )

    def nbytes(self, length: int) -> int:
        """Bytes of a row padded to a length."""
        return sum(min(length, full) * item_nbytes for _, full, item_nbytes in self.inputs)


class Buckets:
    """Rows of one call by the shape that they are padded to.

    Parameters
    ----------
    groups : sequence of Ragged
    fixed_nbytes : int
        Bytes of a row in all other inputs.

    Attributes
    ----------
    full : Shape
        The shape that saves nothing.
    """

    def __init__(self, groups: Sequence[Ragged], fixed_nbytes: int) -> None:
        self.groups = sorted(groups, key=lambda g: -g.nbytes(1))
        self.full: Shape = tuple(g.full for g in self.groups)
        self._fixed_nbytes = fixed_nbytes
        self._ladders = [np.array(ladder(g.full)) for g in self.groups]
        self._sizes = tuple(len(steps) for steps in self._ladders)
        steps = [np.searchsorted(s, g.lengths) for s, g in zip(self._ladders, self.groups, strict=True)]
        self._keys = np.ravel_multi_index(steps, self._sizes).astype(
            np.min_scalar_type(math.prod(self._sizes))
        )

    def lengths(self, shape: Shape) -> dict[str, int]:
        """Padded length of each input."""
        return {
            name: min(length, full)
            for length, group in zip(shape, self.groups, strict=True)
            for name, full, _ in group.inputs
        }

    def row_nbytes(self, shape: Shape) -> int:
        """Bytes of one row padded to a shape."""
        return self._fixed_nbytes + sum(g.nbytes(n) for n, g in zip(shape, self.groups, strict=True))

    def extremes(self) -> dict[Shape, tuple[int, int]]:
        """For each shape that rows have, but the full one, the numbers of the shortest and the longest row."""
        items = np.sum([g.lengths for g in self.groups], axis=0)
        order, ends = self._order(self._keys)
        found = {}
        for key, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if end > start and (shape := self._shape(key)) != self.full:
                rows = order[start:end]
                found[shape] = int(rows[items[rows].argmin()]), int(rows[items[rows].argmax()])
        return found

    def items(self, row: int) -> int:
        """Length of a row, summed over the groups."""
        return sum(int(g.lengths[row]) for g in self.groups)

    def batches(self, max_rows: int, max_nbytes: int, floor: Shape | None = None) -> Iterator[Batch]:
        """Batches within both limits, from short rows to long ones; equal rows keep their order.

        What is left of a shape after its full batches joins the next longer shape where the padding that it
        then needs costs less than one more request.

        Parameters
        ----------
        max_rows, max_nbytes : int
        floor : Shape, optional
            Rows of this and smaller shapes get the full one.
        """
        keys = self._keys
        last = math.prod(self._sizes) - 1
        if floor is not None:
            short = [k for k in np.flatnonzero(np.bincount(keys)).tolist() if self._shape(k) <= floor]
            keys = np.where(np.isin(keys, np.array(short, keys.dtype)), keys.dtype.type(last), keys)
        order, ends = self._order(keys)
        sizes = np.diff(ends, prepend=0)
        present = np.flatnonzero(sizes).tolist()
        alike = len(present) == 1  # ranges of rows are views
        start, end, padding_nbytes = 0, 0, 0
        shape: Shape = ()
        for key, after in zip(present, [*present[1:], None], strict=True):
            wider = self._wider(shape, self._shape(key)) if end > start else self._shape(key)
            shape, end = wider, end + int(sizes[key])
            nbytes = self.row_nbytes(shape)
            limit = max(1, min(max_rows, max_nbytes // max(nbytes, 1)))
            while end - start >= limit:
                yield self._batch(None if alike else order, slice(start, start + limit), shape)
                start, padding_nbytes = start + limit, 0
            if start == end:
                continue
            if after is not None:
                more = self.row_nbytes(self._wider(shape, self._shape(after))) - nbytes
                padding_nbytes += (end - start) * more
                if padding_nbytes < REQUEST_NBYTES:
                    continue
            yield self._batch(None if alike else order, slice(start, end), shape)
            start, padding_nbytes = end, 0

    @staticmethod
    def _order(keys: npt.NDArray[np.unsignedinteger]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows by their keys, equal ones in order, and where each key ends; keys of 16 bits need no comparison."""
        return np.argsort(keys, kind="stable"), np.cumsum(np.bincount(keys))

    def _batch(self, order: npt.NDArray[np.int64] | None, place: slice, shape: Shape) -> Batch:
        """One batch."""
        which = place if order is None else order[place]
        return Batch(which, place.stop - place.start, self.lengths(shape))

    def _shape(self, key: int) -> Shape:
        """The shape behind a key."""
        steps = np.unravel_index(key, self._sizes)
        return tuple(int(s[i]) for s, i in zip(self._ladders, steps, strict=True))

    @staticmethod
    def _wider(one: Shape, other: Shape) -> Shape:
        """The smallest shape that both fit."""
        return tuple(map(max, one, other))
