"""Every rule of the doctor finds its fault, is silent without it, and has nothing against generated entries."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import daskonic as dk
from daskonic.cli import main
from daskonic.errors import ConfigError, InputError, LocalServerError
from daskonic.server import add_onnx, examine
from daskonic.server.doctor import RULES

TENSORS = (
    'input {{ name: "X" data_type: TYPE_FP32 dims: {dims} {ragged} }} '
    'output {{ name: "Y" data_type: TYPE_FP32 dims: {dims} }}'
)
BATCHING = "dynamic_batching { default_queue_policy { max_queue_size: 100 } } "
NATIVE = 'backend: "onnxruntime" '
THREADS = 'parameters { key: "intra_op_thread_count" value { string_value: "1" } } '
WARM = (
    'model_warmup { name: "one" batch_size: 1 inputs { key: "X" value { data_type: TYPE_FP32 dims: 16 } } } '
)

# rule: (what is wrong, a word of the message, the same put right)
CASES = {
    "layout": ('name: "other" ', "its folder's 'm'", 'name: "m" '),
    "batch-dimension": ("dims=[-1,16]", "the batch included", "dims=[16]"),
    "ragged": (f"{NATIVE}{THREADS}{WARM} ragged ", "cannot tell them apart", f"{NATIVE}{THREADS}{WARM}"),
    "batch-size": ("max_batch_size: 50000000 ", "gRPC", "max_batch_size: 1024 "),
    "queue": (f"{NATIVE}{THREADS}{WARM}dynamic_batching {{ }}", "any number", f"{NATIVE}{THREADS}{WARM}"),
    "threads": (f"{NATIVE}{WARM}instance_group {{ count: 8 kind: KIND_CPU }} ", "8 instances of 4 threads",
                f"{NATIVE}{WARM}{THREADS}instance_group {{ count: 8 kind: KIND_CPU }} "),
    "warm-up": (f"{NATIVE}{THREADS}", "first requests", f"{NATIVE}{THREADS}{WARM}"),
    "versions": ("versions=2", "began with 1 fails", "versions=2 version_policy { all {} } "),
}  # fmt: skip


def write(repository, text):
    """An entry ``m`` from a few words: the config, and what is not of its language."""
    config, dims, versions, ragged = text, "[16]", 1, ""
    for words in text.split():
        if words.startswith(("dims=", "versions=")):
            key, _, value = words.partition("=")
            dims, versions = (value, versions) if key == "dims" else (dims, int(value))
            config = config.replace(words, "")
    if "ragged " in config:
        config, ragged = config.replace("ragged ", ""), "allow_ragged_batch: true"
    if "max_batch_size" not in config:
        config += "max_batch_size: 8 "
    if "dynamic_batching" not in config:
        config += BATCHING
    folder = repository / "m"
    for version in range(1, versions + 1):
        (folder / str(version)).mkdir(parents=True)
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 16]) for n in "XY")
        graph = helper.make_graph([helper.make_node("Neg", ["X"], ["Y"])], "negative", [x], [y])
        onnx.save(helper.make_model(graph), folder / str(version) / "model.onnx")
    (folder / "config.pbtxt").write_text(config + TENSORS.format(dims=dims, ragged=ragged))
    return folder


def rules(repository):
    return [finding.rule for finding in examine(repository, cores=4)]


def test_every_rule_has_a_case():
    """A rule that is added needs one that fails and one that passes."""
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("rule", CASES)
def test_rule(tmp_path, rule):
    """The fault alone is found, told with a remedy, and gone when it is put right."""
    wrong, told, right = CASES[rule]
    write(tmp_path / "wrong", wrong)
    write(tmp_path / "right", right)
    (found,) = examine(tmp_path / "wrong", cores=4)
    assert (found.model, found.rule) == ("m", rule)
    assert told in found.what
    assert found.remedy
    assert not examine(tmp_path / "right", cores=4)


def test_ensembles_ignore_ragged_flags(tmp_path):
    """The flag is accepted there, and does nothing."""
    (tmp_path / "e" / "1").mkdir(parents=True)
    config = 'platform: "ensemble" max_batch_size: 8 ' + TENSORS.format(
        dims="[-1]", ragged="allow_ragged_batch: true"
    )
    (tmp_path / "e" / "config.pbtxt").write_text(config)
    (found,) = examine(tmp_path)
    assert "an ensemble ignores it" in found.what
    (tmp_path / "e" / "config.pbtxt").write_text(config.replace("allow_ragged_batch: true", ""))
    assert not examine(tmp_path)


def test_requests_that_are_never_joined(tmp_path):
    """Rows in the file, no batch in the entry, and the queue of a model that has none."""
    write(tmp_path, "max_batch_size: 0 dims=[-1,16]")
    (found,) = examine(tmp_path)
    assert found.rule == "batch-dimension"
    assert "never joined" in found.what


def test_batch_dimension_without_the_file(tmp_path):
    """Where the file cannot be read, dims that all begin with -1 are suspicious, one length alone is not."""
    for name, dims in (("a", "[-1, 16]"), ("b", "[-1]")):
        (tmp_path / name / "1").mkdir(parents=True)
        text = f"max_batch_size: 8 {BATCHING}" + TENSORS.format(dims=dims, ragged="")
        (tmp_path / name / "config.pbtxt").write_text(text)
    (found,) = examine(tmp_path)
    assert (found.model, found.rule) == ("a", "batch-dimension")


def test_a_file_that_only_triton_reads(tmp_path):
    """The rules that need no file are applied all the same."""
    folder = write(tmp_path, "max_batch_size: 50000000 ")
    (folder / "1" / "model.onnx").write_bytes(b"encrypted, or of another kind")
    assert rules(tmp_path) == ["batch-size"]


def test_what_cannot_be_read(tmp_path):
    """A mistake in the file, no file, no repository."""
    folder = write(tmp_path, "")
    (folder / "config.pbtxt").write_text("max_batch_size = 8")
    assert rules(tmp_path) == ["config"]
    (folder / "config.pbtxt").unlink()
    assert rules(tmp_path) == ["config"]
    with pytest.raises(InputError, match="no folder"):
        examine(tmp_path / "nowhere")


@pytest.fixture
def generated(tmp_path):
    """Entries with one input, with none of fixed size, with labels and without a batch."""
    shapes = {"fixed": ["n", 3], "open": ["n", "m"], "scalar": ["n"], "graph": ["nodes", 3]}
    for name, shape in shapes.items():
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "XZY"]
        graph = helper.make_graph([helper.make_node("Add", ["X", "Z"], ["Y"])], "sum", values[:2], values[2:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, tmp_path / f"{name}.onnx")
        labels = ["a", "b", "c"] if name == "fixed" else None
        size = 0 if name == "graph" else 64
        warm_up = {"X": [5], "Z": [5]} if name == "open" else {}
        path = tmp_path / f"{name}.onnx"
        add_onnx(tmp_path / "models", name, path, max_batch_size=size, labels=labels, warm_up=warm_up or None)
    return tmp_path / "models"


def test_generated_entries(generated):
    """The doctor finds nothing; Triton loads them without a warning, and answers."""
    assert not examine(generated, cores=2)
    with dk.local_server(generated) as server:
        model = dk.Model("fixed", features=dk.Features(lambda x: {"X": x, "Z": x}), servers=[server.address])
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(model(x), 2 * x)
        model.pool().close()
        lines = server.log.read_text().splitlines()
    warnings = [line for line in lines if line.startswith("W") and "model" in line]
    assert not warnings


def test_warm_up_is_a_request(tmp_path):
    """A server whose warm-up request fails does not take the model; with one that does not, it does."""
    x, y = (helper.make_tensor_value_info(*v) for v in (("X", 1, ["n", "m"]), ("Y", 1, ["n"])))
    sixth = helper.make_tensor("sixth", TensorProto.INT64, [], [5])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["X", "sixth"], ["Y"], axis=1)], "g", [x], [y], [sixth]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "sixth.onnx")
    add_onnx(tmp_path / "models", "sixth", tmp_path / "sixth.onnx", warm_up={"X": [2]})
    with pytest.raises(LocalServerError, match="sixth"), dk.local_server(tmp_path / "models"):
        pass
    add_onnx(tmp_path / "models", "sixth", tmp_path / "sixth.onnx", warm_up={"X": [6]})
    with dk.local_server(tmp_path / "models") as server:
        assert [m["state"] for m in server.models()] == ["READY"]


def test_generated_for_production(tmp_path):
    """ONNX Runtime's own backend on GPUs: no file of ours, no ragged flag, a warm-up request, nothing to find."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2, "m"]) for n in "XY")
    graph = helper.make_graph([helper.make_node("Neg", ["X"], ["Y"])], "negative", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "negative.onnx")
    options = {"backend": "onnxruntime", "device": "gpu", "queue_size": 512}
    folder = add_onnx(
        tmp_path / "models", "negative", tmp_path / "negative.onnx", warm_up={"X": [2, 50]}, **options
    )
    assert [p.name for p in (folder / "1").iterdir()] == ["model.onnx"]
    config = (folder / "config.pbtxt").read_text()
    assert "KIND_GPU" in config
    assert "dims: [2, 50]" in config
    assert "zero_data: true" in config
    assert not examine(tmp_path / "models")
    add_onnx(tmp_path / "models", "negative", tmp_path / "negative.onnx", **options)
    assert rules(tmp_path / "models") == ["warm-up"]
    with pytest.raises(ConfigError, match=r"rows of shape \[3, 50\]; the model takes \[2, -1\]"):
        add_onnx(tmp_path / "models", "negative", tmp_path / "negative.onnx", warm_up={"X": [3, 50]})
    with pytest.raises(ConfigError, match="warm_up names Z; 'negative' takes X"):
        add_onnx(tmp_path / "models", "negative", tmp_path / "negative.onnx", warm_up={"Z": [3, 50]})
    with pytest.raises(ConfigError, match="backend 'python' has cpu"):
        add_onnx(tmp_path / "models", "negative", tmp_path / "negative.onnx", device="gpu")


class TestCommand:
    """``daskonic models``."""

    def test_add_and_doctor(self, tmp_path, generated):
        """An entry is written, and found to be right."""
        target = tmp_path / "new"
        file = tmp_path / "fixed.onnx"
        options = ["--max-batch-size", "32", "--label", "x", "--label", "y", "--queue-size", "7"]
        done = CliRunner().invoke(main, ["models", "add", str(target), str(file), "--name", "sum", *options])
        assert done.exit_code == 0, done.output
        assert done.output.strip() == str(target / "sum")
        config = (target / "sum" / "config.pbtxt").read_text()
        assert "max_batch_size: 32" in config
        assert "max_queue_size: 7" in config
        done = CliRunner().invoke(main, ["models", "doctor", str(target)])
        assert (done.exit_code, done.output.strip()) == (0, f"nothing is wrong in {target}")

    def test_findings(self, tmp_path):
        """Told for a reader and for a script; the exit code says that there are some."""
        write(tmp_path, "versions=2")
        done = CliRunner().invoke(main, ["models", "doctor", str(tmp_path)])
        assert done.exit_code == 1
        assert "m (versions): only the latest 1 of 2" in done.output
        assert "remedy: version_policy { all {} }" in done.output
        done = CliRunner().invoke(main, ["models", "doctor", str(tmp_path), "--json"])
        assert done.exit_code == 1
        assert [f["rule"] for f in json.loads(done.output)] == ["versions"]

    def test_mistakes(self, tmp_path):
        """The exit code of daskonic's errors."""
        done = CliRunner().invoke(main, ["models", "doctor", str(tmp_path / "none")])
        assert done.exit_code == 3
        assert "no folder" in done.output
