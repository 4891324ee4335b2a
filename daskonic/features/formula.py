"""Formulas of weaver's ``new_variables``: checked against an allow-list, then evaluated.

A formula that works item by item runs on flat NumPy columns, which is many times faster than on
nested arrays. One that looks at whole lists (a sum, an order) runs on awkward arrays.
"""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType, SimpleNamespace
from typing import Any

import awkward as ak
import numpy as np

from daskonic.errors import SpecError

__all__ = ["Formula", "evaluate_flat", "evaluate_whole", "parse"]

MODULES = {"np": "np", "numpy": "np", "ak": "ak", "awkward": "ak", "math": "math"}

_UFUNCS = {
    name: function
    for name, function in vars(np).items()
    if isinstance(function, np.ufunc) and function.nout == 1 and function.signature is None
}
_ITEMWISE_NP: dict[str, Any] = _UFUNCS | {
    name: getattr(np, name)
    for name in ("where", "clip", "nan_to_num", "ones_like", "zeros_like", "full_like", "round", "isclose")
}
_ITEMWISE_AK: dict[str, Any] = {
    "where": np.where,
    "nan_to_num": np.nan_to_num,
    "ones_like": np.ones_like,
    "zeros_like": np.zeros_like,
    "full_like": np.full_like,
    "isclose": np.isclose,
    "round": np.round,
    "values_astype": lambda values, to: np.asarray(values).astype(to),
}
_LISTWISE_AK = {
    "num", "count", "count_nonzero", "sum", "prod", "any", "all", "min", "max", "argmin", "argmax", "mean",
    "var", "std", "sort", "argsort", "firsts", "fill_none", "pad_none", "local_index", "softmax",
}  # fmt: skip
_LISTWISE_NP = {
    "sum",
    "prod",
    "any",
    "all",
    "min",
    "max",
    "argmin",
    "argmax",
    "mean",
    "var",
    "std",
    "sort",
    "argsort",
}
_CONSTANTS: dict[str, dict[str, Any]] = {
    "np": {
        name: getattr(np, name)
        for name in ("pi", "e", "inf", "nan", "float16", "float32", "float64", "int32", "int64", "bool_")
    },
    "math": {name: getattr(math, name) for name in ("pi", "e", "inf", "nan", "tau")},
    "ak": {},
}
_BUILTINS: dict[str, Any] = {"abs": np.abs, "float": float, "int": int}

_FLAT: dict[str, Any] = _BUILTINS | {
    name: SimpleNamespace(**({"np": _ITEMWISE_NP, "ak": _ITEMWISE_AK}.get(module, {}) | _CONSTANTS[module]))
    for name, module in MODULES.items()
}
_WHOLE: dict[str, Any] = _BUILTINS | {
    name: {"np": np, "ak": ak, "math": SimpleNamespace(**_CONSTANTS["math"])}[module]
    for name, module in MODULES.items()
}

_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.keyword, ast.Name, ast.Attribute,
    ast.Constant, ast.Load, ast.operator, ast.unaryop, ast.cmpop, ast.Subscript, ast.Slice, ast.Tuple,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Formula:
    """A named expression.

    Attributes
    ----------
    name, text : str
    arguments : tuple of str
        Variables it needs.
    itemwise : bool
        Whether each item depends on nothing but the same item of the arguments.
    """

    name: str
    text: str
    arguments: tuple[str, ...]
    itemwise: bool


def parse(name: str, text: str) -> Formula:
    """Check a formula.

    Raises
    ------
    SpecError
        Not an expression, or it has a function or construct that is not on the list.
    """
    text = str(text).strip()
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise SpecError(f"variable {name!r}: {text!r} is not an expression ({error.msg})") from error
    checker = _Checker(name, text)
    checker.visit(tree)
    if not checker.arguments:
        raise SpecError(f"variable {name!r} = {text!r}: it depends on no variable")
    return Formula(name, text, tuple(sorted(checker.arguments)), checker.itemwise)


def evaluate_flat(formula: Formula, arguments: Mapping[str, Any]) -> Any:
    """Value of a formula that works item by item, on flat columns of one length."""
    with np.errstate(all="ignore"):  # what is not finite is looked for where the result is used
        return eval(_compiled(formula.text), {"__builtins__": {}, **_FLAT, **arguments})


def evaluate_whole(formula: Formula, arguments: Mapping[str, Any]) -> Any:
    """Value of any formula, on arrays of all rows."""
    with np.errstate(all="ignore"):
        return eval(_compiled(formula.text), {"__builtins__": {}, **_WHOLE, **arguments})


@functools.lru_cache(maxsize=4096)
def _compiled(text: str) -> CodeType:
    """Byte code of a formula that :func:`parse` let pass."""
    return compile(text, "<formula>", "eval")


class _Checker(ast.NodeVisitor):
    """Walks an expression, refuses what is not on the list, collects the variables."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self.arguments: set[str] = set()
        self.itemwise = True

    def visit(self, node: ast.AST) -> None:
        """One node of any kind."""
        if not isinstance(node, _NODES):
            hint = "; for arrays write & and |" if isinstance(node, ast.BoolOp) else ""
            raise self._refusal(f"{type(node).__name__} cannot be used{hint}")
        super().visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        """A variable, since functions and modules are seen by their parents."""
        if node.id in MODULES or node.id.startswith("_"):
            raise self._refusal(f"{node.id!r} is not a variable")
        self.arguments.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """A constant of a module."""
        module = self._module(node)
        if module is None or node.attr not in _CONSTANTS[module]:
            raise self._refusal(f"{ast.unparse(node)} is not known")

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Choice of items: needs the lists."""
        self.itemwise = False
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """A function on the list."""
        function = node.func
        module = self._module(function) if isinstance(function, ast.Attribute) else None
        if isinstance(function, ast.Name) and function.id in _BUILTINS:
            pass
        elif isinstance(function, ast.Attribute) and module is not None:
            self._call(module, function.attr)
        else:
            raise self._refusal(f"function {ast.unparse(function)} is not known")
        for part in (*node.args, *node.keywords):
            self.visit(part)

    def _call(self, module: str, name: str) -> None:
        """A function of a module."""
        itemwise: Mapping[str, Any] = {"np": _ITEMWISE_NP, "ak": _ITEMWISE_AK}.get(module, {})
        listwise = {"np": _LISTWISE_NP, "ak": _LISTWISE_AK}.get(module, set())
        if name in itemwise:
            return
        if name not in listwise:
            known = "NumPy's functions that work item by item, where, clip, nan_to_num, and of awkward "
            raise self._refusal(
                f"function {module}.{name} is not known; there are {known}{', '.join(sorted(_LISTWISE_AK))}"
            )
        self.itemwise = False

    def _module(self, node: ast.Attribute) -> str | None:
        """The module in ``module.name``."""
        return MODULES.get(node.value.id) if isinstance(node.value, ast.Name) else None

    def _refusal(self, why: str) -> SpecError:
        """The error to raise."""
        return SpecError(f"variable {self._name!r} = {self._text!r}: {why}")
