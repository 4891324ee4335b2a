"""Flat columns of all rows, and batches of tensors made from them.

A :class:`Rows` holds references to flat columns. A batch is made in two steps, both on a piece that fits
the processor's cache: :meth:`Rows.features` evaluates the formulas, :meth:`Rows.tensors`
standardises, pads and casts. Nothing padded exists for more than one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from daskonic.errors import ConfigError, InputError
from daskonic.features.formula import Formula, evaluate_flat
from daskonic.ragged import Counts, Layout, pad
from daskonic.tensors import ANY, Array

__all__ = ["Block", "Column", "Inputs", "Pad", "Plan", "Rows", "Variable", "evaluate"]

PAD_MODES = ("constant", "wrap")


@dataclass(frozen=True, slots=True)
class Pad:
    """How rows of different lengths become a rectangle.

    Parameters
    ----------
    length : int, optional
        Items of each row; longer rows are cut. Default is the model's own length, or where it
        leaves it open, the longest row of each batch.
    mode : {"constant", "wrap"}
        What follows the last item: ``value``, or the items again from the first.
    value : float
    channels : {"first", "last"}
        Where the columns of an input that is given as a list go: ``[columns, length]`` as in
        weaver, or ``[length, columns]``.
    """

    length: int | None = None
    mode: str = "constant"
    value: float = 0.0
    channels: str = "first"

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise ConfigError(f"length of a Pad is {self.length}; at least 1 is needed")
        if self.mode not in PAD_MODES:
            raise ConfigError(f"mode of a Pad is {self.mode!r}; there are {', '.join(PAD_MODES)}")
        if self.channels not in ("first", "last"):
            raise ConfigError(f"channels of a Pad are {self.channels!r}; there are 'first' and 'last'")


@dataclass(frozen=True, slots=True)
class Variable:
    """A column and its standardisation ``clip((x - center) * scale, low, high)``, none if no center."""

    name: str
    center: float | None = None
    scale: float = 1.0
    low: float = -5.0
    high: float = 5.0
    pad_value: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How one input tensor of the model is made.

    Attributes
    ----------
    name : str
        The model's name of it.
    dtype : numpy.dtype
    shape : tuple of int
        Of one row; ``-1`` where the batch's longest row decides.
    variables : tuple of Variable
    pad : Pad or None
        None for columns that are not jagged.
    stacked : bool
        Whether the columns are channels; otherwise there is one, which is the tensor.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    variables: tuple[Variable, ...]
    pad: Pad | None
    stacked: bool


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """Flat values of one variable.

    Attributes
    ----------
    values : array, [n_rows, ...], or [sum(counts), ...] if jagged
    counts : array of int64, [n_rows], or None
        Values in each row; None where each row has one.
    """

    values: Array
    counts: Counts | None = None


@dataclass(slots=True, eq=False)
class Block:
    """Columns of one batch."""

    batch: slice
    columns: dict[str, Column]


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
    nan_to_zero : bool
        Whether NaN becomes 0 as in weaver, or is an error.
    """

    layout: Layout
    columns: Mapping[str, Column]
    steps: tuple[Formula, ...]
    plans: tuple[Plan, ...]
    nan_to_zero: bool = False
    _offsets: dict[int, Counts] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.layout.n_rows

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row in a message; of the longest where the length is open."""
        return sum(plan.dtype.itemsize * int(np.prod(self._shape(plan, self.columns))) for plan in self.plans)

    def features(self, batch: slice) -> Block:
        """Variables of one batch, still flat."""
        counts: dict[int, Counts] = {}
        columns = {name: self._piece(column, batch, counts) for name, column in self.columns.items()}
        for formula in self.steps:
            columns[formula.name] = evaluate(formula, columns)
        return Block(batch, columns)

    def tensors(self, block: Block) -> dict[str, Array]:
        """Inputs of one batch: C-contiguous, in the model's shapes and dtypes.

        Raises
        ------
        InputError
            A value that is not finite, or an integer the model's dtype cannot hold.
        """
        return {plan.name: self._tensor(plan, block) for plan in self.plans}

    def _tensor(self, plan: Plan, block: Block) -> Array:
        """One input of one batch."""
        n_rows = block.batch.stop - block.batch.start
        values = [self._ready(v, plan, block) for v in plan.variables]
        if plan.pad is None:
            return np.stack(values, axis=1) if plan.stacked else np.ascontiguousarray(values[0])
        out = np.empty((n_rows, *self._shape(plan, block.columns)), plan.dtype)
        channels = plan.pad.channels if plan.stacked else "none"
        counts = [block.columns[v.name].counts for v in plan.variables]
        for which in _groups(counts):
            common = counts[which[0]]
            pad(
                [values[i] for i in which],
                np.ones(n_rows, np.int64) if common is None else common,
                _planes(out, which, channels),
                plan.pad.mode,
                [plan.variables[i].pad_value for i in which],
            )
        return out

    def _ready(self, variable: Variable, plan: Plan, block: Block) -> Array:
        """Values of a variable, standardised, finite, in the model's dtype."""
        values = block.columns[variable.name].values
        if variable.center is not None:
            scaled: npt.NDArray[np.float32] = np.subtract(values, variable.center, dtype=np.float32)
            scaled *= np.float32(variable.scale)
            values = np.clip(scaled, variable.low, variable.high, out=scaled)
        with np.errstate(all="ignore"):
            cast = values if values.dtype == plan.dtype else _cast(values, variable.name, plan)
            if cast.dtype.kind == "f" and not np.isfinite(np.add.reduce(cast, axis=None)):
                cast = self._finite(cast, values, variable, plan, block)
        return cast

    def _finite(self, cast: Array, values: Array, variable: Variable, plan: Plan, block: Block) -> Array:
        """Weaver's zeros for NaN if the user wants them; otherwise an error that names the first bad row."""
        if self.nan_to_zero:
            cast = np.where(np.isnan(cast), cast.dtype.type(0), cast)
        bad = ~np.isfinite(cast)
        if not bad.any():  # a sum of finite numbers may overflow
            return cast
        item = int(np.flatnonzero(bad)[0])
        counts = block.columns[variable.name].counts
        in_block = item // (bad.size // len(bad))
        if counts is not None:
            in_block = int(np.searchsorted(np.cumsum(counts), in_block, side="right"))
        row = block.batch.start + in_block
        position = ", ".join(map(str, self.layout.position(row)))
        value = values.reshape(-1)[item]
        raise InputError(
            f"variable {variable.name!r} (input {plan.name!r}) is not finite in {plan.dtype.name} for {int(bad.sum())} "
            f"values in rows {block.batch.start} to {block.batch.stop - 1}, the first {value} in row {row} "
            f"(index {position}); mend the input"
            + (
                ", or let NaN become 0 as weaver does: Features.from_weaver(..., nan='zero')"
                if np.isnan(value)
                else ""
            )
        )

    def _shape(self, plan: Plan, columns: Mapping[str, Column]) -> tuple[int, ...]:
        """Shape of one row, the open length set to the longest of ``columns``."""
        if ANY not in plan.shape:
            return plan.shape
        longest = 1
        for variable in plan.variables:
            column = columns.get(variable.name)
            if column is not None and column.counts is not None and len(column.counts):
                longest = max(longest, int(column.counts.max()))
        return tuple(longest if d == ANY else d for d in plan.shape)

    def _piece(self, column: Column, batch: slice, pieces: dict[int, Counts]) -> Column:
        """The rows of one batch; views, and one array of counts for all columns that share theirs."""
        if column.counts is None:
            return Column(column.values[batch])
        key = id(column.counts)
        if key not in self._offsets:
            self._offsets[key] = np.concatenate([[0], np.cumsum(column.counts)])
        offsets = self._offsets[key]
        counts = pieces.setdefault(key, column.counts[batch])
        return Column(column.values[offsets[batch.start] : offsets[batch.stop]], counts)


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


def _cast(values: Array, what: str, plan: Plan) -> Array:
    """To the model's dtype; an integer that would wrap around is an error."""
    if plan.dtype.kind in "iu" and values.size:
        limits = np.iinfo(plan.dtype)
        low, high = int(values.min()), int(values.max())
        if low < limits.min or high > limits.max:
            raise InputError(
                f"{what!r} (input {plan.name!r}) has values from {low} to {high}; the model's {plan.dtype.name} "
                f"holds {limits.min} to {limits.max}"
            )
    return values.astype(plan.dtype)


class Inputs(Protocol):
    """Named inputs, still as jagged as the objects, checked against the model."""

    def flatten(self) -> Rows:
        """Flat columns of all rows."""
