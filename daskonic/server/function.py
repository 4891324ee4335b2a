"""What a Python function takes and gives, and the file that a server needs to call it."""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from daskonic.errors import ConfigError, InputError, SpecError
from daskonic.server.entry import Tensor

__all__ = ["named_function", "read_function", "source_of"]

logger = logging.getLogger(__name__)

THERE = {"numpy", "onnxruntime"}
"""Packages that the environment of daskonic's own server has."""


def named_function(text: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names.

    Raises
    ------
    InputError
        There is none.
    """
    module, _, name = text.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{text} cannot be imported: {error}") from error
    if not callable(function):
        raise InputError(f"{text} is a {type(function).__name__}, not a function")
    return typing.cast("Callable[..., Any]", function)


def read_function(
    function: Callable[..., Any], inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> tuple[list[Tensor], list[Tensor]]:
    """Its inputs, in the order and by the names of its arguments, and its outputs.

    Types that are not told are those of annotations such as ``NDArray[np.float32]``.

    Raises
    ------
    SpecError
        ``inputs`` are not its arguments.
    ConfigError
        A tensor is not told as in ``FP32[2,-1]``, or there is no output.
    """
    parameters = inspect.signature(function).parameters
    needed = [p.name for p in parameters.values() if p.default is p.empty]
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY) for p in parameters.values()):
        raise SpecError(
            f"{function.__name__}() has arguments without names; a server passes its inputs by name"
        )
    if not set(needed) <= set(inputs) <= set(parameters):
        raise SpecError(
            f"{function.__name__}() takes {', '.join(parameters)}; the inputs told are {', '.join(inputs) or 'none'}"
        )
    if not outputs:
        raise ConfigError(f"say what {function.__name__}() gives, as in outputs={{'scores': 'FP32[2]'}}")
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # annotations that exist for type checkers only
        hints = {}
    taken = [Tensor.parse(n, inputs[n], _data_type(hints.get(n))) for n in parameters if n in inputs]
    only = hints.get("return") if len(outputs) == 1 else None
    return taken, [Tensor.parse(name, text, _data_type(only)) for name, text in outputs.items()]


def source_of(function: Callable[..., Any]) -> Path:
    """The file of a function, which must be all that it needs but for packages of the server's environment.

    Raises
    ------
    InputError
        It is no function of a module, or its file imports others of its own package.
    """
    name = getattr(function, "__qualname__", repr(function))
    try:
        path = Path(inspect.getsourcefile(function) or "")
        tree = ast.parse(path.read_bytes())
    except (TypeError, OSError, SyntaxError) as error:
        raise InputError(f"{name} has no file that could be copied to a server: {error}") from error
    if not any(isinstance(n, ast.FunctionDef) and n.name == name for n in tree.body):
        raise InputError(
            f"{name} is no function at the top of {path}: a server could not import it by its name"
        )
    own = function.__module__.partition(".")[0]
    imported = set(_imported(tree))
    if "" in imported or (own in imported and "." in function.__module__):
        raise InputError(
            f"{path} imports others of its own package; the server gets this file alone, so put all that {name}() needs "
            "into it"
        )
    others = sorted(imported - set(sys.stdlib_module_names) - THERE)
    if others:
        logger.warning(
            "the environment of the server must have %s, which %s imports", ", ".join(others), path
        )
    return path


def _imported(tree: ast.Module) -> Iterator[str]:
    """Packages that are imported anywhere; empty for one's own, by a relative import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "" if node.level else str(node.module).partition(".")[0]


def _data_type(hint: Any) -> str:
    """Triton's name for the type in ``NDArray[...]``; empty if there is none."""
    from daskonic.transport.message import KSERVE_NAMES

    for part in typing.get_args(hint):
        (scalar, *_) = (*typing.get_args(part), None)
        if isinstance(scalar, type) and issubclass(scalar, np.generic):
            return KSERVE_NAMES.get(np.dtype(scalar), "")
    return ""
