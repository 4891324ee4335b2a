"""Items of rows, such as the hits of a plane or the constituents of a jet, for builders of inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import awkward as ak
import numpy as np

from daskonic.errors import InputError, SpecError
from daskonic.ragged import Counts, Layout, Level, content, depth_of, flatten, unflatten
from daskonic.tensors import Array

__all__ = ["Items"]


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """Flat columns of the items of all rows.

    Attributes
    ----------
    layout : Layout
        Nesting above the rows.
    counts : array of int64, [n_rows]
        Items of each row.
    columns : dict of str to array, [sum(counts), ...]
    """

    layout: Layout
    counts: Counts
    columns: dict[str, Array]

    @classmethod
    def of(cls, **arrays: Any) -> Self:
        """From arrays that nest alike; the first one has no dimension behind its items, others may.

        Raises
        ------
        SpecError
            They do not nest alike, or are not nested.
        InputError
            A value is not finite.
        """
        depth = depth_of(next(iter(arrays.values()))) - 1
        first: tuple[str, Layout, Counts] | None = None
        columns = {}
        for name, array in arrays.items():
            if depth < 1 or depth_of(array) <= depth:
                raise SpecError(f"{name} has {depth_of(array)} dimensions; rows of items have at least 2")
            rows, layout = flatten(array, depth)
            values, counts = content(rows, name)
            if counts is None:
                counts = np.full(len(values), values.shape[1], np.int64)
                values = values.reshape(-1, *values.shape[2:])
            if first is None:
                first = name, layout, counts
            elif not (first[1].same(layout) and np.array_equal(first[2], counts)):
                raise SpecError(f"{first[0]} and {name} do not nest alike")
            if not np.isfinite(values).all():
                raise InputError(f"{name} has values that are not finite")
            columns[name] = values
        assert first is not None
        return cls(first[1], first[2], columns)

    @property
    def row(self) -> Counts:
        """The row of each item."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def nest_rows(self, values: Array) -> Any:
        """One value for each row, in the nesting of the rows."""
        return unflatten(values, self.layout)

    def nest_lists(self, values: Array, counts: Counts) -> Any:
        """A list for each row, in the nesting of the rows."""
        if self.layout.levels:
            *outer, rows = self.layout.levels
            return unflatten(
                values, Layout(len(values), (*outer, Level(rows.missing, counts), Level(None, None)))
            )
        array = ak.unflatten(ak.from_numpy(values, regulararray=True), counts)
        for size in reversed(self.layout.shape[1:]):
            array = ak.unflatten(array, size)
        return array
