"""Servers of the protocol that are not Triton: no configuration, no statistics, no shared memory, other error codes."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
from fault_proxy import ENHANCE_YOUR_CALM, NO_ERROR, FaultProxy
from faults import BATCH, FEW, WIDE, Strike, assert_right, eventually, jagged, struck
from kserve_server import KserveServer
from test_fault_servers import score_for_ever
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
    thread = threading.Thread(daemon=True, target=lambda: scores.append(slow(x)))
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


# -- the faults of tests/test_faults.py and test_fault_servers.py that do not need Triton's own calls -------------------


@pytest.fixture
def proxy(mlserver):
    with FaultProxy(mlserver.address) as proxy:
        yield proxy


def test_server_hangs(mlserver, make_model):
    """A frozen server is asked again when it goes on; what it answers late is nobody's."""
    model = make_model("sum", [mlserver], attempt_timeout="0.5 s")
    for seed in range(FEW):
        jets = jagged(seed, ROWS)
        scores, _, _ = struck(model, jets, seed, lambda: mlserver.freeze(0.8))
        assert_right(scores, jets)


def test_connections_refused_deaf_and_slow(proxy, make_model):
    """Whatever the line does in the middle of a run, every row has its own score."""
    model = make_model("sum", [proxy], attempt_timeout="1 s")
    faults = [proxy.refuse, proxy.deafen, lambda: proxy.slow(bytes_per_s=100e3, delay_s=0.02)]
    for seed, fault in enumerate(2 * faults):
        jets = jagged(seed, ROWS)

        def outage(fault=fault):
            fault()
            time.sleep(0.3)
            proxy.heal()

        scores, _, _ = struck(model, jets, seed, outage)
        assert_right(scores, jets)


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("of", ["requests", "answers"])
def test_cut_in_mid_message(proxy, make_model, how, of):
    """A message that ended after any number of its bytes is sent again."""
    model = make_model("identity", [proxy], BATCH)
    for seed in range(2):
        jets, after = jagged(seed, 8 * BATCH, WIDE), random.Random(f"{how} {of} {seed}").randrange(1, 10**5)
        cuts = proxy.faults
        proxy.cut(after, of=of, how=how)
        assert_right(model(jets), jets, "wide")
        assert proxy.faults == cuts + 1


def test_goaway(proxy, make_model):
    """Connections are ended, gracefully or not, having seen all calls or not: none is lost."""
    model = make_model("sum", [proxy])
    for seed in range(FEW):
        jets, rng = jagged(seed, ROWS), random.Random(seed)
        unseen, code = rng.randrange(4), rng.choice([NO_ERROR, ENHANCE_YOUR_CALM])
        scores, _, _ = struck(model, jets, seed, lambda u=unseen, c=code: proxy.goaway(unseen=u, code=c))
        assert_right(scores, jets)
    assert proxy.faults >= FEW


@pytest.mark.parametrize("fault", ["rows", "columns"])
def test_wrong_shape(mlserver, make_model, fault):
    """A model that begins to answer in another shape gives an error, and no scores."""
    model = make_model("sum", [mlserver])
    strike = Strike(model, 5, lambda: mlserver.fault(fault))
    with pytest.raises(errors.ResponseError, match="Y"):
        score_for_ever(model)
    strike.join()
    mlserver.fault("")
    assert_right(model(jagged(0, ROWS)), jagged(0, ROWS))


def test_permanent_errors_are_tried_once(proxy, make_model):
    """What fails in the model is not sent again."""
    model = make_model("fail", [proxy])
    model.spec()
    calls = proxy.calls
    with pytest.raises(errors.InferenceError, match="fails on purpose"):
        model(np.ones((3, 16), FLOAT))
    assert proxy.calls == calls + 1
