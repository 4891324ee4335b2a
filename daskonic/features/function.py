"""Inputs that a function of the user makes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

import awkward as ak
import numpy as np

from daskonic.errors import SpecError
from daskonic.features.parts import Part
from daskonic.features.plan import Column, Pad, Plan, Variable, shared
from daskonic.features.rows import Inputs, Rows
from daskonic.ragged import Counts, Layout, content, depth_of, flatten
from daskonic.tensors import ANY, ModelSpec, TensorSpec

__all__ = ["FunctionFeatures", "column", "common_layout", "identity", "named"]


@dataclass(frozen=True, slots=True)
class FunctionFeatures:
    """A function from objects to named arrays, and how to pad what is jagged within a row."""

    function: Callable[[Any], Any]
    pad: dict[str, Pad]
    nan: str

    def __str__(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))

    @property
    def identity(self) -> str:
        """Name and code; a function that is unpickled again has the same."""
        return identity(self.function)

    def inputs(self, objects: Any, spec: ModelSpec) -> Inputs:
        """Call the function and compare names with the model's."""
        make = functools.partial(named, self.function, tensors=spec.inputs, spec=spec)
        if isinstance(objects, Part):
            made, objects = objects.made((self.function, spec.inputs), make), objects.objects
        else:
            made = make(objects)
        wanted = {t.name for t in spec.inputs}
        unknown = sorted(set(self.pad) - wanted)
        if unknown:
            raise SpecError(
                f"pad names {', '.join(unknown)}; model {spec.name!r} takes {_names(spec.inputs)}"
            )
        return _FunctionInputs(objects, made, spec, self.pad, self.nan)


@dataclass(frozen=True, slots=True)
class _FunctionInputs:
    """What the function gave."""

    objects: Any
    made: Mapping[str, Any]
    spec: ModelSpec
    pad: dict[str, Pad]
    nan: str

    def flatten(self) -> Rows:
        """Rows of all inputs, which must nest alike."""
        columns: dict[str, Column] = {}
        plans: list[Plan] = []
        layouts: list[tuple[str, Layout]] = []
        known: list[Counts] = []
        for tensor in self.spec.inputs:
            value = self.made[tensor.name]
            stacked = isinstance(value, list | tuple)
            arrays = list(value) if stacked else [value]
            rank = len(tensor.shape) - stacked
            names = [f"{tensor.name}[{i}]" if stacked else tensor.name for i in range(len(arrays))]
            for name, array in zip(names, arrays, strict=True):
                made, layout = column(name, array, rank, tensor)
                columns[name] = Column(
                    made.values, None if made.counts is None else shared(made.counts, known)
                )
                layouts.append((name, layout))
            plans.append(
                _plan(tensor, [(n, columns[n]) for n in names], self.pad.get(tensor.name), stacked=stacked)
            )
            columns |= _rectangles(plans[-1], columns)
        layout = common_layout(self.objects, layouts)
        return Rows(layout, columns, (), tuple(plans), self.nan)


def named(
    function: Callable[[Any], Any], objects: Any, tensors: tuple[TensorSpec, ...], spec: ModelSpec
) -> Mapping[str, Any]:
    """What a function makes of the objects, by the names of the model's inputs and no others."""
    made: Any = function(objects)
    if not isinstance(made, Mapping):
        if len(tensors) != 1:
            raise SpecError(
                f"model {spec.name!r} has {len(tensors)} inputs ({_names(tensors)}); features must give a mapping "
                "with these names, such as dk.Features(lambda jets: {...})"
            )
        made = {tensors[0].name: made}
    wanted, have = {t.name for t in tensors}, set(made)
    if wanted != have:
        raise SpecError(
            f"features give {', '.join(sorted(map(str, have)))}; model {spec.name!r} takes {_names(tensors)}: "
            + "; ".join(
                [f"{name} is missing" for name in sorted(wanted - have)]
                + [f"{name} is none of them" for name in sorted(map(str, have - wanted))]
            )
        )
    return dict(made)


def common_layout(objects: Any, layouts: list[tuple[str, Layout]]) -> Layout:
    """The nesting that all inputs and the objects share."""
    first_name, first = next(((n, x) for n, x in layouts if x.levels), layouts[0])
    for name, other in layouts:
        if not first.same(other):
            raise SpecError(
                f"inputs {first_name} ({first.n_rows} rows) and {name} ({other.n_rows} rows) do not nest alike"
            )
    depth = max(len(first.levels), len(first.shape))
    if isinstance(objects, ak.Array | np.ndarray) and depth_of(objects) >= depth:
        own = flatten(objects, depth)[1]
        if not own.same(first):
            raise SpecError(
                f"features changed the rows: {own.n_rows} in the objects, {first.n_rows} in input {first_name}, or in "
                "other lists; select objects before they are scored, not in the features"
            )
    return first


def identity(function: Callable[[Any], Any]) -> str:
    """Name and code of a function, the same after pickling."""
    target = function.func if isinstance(function, functools.partial) else function
    named = target if hasattr(target, "__qualname__") else type(target)
    return repr((named.__module__, named.__qualname__, _code(target) or _code(type(target).__call__)))


def _code(function: Any) -> Any:
    """What a Python function does, without addresses."""
    code = function if isinstance(function, CodeType) else getattr(function, "__code__", None)
    if code is None:
        return None
    constants = [_code(c) if isinstance(c, CodeType) else c for c in code.co_consts]
    return code.co_code, code.co_names, constants


def column(name: str, array: Any, rank: int, tensor: TensorSpec) -> tuple[Column, Layout]:
    """Flat values of one array whose last ``rank`` dimensions belong to a row."""
    if not isinstance(array, ak.Array | np.ndarray):
        raise SpecError(f"input {name} is {type(array).__name__}; a NumPy or awkward array is needed")
    if isinstance(array, ak.Array) and array.fields:
        raise SpecError(
            f"input {name} has fields ({', '.join(array.fields)}); a model takes numbers: give its columns as a list, "
            "or make features from it with dk.Features(...)"
        )
    depth = depth_of(array) - rank
    if depth < 1:
        kind = array.type if isinstance(array, ak.Array) else f"{list(array.shape)} {array.dtype}"
        raise SpecError(
            f"input {name} is {kind}; the model takes rows of {tensor}, so it needs at least {rank + 1} dimensions, "
            "the first of them over the rows"
        )
    rows, layout = flatten(array, depth)
    values, counts = content(rows, f"input {name}")
    if not np.can_cast(values.dtype, tensor.dtype, "same_kind") and values.size:
        raise SpecError(
            f"input {name} is {values.dtype.name}; the model takes {tensor}; convert it yourself if that is meant"
        )
    return Column(values, counts), layout


def _plan(tensor: TensorSpec, columns: list[tuple[str, Column]], pad: Pad | None, *, stacked: bool) -> Plan:
    """How the columns become the tensor."""
    if not any(len(c.values) for _, c in columns) and all(
        c.counts is None or not len(c.counts) for _, c in columns
    ):
        return Plan(tensor.name, tensor.dtype, tensor.shape, (), None, stacked)  # no rows: nothing to check
    jagged = any(c.counts is not None for _, c in columns)
    trailing = columns[0][1].values.shape[1:]
    n = (len(columns),) if stacked else ()
    if not jagged:
        shape: tuple[int, ...] = (*n, *trailing)
        pad = None
    elif pad is None:
        length = _uniform([c for _, c in columns])
        if length is None or not tensor.accepts((*n, length, *trailing)):
            raise SpecError(
                f"input {columns[0][0]} is jagged within a row; the model takes {tensor}; say how it is padded: "
                f"pad={{{tensor.name!r}: dk.Pad(length)}}"
            )
        shape = (*n, length, *trailing)
    else:
        shape = _padded_shape(tensor, n, trailing, pad)
    if any(c.values.shape[1:] != trailing for _, c in columns):
        raise SpecError(f"the columns of input {tensor.name} have different shapes")
    if not _fits(tensor, shape):
        raise SpecError(f"rows of input {tensor.name} have shape {list(shape)}; the model takes {tensor}")
    variables = tuple(Variable(name, pad_value=pad.value if pad else 0.0) for name, _ in columns)
    plan = Plan(tensor.name, tensor.dtype, shape, variables, pad, stacked)
    return dataclasses.replace(plan, any_length=pad is not None and tensor.shape[plan.axis] == ANY)


def _padded_shape(
    tensor: TensorSpec, n: tuple[int, ...], trailing: tuple[int, ...], pad: Pad
) -> tuple[int, ...]:
    """Shape of a padded row; the model's length, or the pad's, or open."""
    axis = 1 if n and pad.channels == "first" else 0
    own = tensor.shape[axis] if axis < len(tensor.shape) else ANY
    length = own if pad.length is None else pad.length
    return (*n, length, *trailing) if pad.channels == "first" else (length, *n, *trailing)


def _rectangles(plan: Plan, columns: dict[str, Column]) -> dict[str, Column]:
    """Lists that all have one length and need no padding, as rectangles."""
    if plan.pad is not None:
        return {}
    jagged = {v.name: columns[v.name] for v in plan.variables if columns[v.name].counts is not None}
    return {
        name: Column(c.values.reshape(len(c.counts), -1, *c.values.shape[1:]))
        for name, c in jagged.items()
        if c.counts is not None
    }


def _uniform(columns: list[Column]) -> int | None:
    """The length of all lists, if there is one."""
    lengths = {
        int(n)
        for c in columns
        if c.counts is not None
        for n in (c.counts.min(initial=2**31), c.counts.max(initial=0))
    }
    return lengths.pop() if len(lengths) == 1 and all(c.counts is not None for c in columns) else None


def _fits(tensor: TensorSpec, shape: tuple[int, ...]) -> bool:
    """Whether rows of a shape, open lengths included, are what the model takes."""
    return len(shape) == len(tensor.shape) and all(
        have == want or want == ANY for have, want in zip(shape, tensor.shape, strict=True)
    )


def _names(tensors: tuple[TensorSpec, ...]) -> str:
    """Inputs of a model, for a message."""
    return "; ".join(map(str, tensors))
