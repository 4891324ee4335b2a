"""Servers of the protocol that are not Triton: no configuration, no statistics, no shared memory, other error codes."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from faults import eventually
from kserve_server import KserveServer
from test_transport import Conformance, infer, request

import daskonic as dk
from daskonic import errors
from daskonic.tensors import ANY, TensorSpec
from daskonic.transport.grpc import GrpcTransport

FLOAT = np.dtype("f4")
ROWS = 300


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory):
    server = KserveServer(tmp_path_factory.mktemp("mlserver"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def transport(mlserver):
    transport = GrpcTransport(mlserver.address)
    yield transport
    transport.close()


class TestMlserver(Conformance):
    """The promises that the pool relies on."""

    def test_describes_the_model(self, transport):
        """Names and dtypes; it tells no versions, and not which dimension is the batch."""
        spec = transport.model_spec("identity", "", 20)
        assert spec.inputs == (TensorSpec("X", FLOAT, (ANY, ANY)),)
        assert spec.outputs == (TensorSpec("Y", FLOAT, (ANY, ANY)),)
        assert (spec.version, spec.max_batch_size) == ("", 0)
        assert len(spec.config_digest) == 64

    def test_unknown_model(self, transport):
        """One line that says which model is not there, though the server's code for it is UNKNOWN."""
        with pytest.raises(errors.ModelNotFoundError, match="has no model 'absent'"):
            transport.model_spec("absent", "", 20)

    def test_keeps_no_account(self, transport):
        """A server without statistics has none, which is no error."""
        assert transport.account("identity", "1", 20) is None

    def test_failing_model(self, transport):
        """The model's own error is permanent."""
        with pytest.raises(errors.InferenceError):
            infer(transport, request(np.ones((1, 1), FLOAT), model="fail"))

    def test_deadline(self, transport):
        """No answer in time is said so."""
        with pytest.raises(errors.DeadlineError):
            infer(transport, request(np.ones((1, 1), FLOAT), model="sleep"), timeout_s=0.3)


def jagged_rows():
    return np.random.default_rng(2).normal(size=(ROWS, 7)).astype(FLOAT)


def summed(x):
    total = x.sum(axis=1)
    return np.stack([total, -total], axis=1)


@pytest.fixture
def model(mlserver):
    model = dk.Model("sum", servers=[mlserver.address], batch_size=10, timeout="60 s")
    yield model
    model.pool().close()


def test_batch_limit_comes_from_the_user(mlserver):
    """A server that does not tell its batch limit is not guessed at."""
    model = dk.Model("sum", servers=[mlserver.address])
    with pytest.raises(errors.SpecError, match="batch_size=N"):
        model(jagged_rows())
    model.pool().close()


def test_scores(model):
    """The rows' own scores, in order, in batches."""
    x = jagged_rows()
    pending = model.submit(x)
    np.testing.assert_allclose(pending.result(), summed(x), rtol=1e-6)
    assert pending.report.requests == ROWS // 10
    assert pending.report.model_version == "1"


def test_killed_and_restarted(mlserver, model):
    """Requests that a dying server lost are sent again; the numbers are those of an undisturbed run."""
    x = jagged_rows()
    model(x)
    slow = dk.Model("sleep", servers=[mlserver.address], batch_size=ROWS, timeout="60 s")
    scores = []
    thread = threading.Thread(target=lambda: scores.append(slow(x)))
    thread.start()
    assert eventually(lambda: slow.pool().stats().in_flight == 1)
    time.sleep(0.2)
    mlserver.kill()
    mlserver.start()
    thread.join(60)
    np.testing.assert_array_equal(scores[0], x)
    np.testing.assert_allclose(model(x), summed(x), rtol=1e-6)
    slow.pool().close()


def test_half_of_the_servers_gone(mlserver, tmp_path):
    """With one of two servers killed in the middle, the other one does all that is left."""
    other = KserveServer(tmp_path)
    other.start()
    try:
        servers = [mlserver.address, other.address]
        model = dk.Model("sum", servers=servers, batch_size=10, timeout="60 s")
        x = jagged_rows()
        model(x)
        pending = model.submit(np.concatenate([x] * 10))
        other.kill()
        np.testing.assert_allclose(pending.result(), summed(np.concatenate([x] * 10)), rtol=1e-6)
        assert pending.report.endpoints[mlserver.address] > 0
        model.pool().close()
    finally:
        other.kill()
