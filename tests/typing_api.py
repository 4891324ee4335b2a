"""The public surface as a type checker sees it: checked by mypy together with the package, never run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_type

from distributed import Client, LocalCluster

import daskonic as dk
from daskonic.tagging import Summary, read_file, tag
from daskonic.tensors import ModelSpec


def a_model(jets: Any) -> None:
    """Handle, call, acquire and produce."""
    features = dk.Features.from_weaver("pn.yaml", inputs={"x": "pf_points"}, nan="zero")
    tagger = dk.Model("pn", version=1, features=features, classes=["a", "b"], servers="a:1", window=4)
    pending = tagger.submit(jets)
    assert_type(pending, dk.Pending)
    assert_type(pending.report, dk.Report)
    assert_type(pending.done(), bool)
    assert_type(tagger.spec(), ModelSpec)
    assert_type(features.labels, tuple[str, ...])


def a_check(client: Client, jets: Any) -> int:
    """Before a run, and while it is under way."""
    report = dk.Model("pn").check(jets, "model.onnx", n_rows=10_000, tolerance=1e-4)
    assert_type(report, dk.CheckReport)
    assert_type(report.ok, bool)
    with dk.progress(client, total=10_000):
        client.submit(dk.Model("pn"), jets).result()
    return len(report.findings)


def a_function() -> dk.Features:
    """Features of one's own."""
    return dk.Features(lambda jets: {"x": [jets.pt, jets.eta]}, pad={"x": dk.Pad(64, mode="wrap")})


def a_configuration(events: Any) -> Any:
    """Inputs of CMSSW's file, and some that are ready; candidates and vertices of PFNano."""
    jets = dk.link_constituents(events, "FatJet")
    jets["svs"] = dk.secondary_vertices(events, "FatJet")
    features = dk.Features.from_cmssw("preprocess.json", inputs={"x": "pf_features"})
    dk.Model("kin", features=dk.Features.ready("jetclass-kin"))
    return dk.Model("pn", features=features)(jets)


def folds_and_variations(jets: Any, up: Any, events: Any) -> Any:
    """Models of several folds as one, and systematic variations in one call."""
    even, odd = dk.Model("m", version=1), dk.Model("m", version=2)
    tagger = dk.KFold(lambda events: events.event % 2, trained_on={0: even, 1: odd})
    models = {k: dk.Model(f"m{k}") for k in range(5)}
    five = dk.KFold(lambda number: number % 5, held_out=models)
    three = dk.KFold(lambda number: number % 3, trained_on={(0, 1): even, (1, 2): odd})
    assert_type(tagger.submit(jets, events).report, dk.Report)
    variations = dk.Variations({"nominal": jets}, jes_up=up)
    return five(variations, events)["jes_up"], three(jets, events), even(variations)


def a_graph(jets: Any) -> Any:
    """Nodes and edges for a model without a batch dimension; rows sent in full length."""
    graph = dk.Graph(nodes=["x"], edges=["e"], graphs=["y"], index={"e": "nodes"}, batch={"batch": "nodes"})
    features = dk.Features(lambda jets: {"x": jets.x, "e": [jets.a, jets.b]}, graph=graph)
    return dk.Model("drn", features=features, trim="never")(jets)


def a_cluster(client: Client, servers: Sequence[str]) -> None:
    """Plugin, clusters and servers."""
    plugin = dk.InferencePlugin(servers, window=8, timeout="1 m")
    client.register_plugin(plugin)
    with dk.local_server("models") as server:
        assert_type(server, dk.LocalServer)
    with dk.loaded("models/toy", servers=["a:8001"]) as name:
        assert_type(name, str)
    assert_type(server.address, str)
    assert_type(dk.local_cluster(2, servers=[server.address]), LocalCluster)
    with dk.ServerFleet("top", "slurm", "models", maximum=4) as fleet:
        assert_type(fleet.address, str)


def a_run(model: dk.Model, features: dk.Features) -> None:
    """Files in, scores out."""
    assert_type(tag(["a.root"], model, "out", fmt="root"), Summary)
    read_file("a.root", features, jets="Jet").jets  # noqa: B018


def wrong() -> None:
    """What must not pass."""
    dk.Model(3)  # type: ignore[arg-type]
    dk.Features.from_weaver("pn.yaml", nan="skip")  # type: ignore[arg-type]
    dk.Modell("pn")  # type: ignore[attr-defined]


class TwoModels(dk.TwoPhaseProcessor):
    """Scores of two models in one coffea processor."""

    def __init__(self, first: dk.Model, second: dk.Model) -> None:
        self.first, self.second = first, second

    def acquire(self, events: Any) -> dict[str, dk.Pending]:
        """Both in flight."""
        return {"first": self.first.submit(events.FatJet), "second": self.second.submit(events.FatJet)}

    def produce(self, events: Any, scores: Any) -> dict[str, Any]:
        """Scores by name."""
        return {events.metadata["dataset"]: scores["first"]}
