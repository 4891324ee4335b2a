"""Rows out of any nesting, the nesting back around the rows, and rows into rectangles.

This is the hot path between physics objects and a network. The flat arrays are NumPy; awkward is
asked only for counts and contents, by its public functions, so masked, indexed, sliced and virtual
arrays all work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from daskonic.errors import InputError, SpecError
from daskonic.tensors import Array

__all__ = ["Layout", "Level", "content", "depth_of", "flatten", "mask", "pad", "unflatten"]

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One level of nesting.

    Attributes
    ----------
    missing : array of bool, or None
        Where the array has None; None if nowhere.
    counts : array of int64, or None
        Items in each list that is not missing; None at the level of the rows.
    size : int or None
        Their common length where the type says that it is one.
    """

    missing: npt.NDArray[np.bool_] | None
    counts: Counts | None
    size: int | None = None

    def same(self, other: Level) -> bool:
        """Whether both nest alike."""
        return _same(self.missing, other.missing) and _same(self.counts, other.counts)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The nesting above the rows: what :func:`flatten` took away and :func:`unflatten` puts back.

    Attributes
    ----------
    n_rows : int
    levels : tuple of Level
        From the outermost to the rows; empty for NumPy.
    shape : tuple of int
        Shape above the rows, for NumPy.
    """

    n_rows: int
    levels: tuple[Level, ...] = ()
    shape: tuple[int, ...] = ()

    def same(self, other: Layout) -> bool:
        """Whether both nest alike; for NumPy against awkward the counts decide."""
        if self.n_rows != other.n_rows:
            return False
        if self.levels and other.levels:
            return len(self.levels) == len(other.levels) and all(
                a.same(b) for a, b in zip(self.levels, other.levels, strict=True)
            )
        return True

    def position(self, row: int) -> tuple[int, ...]:
        """Indices of a row in the nested array, such as (event, jet)."""
        if not self.levels:
            return tuple(int(i) for i in np.unravel_index(row, self.shape))
        position: list[int] = []
        for level in reversed(self.levels):
            if level.counts is not None:
                offsets = np.concatenate([[0], np.cumsum(level.counts)])
                outer = int(np.searchsorted(offsets, row, side="right")) - 1
                position.append(row - int(offsets[outer]))
                row = outer
            if level.missing is not None:
                row = int(np.flatnonzero(~level.missing)[row])
        # Only the innermost None shifts an index inside its list; rows are told as the user sees them.
        return (row, *reversed(position))


def flatten(array: Any, depth: int) -> tuple[Any, Layout]:
    """Take away the nesting above the rows.

    Parameters
    ----------
    array : ak.Array or numpy.ndarray
        Rows are the items at ``depth``: 1 for ``n_jets * Jet``, 2 for ``n_events * var * Jet``.
    depth : int
        At least 1.

    Returns
    -------
    rows : ak.Array or numpy.ndarray
        All items that are not None, in order.
    layout : Layout
    """
    if isinstance(array, np.ndarray):
        shape = array.shape[:depth]
        rows = array.reshape(math.prod(shape), *array.shape[depth:])
        return rows, Layout(len(rows), shape=shape)
    levels: list[Level] = []
    for _ in range(depth - 1):
        array, missing = _without_missing(array)
        inner = array.type.content
        size = inner.size if isinstance(inner, ak.types.RegularType) else None
        counts = np.asarray(ak.num(array, axis=1), dtype=np.int64)
        levels.append(Level(missing, counts, size))
        array = ak.flatten(array, axis=1)
    array, missing = _without_missing(array)
    levels.append(Level(missing, None))
    return array, Layout(len(array), tuple(levels))


def unflatten(values: Array | Mapping[str, Array], layout: Layout) -> Any:
    """Put the nesting back around rows.

    Parameters
    ----------
    values : array, [n_rows, ...], or mapping of str to such arrays
        A mapping becomes a record.
    layout : Layout

    Returns
    -------
    ak.Array or numpy.ndarray
        NumPy if the layout is NumPy's and ``values`` is one array.
    """
    if not layout.levels:
        if isinstance(values, Mapping):
            return _record(
                {name: v.reshape(*layout.shape, *v.shape[1:]) for name, v in values.items()}, layout
            )
        return values.reshape(*layout.shape, *values.shape[1:])
    array = _record(values, layout) if isinstance(values, Mapping) else _from_numpy(values)
    for level in reversed(layout.levels):
        if level.counts is not None:
            array = ak.unflatten(array, level.counts)
            if level.size is not None:
                array = ak.to_regular(array, axis=1)
        if level.missing is not None:
            array = _with_missing(array, level.missing)
    return array


def mask(nested: Any, keep: npt.NDArray[np.bool_], layout: Layout) -> Any:
    """None in the place of rows.

    Parameters
    ----------
    nested : ak.Array or numpy.ndarray
        As :func:`unflatten` gives it.
    keep : array of bool, [n_rows]
    layout : Layout

    Returns
    -------
    ak.Array
    """
    array = _from_numpy(nested) if isinstance(nested, np.ndarray) else nested
    return ak.mask(array, unflatten(keep, layout))


def content(array: Any, what: str) -> tuple[Array, Counts | None]:
    """Flat values of one column of rows, and the counts if it is jagged.

    Parameters
    ----------
    array : ak.Array or numpy.ndarray, ``n_rows * T`` or ``n_rows * var * T``
        T is a number or a regular array of numbers.
    what : str
        Name of the column, for messages.

    Raises
    ------
    SpecError
        Nested more deeply, or not of numbers.
    InputError
        None inside a row.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(f"{what} is a NumPy masked array; make it an awkward array with None, or fill it")
    if isinstance(array, np.ndarray):
        return _of_numbers(array, what), None
    kind = array.type
    counts = None
    try:
        if isinstance(_inside_option(kind.content), ak.types.ListType):
            if ak.any(ak.is_none(array, axis=0)):
                raise InputError(f"{what} has None where a list of values is needed (fill or drop these)")
            counts = np.asarray(ak.num(array, axis=1), dtype=np.int64)
            array = ak.flatten(array, axis=1)
        values = ak.to_numpy(array, allow_missing=True)
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"{what} is {kind}: its values must be numbers, and at most one of its dimensions inside a row may be "
            "jagged, the first"
        ) from error
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            raise InputError(f"{what} has None inside a row (fill or drop these, e.g. by ak.fill_none)")
        values = values.data
    if values.dtype.kind == "O" or isinstance(array.type.content, ak.types.UnknownType):
        values = np.zeros(values.shape, np.float32)  # an empty array of no type
    return _of_numbers(values, what), counts


def depth_of(array: Any) -> int:
    """Dimensions of an array; a record counts as one item."""
    return int(array.ndim) if isinstance(array, np.ndarray) else int(array.layout.purelist_depth)


def pad(
    columns: Sequence[Array], counts: Counts, planes: Sequence[Array], mode: str, fill: Sequence[float]
) -> None:
    """Write jagged columns into rectangles.

    Parameters
    ----------
    columns : sequence of array, [sum(counts), ...]
    counts : array of int64, [n_rows]
        Rows longer than the rectangle are cut at its end.
    planes : sequence of array, [n_rows, length, ...]
        One for each column; overwritten.
    mode : {"constant", "wrap"}
        What follows the last item: the fill value, or the items again from the first.
    fill : sequence of float
        One for each column. An empty row is all fill, and all 0 in mode ``"wrap"``.
    """
    if mode == "wrap":
        _pad_wrap(columns, counts, planes)
    else:
        _pad_constant(columns, counts, planes, fill)


def _pad_constant(
    columns: Sequence[Array], counts: Counts, planes: Sequence[Array], fill: Sequence[float]
) -> None:
    """Fill, then scatter each column by one index that all share."""
    length = planes[0].shape[1]
    inside = np.arange(length) < counts[:, None]
    keep = None
    if len(counts) and counts.max() > length:
        keep = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts) < length
    for column, plane, value in zip(columns, planes, fill, strict=True):
        plane[...] = value
        plane[inside] = column if keep is None else column[keep]


def _pad_wrap(columns: Sequence[Array], counts: Counts, planes: Sequence[Array]) -> None:
    """Gather each column by one index that all share."""
    starts = np.cumsum(counts) - counts
    index = starts[:, None] + np.arange(planes[0].shape[1]) % np.maximum(counts, 1)[:, None]
    empty = counts == 0
    for column, plane in zip(columns, planes, strict=True):
        plane[...] = column.take(index, axis=0, mode="clip") if len(column) else 0
        plane[empty] = 0


def _without_missing(array: Any) -> tuple[Any, npt.NDArray[np.bool_] | None]:
    """Drop None at the outermost level, and tell where it was."""
    if not isinstance(array.type.content, ak.types.OptionType):
        return array, None
    missing = np.asarray(ak.is_none(array, axis=0))
    return ak.drop_none(array, axis=0), missing


def _with_missing(array: Any, missing: npt.NDArray[np.bool_]) -> Any:
    """Put None back."""
    index = np.full(len(missing), -1, dtype=np.int64)
    index[~missing] = np.arange(len(array))
    return ak.Array(ak.contents.IndexedOptionArray.simplified(ak.index.Index64(index), array.layout))


def _record(values: Mapping[str, Array], layout: Layout) -> Any:
    """One record of several arrays."""
    depth = max(len(layout.shape), 1)
    return ak.zip({name: _from_numpy(v) for name, v in values.items()}, depth_limit=depth)


def _from_numpy(values: Array) -> Any:
    """An awkward array whose trailing dimensions are regular."""
    return ak.from_numpy(values, regulararray=True)


def _of_numbers(values: Array, what: str) -> Array:
    """Refuse text, objects, times."""
    if values.dtype.kind not in "bifu":
        raise SpecError(f"{what} is of {values.dtype}; a network takes numbers")
    return values


def _inside_option(kind: Any) -> Any:
    """The type without its option."""
    return kind.content if isinstance(kind, ak.types.OptionType) else kind


def _same(first: npt.NDArray[Any] | None, second: npt.NDArray[Any] | None) -> bool:
    """Whether two optional arrays are equal; all-False counts as nothing missing."""
    if first is None or second is None:
        rest = first if second is None else second
        return rest is None or (rest.dtype == np.bool_ and not rest.any())
    return np.array_equal(first, second)
