"""The t t̄ example runs on a real Triton, and its histograms are those of inference in the process itself."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("coffea")


@pytest.fixture(scope="module")
def modules():
    """The example and its benchmark, as scripts import them."""
    folders = [str(ROOT / "examples" / "analysis"), str(ROOT / "benchmarks")]
    sys.path[:0] = folders
    import bench_analysis
    import run
    import ttbar

    yield ttbar, run, bench_analysis
    for folder in folders:
        sys.path.remove(folder)
    for name in ("bench_analysis", "run", "ttbar", "results"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def served(modules):
    with modules[1].serve() as server:
        yield server.address


def test_the_three_forms_fill_the_same_histograms(modules, served):
    """Bit by bit, every variation and region, with a chunk that has few events in one of them."""
    ttbar, run, bench = modules
    forms = [ttbar.assigner(servers=[served]), bench.ByCoffea(served), bench.InProcess()]
    made, *others = [run.analyse(form, chunksize=250, maxchunks=1) for form in forms]
    for other in others:
        assert bench.bins(made) == bench.bins(other)
    assert made["events"] == {"ttbar": 250, "wjets": 250}
    assert set(made["observable"].axes["variation"]) == {*ttbar.VARIATIONS, "btag_up", "btag_down"}
    top = made["observable"][{"process": "ttbar", "region": "4j2b", "variation": "nominal"}]
    assert 130 < float(top.axes[0].centers[np.argmax(top.values())]) < 210


def test_rows_that_a_variation_leaves_alone_are_not_sent(modules, served):
    """Assignments without a jet in the endcaps are the same when those are scaled."""
    ttbar, _, bench = modules
    sent, saved = bench.counts(ttbar.assigner(servers=[served]))
    assert 0.05 < saved / (sent + saved) < 0.5


def test_each_network_scores_the_other_half(modules, served):
    """On real candidates; the two networks do differ."""
    ttbar, run, _ = modules
    x = np.random.default_rng(0).uniform(0, 200, (64, 16)).astype(np.float32)
    session = {s: onnxruntime.InferenceSession(run.DATA / f"trained_on_{s}.onnx") for s in ("even", "odd")}
    own = {seen: s.run(None, {"features": x})[0] for seen, s in session.items()}
    models = ttbar.assigner(servers=[served]).models
    assert [model.version for model in models] == ["1", "2"]
    assert not np.allclose(own["even"], own["odd"])
    numbers = np.arange(64)
    for model in models:
        model.features = ttbar.dk.Features.plain()
        model.classes = None
    scores = ttbar.dk.KFold(lambda n: n % 2, trained_on={0: models[0], 1: models[1]})(x, numbers)
    np.testing.assert_allclose(scores[numbers % 2 == 0], own["odd"][::2], rtol=1e-6)
    np.testing.assert_allclose(scores[numbers % 2 == 1], own["even"][1::2], rtol=1e-6)
