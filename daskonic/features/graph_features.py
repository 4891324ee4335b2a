"""Inputs of graphs that a function of the user makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskonic.errors import SpecError
from daskonic.features.function import column, common_layout, identity, named
from daskonic.features.graph import GRAPHS, Graph
from daskonic.features.graph_rows import GraphInput, GraphRows
from daskonic.features.plan import Column
from daskonic.ragged import Counts, Layout
from daskonic.tensors import ANY, Array, ModelSpec, TensorSpec

__all__ = ["GraphFeatures"]


@dataclass(frozen=True, slots=True)
class GraphFeatures:
    """A function from objects to named arrays, one graph in each row."""

    function: Callable[[Any], Any]
    graph: Graph

    def __str__(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))

    @property
    def identity(self) -> str:
        """Name, code and meaning of the function."""
        return f"{identity(self.function)} {self.graph}"

    def inputs(self, objects: Any, spec: ModelSpec) -> _GraphInputs:
        """Call the function and compare names and dimensions with the model's."""
        if spec.max_batch_size > 0:
            raise SpecError(f"model {spec.name!r} has a batch dimension; its features need no graph=")
        self.graph.check(spec)
        tensors = tuple(t for t in spec.inputs if t.name not in self.graph.batch)
        return _GraphInputs(objects, named(self.function, objects, tensors, spec), spec, self.graph)


@dataclass(frozen=True, slots=True)
class _GraphInputs:
    """What the function gave."""

    objects: Any
    made: Mapping[str, Any]
    spec: ModelSpec
    graph: Graph

    def flatten(self) -> GraphRows:
        """Flat columns of all inputs, and the items of each list in each graph."""
        counts: dict[str, Counts] = {}
        inputs: list[GraphInput] = []
        layouts: list[tuple[str, Layout]] = []
        for tensor in self.spec.inputs:
            if tensor.name not in self.graph.batch:
                made, items, layout = self._input(tensor)
                inputs.append(made)
                layouts.append((tensor.name, layout))
                known = counts.setdefault(made.of, items)
                if known is not items and not np.array_equal(known, items):
                    others = ", ".join(i.tensor.name for i in inputs[:-1] if i.of == made.of)
                    raise SpecError(
                        f"inputs {others} and {tensor.name} do not have the same number of {made.of} in each graph"
                    )
        layout = common_layout(self.objects, layouts)
        counts[GRAPHS] = np.ones(layout.n_rows, np.int64)
        return GraphRows(layout, counts, tuple(inputs), self.spec, self.graph)

    def _input(self, tensor: TensorSpec) -> tuple[GraphInput, Counts, Layout]:
        """One input: its columns, its items in each graph, and the nesting of the graphs."""
        value, of = self.made[tensor.name], self.graph.list_of(tensor.name, self.spec.name)
        stacked = isinstance(value, list | tuple)
        arrays = list(value) if stacked else [value]
        rank = len(tensor.shape) - stacked - (of == GRAPHS)
        names = [f"{tensor.name}[{i}]" if stacked else tensor.name for i in range(len(arrays))]
        parts, layouts = zip(
            *(column(n, a, rank, tensor) for n, a in zip(names, arrays, strict=True)), strict=True
        )
        items = [_items(part, of, name) for name, part in zip(names, parts, strict=True)]
        for name, layout, (_, counts) in zip(names[1:], layouts[1:], items[1:], strict=True):
            if not layouts[0].same(layout) or not np.array_equal(counts, items[0][1]):
                raise SpecError(
                    f"inputs {names[0]} and {name} do not have the same number of {of} in each graph"
                )
        columns = tuple(values for values, _ in items)
        shape = (len(columns), *columns[0].shape[1:]) if stacked else columns[0].shape[1:]
        targets = self.graph.index.get(tensor.name, ())
        axis = _axis(tensor, shape, last=bool(targets))
        if len(targets) > 1 and shape[:1] != (len(targets),):
            raise SpecError(
                f"index {tensor.name} has items of shape {list(shape)}; its {len(targets)} lists need as many"
            )
        return GraphInput(tensor, of, columns, stacked, axis, targets), items[0][1], layouts[0]


def _items(part: Column, of: str, name: str) -> tuple[Array, Counts]:
    """Flat entries of a list, and how many each graph has."""
    if of == GRAPHS:
        if part.counts is not None:
            raise SpecError(f"input {name} is jagged; it should have one entry for each graph")
        return part.values, np.ones(len(part.values), np.int64)
    if part.counts is not None:
        return part.values, part.counts
    n_rows, n_items, *trailing = part.values.shape
    return part.values.reshape(n_rows * n_items, *trailing), np.full(n_rows, n_items, np.int64)


def _axis(tensor: TensorSpec, shape: tuple[int, ...], *, last: bool) -> int:
    """The open dimension of a tensor that runs over the items; ``shape`` is that of one."""
    able = [
        axis
        for axis, length in enumerate(tensor.shape)
        if length == ANY
        and TensorSpec(tensor.name, tensor.dtype, tensor.shape[:axis] + tensor.shape[axis + 1 :]).accepts(
            shape
        )
    ]
    if not able:
        raise SpecError(f"items of input {tensor.name} have shape {list(shape)}; the model takes {tensor}")
    return able[-1] if last else able[0]
