"""What the tensors of a model without a batch dimension mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from daskonic.errors import ConfigError, SpecError
from daskonic.tensors import ModelSpec

__all__ = ["GRAPHS", "Graph"]

GRAPHS = "graphs"
"""The list with one item for each graph."""


class Graph:
    """What the tensors of a model without a batch dimension mean, so that graphs can share requests.

    Parameters
    ----------
    index : mapping of str to str or pair of str, optional
        Inputs whose values are numbers of items in the same graph, counted from 0, and of which list:
        ``{"edge_index": "nodes"}``, or ``("hits", "points")`` where the first and the second number
        count in different lists. Shifted by the items of the graphs before.
    batch : mapping of str to str, optional
        Inputs that daskonic makes: the number of the graph, in its request, of each item of a list.
    max_nodes : int
        Most items in one request of the lists that ``index`` and ``batch`` refer to, all together. A
        graph that has more by itself is sent alone.
    **lists : sequence of str
        The lists that a graph is made of, by names of your choice, and the model's inputs and outputs that
        have one entry for each of their items. The list ``graphs`` is for tensors with one entry for each
        graph.

    Examples
    --------
    A model of torch_geometric, with a score for each graph and one for each node:

    >>> import daskonic as dk
    >>> graph = dk.Graph(
    ...     nodes=["x", "node_score"],
    ...     edges=["edge_index"],
    ...     graphs=["score"],
    ...     index={"edge_index": "nodes"},
    ...     batch={"batch": "nodes"},
    ... )
    >>> features = dk.Features(
    ...     lambda jets: {"x": [jets.hits.energy, jets.hits.time], "edge_index": [jets.edges.a, jets.edges.b]},
    ...     graph=graph,
    ... )
    """

    def __init__(
        self,
        *,
        index: Mapping[str, str | Sequence[str]] | None = None,
        batch: Mapping[str, str] | None = None,
        max_nodes: int = 100_000,
        **lists: Sequence[str],
    ) -> None:
        self.lists = {
            name: (tensors,) if isinstance(tensors, str) else tuple(tensors)
            for name, tensors in lists.items()
        }
        self.index = {n: (to,) if isinstance(to, str) else tuple(to) for n, to in (index or {}).items()}
        self.batch = dict(batch or {})
        self.max_nodes = max_nodes
        if max_nodes < 1:
            raise ConfigError(f"max_nodes is {max_nodes}; at least 1 is needed")
        self._of = {tensor: name for name, tensors in self.lists.items() for tensor in tensors}
        self._of |= self.batch
        for tensor, targets in (*self.index.items(), *((b, (to,)) for b, to in self.batch.items())):
            unknown = [to for to in targets if to not in self.lists]
            if unknown:
                raise ConfigError(
                    f"{tensor!r} refers to {unknown[0]!r}; the lists are {', '.join(self.lists)}"
                )
        if sum(map(len, self.lists.values())) + len(self.batch) != len(self._of):
            raise ConfigError("a tensor belongs to one list; one of them is named twice")
        strange = sorted(set(self.index) - set(self._of))
        if strange:
            raise ConfigError(
                f"{strange[0]!r} is an index of no list: name it in one, such as edges=[{strange[0]!r}]"
            )

    def __str__(self) -> str:
        return ", ".join(f"{name}: {' '.join(tensors)}" for name, tensors in self.lists.items())

    def check(self, spec: ModelSpec) -> None:
        """SpecError if the lists have names that the model does not know."""
        strange = sorted(set(self._of) - {t.name for t in (*spec.inputs, *spec.outputs)})
        if strange:
            raise SpecError(
                f"the graph names {', '.join(strange)}; model {spec.name!r} has inputs "
                f"{'; '.join(map(str, spec.inputs))} and outputs {'; '.join(map(str, spec.outputs))}"
            )

    @property
    def counted(self) -> tuple[str, ...]:
        """Lists whose items ``max_nodes`` bounds: those that are referred to."""
        targets = {to for all_to in self.index.values() for to in all_to} | set(self.batch.values())
        return tuple(name for name in self.lists if name in targets) or tuple(self.lists)

    def list_of(self, tensor: str, model: str) -> str:
        """The list that an input or output belongs to.

        Raises
        ------
        SpecError
            It is in none.
        """
        if tensor not in self._of:
            raise SpecError(
                f"tensor {tensor!r} of model {model!r} is in no list of the graph ({self}); say what it has one entry "
                f"for each of, such as dk.Graph(nodes=[{tensor!r}, ...]) or graphs=[{tensor!r}]"
            )
        return self._of[tensor]
