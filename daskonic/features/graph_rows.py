"""Graphs: several in one request, for models without a batch dimension.

Such a model takes one large graph: all nodes in one tensor, all edges in another, and numbers that say which
node an edge begins and ends at. Several graphs are one graph whose parts are not connected, if the
numbers of each are shifted by the nodes before it. That is how torch_geometric makes batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from daskonic.errors import InputError, SpecError
from daskonic.features.buckets import Batch, Which
from daskonic.features.graph import GRAPHS, Graph
from daskonic.features.plan import Block, Column, as_dtype
from daskonic.features.rows import NO_LENGTHS
from daskonic.ragged import Counts, Layout, Level, mask, unflatten
from daskonic.tensors import ANY, Array, ModelSpec, TensorSpec

__all__ = ["GraphInput", "GraphRows"]


@dataclass(frozen=True, slots=True, eq=False)
class GraphInput:
    """One input of all graphs: flat columns over the items of a list.

    Attributes
    ----------
    axis : int
        The dimension of the tensor that runs over the items.
    targets : tuple of str
        Lists that its values count in; empty for one that is no index.
    """

    tensor: TensorSpec
    of: str
    columns: tuple[Array, ...]
    stacked: bool
    axis: int
    targets: tuple[str, ...]

    @property
    def item_nbytes(self) -> int:
        """Bytes of one item in a message."""
        shape = self.columns[0].shape[1:]
        return self.tensor.dtype.itemsize * math.prod(shape) * len(self.columns)


@dataclass(slots=True, eq=False)
class GraphRows:
    """All graphs of one call; a row is a graph.

    Attributes
    ----------
    layout : Layout
        Nesting above the graphs.
    counts : dict of str to array of int64, [n_graphs]
        Items of each list in each graph.
    inputs : tuple of GraphInput
    spec : ModelSpec
    graph : Graph
    """

    layout: Layout
    counts: dict[str, Counts]
    inputs: tuple[GraphInput, ...]
    spec: ModelSpec
    graph: Graph

    _offsets: dict[str, Counts] = field(init=False)

    def __post_init__(self) -> None:
        self._offsets = {name: _offsets(counts) for name, counts in self.counts.items()}

    def __len__(self) -> int:
        return self.layout.n_rows

    @property
    def useful_nbytes(self) -> int:
        """Bytes of all inputs: nothing is padded."""
        return int(self._graph_nbytes().sum())

    @property
    def n_saved(self) -> int:
        """Every graph is sent."""
        return 0

    @property
    def n_cut(self) -> int:
        """Nothing is cut."""
        return 0

    def mask(self, nested: Any, keep: npt.NDArray[np.bool_]) -> Any:
        """What :meth:`unflatten` gave, with None for the graphs that are not kept."""
        return mask(nested, keep, self.layout)

    def buckets(self) -> None:
        """No padding, no buckets."""
        return

    def split(self, max_rows: int, max_nbytes: int, *_: Any) -> Iterator[Batch]:
        """Graphs in order, as many in a batch as the limits allow, ``max_nodes`` among them."""
        nbytes = _offsets(self._graph_nbytes())
        nodes = _offsets(
            np.sum([self.counts[name] for name in self.graph.counted if name in self.counts], axis=0)
        )
        start = 0
        while start < len(self):
            ends = [
                int(np.searchsorted(nbytes, nbytes[start] + max_nbytes, side="right")) - 1,
                int(np.searchsorted(nodes, nodes[start] + self.graph.max_nodes, side="right")) - 1,
                start + max_rows,
                len(self),
            ]
            stop = max(start + 1, min(ends))
            yield Batch(slice(start, stop), stop - start)
            start = stop

    def features(self, which: Which) -> Block:
        """Columns of some graphs, their indices shifted by the items of the graphs before."""
        assert isinstance(which, slice)
        columns: dict[str, Column] = {}
        for given in self.inputs:
            begin, end = self._place(given.of, which)
            values = [c[begin:end] for c in given.columns]
            stacked = np.stack(values, axis=1) if given.stacked else values[0]
            columns[given.tensor.name] = Column(
                self._shifted(stacked, given, which) if given.targets else stacked
            )
        for name, of in self.graph.batch.items():
            counts = self.counts[of][which]
            columns[name] = Column(np.repeat(np.arange(len(counts)), counts))
        return Block(which, which.stop - which.start, columns)

    def tensors(self, block: Block, lengths: Mapping[str, int] = NO_LENGTHS) -> dict[str, Array]:  # noqa: ARG002
        """Inputs of one request, in the model's dtypes.

        Raises
        ------
        InputError
            A value that is not finite, or an integer the model's dtype cannot hold.
        """
        made = {}
        axes = {given.tensor.name: (given.axis, given.of) for given in self.inputs}
        for tensor in self.spec.inputs:
            axis, of = axes.get(tensor.name, (0, ""))
            values = block.columns[tensor.name].values
            with np.errstate(all="ignore"):
                cast = as_dtype(values, tensor.dtype, tensor.name, tensor.name)
            if cast.dtype.kind == "f" and not np.isfinite(cast).all():
                item = int(np.flatnonzero(~np.isfinite(cast).reshape(len(cast), -1).all(axis=1))[0])
                raise self._wrong(
                    f"input {tensor.name!r} is not finite in {tensor.dtype.name}", of, item, block.which
                )
            made[tensor.name] = np.ascontiguousarray(np.moveaxis(cast, 0, axis))
        return made

    def offsets(self, output: TensorSpec) -> Counts:
        """Where the entries of each graph begin in an output.

        Raises
        ------
        SpecError
            The output is in no list of the graph, or in one that no input has, or has a fixed size.
        """
        if output.shape[:1] != (ANY,):
            raise SpecError(
                f"output {output} of model {self.spec.name!r} has no open first dimension: which graph is it of?"
            )
        return self._offsets[self._list_of(output.name)]

    def unflatten(self, values: Array | Mapping[str, Array], outputs: Sequence[str]) -> Any:
        """Entries in their graphs, graphs in their nesting."""
        if not isinstance(values, Mapping):
            return self._nested(values, self._list_of(outputs[0]))
        nested = {
            name: self._nested(v, self._list_of(outputs[0] if len(outputs) == 1 else name))
            for name, v in values.items()
        }
        return ak.zip(nested, depth_limit=max(len(self.layout.levels), len(self.layout.shape), 1))

    def _nested(self, values: Array, of: str) -> Any:
        """One output."""
        if of == GRAPHS:
            return unflatten(values, self.layout)
        counts = self.counts[of]
        if self.layout.levels:
            *outer, rows = self.layout.levels
            inner = Layout(len(values), (*outer, Level(rows.missing, counts), Level(None, None)))
            return unflatten(values, inner)
        array = ak.unflatten(ak.from_numpy(values, regulararray=True), counts)
        for size in reversed(self.layout.shape[1:]):
            array = ak.unflatten(array, size)
        return array

    def _list_of(self, output: str) -> str:
        """The list of an output, whose items are known from an input."""
        of = self.graph.list_of(output, self.spec.name)
        if of not in self.counts:
            raise SpecError(
                f"output {output!r} has one entry for each of {of!r}, but no input tells how many these are"
            )
        return of

    def _shifted(self, values: Array, given: GraphInput, which: slice) -> Array:
        """An index into the items of all graphs of a request, from one into those of its own graph."""
        counts = self.counts[given.of][which]
        shifted = values.astype(np.int64)
        # Views: what is added to the parts is added to the whole.
        parts = shifted.reshape(len(shifted), math.prod(shifted.shape[1:])).T
        for part, to in zip(parts, given.targets * (len(parts) // len(given.targets)), strict=True):
            most = np.repeat(self.counts[to][which], counts)
            outside = np.flatnonzero((part < 0) | (part >= most))
            if len(outside):
                item = int(outside[0])
                what = f"index {given.tensor.name!r} has {part[item]}, but the graph has {most[item]} {to} (from 0 on)"
                raise self._wrong(what, given.of, item, which)
            begin, _ = self._place(to, which)
            part += np.repeat(self._offsets[to][which] - begin, counts)
        return shifted

    def _place(self, of: str, which: slice) -> tuple[int, int]:
        """Where the items of some graphs begin and end."""
        offsets = self._offsets[of]
        return int(offsets[which.start]), int(offsets[which.stop])

    def _graph_nbytes(self) -> Counts:
        """Bytes of each graph in a message."""
        nbytes = np.zeros(len(self), np.int64)
        for given in self.inputs:
            nbytes += self.counts[given.of] * given.item_nbytes
        for tensor in self.spec.inputs:
            if tensor.name in self.graph.batch:
                nbytes += self.counts[self.graph.batch[tensor.name]] * tensor.dtype.itemsize
        return nbytes

    def _wrong(self, what: str, of: str, item: int, which: Which) -> InputError:
        """An error that names the graph."""
        assert isinstance(which, slice)
        begin, _ = self._place(of, which)
        row = int(np.searchsorted(self._offsets[of], begin + item, side="right")) - 1
        position = ", ".join(map(str, self.layout.position(row)))
        return InputError(
            f"{what}: item {begin + item - self._offsets[of][row]} of {of} in graph {row} (index {position})"
        )


def _offsets(counts: Counts) -> Counts:
    """Where each begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts)])
