"""Flat columns of all rows, and batches of tensors made from them.

A :class:`Rows` holds references to flat columns. A batch is made in two steps, both on a piece that fits
the processor's cache: :meth:`Rows.features` gathers the rows and evaluates the formulas,
:meth:`Rows.tensors` standardises, pads and casts. Nothing padded exists for more than one batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from daskonic.errors import InputError
from daskonic.features.buckets import Batch, Buckets, Ragged, Shape, Which, split
from daskonic.features.formula import Formula, evaluate_flat
from daskonic.features.plan import Block, Column, Plan, Variable, as_dtype
from daskonic.ragged import Counts, Layout, mask, pad, unflatten
from daskonic.tensors import ANY, Array, TensorSpec

if TYPE_CHECKING:
    from daskonic.features.graph_rows import GraphRows

__all__ = ["NO_LENGTHS", "Inputs", "Rows", "evaluate"]

NO_LENGTHS: Mapping[str, int] = {}

LARGEST = np.nextafter(np.float32(1e32), np.float32(0))
"""The largest value of float32 up to 1e32, beyond which CMSSW takes a number for an infinity."""


@dataclass(slots=True, eq=False)
class Rows:
    """All rows of one call.

    Attributes
    ----------
    layout : Layout
        Nesting above the rows.
    columns : dict of str to Column
    steps : tuple of Formula
        Evaluated batch by batch.
    plans : tuple of Plan
    nan : {"error", "zero", "keep"}
        What becomes of NaN.
    numbers : array of int64, [n_rows], or None
        Which rows of the layout these are; None if all of them, in order.
    """

    layout: Layout
    columns: Mapping[str, Column]
    steps: tuple[Formula, ...]
    plans: tuple[Plan, ...]
    nan: str = "error"
    numbers: Counts | None = None
    _offsets: dict[int, Counts] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.layout.n_rows if self.numbers is None else len(self.numbers)

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row in a message; of the longest where the length is open."""
        return sum(
            plan.dtype.itemsize * math.prod(self._shape(plan, self.columns, {})) for plan in self.plans
        )

    @property
    def useful_nbytes(self) -> int:
        """Bytes of all rows without any padding, in the model's dtypes."""
        if not len(self):
            return 0
        total, items = 0, dict[tuple[int, int], int]()
        for plan in self.plans:
            if plan.pad is None:
                total += len(self) * plan.dtype.itemsize * math.prod(plan.shape)
                continue
            for counts in self._counts(plan):
                key = id(counts), plan.shape[plan.axis]
                if key not in items:
                    items[key] = int(_cut(counts, key[1]).sum())
                total += items[key] * plan.item_nbytes // (len(plan.variables) if plan.stacked else 1)
        return total

    @property
    def n_saved(self) -> int:
        """Rows that need not be sent, since they are equal to one that is."""
        return 0

    @property
    def n_cut(self) -> int:
        """Rows that are longer than an input, of which the end is left out as in the training."""
        longer = np.zeros(len(self), np.bool_)
        for plan in self.plans:
            if plan.pad is not None and plan.shape[plan.axis] != ANY:
                for counts in self._counts(plan):
                    longer |= counts > plan.shape[plan.axis]
        return int(longer.sum())

    def buckets(self) -> Buckets | None:
        """Rows by their lengths; None if the model takes no other length than it gets in full."""
        plans: dict[tuple[int, ...], list[Plan]] = {}
        lengths: dict[tuple[int, ...], Counts] = {}
        for plan in self.plans:
            if plan.any_length and plan.pad is not None and len(self):
                counts = self._counts(plan)
                key = tuple(sorted({id(c) for c in counts}))
                plans.setdefault(key, []).append(plan)
                longest = np.maximum.reduce(counts) if len(key) > 1 else counts[0]
                lengths[key] = np.maximum(lengths.get(key, longest), plan.pad.min_length)
        groups = [
            Ragged.of(lengths[key], [(p.name, _length(p), p.item_nbytes) for p in plans[key]])
            for key in plans
        ]
        return (
            Buckets(groups, self._fixed_nbytes({p.name for key in plans for p in plans[key]}))
            if groups
            else None
        )

    def split(
        self, max_rows: int, max_nbytes: int, buckets: Buckets | None = None, floor: Shape | None = None
    ) -> Iterator[Batch]:
        """Batches within both limits: rows in order, or those of similar length together.

        Parameters
        ----------
        max_rows, max_nbytes : int
            Of one request.
        buckets : Buckets, optional
            Rows by length; without them each is padded to the full length.
        floor : Shape, optional
            Rows of this and smaller shapes are padded to the full length all the same.
        """
        if buckets is not None:
            return buckets.batches(max_rows, max_nbytes, floor)
        limit = max(1, min(max_rows, max_nbytes // max(self.row_nbytes, 1)))
        return (Batch(which, which.stop - which.start) for which in split(len(self), limit))

    def take(self, numbers: Counts) -> Rows:
        """Some of the rows, in the order given."""
        pieces: dict[int, tuple[Counts, Counts]] = {}
        columns = {name: self._piece(column, numbers, pieces) for name, column in self.columns.items()}
        return Rows(self.layout, columns, self.steps, self.plans, self.nan, numbers)

    def unflatten(self, values: Array | Mapping[str, Array], outputs: Sequence[str]) -> Any:  # noqa: ARG002
        """The nesting back around the rows; ``outputs`` are the names of the model's outputs."""
        return unflatten(values, self.layout)

    def mask(self, nested: Any, keep: npt.NDArray[np.bool_]) -> Any:
        """What :meth:`unflatten` gave, with None for the rows that are not kept."""
        return mask(nested, keep, self.layout)

    def offsets(self, output: TensorSpec) -> None:  # noqa: ARG002
        """Every output has one entry for each row."""
        return

    def features(self, which: Which) -> Block:
        """Variables of the rows of one batch, still flat."""
        pieces: dict[int, tuple[Counts, Counts]] = {}
        columns = {name: self._piece(column, which, pieces) for name, column in self.columns.items()}
        for formula in self.steps:
            columns[formula.name] = evaluate(formula, columns)
        n_rows = which.stop - which.start if isinstance(which, slice) else len(which)
        return Block(which, n_rows, columns)

    def tensors(self, block: Block, lengths: Mapping[str, int] = NO_LENGTHS) -> dict[str, Array]:
        """Inputs of one batch: C-contiguous, in the model's shapes and dtypes.

        Parameters
        ----------
        block : Block
        lengths : mapping of str to int
            Length that the rows of an input are padded to, where it is not the one of the plan.

        Raises
        ------
        InputError
            A value that is not finite, or an integer the model's dtype cannot hold.
        """
        return {plan.name: self._tensor(plan, block, lengths) for plan in self.plans}

    def _tensor(self, plan: Plan, block: Block, lengths: Mapping[str, int]) -> Array:
        """One input of one batch."""
        values = [self.ready(v, plan, block) for v in plan.variables]
        if plan.pad is None:
            return np.stack(values, axis=1) if plan.stacked else np.ascontiguousarray(values[0])
        out = np.empty((block.n_rows, *self._shape(plan, block.columns, lengths)), plan.dtype)
        channels = plan.pad.channels if plan.stacked else "none"
        counts = [block.columns[v.name].counts for v in plan.variables]
        for which in _groups(counts):
            common = counts[which[0]]
            pad(
                [values[i] for i in which],
                np.ones(block.n_rows, np.int64) if common is None else common,
                _planes(out, which, channels),
                plan.pad.mode,
                [plan.variables[i].pad_value for i in which],
            )
        return out

    def ready(self, variable: Variable, plan: Plan, block: Block) -> Array:
        """Values of a variable in one batch, standardised, finite, in the model's dtype."""
        values = block.columns[variable.name].values
        if variable.replace is not None:
            values = values.astype(np.float32, copy=False)
            values = np.where(np.abs(values) <= LARGEST, values, np.float32(variable.replace))
        if variable.center is not None:
            # Weaver keeps the precision of what is one value for each jet, such as an integer, and no other.
            dtype = np.float32 if plan.pad is not None else None
            scaled = np.subtract(values, variable.center, dtype=dtype)
            scaled *= scaled.dtype.type(variable.scale)
            values = np.clip(scaled, variable.low, variable.high, out=scaled)
        cast = values
        if values.dtype != plan.dtype:
            with np.errstate(all="ignore"):  # what does not fit is found below
                cast = as_dtype(values, plan.dtype, variable.name, plan.name)
        if cast.dtype.kind == "f" and not np.isfinite(cast).all():
            cast = self._finite(cast, values, variable, plan, block)
        return cast

    def _finite(self, cast: Array, values: Array, variable: Variable, plan: Plan, block: Block) -> Array:
        """Weaver's zeros for NaN, or NaN, if the user wants them; otherwise an error that names the first bad row."""
        if self.nan == "zero":
            cast = np.where(np.isnan(cast), cast.dtype.type(0), cast)
        bad = np.isinf(cast) if self.nan == "keep" else ~np.isfinite(cast)
        if not bad.any():
            return cast
        item = int(np.flatnonzero(bad)[0])
        counts = block.columns[variable.name].counts
        in_block = item // (bad.size // len(bad))
        if counts is not None:
            in_block = int(np.searchsorted(np.cumsum(counts), in_block, side="right"))
        row = self._number(block.which, in_block)
        position = ", ".join(map(str, self.layout.position(row)))
        value = values.reshape(-1)[item]
        raise InputError(
            f"variable {variable.name!r} (input {plan.name!r}) is not finite in {plan.dtype.name} for {int(bad.sum())} "
            f"values in {self._told(block)}, the first {value} in row {row} "
            f"(index {position}); mend the input"
            + (
                ", or let NaN become 0 as weaver does, Features.from_weaver(..., nan='zero'), or stay, for a model "
                "to which it is a missing value, Features(..., nan='keep')"
                if np.isnan(value)
                else ""
            )
        )

    def _told(self, block: Block) -> str:
        """The rows of a batch, for a message."""
        if isinstance(block.which, slice) and self.numbers is None:
            return f"rows {block.which.start} to {block.which.stop - 1}"
        return f"{block.n_rows} rows of similar length"

    def _number(self, which: Which, in_block: int) -> int:
        """Number in the layout of a row of a batch."""
        row = which.start + in_block if isinstance(which, slice) else int(which[in_block])
        return row if self.numbers is None else int(self.numbers[row])

    def _shape(
        self, plan: Plan, columns: Mapping[str, Column], lengths: Mapping[str, int]
    ) -> tuple[int, ...]:
        """Shape of one row, the length as told, or if it is open, that of the longest of ``columns``."""
        length = lengths.get(plan.name)
        if length is not None:
            return (*plan.shape[: plan.axis], length, *plan.shape[plan.axis + 1 :])
        if ANY not in plan.shape:
            return plan.shape
        longest = 1 if plan.pad is None else plan.pad.min_length
        for variable in plan.variables:
            column = columns.get(variable.name)
            if column is not None and column.counts is not None and len(column.counts):
                longest = max(longest, int(column.counts.max()))
        return tuple(longest if d == ANY else d for d in plan.shape)

    def _fixed_nbytes(self, ragged: set[str]) -> int:
        """Bytes of one row in the inputs that are always sent in full."""
        shapes = {p.name: self._shape(p, self.columns, {}) for p in self.plans if p.name not in ragged}
        return sum(p.dtype.itemsize * math.prod(shapes[p.name]) for p in self.plans if p.name in shapes)

    def _counts(self, plan: Plan) -> list[Counts]:
        """Items of each row in each variable of an input; formulas have those of their arguments."""
        known = {name: column.counts for name, column in self.columns.items()}
        for formula in self.steps:
            jagged = (known[name] for name in formula.arguments)
            known[formula.name] = next((c for c in jagged if c is not None), None)
        ones = np.ones(len(self), np.int64)
        counts = (known[v.name] for v in plan.variables)
        return [ones if c is None else c for c in counts]

    def _piece(self, column: Column, which: Which, pieces: dict[int, tuple[Counts, Counts]]) -> Column:
        """Some rows; one array of counts, and of indices, for all columns that share their counts.

        A range of rows is a view. Other rows are gathered by one flat index, batch by batch, so that
        no column is ever copied as a whole.
        """
        if column.counts is None:
            return Column(column.values[which])
        key = id(column.counts)
        if key not in self._offsets:
            self._offsets[key] = np.concatenate([[0], np.cumsum(column.counts)])
        offsets = self._offsets[key]
        if isinstance(which, slice):
            counts, _ = pieces.setdefault(key, (column.counts[which], offsets))
            return Column(column.values[offsets[which.start] : offsets[which.stop]], counts)
        if key not in pieces:
            counts = column.counts[which]
            ends = np.cumsum(counts)
            index = np.repeat(offsets[which] - ends + counts, counts)
            index += np.arange(len(index))
            pieces[key] = counts, index
        counts, index = pieces[key]
        return Column(column.values.take(index, axis=0), counts)


def _length(plan: Plan) -> int | None:
    """Full length of an input's rows; None if the longest decides."""
    length = plan.shape[plan.axis]
    return None if length == ANY else length


def _cut(counts: Counts, length: int) -> Counts:
    """Items of each row that fit."""
    return counts if length == ANY else np.minimum(counts, length)


def _groups(counts: Sequence[Counts | None]) -> list[list[int]]:
    """Indices of the columns that can be padded together."""
    groups: dict[int, list[int]] = {}
    for i, column in enumerate(counts):
        groups.setdefault(id(column), []).append(i)
    return list(groups.values())


def _planes(out: Array, which: Sequence[int], channels: str) -> list[Array]:
    """The rectangles ``[n_rows, length, ...]`` of some columns."""
    if channels == "none":
        return [out]
    return [out[:, i] if channels == "first" else out[:, :, i] for i in which]


def evaluate(formula: Formula, columns: Mapping[str, Column]) -> Column:
    """One formula; values of a row are repeated for its items where both kinds meet."""
    arguments = {name: columns[name] for name in formula.arguments}
    counts = _common_counts(formula, arguments.items())
    flat = {
        name: column.values
        if column.counts is not None or counts is None
        else np.repeat(column.values, counts)
        for name, column in arguments.items()
    }
    return Column(np.asarray(evaluate_flat(formula, flat)), counts)


def _common_counts(formula: Formula, columns: Iterable[tuple[str, Column]]) -> Counts | None:
    """Counts of the jagged arguments, which must be the same."""
    first: tuple[str, Counts] | None = None
    for name, column in columns:
        if column.counts is None:
            continue
        if first is None:
            first = (name, column.counts)
        elif column.counts is not first[1] and not np.array_equal(column.counts, first[1]):
            raise InputError(
                f"variable {formula.name!r} = {formula.text!r}: {first[0]} and {name} have different numbers of items"
            )
    return None if first is None else first[1]


class Inputs(Protocol):
    """Named inputs, still as jagged as the objects, checked against the model."""

    def flatten(self) -> Rows | GraphRows:
        """Flat columns of all rows."""
