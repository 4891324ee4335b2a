"""ONNX files become models that a real Triton serves with the right numbers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import Future

import dask.config
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton_grpc
from onnx import TensorProto, helper, numpy_helper

import daskonic as dk
from daskonic import errors
from daskonic.server import add_onnx, find, install
from daskonic.server.installation import TRITON_VERSION, cache_folder
from daskonic.server.onnx_file import TYPES

TRITON_NAMES = {
    np.dtype("f2"): "FP16",
    np.dtype("f4"): "FP32",
    np.dtype("i8"): "INT64",
    np.dtype("?"): "BOOL",
}


def save(path, nodes, inputs, outputs, weights=()):
    """Write an ONNX file; inputs and outputs are (name, type, shape)."""
    values = [[helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)]
    graph = helper.make_graph(nodes, "graph", *values, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def identity(path, onnx_type=TensorProto.FLOAT, shape=("N", "M"), out_shape=None):
    """Y = X, in any type and shape."""
    return save(
        path,
        [helper.make_node("Identity", ["X"], ["Y"])],
        [("X", onnx_type, shape)],
        [("Y", onnx_type, shape if out_shape is None else out_shape)],
    )


def many_types(path):
    """A model that computes in FP32, FP16, INT64 and BOOL, one output each."""
    nodes = [
        helper.make_node("MatMul", ["floats", "weights"], ["product"]),
        helper.make_node("Softmax", ["product"], ["scores"]),
        helper.make_node("Add", ["halves", "halves"], ["doubled"]),
        helper.make_node("Neg", ["integers"], ["negative"]),
        helper.make_node("Not", ["flags"], ["inverted"]),
        helper.make_node("ReduceSum", ["floats", "axis"], ["total"], keepdims=0),
    ]
    weights = np.random.default_rng(3).normal(size=(6, 4)).astype("f4")
    return save(
        path,
        nodes,
        [
            ("floats", TensorProto.FLOAT, ["N", 6]),
            ("halves", TensorProto.FLOAT16, ["N", "L"]),
            ("integers", TensorProto.INT64, ["N", 2, 3]),
            ("flags", TensorProto.BOOL, ["N", "L"]),
        ],
        [
            ("scores", TensorProto.FLOAT, ["N", 4]),
            ("doubled", TensorProto.FLOAT16, ["N", "L"]),
            ("negative", TensorProto.INT64, ["N", 2, 3]),
            ("inverted", TensorProto.BOOL, ["N", "L"]),
            ("total", TensorProto.FLOAT, ["N"]),
        ],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1]), "axis")],
    )


def picky(path):
    """Y[i] = table[X[i]]: a request with an index outside of the table fails in the model."""
    table = np.arange(10, dtype="f4") * 1.5
    return save(
        path,
        [helper.make_node("Gather", ["table", "X"], ["Y"], axis=0)],
        [("X", TensorProto.INT64, ["N", "L"])],
        [("Y", TensorProto.FLOAT, ["N", "L"])],
        [numpy_helper.from_array(table, "table")],
    )


def as_input(name, x):
    tensor = triton_grpc.InferInput(name, x.shape, TRITON_NAMES[x.dtype])
    tensor.set_data_from_numpy(x)
    return tensor


def ask(client, model, inputs, **given):
    """Outputs of a request, by name."""
    result = client.infer(model, [as_input(name, x) for name, x in inputs.items()], **given)
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def inputs_of(rows, seed):
    rng = np.random.default_rng(seed)
    return {
        "floats": rng.normal(size=(rows, 6)).astype("f4"),
        "halves": rng.normal(size=(rows, 5)).astype("f2"),
        "integers": rng.integers(-(2**62), 2**62, size=(rows, 2, 3)),
        "flags": rng.random(size=(rows, 5)) < 0.5,
    }


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Models of many types and shapes, written by ``add_onnx``."""
    folder = tmp_path_factory.mktemp("repository")
    files = tmp_path_factory.mktemp("onnx")
    add_onnx(folder, "types", many_types(files / "types.onnx"))
    add_onnx(folder, "picky", picky(files / "picky.onnx"), queue_delay_us=300_000, max_batch_size=64)
    add_onnx(folder, "whole", identity(files / "whole.onnx", shape=(2, 3)), max_batch_size=0)
    add_onnx(folder, "flat", identity(files / "flat.onnx", shape=("N",)), instances=2, threads=2)
    add_onnx(folder, "classes", identity(files / "classes.onnx", shape=("N", 3)), labels=["top", "W", "QCD"])
    return folder, files


@pytest.fixture(scope="module", params=["NumPy 1", "NumPy 2"])
def served(request, repository):
    """The same repository served with each of the two NumPy versions in Triton's environment."""
    if request.param == "NumPy 2":
        installation = install(
            cache_folder() / f"tritonserver-{TRITON_VERSION}-numpy2", numpy="numpy>=2.1,<3"
        )
    elif sys.version_info >= (3, 13):
        pytest.skip("Triton's environment has NumPy 2 on this Python anyway")
    else:
        installation = find()
    numpy = [installation.python, "-c", "import numpy; print('NumPy', numpy.__version__)"]
    assert subprocess.check_output(numpy, text=True).startswith(request.param)
    settings = {"daskonic.server.installation": str(installation.path)}
    with dask.config.set(settings), dk.local_server(repository[0]) as server:
        client = triton_grpc.InferenceServerClient(server.address)
        yield client
        client.close()
        server.stop(grace_s=0)


class TestServed:
    """Each test runs on NumPy 1 and on NumPy 2, which Triton's backend reads as zeros without DLPack."""

    @pytest.mark.parametrize("rows", [1, 7, 1024])
    def test_numbers_are_those_of_onnx_runtime(self, served, repository, rows):
        """FP32, FP16, INT64 and BOOL come through to the bit, scalars per row included."""
        inputs = inputs_of(rows, seed=rows)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(
            repository[1] / "types.onnx", options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        expected = dict(zip(names, session.run(names, inputs), strict=True))
        expected["total"] = expected["total"][:, np.newaxis]  # Triton has no scalars
        got = ask(served, "types", inputs)
        assert set(got) == set(names)
        for name in names:
            assert got[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(got[name], expected[name])
        assert np.any(got["scores"])

    def test_only_outputs_wanted(self, served):
        """A request for one output gets one."""
        wanted = [triton_grpc.InferRequestedOutput("inverted")]
        assert set(ask(served, "types", inputs_of(2, 0), outputs=wanted)) == {"inverted"}

    def test_joined_requests_get_their_own_rows(self, served):
        """Requests of several lengths that share executions each get their own answer."""
        before = _executions(served)
        xs = [np.full((1 + i % 3, 2 + i % 2), i % 10) for i in range(20)]
        answers = [send(served, x) for x in xs]
        for x, answer in zip(xs, answers, strict=True):
            np.testing.assert_array_equal(answer.result(30).as_numpy("Y"), x * np.float32(1.5))
        assert _executions(served) - before < len(xs)

    def test_one_wrong_request_harms_no_other(self, served):
        """In a shared execution only the request that the model cannot do fails, with its reason."""
        before = _executions(served)
        xs = [np.full((2, 2), 99 if i == 3 else i) for i in range(6)]
        answers = [send(served, x) for x in xs]
        for i, (x, answer) in enumerate(zip(xs, answers, strict=True)):
            if i == 3:
                with pytest.raises(triton_grpc.InferenceServerException, match="out of data bounds"):
                    answer.result(30)
            else:
                np.testing.assert_array_equal(answer.result(30).as_numpy("Y"), x * np.float32(1.5))
        assert _executions(served) - before < len(xs)

    def test_without_batch_dimension(self, served):
        """max_batch_size 0 serves the shapes as they stand."""
        x = np.arange(6, dtype="f4").reshape(2, 3)
        np.testing.assert_array_equal(ask(served, "whole", {"X": x})["Y"], x)

    def test_rows_without_dimensions(self, served):
        """A tensor of the batch alone is [rows, 1] to clients."""
        x = np.arange(5, dtype="f4")[:, np.newaxis]
        np.testing.assert_array_equal(ask(served, "flat", {"X": x})["Y"], x)

    def test_labels(self, served):
        """Triton's classification names the classes."""
        wanted = [triton_grpc.InferRequestedOutput("Y", class_count=1)]
        x = np.array([[0, 1, 0]], "f4")
        assert ask(served, "classes", {"X": x}, outputs=wanted)["Y"].tolist() == [[b"1.000000:1:W"]]


def _executions(client):
    """Executions of ``picky`` so far."""
    return client.get_inference_statistics("picky").model_stats[0].execution_count


def send(client, x):
    """A request to ``picky`` under way, as a future."""
    future = Future()

    def done(result, error):
        future.set_result(result) if error is None else future.set_exception(error)

    client.async_infer("picky", [as_input("X", x)], done)
    return future


class TestVersions:
    def test_stand_side_by_side(self, tmp_path):
        """Each version keeps its own weights, and the new one's settings hold for all."""
        for version in (1, 2):
            weight = numpy_helper.from_array(np.array([version], "f4"), "w")
            file = save(
                tmp_path / "m.onnx",
                [helper.make_node("Mul", ["X", "w"], ["Y"])],
                [("X", TensorProto.FLOAT, ["N", 1])],
                [("Y", TensorProto.FLOAT, ["N", 1])],
                [weight],
            )
            add_onnx(tmp_path / "r", "m", file, version=version, max_batch_size=8 * version)
        with dk.local_server(tmp_path / "r") as server:
            client = triton_grpc.InferenceServerClient(server.address)
            one = {"X": np.ones((16, 1), "f4")}
            for version, factor in (("1", 1), ("2", 2), ("", 2)):
                assert np.all(ask(client, "m", one, model_version=version)["Y"] == factor)
            client.close()
            server.stop(grace_s=0)

    def test_replaced(self, tmp_path):
        """Adding the same version again replaces it, and nothing else stays in the repository."""
        first = identity(tmp_path / "a.onnx", shape=("N", 3))
        second = identity(tmp_path / "b.onnx", shape=("N", 4))
        model = add_onnx(tmp_path / "r", "m", first)
        assert add_onnx(tmp_path / "r", "m", second) == model
        assert (model / "1" / "model.onnx").read_bytes() == second.read_bytes()
        assert "dims: [4]" in (model / "config.pbtxt").read_text()
        assert os.listdir(tmp_path / "r") == ["m"]
        assert sorted(os.listdir(model)) == ["1", "config.pbtxt"]

    def test_found_by_a_polling_server(self, tmp_path):
        """A server that polls serves a version that is added while it runs, and never stops serving."""
        file = identity(tmp_path / "m.onnx", shape=("N", 1))
        add_onnx(tmp_path / "r", "m", file)
        with dk.local_server(tmp_path / "r", model_control="poll") as server:
            client = triton_grpc.InferenceServerClient(server.address)
            add_onnx(tmp_path / "r", "m", file, version=2)
            end = time.monotonic() + 60
            while not client.is_model_ready("m", "2"):
                assert time.monotonic() < end
                assert ask(client, "m", {"X": np.ones((1, 1), "f4")})["Y"] == [[1]]
            client.close()
            server.stop(grace_s=0)

    def test_other_tensors(self, tmp_path):
        """A version with other tensors is refused, with both lists, and the model stays as it was."""
        add_onnx(tmp_path / "r", "m", identity(tmp_path / "a.onnx", shape=("N", 3)))
        other = identity(tmp_path / "b.onnx", shape=("N", 4))
        with pytest.raises(errors.SpecError, match=r"(?s)other inputs or outputs.*\[4\].*\[3\]"):
            add_onnx(tmp_path / "r", "m", other, version=2)
        assert sorted(os.listdir(tmp_path / "r" / "m")) == ["1", "config.pbtxt"]
        assert os.listdir(tmp_path / "r") == ["m"]


class TestRefused:
    @pytest.mark.parametrize(
        ("shape", "out_shape", "text"),
        [
            ((1, 3), (1, 3), "first dimension of X is fixed to 1"),
            (("N", 3), (1, 3), "first dimension of Y is fixed to 1"),
            ((), (), "first dimension of X does not exist"),
        ],
    )
    def test_no_batch_dimension(self, tmp_path, shape, out_shape, text):
        """A fixed first dimension cannot be the batch; the error says both ways out."""
        file = tmp_path / "m.onnx"
        inputs, outputs = [("X", TensorProto.FLOAT, shape)], [("Y", TensorProto.FLOAT, out_shape)]
        values = [[helper.make_tensor_value_info(*v) for v in values] for values in (inputs, outputs)]
        graph = helper.make_graph([helper.make_node("Identity", ["X"], ["Y"])], "g", *values)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
        with pytest.raises(
            errors.SpecError, match=f"{text}.*open .dynamic. first dimension.*max_batch_size=0"
        ):
            add_onnx(tmp_path / "r", "m", file)
        assert not (tmp_path / "r").exists()

    @pytest.mark.parametrize(
        ("content", "text"),
        [(b"no onnx", "not an ONNX model"), (b"", "not an ONNX model"), (None, "cannot be read")],
    )
    def test_not_a_model(self, tmp_path, content, text):
        """Files that are no ONNX, empty or missing."""
        if content is not None:
            (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(errors.InputError, match=rf"m\.onnx .*{text}"):
            add_onnx(tmp_path, "m", tmp_path / "m.onnx")

    @pytest.mark.parametrize("onnx_type", [TensorProto.STRING, TensorProto.BFLOAT16])
    def test_type(self, tmp_path, onnx_type):
        """Types that the backend cannot pass are refused here, not by a crash of the server."""
        with pytest.raises(errors.InputError, match="served are FLOAT, "):
            add_onnx(tmp_path, "m", identity(tmp_path / "m.onnx", onnx_type))

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({"name": "a/b"}, "model name 'a/b'"),
            ({"name": ".hidden"}, "model name '.hidden'"),
            ({"version": 0}, "version is 0; at least 1"),
            ({"max_batch_size": -1}, "max_batch_size is -1; at least 0"),
            ({"instances": 0}, "instances is 0"),
            ({"threads": 0}, "threads is 0"),
        ],
    )
    def test_arguments(self, tmp_path, given, text):
        """Arguments out of range."""
        with pytest.raises(errors.ConfigError, match=text):
            add_onnx(**({"repository": tmp_path, "name": "m", "onnx_path": tmp_path / "m.onnx"} | given))

    def test_labels_of_several_outputs(self, tmp_path):
        """Labels belong to one output."""
        with pytest.raises(errors.SpecError, match="labels name the classes of one output"):
            add_onnx(tmp_path, "m", many_types(tmp_path / "m.onnx"), labels=["a"])

    def test_repository_is_a_file(self, tmp_path):
        """What cannot be written is an OutputError."""
        (tmp_path / "r").touch()
        with pytest.raises(errors.OutputError, match="cannot be written into"):
            add_onnx(tmp_path / "r", "m", identity(tmp_path / "m.onnx"))


def test_weights_beside_the_file(tmp_path):
    """Large weights that ONNX keeps in another file come along."""
    weights = np.arange(4096, dtype="f4").reshape(64, 64)
    file = save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["X", "w"], ["Y"])],
        [("X", TensorProto.FLOAT, ["N", 64])],
        [("Y", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(onnx.load(file), file, save_as_external_data=True, location="m.weights", size_threshold=0)
    model = add_onnx(tmp_path / "r", "m", file)
    assert (model / "1" / "m.weights").stat().st_size >= weights.nbytes
    ort.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    (tmp_path / "m.weights").unlink()
    with pytest.raises(errors.InputError, match=r"weights in m\.weights"):
        add_onnx(tmp_path / "r", "m", file)


def test_types_are_onnx_types():
    """Every type served is one of ONNX."""
    assert set(TYPES) <= set(TensorProto.DataType.keys())
