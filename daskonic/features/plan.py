"""How input tensors are made of columns: what rows, batches and features share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskonic.errors import ConfigError, InputError
from daskonic.features.buckets import Which
from daskonic.ragged import Counts
from daskonic.tensors import Array

__all__ = ["NAN", "PAD_MODES", "Block", "Column", "Pad", "Plan", "Variable", "as_dtype", "shared"]

PAD_MODES = ("constant", "wrap")
NAN = ("error", "zero", "keep")
"""What becomes of NaN: an error, 0 as in weaver, or NaN, which a tree model takes for a missing value."""


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
    min_length : int
        Fewest items that the model takes, where it leaves the length open: 17 where it looks for the 16 nearest
        neighbours.
    """

    length: int | None = None
    mode: str = "constant"
    value: float = 0.0
    channels: str = "first"
    min_length: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.min_length <= (self.length or self.min_length):
            raise ConfigError(
                f"min_length of a Pad is {self.min_length}; 1 to its length ({self.length}) is possible"
            )
        if self.length is not None and self.length < 1:
            raise ConfigError(f"length of a Pad is {self.length}; at least 1 is needed")
        if self.mode not in PAD_MODES:
            raise ConfigError(f"mode of a Pad is {self.mode!r}; there are {', '.join(PAD_MODES)}")
        if self.channels not in ("first", "last"):
            raise ConfigError(f"channels of a Pad are {self.channels!r}; there are 'first' and 'last'")


@dataclass(frozen=True, slots=True)
class Variable:
    """A column and its standardisation ``clip((x - center) * scale, low, high)``, none if no center.

    Attributes
    ----------
    replace : float or None
        What CMSSW takes before that instead of a value that is not finite, or is beyond 1e32.
    """

    name: str
    center: float | None = None
    scale: float = 1.0
    low: float = -5.0
    high: float = 5.0
    pad_value: float = 0.0
    replace: float | None = None


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
    any_length : bool
        Whether the model takes rows of any length, so that they can be sent shorter than ``shape``.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    variables: tuple[Variable, ...]
    pad: Pad | None
    stacked: bool
    any_length: bool = False

    @property
    def axis(self) -> int:
        """The dimension of ``shape`` that is padded."""
        return int(self.stacked and self.pad is not None and self.pad.channels == "first")

    @property
    def item_nbytes(self) -> int:
        """Bytes of one item of one row, all channels together."""
        rest = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return self.dtype.itemsize * math.prod(rest)


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

    which: Which
    n_rows: int
    columns: dict[str, Column]


def shared(counts: Counts, known: list[Counts]) -> Counts:
    """An equal array that is known already, so that its columns are gathered and padded together."""
    for other in known:
        if np.array_equal(other, counts):
            return other
    known.append(counts)
    return counts


def as_dtype(values: Array, dtype: np.dtype[Any], what: str, name: str) -> Array:
    """To the model's dtype; an integer that would wrap around is an error."""
    if values.dtype == dtype:
        return values
    if dtype.kind in "iu" and values.size:
        limits = np.iinfo(dtype)
        low, high = int(values.min()), int(values.max())
        if low < limits.min or high > limits.max:
            raise InputError(
                f"{what!r} (input {name!r}) has values from {low} to {high}; the model's {dtype.name} "
                f"holds {limits.min} to {limits.max}"
            )
    return values.astype(dtype)
