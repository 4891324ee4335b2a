"""Mistakes that give wrong numbers without an error are planted on real servers, and found by what a user would run.

Each has its counterpart beside it, without the mistake, which passes the same way.
"""

from __future__ import annotations

import logging

import awkward as ak
import numpy as np
import onnx.parser
import pytest
from test_graphs import GRAPH, make
from test_graphs import inputs as graph_inputs
from triton_models import write_model

import daskonic as dk
from daskonic import errors, server
from daskonic.config import resolve
from daskonic.lock import Lock
from daskonic.provenance import lock, verify

PLACES = 16
W = "float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}"
NETWORKS = {
    "masked": """(float[N, 2, L] x, float[N, 1, L] mask) => (float[N, 2] score) <int64[1] places = {2}> {
        items = Mul(x, mask)
        total = ReduceSum<keepdims = 0>(items, places)
        n = ReduceSum<keepdims = 0>(mask, places)
        score = Div(total, n)
    }""",
    "unmasked": """(float[N, 2, L] x, float[N, 1, L] mask) => (float[N, 2] score) {
        score = ReduceMean<axes = [2], keepdims = 0>(x)
    }""",
    "evaluated": """(float[N, 3] x) => (float[N, 3] score) <float[1] mean = {0.25}> {
        score = Sub(x, mean)
    }""",
    "in_training": """(float[N, 3] x) => (float[N, 3] score) {
        mean = ReduceMean<axes = [0], keepdims = 1>(x)
        score = Sub(x, mean)
    }""",
    "image": f"""(float[N, 4, 4] x) => (float[N, 4] score) <{W}> {{
        weighted = Mul(x, w)
        score = ReduceMean<axes = [2], keepdims = 0>(weighted)
    }}""",
    "image_transposed": f"""(float[N, 4, 4] x) => (float[N, 4] score) <{W}> {{
        swapped = Transpose<perm = [0, 2, 1]>(x)
        weighted = Mul(swapped, w)
        score = ReduceMean<axes = [2], keepdims = 0>(weighted)
    }}""",
}


def write_network(path, text):
    """An ONNX file from its text."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> network {text}')
    onnx.save(model, path)
    return path


def write_scale(path, factor):
    """A network that multiplies by a number."""
    text = f"(float[N, 3] x) => (float[N, 3] score) <float[1] w = {{{factor}}}> {{ score = Mul(x, w) }}"
    return write_network(path, text)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every network as a file; those with ``_16`` take no other length."""
    folder = tmp_path_factory.mktemp("files")
    texts = NETWORKS | {f"{n}_16": NETWORKS[n].replace("L]", "16]") for n in ("masked", "unmasked")}
    return {name: write_network(folder / f"{name}.onnx", text) for name, text in texts.items()}


@pytest.fixture(scope="module")
def triton(tmp_path_factory, files):
    """A server with every network, and with graph networks of which one forgets the batch index."""
    repository = tmp_path_factory.mktemp("planted")
    for name, path in files.items():
        server.add_onnx(repository, name, path)
    write_model(repository, "graph_sum", kind="graph_sum")
    write_model(repository, "pooled", kind="pooled")
    write_model(repository, "pooled_over_all", kind="pooled", forgets="batch")
    with dk.local_server(repository) as server_:
        yield server_


@pytest.fixture
def model(triton):
    """Makes a model of the server, with a pool of its own."""
    made = []

    def make_model(name, features=None, servers=None, **options):
        addresses = servers or [triton.address]
        made.append(dk.Model(name, features=features, servers=addresses, connect_timeout="9 s", **options))
        return made[-1]

    yield make_model
    for one in made:
        one.pool().close()


def found(report, kind, *words, fatal=True):
    """That one finding, which says so."""
    (finding,) = report.findings
    assert (finding.kind, finding.fatal) == (kind, fatal), report
    for word in words:
        assert word in finding.message
    return True


def nothing(report):
    """All is well."""
    return report.ok and not report.findings


# -- mask ignored ----------------------------------------------------------------------------------

RNG = np.random.default_rng(3)
LENGTHS = RNG.integers(1, PLACES + 1, 60)
JETS = ak.Array({n: ak.unflatten(RNG.normal(1, 1, LENGTHS.sum()).astype("f4"), LENGTHS) for n in "ab"})
PADDED = dk.Features(
    lambda jets: {"x": [jets.a, jets.b], "mask": [ak.ones_like(jets.a)]},
    pad={"x": dk.Pad(PLACES), "mask": dk.Pad(PLACES)},
)


def means(divisors):
    """Sums over the items by these."""
    return np.stack([ak.to_numpy(ak.sum(JETS[n], axis=1)) / divisors for n in "ab"], axis=1)


def test_mask_ignored(model, caplog):
    """A check says what padding does to scores; a run sends the full length, so that they are the network's own, and says so."""
    assert found(model("unmasked", PADDED).check(JETS), "padding", "mask", "full length", fatal=False)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(model("unmasked", PADDED)(JETS), means(PLACES), rtol=1e-5, atol=1e-6)
    assert "does not ignore padding" in caplog.text
    assert nothing(model("masked", PADDED).check(JETS))
    caplog.clear()
    np.testing.assert_allclose(model("masked", PADDED)(JETS), means(LENGTHS), rtol=1e-5, atol=1e-6)
    assert not caplog.text


def test_mask_ignored_by_a_network_that_is_sent_short_all_the_same(model):
    """Who insists on short rows would get other scores, so the run should not start."""
    report = model("unmasked", PADDED, trim="always").check(JETS)
    assert found(report, "padding", "Leave out trim='always'")
    assert nothing(model("masked", PADDED, trim="always").check(JETS))


def test_mask_ignored_by_a_network_of_one_length(model):
    """Where the length cannot change, other numbers behind the mask tell."""
    assert found(model("unmasked_16", PADDED).check(JETS), "padding", "where the mask is 0", fatal=False)
    report = model("masked_16", PADDED).check(JETS)
    assert nothing(report)
    assert report.differences["padding of other numbers"] < 1e-6


# -- scores that depend on the batch ---------------------------------------------------------------

ROWS = RNG.normal(size=(60, 3)).astype("f4")


def test_network_in_training_mode(model):
    """A mean over the batch: a check says what to export anew, and a lock cannot be made."""
    assert found(model("in_training").check(ROWS), "neighbours", "model.eval()", "batch_size=1")
    with pytest.raises(errors.ConfigError, match="depends on its neighbours in the batch"):
        lock(model("in_training"), ROWS)
    assert nothing(model("evaluated").check(ROWS))
    assert lock(model("evaluated"), ROWS).spread < 1e-6


# -- transposed ------------------------------------------------------------------------------------


def test_transposed_features(model):
    """Rows where columns should be, by the shape."""
    last = {name: dk.Pad(PLACES, channels="last") for name in ("x", "mask")}
    swapped = dk.Features(lambda jets: {"x": [jets.a, jets.b], "mask": [ak.ones_like(jets.a)]}, pad=last)
    report = model("masked", swapped).check(JETS)
    assert {f.kind for f in report.findings} == {"transposed"}, report
    assert "dimensions are swapped" in report.findings[0].message
    with pytest.raises(errors.SpecError, match="x"):
        model("masked", swapped)(JETS)


def test_network_that_is_served_transposed(model, files):
    """A square image fits either way: the network's own file tells."""
    images = RNG.normal(size=(60, 4, 4)).astype("f4")
    report = model("image_transposed").check(images, files["image"])
    assert found(report, "reference", "image.onnx", "another training or version")
    assert nothing(model("image").check(images, files["image"]))


# -- graphs ----------------------------------------------------------------------------------------

GRAPHS = make(RNG.integers(1, 9, 40), RNG.integers(1, 9, 40))
POOLED = dk.Graph(nodes=["x"], graphs=["total"], batch={"batch": "nodes"})


def test_graph_index_without_offset(model):
    """An index that dk.Graph does not know for one stays as it is, and every graph but the first gets others' nodes."""
    lists = {"nodes": ["x", "received"], "edges": ["edge_index", "product"], "graphs": ["u", "total"]}
    forgotten = dk.Features(graph_inputs, graph=dk.Graph(**lists, batch={"batch": "nodes"}))
    report = model("graph_sum", forgotten).check(GRAPHS)
    assert found(report, "neighbours", "is edge_index an index, and missing in dk.Graph(index=...)?")
    assert nothing(model("graph_sum", dk.Features(graph_inputs, graph=GRAPH)).check(GRAPHS))


def test_graph_index_with_two_offsets(model):
    """A function that shifts indices itself does what daskonic does once more: that is an error at the first graph."""

    def shifted(graphs):
        nodes = ak.to_numpy(ak.num(graphs.a, axis=1))
        offsets = np.cumsum(nodes) - nodes
        return graph_inputs(graphs) | {"edge_index": [graphs.source + offsets, graphs.target + offsets]}

    twice = model("graph_sum", dk.Features(shifted, graph=GRAPH))
    assert found(twice.check(GRAPHS), "values", "edge_index", "dk.Graph shifts them")
    with pytest.raises(errors.InputError, match=r"edge_index.* but the graph has \d+ nodes"):
        twice(GRAPHS)


def test_transposed_index(model):
    """Edges in rows, [edges, 2], for a model of [2, edges], are put as the model has them."""
    pairs = dk.Features(
        lambda graphs: (
            graph_inputs(graphs)
            | {
                "edge_index": ak.concatenate(
                    [graphs[n][..., np.newaxis] for n in ("source", "target")], axis=2
                )
            }
        ),
        graph=GRAPH,
    )
    assert nothing(model("graph_sum", pairs).check(GRAPHS))


def test_server_that_forgets_the_batch_index(model):
    """A sum over all nodes of a request: the score of a graph depends on those that are sent with it."""
    features = dk.Features(lambda graphs: {"x": [graphs.a]}, graph=POOLED)
    report = model("pooled_over_all", features).check(GRAPHS)
    assert found(report, "neighbours", "sum over all nodes", "batch_size=1")
    assert nothing(model("pooled", features).check(GRAPHS))


# -- two servers, one name -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Addresses of two servers with the same network, and of one with other weights under its name."""
    running = []
    for factor in (2.0, 2.0, 2.5):
        folder = tmp_path_factory.mktemp("scale")
        server.add_onnx(folder / "r", "scale", write_scale(folder / "m.onnx", factor))
        running.append(dk.local_server(folder / "r").start())
    yield [one.address for one in running]
    for one in running:
        one.stop(grace_s=0)


def test_check_of_two_servers(model, servers):
    """The same rows at each of them: which ones differ, by how much, and what to do."""
    report = model("scale", servers=servers).check(ROWS)
    assert found(report, "servers differ", servers[0], servers[2], "daskonic.locks")
    assert report.exit_code == errors.ServerError.exit_code
    report = model("scale", servers=servers[:2]).check(ROWS)
    assert nothing(report)
    assert report.differences["servers"] == 0


def test_lock_of_two_servers(model, servers):
    """A lock is of one model, and tells the other one."""
    with pytest.raises(errors.ServerError, match="have different models under the name 'scale'"):
        lock(model("scale", servers=servers), ROWS)
    locked = lock(model("scale", servers=servers[:2]), ROWS)
    assert [v.state for v in verify(locked, resolve(servers))] == ["same", "same", "other"]


def test_run_on_two_servers(model, servers):
    """Each server scores a few rows of the run before it is used: other weights are an error, without a lock and before they count."""
    with pytest.raises(
        errors.ServerError, match=r"score the same rows differently: other weights under one name.*locks"
    ):
        model("scale", servers=servers, batch_size=5)(ROWS)
    assert np.array_equal(model("scale", servers=servers[:2], batch_size=5)(ROWS), 2 * ROWS)
    tolerant = model("scale", servers=servers, batch_size=5, tolerance=9)(ROWS)
    assert set(np.unique(np.round(tolerant / ROWS, 3))) == {
        2.0,
        2.5,
    }  # what a difference that is allowed means


def test_run_on_two_servers_and_a_lock(model, servers, tmp_path):
    """With a lock the run goes on at those that have the locked weights."""
    lock(model("scale", servers=servers[:1]), ROWS).write(tmp_path / "scale.lock")
    pending = model("scale", servers=servers, batch_size=5, locks=[tmp_path / "scale.lock"]).submit(ROWS)
    assert np.array_equal(pending.result(), 2 * ROWS)
    assert servers[2] not in pending.report.endpoints
    assert pending.report.fingerprint == Lock.read(tmp_path / "scale.lock").fingerprint
