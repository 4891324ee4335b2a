"""Weaver's data configuration, the part that makes inputs: variables, standardisation, padding.

Labels, weights, selections and samplers belong to the training and are not looked at; every jet is scored. The
meaning of each key was taken from weaver-core 0.5.3 [1]_.

References
----------
.. [1] https://github.com/hqucms/weaver-core, ``weaver/utils/data/config.py`` and ``tools.py``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from daskonic.errors import SpecError
from daskonic.features.formula import Formula, parse
from daskonic.features.plan import PAD_MODES, Variable

__all__ = ["WeaverConfig", "WeaverInput", "load"]


@dataclass(frozen=True, slots=True)
class WeaverInput:
    """One input tensor.

    Attributes
    ----------
    name : str
    length : int or None
        Items of each row; None for variables with one value in each row.
    pad_mode : {"constant", "wrap"}
    variables : tuple of Variable
    """

    name: str
    length: int | None
    pad_mode: str
    variables: tuple[Variable, ...]


@dataclass(frozen=True, slots=True)
class WeaverConfig:
    """What daskonic uses of a data configuration.

    Attributes
    ----------
    path : str
    digest : str
        SHA-256 of the file.
    inputs : tuple of WeaverInput
    formulas : dict of str to Formula
    labels : tuple of str
        Names of the classes, in the order of the network's outputs; empty if not simple.
    """

    path: str
    digest: str
    inputs: tuple[WeaverInput, ...]
    formulas: dict[str, Formula]
    labels: tuple[str, ...]


def load(path: str | os.PathLike[str]) -> WeaverConfig:
    """Read and check a data configuration.

    Raises
    ------
    SpecError
        No such file, not YAML, or a key that has no meaning; says which.
    """
    try:
        text = Path(path).read_bytes()
        options = yaml.safe_load(text)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise SpecError(f"features {os.fspath(path)}: {why}") from error
    try:
        return WeaverConfig(
            path=os.fspath(path),
            digest=hashlib.sha256(text).hexdigest(),
            inputs=_inputs(_mapping(options, "the file")),
            formulas=_formulas(options),
            labels=_labels(options.get("labels")),
        )
    except SpecError as error:
        raise SpecError(f"features {os.fspath(path)}: {error}") from error


def _formulas(options: Mapping[str, Any]) -> dict[str, Formula]:
    """New variables; one that is only itself is none."""
    new = _mapping(options.get("new_variables") or {}, "new_variables")
    return {str(name): parse(str(name), text) for name, text in new.items() if str(name) != str(text).strip()}


def _inputs(options: Mapping[str, Any]) -> tuple[WeaverInput, ...]:
    """All inputs."""
    inputs = _mapping(options.get("inputs") or {}, "inputs")
    if not inputs:
        raise SpecError("it has no inputs; is it a weaver data configuration?")
    preprocess = _mapping(options.get("preprocess") or {}, "preprocess")
    params = _mapping(preprocess.get("params") or {}, "preprocess.params")
    automatic = str(preprocess.get("method", "manual")).lower().startswith("auto")
    return tuple(
        _input(str(name), _mapping(entry, f"inputs.{name}"), params, automatic=automatic)
        for name, entry in inputs.items()
    )


def _input(name: str, entry: Mapping[str, Any], params: Mapping[str, Any], *, automatic: bool) -> WeaverInput:
    """One input; weaver's stored parameters, where there are some, win over the list."""
    if not entry.get("vars"):
        raise SpecError(f"input {name!r} has no vars")
    rows = [v if isinstance(v, list) else [v] for v in entry["vars"]]
    stored = [_mapping(params.get(str(row[0]), {}), f"preprocess.params.{row[0]}") for row in rows]
    length = stored[0].get("length", entry.get("length"))
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
        raise SpecError(f"input {name!r}: length is {length!r}; a whole number from 1 on is needed, or null")
    mode = str(stored[0].get("pad_mode", entry.get("pad_mode") or "constant")).lower()
    if mode not in PAD_MODES:
        raise SpecError(f"input {name!r}: no pad_mode {mode!r}; there are {', '.join(PAD_MODES)}")
    if name.endswith("_mask") and mode != "constant":
        raise SpecError(f"input {name!r}: a mask needs pad_mode constant, or padding looks like particles")
    variables = tuple(
        _variable(name, row, have, automatic=automatic) for row, have in zip(rows, stored, strict=True)
    )
    return WeaverInput(name, length, mode, variables)


def _variable(input_name: str, row: list[Any], stored: Mapping[str, Any], *, automatic: bool) -> Variable:
    """One line ``[name, subtract_by, multiply_by, clip_min, clip_max, pad_value]``."""
    name = str(row[0])
    if not 1 <= len(row) <= 6:
        raise SpecError(
            f"input {input_name!r}: variable {name!r} has {len(row) - 1} numbers; at most 5 have a meaning"
        )
    defaults = ("auto" if automatic else None, 1.0, -5.0, 5.0, 0.0)
    center, scale, low, high, pad_value = (
        stored.get(key, row[i + 1] if len(row) > i + 1 else defaults[i])
        for i, key in enumerate(("center", "scale", "min", "max", "pad_value"))
    )
    if center == "auto":
        raise SpecError(
            f"variable {name!r} is standardised automatically, but its numbers are not in this file; "
            "use the *.auto.yaml that weaver wrote in the training"
        )
    numbers = [center, scale, low, high, pad_value]
    if not all(
        isinstance(x, int | float) and not isinstance(x, bool) for x in numbers if x is not center
    ) or not (center is None or isinstance(center, int | float)):
        raise SpecError(f"input {input_name!r}: {row} is not [name, number or null, numbers...]")
    return Variable(
        name,
        None if center is None else float(center),
        float(scale),
        float(low),
        float(high),
        float(pad_value),
    )


def _labels(labels: Any) -> tuple[str, ...]:
    """Class names of simple labels."""
    if (
        isinstance(labels, Mapping)
        and labels.get("type") == "simple"
        and isinstance(labels.get("value"), list)
    ):
        return tuple(str(value) for value in labels["value"])
    return ()


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    """A mapping, or an error."""
    if not isinstance(value, Mapping):
        raise SpecError(f"{where} is {type(value).__name__}; a mapping is needed")
    return value
