"""What a model is can be written down, and another one under its name is recognised."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

import daskonic as dk
from daskonic import errors, server
from daskonic.cli import main
from daskonic.config import resolve
from daskonic.lock import Lock
from daskonic.provenance import lock, verify
from daskonic.tensors import ANY, TensorSpec

FLOAT = np.dtype("f4")


def write_scale(path, factor, *, mean=False):
    """An ONNX model Y = factor * X, or minus the mean over the batch."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3]) for n in "XY")
    nodes = [helper.make_node("Mul", ["X", "W"], ["P" if mean else "Y"])]
    if mean:
        nodes += [
            helper.make_node("ReduceMean", ["P"], ["M"], axes=[0]),
            helper.make_node("Sub", ["P", "M"], ["Y"]),
        ]
    weights = numpy_helper.from_array(np.array([factor], FLOAT), "W")
    graph = helper.make_graph(nodes, "scale", [x], [y], [weights])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path / "m.onnx"
    )
    return path / "m.onnx"


@pytest.fixture(scope="module")
def doubled(tmp_path_factory):
    """Two servers with the same model and one with other weights, all with the same configuration."""
    servers = []
    for factor in (2.0, 2.0, 2.001):
        folder = tmp_path_factory.mktemp("models")
        server.add_onnx(folder / "r", "scale", write_scale(folder, factor))
        server.add_onnx(folder / "r", "centred", write_scale(folder, factor, mean=True))
        servers.append(dk.local_server(folder / "r").start())
    yield [(s.address, s) for s in servers]
    for s in servers:
        s.stop()


@pytest.fixture
def addresses(doubled):
    return [address for address, _ in doubled]


def locked(*servers, **kwargs):
    model = dk.Model("scale", servers=servers)
    try:
        return lock(model, **kwargs)
    finally:
        model.pool().close()


def test_same_model_is_recognised(addresses):
    """Another server with the same weights has the same model."""
    made = locked(addresses[0])
    assert (made.model, made.version, made.inputs) == ("scale", "1", (TensorSpec("X", FLOAT, (3,)),))
    np.testing.assert_array_equal(made.answers["Y"], 2 * made.probe["X"])
    assert [v.state for v in verify(made, resolve(addresses[:2]))] == ["same", "same"]


def test_other_weights_are_found(addresses):
    """Same name, version, tensors and configuration, and other numbers: one line says so."""
    (found,) = verify(locked(addresses[0]), resolve(addresses[2:]))
    assert found.state == "other"
    assert "answers to the probe differ by up to" in found.why


def test_servers_that_disagree_are_not_locked(addresses):
    """Two servers with different weights under one name are two models."""
    with pytest.raises(errors.ServerError, match="have different models under the name 'scale'"):
        locked(*addresses)


def test_scores_that_depend_on_the_batch(addresses):
    """A model whose rows score differently alone and together has no fingerprint to be recognised by."""
    model = dk.Model("centred", servers=addresses[:1])
    with pytest.raises(errors.ConfigError, match="depends on its neighbours in the batch"):
        lock(model)
    assert lock(model, tolerance=100.0).spread > 0.1
    model.pool().close()


def test_probe_of_the_users_objects(addresses):
    """The first rows of what the model is called with."""
    rows = np.arange(30, dtype=FLOAT).reshape(10, 3)
    np.testing.assert_array_equal(locked(addresses[0], objects=rows).probe["X"], rows[:4])
    with pytest.raises(errors.InputError, match="no rows"):
        locked(addresses[0], objects=rows[:0])


def test_replaced_in_place(tmp_path):
    """Weights that change under the same version number are found, and so are the changed files."""
    repository = tmp_path / "r"
    server.add_onnx(repository, "scale", write_scale(tmp_path, 2.0))
    with dk.local_server(repository) as before:
        made = locked(before.address, repository=repository)
        assert sorted(made.files) == ["scale/1/model.onnx", "scale/1/model.py", "scale/config.pbtxt"]
        assert verify(made, resolve([before.address]), repository)[0].state == "same"
    server.add_onnx(repository, "scale", write_scale(tmp_path, 3.0))
    with dk.local_server(repository) as after:
        assert verify(made, resolve([after.address]))[0].state == "other"
        with pytest.raises(errors.InputError, match=r"scale/1/model\.onnx in .* differ"):
            verify(made, resolve([after.address]), repository)


def test_away_and_absent(addresses):
    """A server that does not answer is not one with another model; one without it is."""
    made = locked(addresses[0])
    absent = dataclasses.replace(made, model="absent")
    assert verify(made, resolve(["127.0.0.1:1"], connect_timeout="1 s"))[0].state == "no answer"
    assert verify(absent, resolve(addresses[:1]))[0].state == "other"


VALUES = arrays(
    st.sampled_from(["f4", "f2", "i8", "u1", "?"]), st.tuples(st.integers(1, 3), st.integers(0, 3))
)


@given(VALUES, VALUES, st.sampled_from([(3,), (2, ANY), ()]))
def test_text_keeps_everything(probe, answers, shape):
    """What is read is what was written, with the same fingerprint."""
    spec = TensorSpec("X", probe.dtype, shape)
    made = Lock(
        "m", "7", (spec,), (spec,), 16, {"X": probe}, {"Y": answers}, servers={"a:1": "triton 2.51.0"}
    )
    again = Lock.from_text(made.text())
    assert again.fingerprint == made.fingerprint
    assert again.text() == made.text()
    np.testing.assert_array_equal(again.answers["Y"], answers)


def test_fingerprint_is_of_the_numbers(addresses):
    """It changes with one bit of an answer, and not with the server's address."""
    made = locked(addresses[0])
    assert locked(addresses[1]).fingerprint == made.fingerprint
    answers = {"Y": np.nextafter(made.answers["Y"], np.float32(9))}
    assert dataclasses.replace(made, answers=answers).fingerprint != made.fingerprint


def test_not_a_lock(tmp_path):
    """A file that is none is named."""
    (tmp_path / "x.lock").write_text("{}")
    with pytest.raises(errors.InputError, match=r"x\.lock is not a lock"):
        Lock.read(tmp_path / "x.lock")
    with pytest.raises(errors.InputError, match="cannot be read"):
        Lock.read(tmp_path / "y.lock")


def test_command_line(addresses, tmp_path):
    """Lock, verify, and an exit code for another model and for a server that is away."""
    path = str(tmp_path / "scale.lock")
    run = CliRunner().invoke
    made = run(main, ["lock", "scale", "--server", addresses[0], "--output", path])
    assert made.exit_code == 0, made.output
    assert Lock.read(path).fingerprint[:16] in made.output
    assert run(main, ["verify", path, "--server", addresses[1]]).exit_code == 0
    other = run(main, ["verify", path, "--server", addresses[0], "--server", addresses[2]])
    assert other.exit_code == 9
    assert "1 of 2 servers do not have the model" in other.output
    assert run(main, ["verify", path, "--server", "127.0.0.1:1"]).exit_code == 8
    assert run(main, ["lock", "scale", "file.root", "--server", addresses[0]]).exit_code == 2


@pytest.fixture
def path(addresses, tmp_path):
    """A file with the lock of the first server's model."""
    locked(addresses[0]).write(tmp_path / "scale.lock")
    return tmp_path / "scale.lock"


def scored(addresses, rows, **settings):
    model = dk.Model("scale", servers=addresses, connect_timeout="2 s", timeout="5 s", **settings)
    try:
        pending = model.submit(rows)
        return pending.result(), pending.report
    finally:
        model.pool().close()


def test_run_uses_the_locked_model_only(addresses, path):
    """Of servers with different weights under one name, those with the locked ones are used, and the report says which model it was."""
    rows = np.arange(30, dtype=FLOAT).reshape(10, 3)
    for servers in (addresses, addresses[::-1]):
        scores, report = scored(servers, rows, locks=[path])
        np.testing.assert_array_equal(scores, 2 * rows)
        assert addresses[2] not in report.endpoints
        assert report.fingerprint == Lock.read(path).fingerprint
    assert scored(addresses[:1], rows)[1].fingerprint == ""


def test_run_without_the_locked_model(addresses, path):
    """Where no server has it, nothing is scored, and the error says what differs."""
    with pytest.raises(
        errors.ModelNotFoundError, match=r"than daskonic.locks says: its answers to the probe differ"
    ):
        scored(addresses[2:], np.ones((2, 3), FLOAT), locks=[path])


def test_reports_of_different_models_are_mixed(addresses, path):
    """A merged report does not pass off two models as one."""
    report = scored(addresses[:1], np.ones((2, 3), FLOAT), locks=[path])[1]
    other = dataclasses.replace(report, fingerprint="0" * 64)
    assert dk.Report.merge([report, report]).fingerprint == report.fingerprint
    assert dk.Report.merge([report, other]).fingerprint == "mixed"


def test_lock_of_the_settings(tmp_path):
    """A file that is missing or no lock is found where the plugin is made, not in a task."""
    with pytest.raises(errors.ConfigError, match=r"daskonic\.locks: .*absent\.lock"):
        dk.InferencePlugin(servers=["a:1"], locks=[tmp_path / "absent.lock"])
    (tmp_path / "x.lock").write_text("{}")
    with pytest.raises(errors.ConfigError, match="did not write"):
        dk.InferencePlugin(servers=["a:1"], locks=[tmp_path / "x.lock"])


def test_tag_holds_servers_against_a_lock(tmp_path):
    """``daskonic tag --lock`` is a setting of the run: a file that is missing is said before anything else."""
    arguments = ["tag", "a.root", "--model", "m", "--output", str(tmp_path / "out"), "--server", "a:1"]
    result = CliRunner().invoke(main, [*arguments, "--lock", str(tmp_path / "absent.lock")])
    assert result.exit_code == 2
    assert "daskonic.locks" in result.output
