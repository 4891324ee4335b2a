"""Every transport keeps the same promises; the gRPC one keeps them against a real Triton."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from daskonic import errors
from daskonic.tensors import ANY, ModelSpec, Request, TensorSpec
from daskonic.transport.grpc import DTYPES, KSERVE_NAMES, GrpcTransport
from daskonic.transport.memory import MemoryTransport
from daskonic.transport.onnx import OnnxTransport
from daskonic.transport.status import error_from_status

FLOAT = np.dtype("f4")


def request(x, *, model="identity", outputs=("Y",), version="1"):
    return Request(model, version, {"X": x}, outputs, len(x))


def infer(transport, req, timeout_s=20.0):
    return transport.decode(transport.submit(transport.encode(req), timeout_s).result())


class Conformance:
    """What the pool relies on, for a model ``identity`` of X float32[any] → Y float32[any]."""

    def test_describes_the_model(self, transport):
        """Names, dtypes and the shape of one row, without the batch dimension."""
        spec = transport.model_spec("identity", "", 20)
        assert spec.inputs == (TensorSpec("X", FLOAT, (ANY,)),)
        assert spec.outputs == (TensorSpec("Y", FLOAT, (ANY,)),)
        assert spec.version == "1"
        assert spec.max_batch_size > 0
        assert len(spec.config_digest) == 64

    @pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 1000)])
    def test_numbers_come_back_unchanged(self, transport, shape):
        """Same shape, same bits, same version."""
        x = np.random.default_rng(1).normal(size=shape).astype(FLOAT)
        response = infer(transport, request(x))
        assert response.outputs["Y"].dtype == FLOAT
        np.testing.assert_array_equal(response.outputs["Y"], x)
        assert response.version == "1"

    def test_requests_run_side_by_side(self, transport):
        """Twenty messages under way at once, each with its own answer."""
        xs = [np.full((2, 3), i, FLOAT) for i in range(20)]
        replies = [transport.submit(transport.encode(request(x)), 20) for x in xs]
        for x, reply in zip(xs, replies, strict=True):
            np.testing.assert_array_equal(transport.decode(reply.result()).outputs["Y"], x)
            assert reply.done()

    def test_calls_back_when_done(self, transport):
        """The callback comes once, with the finished reply, also when set late."""
        reply = transport.submit(transport.encode(request(np.ones((1, 1), FLOAT))), 20)
        called = threading.Event()
        reply.add_done_callback(lambda r: called.set() if r.done() else None)
        assert called.wait(20)
        late = threading.Event()
        reply.add_done_callback(lambda r: late.set())
        assert late.wait(20)


class TestMemory(Conformance):
    @pytest.fixture
    def transport(self):
        spec = ModelSpec(
            "identity",
            "1",
            (TensorSpec("X", FLOAT, (ANY,)),),
            (TensorSpec("Y", FLOAT, (ANY,)),),
            64,
            "0" * 64,
        )
        transport = MemoryTransport("memory", spec, lambda inputs: {"Y": inputs["X"]})
        yield transport
        transport.close()


class TestOnnx(Conformance):
    @pytest.fixture
    def transport(self, tmp_path):
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", "M"]) for n in "XY")
        graph = helper.make_graph([helper.make_node("Identity", ["X"], ["Y"])], "identity", [x], [y])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, tmp_path / "identity.onnx")
        transport = OnnxTransport(tmp_path / "identity.onnx")
        yield transport
        transport.close()

    def test_unreadable_file(self, tmp_path):
        """A file that is no ONNX model is an InputError that names it."""
        (tmp_path / "no.onnx").write_bytes(b"no")
        with pytest.raises(errors.InputError, match=r"no\.onnx cannot be loaded"):
            OnnxTransport(tmp_path / "no.onnx")


class TestGrpc(Conformance):
    @pytest.fixture
    def transport(self, triton):
        transport = GrpcTransport(triton.address)
        yield transport
        transport.close()

    def test_answer_is_not_copied(self, transport):
        """Outputs are views of the message: read-only, owning nothing."""
        y = infer(transport, request(np.ones((4, 4), FLOAT))).outputs["Y"]
        assert not y.flags.owndata
        assert not y.flags.writeable

    def test_unknown_model_says_what_exists(self, transport):
        """The error names what was asked for and what the server has."""
        with pytest.raises(errors.ModelNotFoundError, match=r"no model 'idenitty'.*identity \(version 1\)"):
            transport.model_spec("idenitty", "", 20)

    def test_unknown_version_says_what_exists(self, transport):
        """The same for a version."""
        with pytest.raises(
            errors.ModelNotFoundError, match=r"'identity' in version '7'.*identity \(version 1\)"
        ):
            transport.model_spec("identity", "7", 20)

    def test_refused_request_is_permanent(self, transport):
        """A shape that the server refuses is an InferenceError with the server's words."""
        with pytest.raises(errors.InferenceError, match="refuses the request.*shape") as caught:
            infer(transport, request(np.ones((2, 3, 4), FLOAT)))
        assert not caught.value.retryable

    def test_model_without_batch_dimension(self, transport):
        """max_batch_size 0 is told as 0, with the shapes as they stand."""
        assert transport.model_spec("graph", "", 20).max_batch_size == 0

    def test_failing_model(self, transport):
        """An exception in the model is an InferenceError that quotes it."""
        with pytest.raises(errors.InferenceError, match="the model failed"):
            infer(transport, request(np.ones((1, 1), FLOAT), model="fail"))

    def test_deadline(self, transport):
        """A model that takes longer than the time given is a DeadlineError, in time."""
        begin = time.monotonic()
        with pytest.raises(errors.DeadlineError, match="no answer in time"):
            infer(transport, request(np.ones((1, 1), FLOAT), model="sleep"), timeout_s=0.2)
        assert time.monotonic() - begin < 10

    def test_cancel(self, transport):
        """A cancelled request ends at once."""
        reply = transport.submit(transport.encode(request(np.ones((1, 1), FLOAT), model="sleep")), 20)
        assert reply.cancel()
        with pytest.raises(errors.ServerError, match="cancelled"):
            reply.result()

    def test_http_port_is_explained(self, triton):
        """Triton's HTTP port is not taken for a gRPC one."""
        with pytest.raises(errors.ServerError, match=r"not a gRPC port|does not speak gRPC"):
            GrpcTransport(triton.http_address.removeprefix("http://")).model_spec("identity", "", 5)


def test_port_of_a_web_server():
    """A port of something else is an error, not a hang."""

    class Page(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(errors.ServerError):
            GrpcTransport(f"127.0.0.1:{server.server_port}").model_spec("m", "", 5)
        server.shutdown()


def test_closed_port():
    """Nobody there: unavailable, with the address."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    with pytest.raises(errors.UnavailableError, match=f"{address}: no connection"):
        GrpcTransport(address).model_spec("m", "", 5)


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        ("UNAVAILABLE", "Exceeds maximum queue size", errors.OverloadedError),
        ("UNAVAILABLE", "Request timeout expired", errors.OverloadedError),
        ("NOT_FOUND", "Request for unknown model: 'm' has no available versions", errors.NotReadyError),
        ("UNAVAILABLE", "Server exiting", errors.UnavailableError),
        ("UNAVAILABLE", "failed to connect to all addresses", errors.UnavailableError),
        ("UNAVAILABLE", "Stream removed (Socket closed)", errors.UnavailableError),
        ("INTERNAL", "Stub process 'm_0_0' is not healthy.", errors.NotReadyError),
        ("INTERNAL", "Failed to process the request(s) for model 'm'", errors.InferenceError),
        ("INVALID_ARGUMENT", "inference request batch-size must be <= 64", errors.InferenceError),
        ("NOT_FOUND", "Request for unknown model: 'm' is not found", errors.ModelNotFoundError),
        ("UNAVAILABLE", "This protocol is restricted, expecting header 'x'", errors.ServerError),
        ("RESOURCE_EXHAUSTED", "Sent message larger than max (5 vs. 4)", errors.InferenceError),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", errors.DeadlineError),
    ],
)
def test_errors_by_what_they_mean(code, text, kind):
    """The text decides where the code misleads; the server's words stay in the message."""
    error = error_from_status(grpc.StatusCode[code], text, "host:1")
    assert type(error) is kind
    assert text in str(error)
    assert "host:1" in str(error)


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes_have_one_name(name):
    """KServe's names and NumPy's dtypes map one to one."""
    assert KSERVE_NAMES[DTYPES[name]] == name
