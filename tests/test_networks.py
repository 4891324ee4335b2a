"""The networks of the papers give through a real Triton, from jagged events, what they give in process."""

from __future__ import annotations

import sys

import awkward as ak
import numpy as np
import onnx
import pytest
import tritonclient.grpc
from models import convolutional_vae, graph_vae, reconstruction_bdt, resnet50
from models.__main__ import main as command
from models.catalogue import NETWORKS
from models.served import InProcess

import daskonic as dk

EVENTS = {"resnet50": 1, "facile": 1, "deepmet": 3, "emtrkmichelid": 4, "particlenet_ak8": 3}
"""Of the test; some networks take a tenth of a second for a row."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Triton that loads a network when a test asks for it."""
    with dk.local_server(tmp_path_factory.mktemp("networks"), model_control="explicit") as server:
        yield server


@pytest.fixture(scope="module")
def serve(server):
    """A handle of a network on the server, and the same network in process."""
    made = {}

    def serve(name, **options):
        served = NETWORKS[name]
        if name not in made:
            folder = served.add_to(server.repository)
            with tritonclient.grpc.InferenceServerClient(server.address) as client:
                client.load_model(name)
            spec = served.model([server.address]).spec()
            made[name] = InProcess(served, folder / "1" / "model.onnx", spec)
        return served.model([server.address], **options), made[name]

    return serve


def rng():
    return np.random.default_rng(12)


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_those_of_the_network(serve, name):
    """As many as there are rows in every event, equal within the tolerance that the network declares."""
    model, in_process = serve(name)
    objects = NETWORKS[name].sample(rng(), EVENTS.get(name, 6))
    scores = model(objects)
    # Graphs alone, or an index that was not shifted would be wrong in both.
    expected = in_process(objects, batch=None if NETWORKS[name].batched else 1)
    assert in_process.difference(scores, expected) < NETWORKS[name].tolerance
    for output in expected:
        nested = scores if len(expected) == 1 else scores[output]
        if name not in ("deepmet", "point_voxel"):  # whose rows are events
            assert ak.to_list(ak.num(nested)) == ak.to_list(ak.num(objects))
        flat = expected[output].reshape(len(expected[output]), -1).astype(np.float64)
        step = NETWORKS[name].tolerance * (1 + np.abs(flat[1:]))
        # Or scores of one row for another would go unnoticed.
        assert (np.abs(np.diff(flat, axis=0)) > 20 * step).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("name", [n for n, served in NETWORKS.items() if served.parameters])
def test_parameters_are_those_published(serve, name):
    """To the last one, and all of them are in the file."""
    _, in_process = serve(name)
    file = onnx.load(in_process.path)
    assert {p.key: p.value for p in file.metadata_props}["parameters"] == str(NETWORKS[name].parameters)
    stored = sum(int(np.prod(w.dims)) for w in file.graph.initializer)
    assert stored == NETWORKS[name].parameters


@pytest.mark.parametrize(("rows", "planes"), [(235, 10), (1693, 50)])
def test_requests_as_large_as_larsoft_sends(serve, rows, planes):
    """Batches of 235 and 1,693 patches: the rows of a request, and what is left in the last."""
    model, in_process = serve("emtrkmichelid", batch_size=rows, batch_bytes="16 MiB", timeout="2 m")
    hits = NETWORKS["emtrkmichelid"].sample(rng(), planes)
    n_hits = int(ak.sum(ak.num(hits)))
    assert n_hits > rows
    pending = model.submit(hits)
    scores = pending.result()
    assert pending.report.requests == -(-n_hits // rows)
    some = hits[:3]
    assert in_process.difference(scores[:3], in_process(some)) < NETWORKS["emtrkmichelid"].tolerance


def test_anomaly_score_of_two_networks(serve):
    """Encoder, decoder and the client's part give what they give in process, jet by jet."""
    (encode, encoder), (decode, decoder) = serve("vae_encoder"), serve("vae_decoder")
    jets = NETWORKS["vae_encoder"].sample(rng(), 20)
    scores = convolutional_vae.anomaly_score(jets, encode, decode)
    assert ak.to_list(ak.num(scores)) == ak.to_list(ak.num(jets))
    z = encoder(jets)["z"]
    momenta = zip(*(ak.flatten(c) for c in convolutional_vae.momenta(jets)["x"]), strict=True)
    for jet, latent, image, score in zip(momenta, z, decoder(z)["x"], ak.flatten(scores), strict=True):
        true = np.zeros((100, 3))
        true[: len(jet[0])] = np.stack([ak.to_numpy(c) for c in jet], axis=1)
        error = np.mean(((true - image) / 10) ** 2)
        assert score == pytest.approx(error + 0.5 * np.sum(latent**2), rel=1e-4)


def test_anomaly_score_of_a_graph(serve):
    """The divergence counts ten times, and is the one of a normal distribution."""
    model, in_process = serve("graph_vae")
    jets = NETWORKS["graph_vae"].sample(rng(), 6)
    scores = graph_vae.anomaly_score(jets, model(jets))
    alone = in_process(jets)
    true = ak.to_numpy(ak.flatten(graph_vae.inputs(jets)["X"]))
    variance = np.exp(alone["log_variance"])
    divergence = 0.5 * np.sum(variance + alone["mean"] ** 2 - 1 - np.log(variance), axis=1)
    error = np.mean((true - alone["X_reconstructed"]) ** 2, axis=(1, 2))
    np.testing.assert_allclose(ak.to_numpy(ak.flatten(scores)), error + 10 * divergence, rtol=1e-4)


def test_the_classifier_of_the_client(serve):
    """Features from the server, a chance to be a top from the client, for each jet."""
    model, _ = serve("resnet50")
    jets = NETWORKS["resnet50"].sample(rng(), 1)
    tops = resnet50.classify(model(jets))
    assert ak.to_list(ak.num(tops)) == ak.to_list(ak.num(jets))
    assert ak.all((tops > 0) & (tops < 1))


def test_the_best_permutation(serve):
    """One for each event, by scores that the server gave to all of them."""
    model, in_process = serve("reconstruction_bdt")
    events = NETWORKS["reconstruction_bdt"].sample(rng(), 50)
    chance = ak.unflatten(in_process(events)["probabilities"][:, 1], ak.num(events))
    assert ak.to_list(reconstruction_bdt.best(model(events))) == ak.to_list(ak.argmax(chance, axis=1))


def test_command(tmp_path, monkeypatch, capsys):
    """The command writes those that are named, and tells names that are none."""
    monkeypatch.setattr(sys, "argv", ["models", str(tmp_path), "facile"])
    command()
    assert capsys.readouterr().out.strip() == str(tmp_path / "facile")
    assert [p.name for p in tmp_path.iterdir()] == ["facile"]
    monkeypatch.setattr(sys, "argv", ["models", str(tmp_path), "fac"])
    with pytest.raises(SystemExit, match="2"):
        command()
    assert "no network fac; there are emtrkmichelid, facile" in capsys.readouterr().err
