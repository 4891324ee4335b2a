"""Several graphs share a request, and each gets its own answer: in order, of its own nodes and edges."""

from __future__ import annotations

import pickle

import awkward as ak
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import daskonic as dk
from daskonic.config import resolve
from daskonic.errors import ConfigError, InputError, ResponseError, SpecError
from daskonic.model import _score
from daskonic.pool import Pool
from daskonic.tensors import ModelSpec, TensorSpec
from daskonic.transport.memory import MemoryTransport

GRAPH = dk.Graph(
    nodes=["x", "received"],
    edges=["edge_index", "product"],
    graphs=["u", "total"],
    index={"edge_index": "nodes"},
    batch={"batch": "nodes"},
)


def inputs(graphs):
    return {"x": [graphs.a, graphs.b], "edge_index": [graphs.source, graphs.target], "u": [graphs.weight]}


def make(nodes, edges, weights=None, seed=0):
    """Graphs with the given numbers of nodes and edges; no two alike."""
    rng = np.random.default_rng(seed)
    nodes, edges = np.array(nodes, np.int64), np.array(edges, np.int64)
    fields = {name: ak.unflatten(rng.normal(size=nodes.sum()).astype(np.float32), nodes) for name in "ab"}
    ends = [rng.integers(0, np.repeat(nodes, edges)) for _ in range(2)]
    fields |= {n: ak.unflatten(e, edges) for n, e in zip(("source", "target"), ends, strict=True)}
    fields["weight"] = rng.uniform(1, 2, len(nodes)).astype(np.float32)
    return ak.zip(fields, depth_limit=1)


def one_by_one(graph):
    """What the model gives for a single graph, in plain NumPy."""
    a, b, source, target = (ak.to_numpy(graph[n]) for n in ("a", "b", "source", "target"))
    received = np.zeros(len(a), np.float32)
    np.add.at(received, target, a[source])
    return {
        "total": np.array([a.sum(), b.sum()]) * graph.weight,
        "received": received,
        "product": a[source] * b[target],
    }


def assert_same(scores, graphs):
    """Every graph's answer is that of the graph alone."""
    assert len(scores) == len(graphs)
    for graph, score in zip(graphs, scores, strict=True):
        alone = one_by_one(graph)
        np.testing.assert_allclose(score.total, alone["total"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(score.received, alone["received"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            ak.to_numpy(score["product"])[:, 0], alone["product"], rtol=1e-5, atol=1e-6
        )


def model(server, graph=GRAPH, **options):
    return dk.Model("graph_sum", features=dk.Features(inputs, graph=graph), servers=server, **options)


@pytest.fixture(scope="module")
def server(triton):
    return [triton.address]


class TestOnTriton:
    """A real server with a model as torch_geometric exports it."""

    @pytest.mark.parametrize("max_nodes", [100_000, 100, 1])
    def test_graphs_of_50_40_and_35_nodes_come_back_as_they_are(self, server, max_nodes):
        """A client that takes the first dimension for the batch gets 50, 0 and 0 entries here."""
        graphs = make([50, 40, 35], [70, 10, 90])
        graph = dk.Graph(max_nodes=max_nodes, index=GRAPH.index, batch=GRAPH.batch, **GRAPH.lists)
        pending = model(server, graph).submit(graphs)
        scores = pending.result()
        assert ak.to_list(ak.num(scores.received)) == [50, 40, 35]
        assert_same(scores, graphs)
        assert pending.report.requests == {100_000: 1, 100: 2, 1: 3}[max_nodes]
        assert pending.report.sent_nbytes == pending.report.useful_nbytes

    def test_graphs_of_events_keep_their_nesting_and_none(self, server):
        rng = np.random.default_rng(5)
        graphs = make(rng.integers(1, 30, 100), rng.integers(0, 50, 100))
        nested = ak.unflatten(ak.mask(graphs, np.arange(100) % 7 > 0), [60, 0, 40])
        scores = model(server, outputs=["received"])(nested)
        assert str(scores.type) == "3 * var * option[var * float32]"
        assert ak.to_list(ak.is_none(scores, axis=1)) == ak.to_list(ak.is_none(nested, axis=1))
        there = ak.drop_none(ak.flatten(scores))
        for graph, values in zip(graphs[np.arange(100) % 7 > 0], there, strict=True):
            np.testing.assert_allclose(values, one_by_one(graph)["received"], rtol=1e-4, atol=1e-4)

    def test_one_output_for_each_graph_can_have_classes(self, server):
        graphs = make([3, 4], [2, 0])
        scores = model(server, outputs=["total"], classes=["energy", "time"])(graphs)
        assert scores.fields == ["energy", "time"]
        np.testing.assert_allclose(scores.energy, ak.sum(graphs.a, axis=1) * graphs.weight, rtol=1e-5)

    def test_no_graphs_send_nothing(self, server):
        pending = model(server).submit(make([2], [1])[:0])
        assert str(pending.result().type) == (
            "0 * {total: 2 * float32, received: var * float32, product: var * 1 * float32}"
        )
        assert pending.report.requests == 0

    def test_graphs_without_nodes_at_the_end_are_not_guessed(self, server):
        """The model counts graphs by their nodes, so it answers for one less: nobody knows which."""
        assert_same(model(server)(make([3, 0, 4], [2, 0, 5])), make([3, 0, 4], [2, 0, 5]))
        with pytest.raises(ResponseError, match="'total' has 2 entries for 3 rows.*graphs without nodes"):
            model(server)(make([3, 4, 0], [2, 5, 0]))

    def test_an_index_beyond_its_graph_is_named(self, server):
        graphs = make([5, 4, 6], [3, 3, 3])
        graphs["target"] = ak.Array([[0, 1, 2], [0, 4, 1], [0, 0, 0]])
        with pytest.raises(
            InputError, match=r"has 4, but the graph has 4 nodes .*item 1 of edges in graph 1 \(index 1\)"
        ):
            model(server)(graphs)

    def test_nan_is_named(self, server):
        graphs = make([5, 4, 6], [3, 3, 3])
        graphs["b"] = ak.where(graphs.b == graphs.b[2, 3], np.nan, graphs.b)
        with pytest.raises(
            InputError, match=r"'x' is not finite in float32: item 3 of nodes in graph 2 \(index 2\)"
        ):
            model(server)(graphs)

    def test_without_a_declaration_it_is_refused(self, server):
        with pytest.raises(SpecError, match=r"graph=dk.Graph"):
            dk.Model("graph_sum", features=dk.Features(inputs), servers=server)(make([2], [1]))

    def test_survives_pickling(self, server):
        graphs = make([5, 4], [3, 3])
        assert_same(pickle.loads(pickle.dumps(model(server)))(graphs), graphs)


sizes = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 8)), max_size=30)


def spec(inputs, outputs, max_batch_size=0):
    made = [
        tuple(TensorSpec(name, np.dtype(dtype), shape) for name, dtype, shape in tensors)
        for tensors in (inputs, outputs)
    ]
    return ModelSpec("m", "1", *made, max_batch_size)


PLANES = spec(
    [("u", "f4", (-1,)), ("v", "f4", (-1,)), ("plane", "i4", (-1, 2)), ("nexus", "i8", (2, -1)), ("batch_v", "i8", (-1,))],
    [("to_v", "f4", (-1,)), ("number", "i8", (-1,))],
)  # fmt: skip


def planes(x):
    """Hits of two planes; edges within u, and from u to v."""
    to_v = np.zeros(len(x["v"]), np.float32)
    np.add.at(to_v, x["nexus"][1], x["u"][x["nexus"][0]])
    inside = np.zeros(len(x["u"]), np.float32)
    np.add.at(inside, x["plane"][:, 1], x["u"][x["plane"][:, 0]])
    return {"to_v": to_v + inside.sum() * 0, "number": x["batch_v"]}


class TestConcatenation:
    """The pure part, any graphs: joined, shifted, split."""

    @settings(max_examples=60, deadline=None)
    @given(sizes, st.integers(1, 20), st.integers(1, 2000))
    def test_each_graph_is_once_in_a_request_within_the_limits_and_points_at_its_own_nodes(
        self, sizes, max_nodes, max_nbytes
    ):
        nodes, edges = (np.array([s[i] for s in sizes], np.int64) for i in range(2))
        graphs = make(nodes, edges)
        graph = dk.Graph(max_nodes=max_nodes, index=GRAPH.index, batch=GRAPH.batch, **GRAPH.lists)
        model = spec(
            [
                ("x", "f4", (-1, 2)),
                ("edge_index", "i8", (2, -1)),
                ("batch", "i8", (-1,)),
                ("u", "f4", (-1, 1)),
            ],
            [("received", "f4", (-1,)), ("product", "f4", (-1, 1)), ("total", "f4", (-1, 2))],
        )
        rows = dk.Features(inputs, graph=graph)(graphs, model).flatten()
        seen, sent = [], 0
        for batch in rows.split(2**31, max_nbytes):
            tensors = rows.tensors(rows.features(batch.which))
            mine = list(range(len(graphs)))[batch.which]
            seen += mine
            sent += sum(t.nbytes for t in tensors.values())
            assert batch.n_rows == len(mine) >= 1
            assert len(mine) == 1 or nodes[mine].sum() <= max_nodes
            assert len(mine) == 1 or sum(t.nbytes for t in tensors.values()) <= max_nbytes
            assert tensors["batch"].tolist() == [i for i, n in enumerate(nodes[mine]) for _ in range(n)]
            first = np.concatenate([[0], np.cumsum(nodes[mine])])
            for i, g in enumerate(mine):
                part = slice(edges[mine[:i]].sum(), edges[mine[: i + 1]].sum())
                own = tensors["edge_index"][:, part] - first[i]
                assert own.tolist() == [graphs.source[g].to_list(), graphs.target[g].to_list()]
                assert tensors["x"][first[i] : first[i + 1], 1].tolist() == graphs.b[g].to_list()
        assert seen == list(range(len(graphs)))
        assert sent == rows.useful_nbytes

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=12)
    )
    def test_lists_of_several_kinds_with_indices_between_them(self, sizes):
        """As NuGraph has them: two planes of hits, edges within one and between both."""
        rng = np.random.default_rng(len(sizes))
        n_u, n_v, n_edges = np.array(sizes).T
        fields = {
            "u": ak.unflatten(rng.normal(size=n_u.sum()).astype("f4"), n_u),
            "v": ak.unflatten(rng.normal(size=n_v.sum()).astype("f4"), n_v),
        }
        for name, (a, b) in {"plane": (n_u, n_u), "nexus": (n_u, n_v)}.items():
            fields[name] = [ak.unflatten(rng.integers(0, np.repeat(n, n_edges)), n_edges) for n in (a, b)]
        objects = ak.zip({"u": fields["u"], "v": fields["v"]}, depth_limit=1)
        graph = dk.Graph(
            u=["u"], v=["v", "to_v", "number"], plane=["plane"], nexus=["nexus"],
            index={"plane": "u", "nexus": ("u", "v")}, batch={"batch_v": "v"}, max_nodes=9,
        )  # fmt: skip
        transport = MemoryTransport("host:1", PLANES, planes)
        pool = Pool(resolve(["host:1"]), lambda address, *_: transport)
        features = dk.Features(lambda _: fields, graph=graph)
        scores, _ = _score(dk.Model("m", features=features), objects, pool)
        pool.close()
        for i in range(len(sizes)):
            expected = np.zeros(n_v[i], np.float32)
            source, target = (ak.to_numpy(fields["nexus"][end][i]) for end in range(2))
            np.add.at(expected, target, ak.to_numpy(fields["u"][i])[source])
            np.testing.assert_allclose(scores.to_v[i], expected, rtol=1e-5, atol=1e-6)

    def test_graphs_of_one_size_can_be_numpy(self):
        model = spec([("x", "f4", (-1, 3))], [("y", "f4", (-1,))])
        graph = dk.Graph(points=["x", "y"], max_nodes=8)
        transport = MemoryTransport("host:1", model, lambda x: {"y": x["x"].sum(axis=1)})
        pool = Pool(resolve(["host:1"]), lambda address, *_: transport)
        array = np.random.default_rng(1).normal(size=(5, 4, 3)).astype(np.float32)
        scores, report = _score(dk.Model("m", features=dk.Features(lambda a: a, graph=graph)), array, pool)
        pool.close()
        assert report.requests == 3
        np.testing.assert_allclose(ak.to_numpy(scores), array.sum(axis=2), rtol=1e-5)


ONE = spec([("x", "f4", (-1, 2)), ("edge_index", "i8", (2, -1))], [("y", "f4", (-1,))])
PAIR = {"nodes": ["x", "y"], "edges": ["edge_index"], "index": {"edge_index": "nodes"}}
X = ak.Array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]])
EDGES = [ak.Array([[0], [0]]), ak.Array([[1], [0]])]

WRONG = {
    "an input in no list": ({"nodes": ["x", "y"]}, {"x": X, "edge_index": EDGES}, ONE, "'edge_index' of model 'm' is in no list"),
    "an unknown name": (PAIR | {"graphs": ["z"]}, {"x": X, "edge_index": EDGES}, ONE, "the graph names z; model 'm' has inputs x"),
    "a batch dimension": (PAIR, {"x": X, "edge_index": EDGES}, spec([("x", "f4", (2,))], [], 8), "need no graph="),
    "a missing input": (PAIR, {"x": X}, ONE, "edge_index is missing"),
    "a shape": (PAIR, {"x": [X[..., 0]], "edge_index": EDGES}, ONE, r"have shape \[1\]; the model takes x: float32\[any, 2\]"),
    "numbers of edges": (PAIR, {"x": X, "edge_index": [EDGES[0], ak.Array([[1, 0], [0]])]}, ONE, "the same number of edges"),
    "numbers of graphs": (PAIR, {"x": X, "edge_index": [e[:1] for e in EDGES]}, ONE, "do not nest alike"),
    "a float as index": (PAIR, {"x": X, "edge_index": [e * 1.0 for e in EDGES]}, ONE, "float64; the model takes edge_index"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_declaration_is_explained(case):
    lists, made, model, message = WRONG[case]
    with pytest.raises(SpecError, match=message):
        dk.Features(lambda _: made, graph=dk.Graph(**lists))(X, model).flatten()


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"nodes": ["x"], "index": {"edge_index": "nodes"}}, "index of no list"),
        (
            {"nodes": ["x"], "edges": ["e"], "index": {"e": "node"}},
            "refers to 'node'; the lists are nodes, edges",
        ),
        ({"nodes": ["x"], "batch": {"batch": "hits"}}, "refers to 'hits'"),
        ({"nodes": ["x"], "edges": ["x"]}, "named twice"),
        ({"nodes": ["x"], "max_nodes": 0}, "max_nodes is 0"),
    ],
)
def test_a_declaration_that_means_nothing_is_refused(lists, message):
    with pytest.raises(ConfigError, match=message):
        dk.Graph(**lists)


def test_an_output_whose_size_nobody_knows_is_refused():
    graph = dk.Graph(**PAIR | {"nodes": ["x"]}, clusters=["y"])
    transport = MemoryTransport("host:1", ONE, lambda x: {"y": x["x"][:, 0]})
    pool = Pool(resolve(["host:1"]), lambda address, *_: transport)
    features = dk.Features(lambda _: {"x": X, "edge_index": EDGES}, graph=graph)
    with pytest.raises(SpecError, match="one entry for each of 'clusters', but no input tells"):
        _score(dk.Model("m", features=features), X, pool)
    pool.close()
