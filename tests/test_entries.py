"""PyTorch files, TensorRT plans and Python functions become entries that the real Triton takes without a warning."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import daskonic as dk
from daskonic import demo, errors, server
from daskonic.cli import main
from daskonic.server.entry import Tensor, read_config
from daskonic.server.torch_file import read_arguments, read_exported

HAS_TORCH = importlib.util.find_spec("torch") is not None
DATA = Path(__file__).with_name("data")
FUNCTIONS = """\
import numpy as np
from numpy.typing import NDArray


def mass(p4: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.sqrt(p4[:, 3].astype(np.float64) ** 2 - (p4[:, :3].astype(np.float64) ** 2).sum(axis=1))


def moments(x: NDArray[np.float32], n: NDArray[np.int64]):
    return {"n": n, "mean": x.sum(axis=1) / n[:, 0]}


def pair(x):
    return x + 1, x - 1


def short(x):
    return x[1:]
"""
TORCH = {
    "inputs": {"points": "FP32[-1,3]", "mask": "FP32[1]"},
    "outputs": {"scores": "FP32[2]", "total": "FP32[]"},
}


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """A module of a user."""
    (tmp_path / "taggers.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "taggers", raising=False)
    import taggers

    yield taggers
    del sys.modules["taggers"]


def warnings(log):
    """What Triton warns of or calls an error, but for the missing driver of a GPU."""
    return [line for line in log.read_text().splitlines() if line[:1] in "WE" and line and "Cuda" not in line]


class TestTorchFiles:
    """Read by this process, which has no PyTorch; ``tests/data/torch_files.py`` wrote them."""

    def test_exported(self):
        """Names, types, fixed and open dimensions are in the file."""
        inputs, outputs = read_exported(DATA / "exported.pt2")
        assert inputs == [Tensor("points", "FP32", (-1, -1, 3)), Tensor("mask", "FP32", (-1, 1))]
        assert [(t.data_type, t.dims) for t in outputs] == [("FP32", (-1, 2)), ("FP32", (-1,))]

    @pytest.mark.parametrize("name", ["scripted.pt", "traced.pt"])
    def test_arguments(self, name):
        """TorchScript has the names of the arguments, in order."""
        assert read_arguments(DATA / name) == ["points", "mask"]

    @pytest.mark.parametrize(
        ("read", "name", "text"),
        [
            (read_arguments, "numbers.pt", "takes factor as float"),
            (read_arguments, "exported.pt2", "is not TorchScript"),
            (read_arguments, "torch_files.py", "not a zip file"),
            (read_exported, "scripted.pt", "0 exported programs"),
            (read_exported, "none.pt2", "cannot be read"),
        ],
    )
    def test_other_files(self, read, name, text):
        """What is something else is refused, by its name."""
        with pytest.raises(errors.InputError, match=rf"{name}.*{text}"):
            read(DATA / name)

    def test_torchscript_entry(self, tmp_path):
        """Inputs keep their names, outputs are numbered, as Triton's PyTorch backend wants it."""
        warm_up = {"points": [50, 3]}
        folder = server.add_torch(
            tmp_path, "net", DATA / "scripted.pt", backend="pytorch", queue_size=9, warm_up=warm_up, **TORCH
        )
        assert (folder / "1" / "model.pt").read_bytes() == (DATA / "scripted.pt").read_bytes()
        config = read_config(folder / "config.pbtxt")
        assert [(t.name, list(t.dims)) for t in config.input] == [("points", [-1, 3]), ("mask", [1])]
        assert [t.name for t in config.output] == ["scores__0", "total__1"]
        assert config.parameters["INTRA_OP_THREAD_COUNT"].string_value == "1"
        assert not server.examine(tmp_path, cores=2)

    def test_missing_words(self, tmp_path):
        """What a file does not hold has to be said, and what it holds must not."""
        with pytest.raises(errors.ConfigError, match=r"takes points, mask, whose shapes.*'mask': 'FP32"):
            server.add_torch(tmp_path, "net", DATA / "scripted.pt", backend="pytorch")
        with pytest.raises(errors.ConfigError, match="has names, types and dimensions"):
            server.add_torch(tmp_path, "net", DATA / "exported.pt2", **TORCH)
        with pytest.raises(errors.ConfigError, match="runs TorchScript, not .*backend='onnxruntime'"):
            server.add_torch(tmp_path, "net", DATA / "exported.pt2", backend="pytorch")
        with pytest.raises(errors.SpecError, match="has 2 outputs; 1 names"):
            server.add_torch(tmp_path, "net", DATA / "exported.pt2", outputs=["scores"])
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(HAS_TORCH, reason="PyTorch is here")
    def test_without_torch(self, tmp_path):
        """The conversion says what to install."""
        with pytest.raises(errors.ConfigError, match="pip install torch onnxscript"):
            server.add_torch(tmp_path, "net", DATA / "exported.pt2")

    @pytest.mark.skipif(not HAS_TORCH, reason="conversion needs PyTorch: run this test where it is installed")
    @pytest.mark.parametrize(
        ("name", "told"), [("exported.pt2", {"outputs": ["scores", "total"]}), ("scripted.pt", TORCH)]
    )
    def test_converted(self, tmp_path, name, told):
        """With PyTorch, both kinds are converted and served, and give PyTorch's numbers."""
        server.add_torch(tmp_path, "net", DATA / name, **told)
        answers = dict(np.load(DATA / "answers.npz"))
        features = dk.Features(lambda x: {key: x[key] for key in ("points", "mask")})
        with dk.local_server(tmp_path) as running:
            scores = dk.Model("net", features=features, servers=[running.address])(answers)
            np.testing.assert_allclose(scores["scores"], answers["scores"], rtol=1e-6)
            assert not warnings(running.log)
        wrong = {"outputs": {"scores": "FP32[3]", "total": "FP32[]"}}
        with pytest.raises(errors.SpecError, match=r"output 'scores' is FP32\[2\] a row, not FP32\[3\]"):
            server.add_torch(tmp_path, "net", DATA / name, **told | wrong)


class TestFunctions:
    """Python functions of NumPy arrays."""

    def test_served(self, tmp_path, functions):
        """One output, several by name and in order, open lengths, numbers per row; nothing of the user's is imported."""
        add, models = server.add_function, tmp_path / "models"
        add(models, "mass", functions.mass, inputs={"p4": "[4]"}, outputs={"m": "[]"}, labels=None)
        add(models, "moments", functions.moments, inputs={"x": "[-1]", "n": "[1]"},
            outputs={"mean": "FP32[]", "n": "INT64[1]"}, preferred_batch_sizes=[8, 64], queue_delay_us=20_000)  # fmt: skip
        add(models, "pair", functions.pair, inputs={"x": "INT32[2]"}, outputs={"up": "INT32[2]", "down": "INT32[2]"},
            max_batch_size=0, warm_up={"x": [2]})  # fmt: skip
        add(models, "short", functions.short, inputs={"x": "FP32[1]"}, outputs={"y": "FP32[1]"})
        assert not server.examine(models, cores=4)
        (tmp_path / "taggers.py").unlink()
        with dk.local_server(models) as running:
            servers = [running.address]
            p4 = np.random.default_rng(1).normal(size=(100, 4)).astype("f4")
            p4[:, 3] += 10
            np.testing.assert_allclose(
                dk.Model("mass", servers=servers)(p4), functions.mass(p4)[:, None], rtol=1e-5
            )
            x = np.arange(12, dtype="f4").reshape(4, 3)
            features = dk.Features(lambda x: {"x": x, "n": np.full((len(x), 1), 3)})
            both = dk.Model("moments", features=features, servers=servers)(x)
            np.testing.assert_array_equal(np.ravel(both["mean"]), [1, 4, 7, 10])
            np.testing.assert_array_equal(np.ravel(both["n"]), [3] * 4)
            with pytest.raises(errors.InferenceError, match="shape .*1.* for a batch of 2 rows"):
                dk.Model("short", servers=servers)(np.ones((2, 1), "f4"))
            assert not warnings(running.log)

    def test_annotations(self, functions, tmp_path):
        """Types come from annotations, and are asked for where there are none."""
        folder = server.add_function(
            tmp_path,
            "m",
            functions.moments,
            inputs={"n": "[1]", "x": "[-1]"},
            outputs={"n": "INT64[1]", "mean": "FP32[]"},
        )
        config = read_config(folder / "config.pbtxt")
        assert [(t.name, t.data_type) for t in config.input] == [("x", 11), ("n", 9)]
        with pytest.raises(errors.ConfigError, match=r"'x' is to be '\[1\]'; it takes a type"):
            server.add_function(tmp_path, "p", functions.short, inputs={"x": "[1]"}, outputs={"y": "FP32[1]"})

    @pytest.mark.parametrize("text", ["FP32", "FP32[a]", "FP32[0]", "FP32[-2]", "F32[1]", "FP32[1"])
    def test_words(self, text):
        """Words that are no tensor."""
        with pytest.raises(errors.ConfigError, match="it takes a type and the dimensions"):
            Tensor.parse("x", text)

    def test_refused(self, functions, tmp_path):
        """Functions that a server could not call."""
        add = server.add_function
        given = {"inputs": {"x": "FP32[1]"}, "outputs": {"y": "FP32[1]"}}
        with pytest.raises(errors.SpecError, match=r"moments\(\) takes x, n; the inputs told are x"):
            add(tmp_path, "m", functions.moments, **given)
        with pytest.raises(errors.InputError, match="no function at the top of"):
            add(tmp_path, "m", lambda x: x, **given)
        with pytest.raises(errors.SpecError, match="arguments without names"):
            add(tmp_path, "m", lambda *x: x, **given)
        with pytest.raises(errors.InputError, match="has no file"):
            add(tmp_path, "m", eval("lambda x: x"), **given)
        with pytest.raises(errors.ConfigError, match="a Python function can be served by python"):
            add(tmp_path, "m", functions.short, **given, backend="pytorch")
        with pytest.raises(errors.InputError, match="imports others of its own package"):
            add(tmp_path, "m", server.examine, inputs={"repository": "FP32[1]"}, outputs={"y": "FP32[1]"})

    def test_packages_of_the_server(self, functions, tmp_path, caplog):
        """A package that the server may not have is told."""
        Path(functions.__file__).write_text("import scipy.special\n" + FUNCTIONS)
        server.add_function(tmp_path, "m", functions.short, inputs={"x": "FP32[1]"}, outputs={"y": "FP32[1]"})
        assert "the environment of the server must have scipy" in caplog.text


def native(folder):
    """One entry of each kind for production; no GPU is needed to check them."""
    onnx_path = demo.shipped().model
    (folder / "x.plan").write_bytes(b"an engine")
    models, queue = (
        folder / "models",
        {"queue_size": 512, "queue_timeout_us": 10_000, "preferred_batch_sizes": [8, 64]},
    )
    server.add_onnx(models, "ort", onnx_path, backend="onnxruntime", versions=[1], **queue)
    server.add_onnx(
        models, "gpu", onnx_path, backend="onnxruntime", device="gpu", tensorrt="FP16", versions=2, **queue
    )
    server.add_plan(models, "plan", folder / "x.plan", onnx_path, **queue)
    server.add_torch(models, "torch", DATA / "traced.pt", backend="pytorch", device="gpu", warm_up={"points": [9, 3]},
                     **TORCH, **queue)  # fmt: skip
    return models


def test_production(tmp_path):
    """Triton accepts each configuration: what it misses in the end is the backend, which the embedded one has not.

    The control shows that a wrong configuration is found before that.
    """
    models = native(tmp_path)
    assert {finding.rule for finding in server.examine(models, cores=4)} <= {"warm-up"}
    config = models / "ort" / "config.pbtxt"
    right = config.read_text()
    for text, kinds in ((right, ["onnxruntime", "onnxruntime", "tensorrt", "pytorch"]),
                        (right.replace("[8, 64]", "[8, 4096]"), ["onnxruntime", "tensorrt", "pytorch"])):  # fmt: skip
        config.write_text(text)
        with pytest.raises(errors.LocalServerError) as raised, dk.local_server(models):
            pass
        missing = [
            line for line in str(raised.value).splitlines() if "unable to find backend library" in line
        ]
        assert sorted(line.split("backend '")[1].split("'")[0] for line in missing) == sorted(kinds)
    assert "preferred" in str(raised.value)


def test_production_settings(tmp_path):
    """TensorRT in ONNX Runtime, the queue's limits, versions and warm-up of each preferred size."""
    models = native(tmp_path)
    gpu, ort, torch = (read_config(models / name / "config.pbtxt") for name in ("gpu", "ort", "torch"))
    (accelerator,) = gpu.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, accelerator.parameters["precision_mode"]) == ("tensorrt", "FP16")
    assert gpu.version_policy.latest.num_versions == 2
    assert list(ort.version_policy.specific.versions) == [1]
    policy = ort.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (512, 10_000)
    assert policy.timeout_action == policy.REJECT
    assert [w.batch_size for w in torch.model_warmup] == [1, 8, 64]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"preferred_batch_sizes": [2048]}, "preferred_batch_sizes has 2048; sizes of 1 to max_batch_size=1024"),
        ({"queue_timeout_us": 0}, "queue_timeout_us is 0"),
        ({"versions": 0}, "versions is 0"),
        ({"versions": []}, "versions is empty"),
        ({"backend": "keras"}, "backend is 'keras'; there are python, onnxruntime, pytorch, tensorrt"),
        ({"backend": "tensorrt", "device": "gpu"}, "an ONNX file can be served by python, onnxruntime"),
        ({"backend": "tensorrt"}, "device is 'cpu'; the backend 'tensorrt' has gpu"),
        ({"tensorrt": "FP16"}, "needs backend='onnxruntime' and device='gpu'"),
    ],
)  # fmt: skip
def test_settings_out_of_range(tmp_path, given, text):
    """Each says what there is."""
    with pytest.raises(errors.ConfigError, match=text):
        server.add_onnx(tmp_path, "m", tmp_path / "m.onnx", **given)


class TestCommand:
    """``daskonic models add`` of every kind of source."""

    def run(self, *words):
        return CliRunner().invoke(main, ["models", "add", *map(str, words)])

    def test_kinds(self, tmp_path, functions, monkeypatch):
        """The kind is known by the file's ending, or by module:function."""
        monkeypatch.chdir(Path(functions.__file__).parent)
        plan = tmp_path / "x.plan"
        plan.write_bytes(b"an engine")
        for words, file in (
            (["taggers:mass", "--input", "p4=[4]", "--output", "m=[]", "--latest", "2"], "mass/1/function.py"),
            ([DATA / "scripted.pt", "--backend", "pytorch", "--input", "points=FP32[-1,3]", "--input", "mask=FP32[1]",
              "--output", "scores=FP32[2]", "--output", "total=FP32[]", "--warm-up", "points=50,3"],
             "scripted/1/model.pt"),
            ([plan, "--onnx", demo.shipped().model, "--preferred-batch-sizes", "8,64"], "x/1/model.plan"),
        ):  # fmt: skip
            done = self.run(tmp_path / "r", *words)
            assert done.exit_code == 0, done.output
            assert (tmp_path / "r" / file).is_file()

    def test_mistakes(self, tmp_path):
        """Each ends with the code of wrong usage and says what is missing."""
        for words, text in (
            (["what"], "is no .onnx, .pt2, .pt or .plan, and no module:function"),
            (["x.plan"], "say by --onnx what x.plan was built from"),
            (["x.onnx", "--input", "x=FP32[1]"], "leave --input and --output out"),
            (["taggers:mass", "--input", "p4"], "NAME=... is needed"),
        ):
            done = self.run(tmp_path, *words)
            assert done.exit_code == 2
            assert text in done.output
