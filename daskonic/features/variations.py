"""Nominal objects and their systematic variations in one call, each distinct row sent once.

A variation changes some rows and leaves others as they are: a shifted jet energy scale that moves no electron, a
resolution that is smeared only where there is a match. Rows are compared bit by bit once the features are made, so
that what is the same is sent once, and what differs in one bit is a row of its own.
"""

from __future__ import annotations

import dataclasses
import math
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

Words = npt.NDArray[np.uint64]

MIX = np.uint64(0x9E3779B97F4A7C15)
"""An odd number whose bits have no pattern: 2^64 over the golden ratio."""


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
    return Rows(rows.layout, columns, (), tuple(plans), rows.nan)


def _distinct(varied: Mapping[str, Rows]) -> DistinctRows:
    """The first of each kind of row, in order, and where the rows of each variation are among them."""
    some = {name: rows for name, rows in varied.items() if len(rows)} or dict([*varied.items()][:1])
    n_rows = sum(map(len, some.values()))
    columns, plans = _concatenated(some), next(iter(some.values())).plans
    whole = Rows(Layout(n_rows, shape=(n_rows,)), columns, (), plans)
    kinds, places = np.unique(_first_equal(whole), return_inverse=True)
    ends = np.cumsum([len(rows) for rows in varied.values()])
    return DistinctRows(
        Layout(len(kinds), shape=(len(kinds),)),
        whole.take(kinds).columns,
        (),
        plans,
        layouts={name: rows.layout for name, rows in varied.items()},
        places=dict(zip(varied, np.split(places, ends[:-1]), strict=True)),
    )


def _first_equal(rows: Rows) -> Counts:
    """For each row the number of the first one that is equal bit by bit.

    Rows of equal digests are compared, so that nothing depends on how good a digest is.
    """
    digests = np.zeros(len(rows), np.uint64)
    rng = np.random.default_rng(1)
    for column in rows.columns.values():
        digests = _mixed(digests + _digests(column, rng))
    _, first, kind = np.unique(digests, return_index=True, return_inverse=True)
    found: Counts = first[kind]
    again = np.flatnonzero(found != np.arange(len(rows)))
    other = again[_differ(rows, again, found[again])]
    found[other] = other
    return found


def _digests(column: Column, rng: np.random.Generator) -> Words:
    """A number for each row that depends on every bit of it, and on the places of its items."""
    bits = _bits(column.values)
    keys = rng.integers(2**63, size=bits.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    items: Words = _mixed(bits * keys).sum(axis=1, dtype=np.uint64)
    if column.counts is None:
        return items
    ends = np.cumsum(column.counts)
    starts = ends - column.counts
    items = _mixed(items + (np.arange(len(items)) - np.repeat(starts, column.counts)).astype(np.uint64) * MIX)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(items)])
    digests: Words = sums[ends] - sums[starts] + column.counts.astype(np.uint64)
    return digests


def _mixed(words: Words) -> Words:
    """Numbers in which all bits of the given ones have spread."""
    mixed: Words = (words ^ (words >> np.uint64(32))) * MIX
    mixed ^= mixed >> np.uint64(29)
    return mixed


def _differ(rows: Rows, one: Counts, other: Counts) -> npt.NDArray[np.bool_]:
    """Whether rows are not equal bit by bit, pair by pair."""
    differ = np.zeros(len(one), np.bool_)
    for column in rows.columns.values():
        if column.counts is not None:
            differ |= column.counts[one] != column.counts[other]
    alike = np.flatnonzero(~differ)
    left, right = rows.take(one[alike]), rows.take(other[alike])
    for name, column in left.columns.items():
        items = (_bits(column.values) != _bits(right.columns[name].values)).any(axis=1)
        of = alike if column.counts is None else np.repeat(alike, column.counts)
        differ[of[items]] = True
    return differ


def _bits(values: Array) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Values as whole numbers, [n, numbers of each]."""
    flat = np.ascontiguousarray(values).reshape(len(values), math.prod(values.shape[1:]))
    return flat.view(f"u{values.dtype.itemsize}")


def _concatenated(varied: Mapping[str, Rows]) -> dict[str, Column]:
    """Columns of all rows; those that share their counts in every variation go on sharing them."""
    (name, first), *others = varied.items()
    for other, rows in others:
        if rows.plans != first.plans or _jagged(rows) != _jagged(first):
            raise SpecError(
                f"variations {name!r} and {other!r} give inputs of different shapes; score them in calls of their own, or "
                "say how inputs that are jagged within a row are padded: dk.Features(..., pad={...})"
            )
    columns: dict[str, Column] = {}
    known: dict[tuple[int, ...], Counts | None] = {}
    for column in first.columns:
        parts = [rows.columns[column] for rows in varied.values()]
        key = tuple(id(part.counts) for part in parts)
        if key not in known:
            jagged = [part.counts for part in parts if part.counts is not None]
            known[key] = np.concatenate(jagged) if jagged else None
        columns[column] = Column(np.concatenate([part.values for part in parts]), known[key])
    return columns


def _jagged(rows: Rows) -> list[bool]:
    """Which columns are."""
    return [column.counts is not None for column in rows.columns.values()]


def _taken(values: Array | Mapping[str, Array], places: Counts) -> Array | dict[str, Array]:
    """Values of some rows."""
    if isinstance(values, Mapping):
        return {name: array[places] for name, array in values.items()}
    return values[places]
