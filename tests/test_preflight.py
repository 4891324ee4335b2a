"""What ``Model.check`` says of planted mistakes, each on a real server, and of models that are well."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

import awkward as ak
import numpy as np
import onnx
import onnx.parser
import pytest
from certificates import write_authority, write_certificate
from fault_proxy import FaultProxy
from onnx import TensorProto, numpy_helper
from test_graphs import GRAPH, make
from test_graphs import inputs as graph_inputs
from token_gate import Gate
from triton_models import write_model

import daskonic as dk
from daskonic import demo, server, tagging
from daskonic.errors import ConfigError
from daskonic.preflight import CheckReport, Estimate, Finding
from daskonic.preflight.inputs import diagnosed
from daskonic.preflight.servers import PROBE_S
from daskonic.tensors import ModelSpec, TensorSpec

X = ak.Array(np.random.default_rng(0).normal(size=(50, 16)).astype("f4"))
FILES = demo.shipped()
TOKEN = "t0ken"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A Triton with the shipped network and models that each have something wrong, ``late`` not loaded."""
    repository = tmp_path_factory.mktemp("models")
    server.add_onnx(repository, "top_tagger", FILES.model)
    for kind in ("sum", "neighbours", "numbered", "two_outputs", "fail", "graph_sum", "graph"):
        write_model(repository, kind, kind=kind)
    write_model(repository, "at_most", kind="at_most", rows=100)
    write_model(repository, "small", kind="sum", max_batch_size=64)
    write_model(repository, "whole", kind="identity", dtype="INT32")
    write_model(repository, "half", kind="identity", dtype="FP16")
    write_model(repository, "late", kind="sum")
    loaded = [f"--load-model={p.name}" for p in repository.iterdir() if p.name != "late"]
    with dk.local_server(repository, model_control="explicit", flags=loaded) as triton:
        yield triton


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """Address of a Triton that speaks TLS, and the file of its authority."""
    folder, repository = tmp_path_factory.mktemp("certificates"), tmp_path_factory.mktemp("secure")
    write_authority(folder, "ca")
    write_certificate(folder, "server", "ca")
    write_model(repository, "sum", kind="sum")
    flags = [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={folder}/server.pem",
        f"--grpc-server-key={folder}/server.key",
    ]
    with ExitStack() as stack:
        triton = dk.local_server(repository, flags=flags).start()
        stack.callback(triton.stop, grace_s=0)
        yield triton.address, str(folder / "ca.pem")


@pytest.fixture(scope="module")
def jets():
    """Jets of the shipped files, and the features of their network."""
    features = dk.Features.from_weaver(FILES.features)
    return tagging.read_file(FILES.jets[0], features, stop=60).jets, features


def check(address, name="sum", features=None, objects=X, reference=None, tolerance=1e-5, **options):
    """A check of one model at one server; the network in small batches, which are soon computed."""
    if name == "top_tagger":
        options["batch_size"] = 32
    model = dk.Model(name, features=features, servers=[address], **options)
    return model.check(objects, reference, tolerance=tolerance)


def kinds(report):
    """What was found, the remarks too."""
    return [finding.kind for finding in report.findings]


def assert_found(report, kind, *words):
    """Exactly one mistake beside remarks, with its kind and in one line; a report shows it."""
    (finding,) = (finding for finding in report.findings if finding.fatal)
    assert finding.kind == kind, report
    assert not report.ok
    assert "\n" not in finding.message
    for word in words:
        assert word in finding.message
    assert kind in repr(report)


# -- nothing wrong ---------------------------------------------------------------------------------


def test_a_good_model_passes_every_comparison(models, jets):
    """The shipped network on its own jets: every way gives the same scores, those in this process too."""
    events, features = jets
    report = check(models.address, "top_tagger", features, events, FILES.model)
    assert report.ok, report
    assert not report.findings
    assert len(report.differences) == 5
    assert all(apart < 1e-6 for apart in report.differences.values())
    assert "server and in process" in report.differences
    assert report.estimate.rows == 1_000_000
    assert report.estimate.nbytes > 1_000_000 * 100
    assert report.exit_code == 0


def test_a_repository_is_a_reference_too(models, jets):
    """The newest version of the model in a folder."""
    events, features = jets
    report = check(models.address, "top_tagger", features, events, models.repository)
    assert "server and in process" in report.differences
    with pytest.raises(ConfigError, match="no ONNX file of model 'sum'"):
        check(models.address, "sum", reference=models.repository)


def test_graphs_and_half_precision_pass(models):
    """Models of graphs are compared with one and with several in a request; FP16 is no mistake."""
    features = dk.Features(graph_inputs, graph=GRAPH)
    graphs = make(np.random.default_rng(1).integers(1, 9, 30), np.random.default_rng(2).integers(1, 9, 30))
    report = check(models.address, "graph_sum", features, graphs)
    assert report.ok, report
    assert report.differences["batches of 1 and 7"] < 1e-5
    assert check(models.address, "half", objects=np.ones((20, 4), "f4")).ok


def test_a_check_asks_little(models):
    """A hundred thousand events cost no more than two hundred."""
    many = np.zeros((100_000, 16), "f4")
    with FaultProxy(models.address) as proxy:
        assert check(proxy.address, objects=many).ok
        assert proxy.calls < 60


# -- the twelve ------------------------------------------------------------------------------------


def test_rank(models):
    """One dimension too many."""
    features = dk.Features(lambda x: {"X": ak.unflatten(x, 4, axis=1).to_numpy()})
    assert_found(check(models.address, features=features), "rank", "float32[4, 4]", "X: float32[16]")


def test_dtype(models):
    """Numbers with a fraction for a model of integers."""
    assert_found(check(models.address, "whole"), "dtype", "'X'", "int32")


def test_name(models):
    """An input that the model does not know by this name."""
    features = dk.Features(lambda x: {"x": x})
    assert_found(check(models.address, features=features), "name", "X is missing", "x is none of them")


def particles(jets, **changes):
    """Inputs of the shipped network by hand, right but for their numbers."""
    c = jets.constituents
    columns = {"pf_points": 2, "pf_features": 15, "pf_mask": 1}
    return {name: [ak.ones_like(c.pt)] * n for name, n in columns.items()} | changes


def by_hand(channels="first", **changes):
    """Features made by a function."""
    pad = {name: dk.Pad(128, channels=channels) for name in ("pf_points", "pf_features", "pf_mask")}
    return dk.Features(lambda jets: particles(jets, **changes), pad)


def test_transposition(models, jets):
    """Length and channels swapped, in all inputs or in one."""
    report = check(models.address, "top_tagger", by_hand("last"), jets[0])
    assert {f.kind for f in report.findings} == {"transposed"}, report
    one = dk.Features(
        lambda x: particles(x), {n: dk.Pad(128, channels="last" if n == "pf_points" else "first") for n in ("pf_points", "pf_features", "pf_mask")}
    )  # fmt: skip
    assert_found(check(models.address, "top_tagger", one, jets[0]), "transposed", "'pf_points'", "swap")


def test_transposition_that_only_the_file_tells(models, jets):
    """A server may leave all dimensions open; the model's file, which does not, is looked at in the same way."""
    spec = ModelSpec("m", "1", (TensorSpec("X", np.dtype("f4"), (16, 2)),), (), 8)
    features = dk.Features(lambda x: {"X": np.zeros((len(x), 2, 16), "f4")})
    with pytest.raises(dk.DaskonicError) as caught:
        features(X, spec).flatten()
    ((kind, _),) = diagnosed(features, X, spec, caught.value)
    assert kind == "transposed"


@pytest.mark.parametrize("how", ["missing", "constant"])
def test_mask(models, jets, how):
    """No mask at all, or one that says that padding is a particle."""
    if how == "missing":
        features = dk.Features(
            lambda x: {n: v for n, v in particles(x).items() if n != "pf_mask"},
            {n: dk.Pad(128) for n in ("pf_points", "pf_features")},
        )
    else:
        features = dk.Features(
            lambda x: particles(x) | {"pf_mask": np.ones((len(x), 1, 128), "f4")},
            {n: dk.Pad(128) for n in ("pf_points", "pf_features")},
        )
    report = check(models.address, "top_tagger", features, ak.flatten(jets[0]))
    assert_found(report, "mask", "pf_mask", "padd")


def test_batch_too_large(models):
    """A model that takes fewer rows than its configuration says, and a user who says more than it does."""
    report = check(models.address, "at_most")
    assert kinds(report) == ["batch"], report
    largest = int(report.findings[0].message.partition("batch_size=")[2].partition(")")[0])
    assert 80 <= largest <= 100
    assert check(models.address, "at_most", batch_size=largest).ok
    report = check(models.address, "small", batch_size=1000)
    assert kinds(report) == ["batch"]
    assert report.ok
    assert_found(check(models.address, "graph"), "batch", "batch_size=N", "dk.Graph")


def test_version(models):
    """A version that is not there."""
    assert_found(check(models.address, version=7), "version", "version 1", "'7'")


@pytest.mark.parametrize("how", ["plain to TLS", "TLS to plain", "unknown authority"])
def test_tls(models, secure, how):
    """TLS on one side only, or by an authority that is not known."""
    address, _ = secure
    report = check(
        {
            "plain to TLS": address,
            "TLS to plain": f"grpcs://{models.address}",
            "unknown authority": f"grpcs://{address}",
        }[how]
    )
    assert_found(
        report,
        "tls",
        {"plain to TLS": "grpcs://", "TLS to plain": "plain text", "unknown authority": "ca-file"}[how],
    )


@pytest.mark.parametrize("how", ["none", "expired", "file is gone"])
def test_token(models, tmp_path, how):
    """No token, one that is over, and a file that is not there."""
    (tmp_path / "token").write_text("old")
    credentials = {
        "none": None,
        "expired": {"token-file": str(tmp_path / "token"), "token-over-plain-text": True},
        "file is gone": {"token-file": str(tmp_path / "gone"), "token-over-plain-text": True},
    }[how]
    with Gate(models.address, TOKEN) as gate:
        assert_found(check(gate.address, credentials=credentials), "token", "token")


@pytest.mark.parametrize("how", ["closed", "HTTP", "deaf", "no host"])
def test_port(models, how):
    """Nothing there, another protocol, silence, and a name that nobody has."""
    with socket.socket() as reserved, FaultProxy(models.address) as proxy:
        reserved.bind(("127.0.0.1", 0))
        proxy.deafen()
        address, kind, said = {
            "closed": (f"127.0.0.1:{reserved.getsockname()[1]}", "port", "nothing listens"),
            "HTTP": (models.http_address.removeprefix("http://"), "port", "HTTP port"),
            "deaf": (proxy.address, "port", "no answer"),
            "no host": ("no-such-host.invalid:8001", "host", "no such host"),
        }[how]
        begin = time.monotonic()
        assert_found(check(address, connect_timeout="1 s"), kind, said)
        assert time.monotonic() - begin < 20 * PROBE_S


def test_load_gate(models):
    """A site that is full tells nobody what it has, although every other call passes."""
    with Gate(models.address, TOKEN) as gate:
        gate.full = True
        gate.token = None
        report = check(gate.address)
    assert_found(report, "load gate", "full", "later")


def test_model_not_ready(models):
    """In the repository, and not loaded."""
    report = check(models.address, "late")
    assert_found(report, "not ready", "not loaded", "--load-model")
    report = check(models.address, "never")
    assert_found(report, "model", "top_tagger (version 1)")


# -- scores ----------------------------------------------------------------------------------------


def test_neighbours(models):
    """A model that looks at the other rows of a batch is found, and one that counts them too."""
    assert_found(check(models.address, "neighbours"), "neighbours", "other rows")
    assert_found(check(models.address, "numbered"), "neighbours", "the place")
    assert check(models.address, "neighbours", batch_size=1).ok


def test_padding(models):
    """A model that does not ignore padding works, at the price of bytes, and this is said."""
    ragged = ak.unflatten(np.arange(300, dtype="f4"), [5, 25, 30, 40] * 3)
    features = dk.Features(lambda x: {"X": x}, pad={"X": dk.Pad(40)})
    report = check(models.address, "two_outputs", features, ragged, outputs=["LENGTH"])
    assert kinds(report) == ["padding"], report
    assert report.ok
    assert report.differences["long and short padding"] > 0


def test_another_training_is_served(models, jets, tmp_path):
    """The file has other weights than the model that is served."""
    network = onnx.load(FILES.model)
    weights = next(
        t for t in network.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2
    )
    values = numpy_helper.to_array(weights)
    weights.CopyFrom(numpy_helper.from_array(values * 1.01, weights.name))
    onnx.save(network, tmp_path / "other.onnx")
    events, features = jets
    report = check(models.address, "top_tagger", features, events, tmp_path / "other.onnx")
    assert_found(report, "reference", "other.onnx")
    assert check(models.address, "top_tagger", features, events, tmp_path / "other.onnx", tolerance=1.0).ok


def test_a_model_that_fails_and_numbers_that_are_none(models):
    """What the server says, and which object is to blame."""
    assert_found(check(models.address, "fail"), "failed", "fails on purpose")
    bad = X.to_numpy().copy()
    bad[3, 5] = np.nan
    assert_found(check(models.address, objects=bad), "values", "row 3")
    broken = dk.Features(lambda x: {"X": x.nothing})
    assert_found(check(models.address, features=broken), "features", "nothing", "test_preflight.py")
    assert_found(check(models.address, outputs=["Z"]), "outputs", "Y")


def test_servers_that_differ(models, tmp_path):
    """Each server is asked: one that is away is named, and two that disagree."""
    write_model(tmp_path, "sum", kind="sum", version=2)
    with dk.local_server(tmp_path) as other:
        report = dk.Model("sum", servers=[models.address, other.address]).check(X)
        assert_found(report, "version", models.address, other.address)
        away = other.address
    report = dk.Model("sum", servers=[models.address, away]).check(X)
    assert_found(report, "port", away)


# -- shown -----------------------------------------------------------------------------------------


def test_a_report_in_html_has_no_markup_of_others():
    """Names and messages come from servers; nothing of them is HTML, and nothing is a script."""
    report = CheckReport("<script>m</script>", "1")
    report.add("failed", "<img src=x onerror=alert(1)>\n'&")
    report.estimate = Estimate(10, 1, 100, 1.0, 2.0)
    html = report._repr_html_()
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;img src=x" in html
    assert report.findings == [Finding("failed", "<img src=x onerror=alert(1)> '&")]
