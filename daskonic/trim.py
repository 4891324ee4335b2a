"""Whether a model's scores stay the same when its inputs are padded less.

A network that masks its padding gives the same scores at any padded length, and sending it less padding saves
most of the bytes. One that does not (a mean over all places, say) would give other scores, silently.
So each length is tried once, on real rows, before it is used.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

from daskonic.errors import InferenceError, ResponseError
from daskonic.features.buckets import Batch, Buckets, Shape, split
from daskonic.features.rows import Rows
from daskonic.pool import Pool
from daskonic.tensors import Array, ModelSpec
from daskonic.tolerance import TOLERANCE, apart

__all__ = ["MODES", "floor"]

logger = logging.getLogger(__name__)

MODES = ("auto", "always", "never")

Send = Callable[[Rows, Iterable[Batch]], "Scores"]


class Scores(Protocol):
    """Outputs of all rows."""

    arrays: dict[str, Array]


@dataclass(slots=True)
class _Seen:
    """What is known of one model with one kind of features.

    Attributes
    ----------
    checked : dict of Shape to (int, int)
        Shapes that change nothing, with the fewest and most items of the rows that showed it.
    floor : Shape or None
        The largest shape that changes something; smaller ones are not tried.
    """

    checked: dict[Shape, tuple[int, int]] = field(default_factory=dict)
    floor: Shape | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def unknown(self, buckets: Buckets) -> dict[Shape, tuple[int, int]]:
        """Shapes to try, with their shortest and longest row: new ones, or known ones with rows beyond those seen."""
        new = {}
        for shape, (shortest, longest) in buckets.extremes().items():
            low, high = self.checked.get(shape, (1, 0))
            known = low <= buckets.items(shortest) and buckets.items(longest) <= high
            if not known and (self.floor is None or shape > self.floor):
                new[shape] = shortest, longest
        return new


_seen: WeakKeyDictionary[Pool, dict[Hashable, _Seen]] = WeakKeyDictionary()
_seen_lock = threading.Lock()


def floor(
    pool: Pool, spec: ModelSpec, how: Hashable, rows: Rows, buckets: Buckets, max_rows: int, send: Send
) -> Shape | None:
    """The largest shape that may not be used, since scores would not be the same; None if all may.

    Parameters
    ----------
    pool : Pool
        What is found out is kept as long as the pool is: once per worker process.
    spec : ModelSpec
    how : hashable
        Tells apart features, and outputs that are looked at.
    rows : Rows
    buckets : Buckets
        Of these rows.
    max_rows : int
        Of one request.
    send : callable
        Scores some rows in the batches given.
    """
    with _seen_lock:
        key = (spec.name, spec.version, spec.config_digest, how)
        seen = _seen.setdefault(pool, {}).setdefault(key, _Seen())
    with seen.lock:  # other tasks of this process would ask the same
        new = seen.unknown(buckets)
        if new:
            _try(seen, new, rows, buckets, max_rows, send, spec.name)
        return seen.floor


def _try(
    seen: _Seen,
    new: Mapping[Shape, tuple[int, int]],
    rows: Rows,
    buckets: Buckets,
    max_rows: int,
    send: Send,
    model: str,
) -> None:
    """Score the shortest and longest row of each new shape both ways."""
    numbers = np.unique([row for ends in new.values() for row in ends])
    sample = rows.take(numbers)
    all_full = [
        Batch(s, s.stop - s.start, buckets.lengths(buckets.full)) for s in split(len(numbers), max_rows)
    ]
    full = send(sample, all_full).arrays
    short = {
        shape: [
            Batch(np.searchsorted(numbers, ends[s]), s.stop - s.start, buckets.lengths(shape))
            for s in split(len(ends), max_rows)
        ]
        for shape, ends in ((shape, np.unique(ends)) for shape, ends in new.items())
    }
    for shape, arrays in _scores(sample, short, send).items():
        which = np.concatenate([batch.which for batch in short[shape]])
        why = arrays if isinstance(arrays, Exception) else _difference(full, arrays, which)
        if why is None:
            _widen(seen.checked, shape, [buckets.items(row) for row in new[shape]])
        elif seen.floor is None or shape > seen.floor:
            _tell(model, shape, buckets.full, why, first=seen.floor is None)
            seen.floor = shape


def _scores(
    sample: Rows, short: Mapping[Shape, list[Batch]], send: Send
) -> dict[Shape, dict[str, Array] | Exception]:
    """Outputs of each shape: all at once, or one by one if the model does not take one of them."""
    try:
        together = send(sample, [batch for batches in short.values() for batch in batches]).arrays
    except (InferenceError, ResponseError):
        return {shape: _attempt(sample, batches, send) for shape, batches in short.items()}
    return dict.fromkeys(short, together)


def _attempt(sample: Rows, batches: list[Batch], send: Send) -> dict[str, Array] | Exception:
    """Outputs of one shape, or why there are none."""
    try:
        return send(sample, batches).arrays
    except (InferenceError, ResponseError) as error:
        return error


def _difference(full: Mapping[str, Array], short: Mapping[str, Array], which: Array) -> str | None:
    """How far some rows are apart; None if they are the same to the tolerance."""
    largest = apart(*({name: values[which] for name, values in way.items()} for way in (full, short)))
    return f"scores differ by up to {largest:.2g}" if largest > TOLERANCE else None


def _widen(checked: dict[Shape, tuple[int, int]], shape: Shape, items: list[int]) -> None:
    """Remember which rows showed that a shape changes nothing."""
    low, high = checked.get(shape, (items[0], items[0]))
    checked[shape] = min(low, *items), max(high, *items)


def _tell(model: str, shape: Shape, full: Shape, why: str | Exception, *, first: bool) -> None:
    """Say once, for the user, and afterwards to the log what is not trimmed."""
    logger.log(
        logging.WARNING if first else logging.INFO,
        "model %r does not ignore padding: with rows padded to %s instead of %s, %s; rows as short as these are sent in full "
        "length (trim='always' sends them short all the same, trim='never' does not try)",
        model,
        _told(shape),
        _told(full),
        why,
    )


def _told(shape: Shape) -> str:
    """A shape as text."""
    return " and ".join(map(str, shape))
