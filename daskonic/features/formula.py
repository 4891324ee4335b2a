"""Formulas of weaver's ``new_variables``: checked against an allow-list, then evaluated.

A formula that works item by item runs on flat NumPy columns, which is many times faster than on
nested arrays. One that looks at whole lists (a sum, an order) runs on awkward arrays.
"""

from __future__ import annotations

import ast
import copy
import functools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType, MappingProxyType, SimpleNamespace
from typing import Any

import awkward as ak
import numpy as np

from daskonic.errors import SpecError

__all__ = ["Formula", "evaluate_flat", "evaluate_whole", "parse", "parse_all"]

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
_REDUCERS = {"sum", "prod", "any", "all", "min", "max", "argmin", "argmax", "mean", "var", "std"}
"""Functions that reduce everything to one number, all jets together, unless they are told an axis."""
_REDUCERS_AK = _REDUCERS | {"count", "count_nonzero", "softmax"}
_LISTWISE_AK = _REDUCERS_AK | {
    "num", "sort", "argsort", "firsts", "fill_none", "pad_none", "local_index", "concatenate",
}  # fmt: skip
_LISTWISE_NP = _REDUCERS | {"sort", "argsort"}
_AXIS_AT = {"pad_none": 2}
"""Place of the axis among the arguments, where it is not the second."""
_CONSTANTS: dict[str, dict[str, Any]] = {
    "np": {
        name: getattr(np, name)
        for name in ("pi", "e", "inf", "nan", "float16", "float32", "float64", "int32", "int64", "bool_")
    },
    "math": {name: getattr(math, name) for name in ("pi", "e", "inf", "nan", "tau")},
    "ak": {},
}
_ON_NUMBERS = {
    "math": {n: f for n, f in vars(math).items() if callable(f) and not n.startswith("_")},
    "": {"float": float, "int": int},
}
"""Functions that take no arrays, so they stand for constants."""
_BUILTINS: dict[str, Any] = {"abs": np.abs} | _ON_NUMBERS[""]

_FOUR_VECTORS = {
    "_p4_from_pxpypze": ("px", "py", "pz", "energy"),
    "_p4_from_ptetaphie": ("pt", "eta", "phi", "energy"),
    "_p4_from_ptetaphim": ("pt", "eta", "phi", "mass"),
}
"""Weaver's names for the momenta of the package vector."""
_OF_FOUR_VECTORS = {
    "px", "py", "pz", "pt", "eta", "phi", "energy", "E", "e", "mass", "m", "M", "p", "theta", "rapidity", "mt", "et",
}  # fmt: skip
_BETWEEN_FOUR_VECTORS = {"deltaR", "deltaphi", "deltaeta"}
_HELPERS: dict[str, Any] = {
    "_clip": np.clip,
    "_batch_argsort": lambda values: ak.argsort(values, axis=1),
    "_batch_gather": operator.getitem,
    "_concat": ak.concatenate,
}
"""What daskonic has of weaver's own helpers; the others are random, or make rectangles or trees."""


def _four_vectors(zipped: str) -> dict[str, Any]:
    """Constructors of vector's momenta, out of flat (``array``) or nested (``zip``) columns."""

    def make(names: tuple[str, ...], *columns: Any) -> Any:
        import vector

        return getattr(vector, zipped)(dict(zip(names, columns, strict=True)))

    return {function: functools.partial(make, names) for function, names in _FOUR_VECTORS.items()}


_FLAT: dict[str, Any] = (
    _BUILTINS
    | {
        name: SimpleNamespace(
            **{"np": _ITEMWISE_NP, "ak": _ITEMWISE_AK}.get(module, {}),
            **_CONSTANTS[module],
            **_ON_NUMBERS.get(module, {}),
        )
        for name, module in MODULES.items()
    }
    | {"_clip": np.clip}
    | _four_vectors("array")
)
_WHOLE: dict[str, Any] = (
    _BUILTINS
    | {
        name: {"np": np, "ak": ak, "math": SimpleNamespace(**_CONSTANTS["math"], **_ON_NUMBERS["math"])}[
            module
        ]
        for name, module in MODULES.items()
    }
    | _HELPERS
    | _four_vectors("zip")
)

_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.keyword, ast.Name, ast.Attribute,
    ast.Constant, ast.Load, ast.operator, ast.unaryop, ast.cmpop, ast.Subscript, ast.Slice, ast.Tuple, ast.List,
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
    code : str
        What is evaluated: the text with four-vectors put in, and along the constituents where it says along the last
        axis, which for a variable of jets would be along the jets.
    """

    name: str
    text: str
    arguments: tuple[str, ...]
    itemwise: bool
    code: str


def parse_all(texts: Mapping[str, str]) -> dict[str, Formula]:
    """Check all formulas of a configuration; one that is only itself is none.

    Four-vectors are no columns, so they are put into the formulas that use them and are not in the result.

    Raises
    ------
    SpecError
        As :func:`parse`.
    """
    texts = {name: text.strip() for name, text in texts.items() if name != text.strip()}
    vectors = {}
    for name, text in texts.items():
        tree = _tree(name, text)
        if _is_four_vector(tree.body):
            vectors[name] = tree.body
    return {name: parse(name, text, vectors) for name, text in texts.items() if name not in vectors}


def parse(name: str, text: str, vectors: Mapping[str, ast.expr] = MappingProxyType({})) -> Formula:
    """Check a formula.

    Parameters
    ----------
    name, text : str
    vectors : mapping of str to expression
        Variables that are four-vectors.

    Raises
    ------
    SpecError
        Not an expression, or it has a function or construct that is not on the list, or it mixes jets.
    """
    text = str(text).strip()
    tree = _PutIn(vectors).visit(_tree(name, text))
    checker = _Checker(name, text)
    checker.visit(tree)
    if not checker.arguments:
        raise SpecError(f"variable {name!r} = {text!r}: it depends on no variable")
    return Formula(name, text, tuple(sorted(checker.arguments)), checker.itemwise, ast.unparse(tree))


def evaluate_flat(formula: Formula, arguments: Mapping[str, Any]) -> Any:
    """Value of a formula that works item by item, on flat columns of one length."""
    return _evaluate(formula, _FLAT, arguments)


def evaluate_whole(formula: Formula, arguments: Mapping[str, Any]) -> Any:
    """Value of any formula, on arrays of all rows."""
    return _evaluate(formula, _WHOLE, arguments)


def _evaluate(formula: Formula, functions: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """Value of a formula that :func:`parse` let pass."""
    try:
        with np.errstate(all="ignore"):  # what is not finite is looked for where the result is used
            return eval(_compiled(formula.code), {"__builtins__": {}, **functions, **arguments})
    except ImportError as error:
        raise SpecError(
            f"variable {formula.name!r} = {formula.text!r} needs {error.name}: pip install {error.name}"
        ) from error


@functools.lru_cache(maxsize=4096)
def _compiled(code: str) -> CodeType:
    """Byte code of a formula that :func:`parse` let pass."""
    return compile(code, "<formula>", "eval")


def _tree(name: str, text: str) -> ast.Expression:
    """Syntax tree of an expression."""
    try:
        return ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise SpecError(f"variable {name!r}: {text!r} is not an expression ({error.msg})") from error


def _is_four_vector(node: ast.AST) -> bool:
    """Whether this makes a four-vector."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FOUR_VECTORS


class _PutIn(ast.NodeTransformer):
    """Puts the expressions of four-vectors in the place of their names."""

    def __init__(self, vectors: Mapping[str, ast.expr]) -> None:
        self._vectors = vectors

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A variable, perhaps a four-vector."""
        return copy.deepcopy(self._vectors[node.id]) if node.id in self._vectors else node


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
        """A constant of a module, or a component of a four-vector."""
        if _is_four_vector(node.value) and node.attr in _OF_FOUR_VECTORS:
            self._parts(node.value)
            return
        module = self._module(node)
        if module is None or node.attr not in _CONSTANTS[module]:
            raise self._refusal(f"{ast.unparse(node)} is not known")

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Choice of items, of each jet by itself: needs the lists."""
        first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
        whole = isinstance(first, ast.Slice) and not (first.lower or first.upper or first.step)
        if not whole and isinstance(first, ast.Slice | ast.Constant | ast.UnaryOp):
            raise self._refusal(f"{ast.unparse(node)} chooses among jets; for items of each jet write [:, n]")
        self.itemwise = False
        self.generic_visit(node)

    def visit_List(self, node: ast.List) -> None:
        """Only to concatenate, which looks at its lists itself."""
        raise self._refusal(f"a list such as {ast.unparse(node)} can only be concatenated")

    def visit_Call(self, node: ast.Call) -> None:
        """A function on the list."""
        function = node.func
        module = self._module(function) if isinstance(function, ast.Attribute) else None
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if _is_four_vector(node):
            raise self._refusal("a four-vector is not a number; take a component of it, such as .pt")
        if isinstance(function, ast.Attribute) and _is_four_vector(function.value):
            self._between(node, function)
            return
        if name in _ON_NUMBERS.get(module or "", {}) and (module or isinstance(function, ast.Name)):
            self._on_numbers(node)
        elif isinstance(function, ast.Name) and name in (_BUILTINS | _HELPERS):
            self.itemwise &= name in _BUILTINS or name == "_clip"
        elif module is not None:
            self._of_module(module, name, node)
        else:
            raise self._refusal(self._unknown(ast.unparse(function)))
        if name in ("concatenate", "_concat"):
            self._along_lists(node, name, 1, needed=True)
            if node.args and isinstance(node.args[0], ast.List | ast.Tuple):
                self._parts(node.args[0])
                return
        self._parts(node)

    def _parts(self, node: ast.AST) -> None:
        """All arguments of a call, or items of a list."""
        parts = node.elts if isinstance(node, ast.List | ast.Tuple) else [*node.args, *node.keywords]  # type: ignore[attr-defined]
        for part in parts:
            self.visit(part)

    def _between(self, node: ast.Call, function: ast.Attribute) -> None:
        """A distance between two four-vectors."""
        if function.attr not in _BETWEEN_FOUR_VECTORS or not (
            len(node.args) == 1 and _is_four_vector(node.args[0]) and not node.keywords
        ):
            known = ", ".join(sorted(_BETWEEN_FOUR_VECTORS))
            raise self._refusal(f"{function.attr} is not known; between two four-vectors there are {known}")
        self._parts(function.value)
        self._parts(node.args[0])

    def _on_numbers(self, node: ast.Call) -> None:
        """A function that takes no arrays."""
        if any(isinstance(n, ast.Name) and n.id not in MODULES for part in node.args for n in ast.walk(part)):
            raise self._refusal(f"{ast.unparse(node.func)} takes numbers, not variables; NumPy's take both")

    def _of_module(self, module: str, name: str, node: ast.Call) -> None:
        """A function of a module."""
        itemwise: Mapping[str, Any] = {"np": _ITEMWISE_NP, "ak": _ITEMWISE_AK}.get(module, {})
        listwise = {"np": _LISTWISE_NP, "ak": _LISTWISE_AK}.get(module, set())
        if name in itemwise:
            return
        if name not in listwise:
            raise self._refusal(self._unknown(f"{module}.{name}"))
        self.itemwise = False
        if name not in ("fill_none", "concatenate"):
            self._along_lists(node, name, _AXIS_AT.get(name, 1), needed=name in _REDUCERS_AK)

    def _along_lists(self, node: ast.Call, name: str, place: int, *, needed: bool) -> None:
        """Make a function work along the constituents of each jet, if it does not say otherwise."""
        said = [k.value for k in node.keywords if k.arg == "axis"] + node.args[place : place + 1]
        if any(ast.unparse(axis) not in ("1", "-1") for axis in said) or (needed and not said):
            raise self._refusal(f"{name} would mix jets; say that it goes along the constituents: axis=1")
        node.args = node.args[:place]
        node.keywords = [k for k in node.keywords if k.arg != "axis"]
        node.keywords.append(ast.keyword("axis", ast.Constant(1)))

    def _module(self, node: ast.Attribute) -> str | None:
        """The module in ``module.name``."""
        return MODULES.get(node.value.id) if isinstance(node.value, ast.Name) else None

    def _unknown(self, function: str) -> str:
        """What there is instead of a function."""
        if function == "len":
            return (
                "len is the number of jets that are read together, which is nothing of a jet; ak.num(...) is"
            )
        return (
            f"function {function} is not known; there are NumPy's functions that work item by item, where, clip, nan_to_num, "
            f"of awkward {', '.join(sorted(_LISTWISE_AK))}, and of weaver {', '.join([*_HELPERS, *_FOUR_VECTORS])}"
        )

    def _refusal(self, why: str) -> SpecError:
        """The error to raise."""
        return SpecError(f"variable {self._name!r} = {self._text!r}: {why}")
