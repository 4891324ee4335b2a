"""Nominal objects and their systematic variations in one call, each distinct row sent once.

A variation changes some rows and leaves others as they are: a shifted jet energy scale that moves no electron, a
resolution that is smeared only where there is a match. Rows are compared bit by bit once the features are made, so
that what is the same is sent once, and what differs in one bit is a row of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from daskonic.errors import ConfigError, InputError, SpecError
from daskonic.features.graph_rows import GraphRows
from daskonic.features.plan import Column, Variable
from daskonic.features.rows import Inputs, Rows
from daskonic.ragged import Counts, Layout, mask, unflatten
from daskonic.tensors import Array

__all__ = ["DistinctRows", "Variations", "VariedInputs"]

DIGEST_NBYTES = 16
SHORT_NBYTES = 128
"""Rows up to this size are compared as they are; of longer ones a digest of 128 bits, to hold less."""


class Variations(Mapping[str, Any]):
    """Objects under several names, to be scored in one call.

    ``tagger(dk.Variations({"nominal": jets, "jes_up": jets_up}))`` gives a dict of scores with the same names, each as
    if it had been scored by itself. ``Pending.report`` tells in ``saved`` how many rows did not have to be sent.

    Parameters
    ----------
    objects : mapping of str to array, or iterable of pairs
        What the model takes; they may differ in events, counts and nesting.
    **more
        Further ones.

    Examples
    --------
    >>> scores = tagger(dk.Variations(nominal=jets, jes_up=up, jes_down=down))  # doctest: +SKIP
    >>> scores["jes_up"]  # doctest: +SKIP
    """

    def __init__(self, objects: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any) -> None:
        self._objects: dict[str, Any] = dict(objects, **more)
        if not self._objects:
            raise ConfigError("Variations of nothing; give at least one: dk.Variations(nominal=jets)")

    def __getitem__(self, name: str) -> Any:
        return self._objects[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    def __repr__(self) -> str:
        return f"Variations({', '.join(self)})"


@dataclass(frozen=True, slots=True)
class VariedInputs:
    """Inputs of each variation."""

    made: Mapping[str, Inputs]

    def flatten(self) -> DistinctRows:
        """The distinct rows of all."""
        rows = {}
        for name, inputs in self.made.items():
            try:
                rows[name] = _ready(inputs.flatten())
            except (InputError, SpecError) as error:
                raise type(error)(f"variation {name!r}: {error}") from error
        return _distinct(rows)


@dataclass(slots=True, eq=False)
class DistinctRows(Rows):
    """Rows of several variations, without those that are equal to an earlier one.

    Attributes
    ----------
    layouts : mapping of str to Layout
        Of each variation.
    places : mapping of str to array of int64
        Where among these rows each row of a variation is.
    """

    layouts: Mapping[str, Layout] = field(default_factory=dict)
    places: Mapping[str, Counts] = field(default_factory=dict)

    @property
    def n_saved(self) -> int:
        """Rows that need not be sent."""
        return sum(len(places) for places in self.places.values()) - self.layout.n_rows

    def unflatten(self, values: Array | Mapping[str, Array], outputs: Sequence[str]) -> Any:  # noqa: ARG002
        """The nesting of each variation back around its rows, in a dict."""
        return {
            name: unflatten(_taken(values, self.places[name]), layout)
            for name, layout in self.layouts.items()
        }

    def mask(self, nested: Any, keep: npt.NDArray[np.bool_]) -> Any:
        """What :meth:`unflatten` gave, with None for the rows that are not kept."""
        return {
            name: mask(nested[name], keep[self.places[name]], layout) for name, layout in self.layouts.items()
        }


def _ready(rows: Rows | GraphRows) -> Rows:
    """Rows whose columns are what travels, but for padding: standardised, finite, in the model's types.

    So rows are compared as the model would see them, and each variation is made as it would be by itself: where formulas
    see float64 in one variation, a nominal score does not change its last bit.
    """
    if not isinstance(rows, Rows):
        raise SpecError(
            "graphs are not compared; start one call for each variation, model.submit(objects), and then collect them"
        )
    block = rows.features(slice(0, len(rows)))
    columns, plans = {}, []
    for plan in rows.plans:
        variables = tuple(
            Variable(f"{plan.name}[{i}]", pad_value=v.pad_value) for i, v in enumerate(plan.variables)
        )
        for made, variable in zip(variables, plan.variables, strict=True):
            counts = block.columns[variable.name].counts
            columns[made.name] = Column(rows.ready(variable, plan, block), counts)
        plans.append(dataclasses.replace(plan, variables=variables))
    return Rows(rows.layout, columns, (), tuple(plans))


def _distinct(varied: Mapping[str, Rows]) -> DistinctRows:
    """The first of each kind of row, in order, and where the rows of each variation are among them."""
    some = {name: rows for name, rows in varied.items() if len(rows)} or dict([*varied.items()][:1])
    groups = _groups(some)
    places: dict[str, Counts] = {name: np.empty(0, np.int64) for name in varied}
    seen: dict[tuple[bytes, ...], int] = {}
    first = []
    for name, rows in some.items():
        n_before = len(seen)
        keys = zip(*(_pieces(rows, group) for group in groups), strict=True)
        places[name] = np.fromiter((seen.setdefault(key, len(seen)) for key in keys), np.int64, len(rows))
        kinds, numbers = np.unique(places[name], return_index=True)
        first.append(rows.take(numbers[kinds >= n_before]))
    layouts = {name: rows.layout for name, rows in varied.items()}
    layout = Layout(len(seen), shape=(len(seen),))
    return DistinctRows(
        layout, _concatenated(first, groups), (), first[0].plans, layouts=layouts, places=places
    )


def _groups(varied: Mapping[str, Rows]) -> list[list[str]]:
    """Columns that have their counts in common in every variation."""
    (name, first), *others = varied.items()
    for other, rows in others:
        if rows.plans != first.plans or _jagged(rows) != _jagged(first):
            raise SpecError(
                f"variations {name!r} and {other!r} give inputs of different shapes; score them in calls of their own, or "
                "say how inputs that are jagged within a row are padded: dk.Features(..., pad={...})"
            )
    groups: dict[tuple[int, ...], list[str]] = {}
    for column in first.columns:
        groups.setdefault(tuple(id(r.columns[column].counts) for r in varied.values()), []).append(column)
    return list(groups.values())


def _jagged(rows: Rows) -> list[bool]:
    """Which columns are."""
    return [column.counts is not None for column in rows.columns.values()]


def _pieces(rows: Rows, names: Sequence[str]) -> Iterator[bytes]:
    """For each row the bytes, or their digest, of columns with the same counts."""
    columns = [rows.columns[name] for name in names]
    raw = [
        np.ascontiguousarray(c.values).reshape(len(c.values), int(np.prod(c.values.shape[1:]))).view(np.uint8)
        for c in columns
    ]
    items = np.concatenate(raw, axis=1)
    counts = columns[0].counts
    ends = np.arange(1, len(items) + 1) if counts is None else np.cumsum(counts)
    text, start = items.tobytes(), 0
    for end in (ends * items.shape[1]).tolist():
        piece = text[start:end]
        start = end
        yield (
            piece
            if len(piece) <= SHORT_NBYTES
            else hashlib.blake2b(piece, digest_size=DIGEST_NBYTES).digest()
        )


def _concatenated(rows: Sequence[Rows], groups: Sequence[Sequence[str]]) -> dict[str, Column]:
    """Columns of all these rows, those of a group with one array of counts."""
    columns = {}
    for names in groups:
        parts = [r.columns[names[0]].counts for r in rows]
        counts = None if parts[0] is None else np.concatenate([c for c in parts if c is not None])
        for name in names:
            columns[name] = Column(np.concatenate([r.columns[name].values for r in rows]), counts)
    return columns


def _taken(values: Array | Mapping[str, Array], places: Counts) -> Array | dict[str, Array]:
    """Values of some rows."""
    if isinstance(values, Mapping):
        return {name: array[places] for name, array in values.items()}
    return values[places]
