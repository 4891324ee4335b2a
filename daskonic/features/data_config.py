"""What a data configuration says of a network's inputs, whichever tool wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daskonic.errors import SpecError
from daskonic.features.formula import Formula
from daskonic.features.plan import Variable

__all__ = ["ConfigInput", "DataConfig", "mapping", "number"]


@dataclass(frozen=True, slots=True)
class ConfigInput:
    """One input tensor.

    Attributes
    ----------
    name : str
    length : int or None
        Most items of each row; None for variables with one value in each row.
    pad_mode : {"constant", "wrap"}
    variables : tuple of Variable
    min_length : int or None
        Fewest items of each row that the network takes; None for ``length``, where the model does not leave it open.
    """

    name: str
    length: int | None
    pad_mode: str
    variables: tuple[Variable, ...]
    min_length: int | None = None


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What daskonic uses of a data configuration.

    Attributes
    ----------
    tool : str
        Name of the constructor of ``Features``, for messages.
    path : str
    digest : str
        SHA-256 of the file.
    inputs : tuple of ConfigInput
    formulas : dict of str to Formula
    labels : tuple of str
        Names of the classes, in the order of the network's outputs; empty if not simple.
    """

    tool: str
    path: str
    digest: str
    inputs: tuple[ConfigInput, ...]
    formulas: dict[str, Formula]
    labels: tuple[str, ...]


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """A mapping, or an error."""
    if not isinstance(value, Mapping):
        raise SpecError(f"{where} is {type(value).__name__}; a mapping is needed")
    return value


def number(value: Any, where: str) -> float:
    """A number, or an error."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpecError(f"{where} is {value!r}; a number is needed")
    return float(value)
