"""CMSSW's ``preprocess.json``, which stands beside each of its networks for jets.

For each input tensor, in the words of the file: the first ``max_length`` values of a variable are taken; what is not
finite, or beyond 1e32, becomes ``replace_inf_value``; then ``clamp((x - median) * norm_factor, lower_bound,
upper_bound)``; places that stay empty up to ``min_length`` get ``pad``, which is not standardised. All of it in
float32. ``var_length`` stands for a ``min_length`` and ``max_length`` that are equal. As read in ``center_norm_pad``,
``catch_infs`` and ``ParticleNetConstructor`` of [1]_; what to do without ``replace_inf_value``, ``lower_bound``,
``upper_bound`` or ``pad``, as in the files of 2020, is from [2]_.

References
----------
.. [1] https://github.com/cms-sw/cmssw, ``RecoBTag/FeatureTools/src/deep_helpers.cc``.
.. [2] The same, ``RecoBTag/ONNXRuntime/plugins/DeepBoostedJetONNXJetTagsProducer.cc`` of CMSSW 11.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daskonic.errors import SpecError
from daskonic.features.data_config import ConfigInput, DataConfig, mapping, number
from daskonic.features.plan import Variable

__all__ = ["load"]

CLASSES = ("output_names", "flav_names")
GROUP = ("var_names", "var_infos", "var_length", "min_length", "max_length", "input_shape")
INFO = {
    "median": None,
    "norm_factor": None,
    "replace_inf_value": 0.0,
    "lower_bound": -5.0,
    "upper_bound": 5.0,
    "pad": 0.0,
}
"""Numbers of a variable, and what they are if the file does not say."""


def load(path: str | os.PathLike[str]) -> DataConfig:
    """Read and check a ``preprocess.json``.

    Raises
    ------
    SpecError
        No such file, not JSON, or a key that is missing or has no meaning; says which.
    """
    try:
        text = Path(path).read_bytes()
        options = json.loads(text)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise SpecError(f"features {os.fspath(path)}: {why}") from error
    try:
        return DataConfig(
            tool="from_cmssw",
            path=os.fspath(path),
            digest=hashlib.sha256(text).hexdigest(),
            inputs=_inputs(mapping(options, "the file")),
            formulas={},
            labels=_classes(options),
        )
    except SpecError as error:
        raise SpecError(f"features {os.fspath(path)}: {error}") from error


def _inputs(options: Mapping[str, Any]) -> tuple[ConfigInput, ...]:
    """All inputs, in the order of the file."""
    names = options.get("input_names")
    if not isinstance(names, list) or not names:
        raise SpecError("it has no input_names; is it a preprocess.json of CMSSW?")
    lacking = [str(name) for name in names if name not in options]
    if lacking:
        raise SpecError(f"input_names has {', '.join(lacking)}, which the file does not describe")
    strange = sorted(set(options) - {*map(str, names), "input_names", *CLASSES})
    if strange:
        raise SpecError(f"the file has {', '.join(strange)}, which input_names does not name")
    return tuple(_input(str(name), mapping(options[name], str(name))) for name in names)


def _input(name: str, group: Mapping[str, Any]) -> ConfigInput:
    """One input."""
    strange = sorted(set(group) - set(GROUP))
    if strange:
        raise SpecError(f"{name} has {', '.join(strange)}; known are {', '.join(GROUP)}")
    listed = group.get("var_names")
    if not isinstance(listed, list) or not listed:
        raise SpecError(f"{name} has no var_names")
    infos = mapping(group.get("var_infos"), f"{name}.var_infos")
    lacking = [str(v) for v in listed if v not in infos]
    if lacking:
        raise SpecError(f"{name}.var_infos has no {', '.join(lacking)}")
    least, most = _lengths(name, group)
    shape = group.get("input_shape", [1, len(listed), most])
    if shape != [1, len(listed), most]:
        raise SpecError(
            f"{name}.input_shape is {shape}; {len(listed)} var_names and a length of {most} make {[1, len(listed), most]}"
        )
    variables = (_variable(str(v), mapping(infos[v], f"{name}.var_infos.{v}"), name) for v in listed)
    return ConfigInput(name, most, "constant", tuple(variables), least)


def _lengths(name: str, group: Mapping[str, Any]) -> tuple[int, int]:
    """Fewest and most items of each row."""
    keys = ("var_length", "var_length") if "var_length" in group else ("min_length", "max_length")
    least, most = (_length(group.get(key), f"{name}.{key}") for key in keys)
    if least > most:
        raise SpecError(f"{name}.min_length is {least}, more than max_length, {most}")
    return least, most


def _length(value: Any, where: str) -> int:
    """A length, or an error."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(f"{where} is {value!r}; a whole number from 1 on is needed")
    return value


def _variable(name: str, info: Mapping[str, Any], group: str) -> Variable:
    """One variable and its numbers."""
    where = f"{group}.var_infos.{name}"
    strange = sorted(set(info) - set(INFO))
    if strange:
        raise SpecError(f"{where} has {', '.join(strange)}; known are {', '.join(INFO)}")
    center, scale, replace, low, high, pad = (
        number(info.get(key, default), f"{where}.{key}") for key, default in INFO.items()
    )
    if not low <= pad <= high:
        raise SpecError(
            f"{where}.pad is {pad:g}, not between lower_bound, {low:g}, and upper_bound, {high:g}"
        )
    return Variable(name, center, scale, low, high, pad, replace)


def _classes(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the outputs."""
    found = next((options[key] for key in CLASSES if key in options), ())
    return tuple(map(str, found)) if isinstance(found, list) else ()
