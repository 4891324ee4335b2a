"""Weaver's data configuration, the part that makes inputs: variables, standardisation, padding.

Labels, weights, bucketing, observers and monitored variables belong to the training and are not looked at, nor are
selections: every jet is scored. The meaning of each key was taken from weaver-core 0.5.3 [1]_.

References
----------
.. [1] https://github.com/hqucms/weaver-core, ``weaver/utils/data/config.py``, ``preprocess.py`` and ``tools.py``, and
   ``weaver/utils/dataset.py``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from daskonic.errors import SpecError
from daskonic.features.data_config import ConfigInput, DataConfig, mapping
from daskonic.features.formula import Formula, parse_all
from daskonic.features.plan import PAD_MODES, Variable

__all__ = ["load"]

SECTIONS = (
    "treename", "branch_magic", "file_magic", "selection", "test_time_selection", "preprocess", "new_variables",
    "inputs", "labels", "observers", "monitor_variables", "weights", "bucketing",
)  # fmt: skip
PREPROCESS = ("method", "data_fraction", "params")
INPUT = ("length", "pad_mode", "vars")
PARAMS = ("length", "pad_mode", "center", "scale", "min", "max", "pad_value")


def load(path: str | os.PathLike[str]) -> DataConfig:
    """Read and check a data configuration.

    With automatic standardisation the numbers are in a second file, which weaver wrote in the training and names
    after the first one's content, ``NAME.MD5.auto.yaml``; if it lies beside the first, it is taken, as by weaver.

    Raises
    ------
    SpecError
        No such file, not YAML, or a key that has no meaning; says which.
    """
    try:
        text = Path(path).read_bytes()
        automatic = _written_in_training(Path(path), text)
        options = yaml.safe_load(text if automatic is None else automatic)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise SpecError(f"features {os.fspath(path)}: {why}") from error
    try:
        _known(mapping(options, "the file"), SECTIONS, "the file")
        return DataConfig(
            tool="from_weaver",
            path=os.fspath(path),
            digest=hashlib.sha256(automatic or text).hexdigest(),
            inputs=_inputs(options),
            formulas=_formulas(options),
            labels=_labels(options.get("labels")),
        )
    except SpecError as error:
        raise SpecError(f"features {os.fspath(path)}: {error}") from error


def _written_in_training(path: Path, text: bytes) -> bytes | None:
    """The file that weaver wrote for this one, if it is there."""
    name = (
        f"{path.name.removesuffix('.yaml')}.{hashlib.md5(text, usedforsecurity=False).hexdigest()}.auto.yaml"
    )
    beside = path.with_name(name)
    return beside.read_bytes() if path.suffix == ".yaml" and beside.is_file() else None


def _known(found: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """An error for a key that weaver does not know."""
    strange = sorted(set(map(str, found)) - set(known))
    if strange:
        raise SpecError(f"{where} has {', '.join(strange)}; weaver knows {', '.join(known)}")


def _formulas(options: Mapping[str, Any]) -> dict[str, Formula]:
    """New variables, and those that ``branch_magic`` finds under another name."""
    new = mapping(options.get("new_variables") or {}, "new_variables")
    if options.get("file_magic"):
        raise SpecError(
            "file_magic makes variables from the names of files, which jets do not have; give the jets a field of each "
            f"name: {', '.join(map(str, mapping(options['file_magic'], 'file_magic')))}"
        )
    if options.get("branch_magic"):
        raise SpecError(
            "branch_magic reads variables under other names; say so in new_variables: NAME: BRANCH"
        )
    return parse_all({str(name): str(text) for name, text in new.items()})


def _inputs(options: Mapping[str, Any]) -> tuple[ConfigInput, ...]:
    """All inputs."""
    inputs = mapping(options.get("inputs") or {}, "inputs")
    if not inputs:
        raise SpecError("it has no inputs; is it a weaver data configuration?")
    preprocess = mapping(options.get("preprocess") or {}, "preprocess")
    _known(preprocess, PREPROCESS, "preprocess")
    stored = preprocess.get("params")
    params = None if stored is None else mapping(stored, "preprocess.params")
    automatic = str(preprocess.get("method", "manual")).lower().startswith("auto")
    made = tuple(
        _input(str(name), mapping(entry, f"inputs.{name}"), params, automatic=automatic)
        for name, entry in inputs.items()
    )
    _refuse_two_meanings(made)
    return made


def _refuse_two_meanings(inputs: Iterable[ConfigInput]) -> None:
    """Weaver keeps one standardisation for each variable; with two it does not train."""
    known: dict[str, tuple[str, tuple[object, ...]]] = {}
    for entry in inputs:
        for variable in entry.variables:
            meaning = (entry.length, entry.pad_mode, variable)
            first, other = known.setdefault(variable.name, (entry.name, meaning))
            if other != meaning:
                raise SpecError(
                    f"inputs {first!r} and {entry.name!r} have variable {variable.name!r} with different numbers, lengths or "
                    "pad modes; weaver takes one of each: give one of them another name in new_variables"
                )


def _input(
    name: str, entry: Mapping[str, Any], params: Mapping[str, Any] | None, *, automatic: bool
) -> ConfigInput:
    """One input; where weaver has stored parameters, nothing else counts."""
    _known(entry, INPUT, f"input {name!r}")
    if not isinstance(entry.get("vars"), list) or not entry["vars"]:
        raise SpecError(f"input {name!r} has no vars, or they are no list")
    rows = [v if isinstance(v, list) else [v] for v in entry["vars"]]
    for row in rows:
        if not (row and isinstance(row[0], str)):
            raise SpecError(f"input {name!r}: {row} in vars is not NAME or [NAME, numbers...]")
    stored = [_stored(str(row[0]), params) for row in rows]
    first = entry if stored[0] is None else stored[0]
    length = first.get("length")
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
        raise SpecError(f"input {name!r}: length is {length!r}; a whole number from 1 on is needed, or null")
    mode = str(first.get("pad_mode") or "constant").lower()
    if mode not in PAD_MODES:
        raise SpecError(f"input {name!r}: no pad_mode {mode!r}; there are {', '.join(PAD_MODES)}")
    if name.endswith("_mask") and mode != "constant":
        raise SpecError(f"input {name!r}: a mask needs pad_mode constant, or padding looks like particles")
    variables = tuple(
        _variable(name, row, have, automatic=automatic) for row, have in zip(rows, stored, strict=True)
    )
    return ConfigInput(name, length, mode, variables)


def _stored(name: str, params: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Stored parameters of one variable; None where the file has none at all."""
    if params is None:
        return None
    if name not in params:
        raise SpecError(
            f"preprocess.params has no {name!r}, which an input needs; with params, all must be in"
        )
    found = mapping(params[name], f"preprocess.params.{name}")
    _known(found, PARAMS, f"preprocess.params.{name}")
    missing = [key for key in PARAMS if key not in found and key != "pad_value"]
    if missing:
        raise SpecError(f"preprocess.params.{name} has no {', '.join(missing)}")
    return found


def _variable(
    input_name: str, row: list[Any], stored: Mapping[str, Any] | None, *, automatic: bool
) -> Variable:
    """One line ``[name, subtract_by, multiply_by, clip_min, clip_max, pad_value]``, or the stored parameters."""
    name = row[0]
    if not 1 <= len(row) <= 6:
        raise SpecError(
            f"input {input_name!r}: variable {name!r} has {len(row) - 1} numbers; at most 5 have a meaning"
        )
    defaults = ["auto" if automatic else None, 1.0, -5.0, 5.0, 0.0]
    numbers = row[1:] + defaults[len(row) - 1 :]
    if stored is not None:
        numbers = [stored[key] for key in ("center", "scale", "min", "max")] + [stored.get("pad_value", 0.0)]
    center, *others = numbers
    if center == "auto":
        raise SpecError(
            f"variable {name!r} is standardised automatically, but its numbers are not in this file; "
            "use the *.auto.yaml that weaver wrote in the training"
        )
    if not all(map(_is_number, others)) or not (center is None or _is_number(center)):
        raise SpecError(f"input {input_name!r}: {[name, *numbers]} is not [name, number or null, numbers...]")
    return Variable(name, None if center is None else float(center), *map(float, others))


def _is_number(value: Any) -> bool:
    """Whether this is a number and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _labels(labels: Any) -> tuple[str, ...]:
    """Class names of simple labels."""
    if (
        isinstance(labels, Mapping)
        and labels.get("type") == "simple"
        and isinstance(labels.get("value"), list)
    ):
        return tuple(str(value) for value in labels["value"])
    return ()
