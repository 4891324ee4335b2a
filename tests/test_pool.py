"""The pool on a transport in memory: permits, spreading, retries, first contact."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest

from daskonic.config import resolve
from daskonic.errors import (
    ConfigError,
    DeadlineError,
    InferenceError,
    ModelNotFoundError,
    OverloadedError,
    ResponseError,
    ServerError,
    UnavailableError,
)
from daskonic.pool import Pool, endpoint
from daskonic.tensors import ModelSpec, Request, TensorSpec
from daskonic.transport.memory import MemoryTransport

FLOAT = np.dtype("f4")
SPEC = ModelSpec("double", "3", (TensorSpec("x", FLOAT, (2,)),), (TensorSpec("y", FLOAT, (2,)),), 8)


def double(inputs):
    return {"y": inputs["x"] * 2}


@pytest.fixture
def make_pool():
    """A pool of memory transports, closed at the end; ``pool.transports`` has them by address."""
    pools = []

    def make(n=1, *, delay_s=0.0, specs=None, function=double, **settings):
        addresses = [f"host{i}:1" for i in range(n)]
        transports = {
            a: MemoryTransport(a, specs[i] if specs else SPEC, function, delay_s)
            for i, a in enumerate(addresses)
        }
        counted = {"tolerance": np.inf}  # no request but those of the test
        pool = Pool(resolve(addresses, **(counted | settings)), transports.__getitem__)
        pool.transports = list(transports.values())
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def send(pool, value=1.0, rows=1):
    spec = pool.spec("double", "")
    request = Request("double", spec.version, {"x": np.full((rows, 2), value, FLOAT)}, ("y",), rows)
    return pool.submit(request, spec, ("double", ""))


def answer(call):
    return call.decode(call.infer()).outputs["y"]


def test_needs_a_server():
    """A pool without servers says where to name one."""
    with pytest.raises(ConfigError, match=r"daskonic\.servers"):
        Pool(resolve([]))


def test_answers(make_pool):
    """One request, one answer, one attempt, and all permits back."""
    pool = make_pool()
    call = send(pool, 21.0)
    assert answer(call).tolist() == [[42.0, 42.0]]
    assert call.attempts == 1
    stats = pool.stats()
    assert (stats.requests_total, stats.retries_total, stats.in_flight, stats.waiting) == (1, 0, 0, 0)


def test_an_answer_gives_its_permit_back_first(make_pool, monkeypatch):
    """Whoever has an answer finds the place of its request free, however slowly that is given back."""
    pool = make_pool()
    release = pool.release

    def slowly(*arguments, **options):
        time.sleep(0.03)
        release(*arguments, **options)

    monkeypatch.setattr(pool, "release", slowly)
    for i in range(5):
        call = send(pool, i)
        time.sleep(0.01)  # answered meanwhile
        call.infer()
        assert pool.stats().in_flight == 0


def test_window_bounds_requests_in_flight(make_pool):
    """However many threads send, no endpoint has more than the window under way."""
    pool = make_pool(delay_s=0.01, window=3)
    threads = [
        threading.Thread(daemon=True, target=lambda: [answer(send(pool)) for _ in range(5)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.transports[0].most_in_flight == 3
    assert pool.stats().requests_total == 40


def test_requests_spread_over_endpoints(make_pool):
    """The least loaded endpoint is next, so three endpoints share twelve requests four each."""
    pool = make_pool(3, delay_s=0.2, window=8)
    calls = [send(pool) for _ in range(12)]
    assert [e.in_flight for e in pool.stats().endpoints] == [4, 4, 4]
    for call in calls:
        answer(call)


@pytest.mark.parametrize(
    "error", [UnavailableError("away"), OverloadedError("queue full"), DeadlineError("slow")]
)
def test_what_may_pass_is_tried_again(make_pool, error):
    """Away, busy and late are retried, and the answer is the right one."""
    pool = make_pool()
    pool.spec("double", "")
    pool.transports[0].failures = [error, error]
    call = send(pool, 3.0)
    assert answer(call).tolist() == [[6.0, 6.0]]
    assert call.attempts == 3
    assert pool.stats().retries_total == 2
    assert pool.stats().in_flight == 0


@pytest.mark.parametrize(
    "error", [InferenceError("bad shape"), ServerError("no token"), ModelNotFoundError("gone")]
)
def test_what_is_permanent_is_tried_once(make_pool, error):
    """A permanent error is raised after one attempt."""
    pool = make_pool()
    pool.spec("double", "")
    pool.transports[0].failures = [error]
    call = send(pool)
    with pytest.raises(type(error), match=str(error)):
        call.infer()
    assert call.attempts == 1
    assert pool.stats().in_flight == 0


def test_another_endpoint_takes_over(make_pool):
    """A request that fails at one endpoint is answered by the other."""
    pool = make_pool(2)
    pool.spec("double", "")
    pool.transports[0].failures = [UnavailableError("away")] * 100
    calls = [send(pool, float(i)) for i in range(10)]
    assert [answer(c)[0, 0] for c in calls] == [2.0 * i for i in range(10)]
    assert len(pool.transports[1].rows) == 10


def test_gives_up_at_the_deadline(make_pool):
    """The budget is a time, and the last error says how often it was tried."""
    pool = make_pool(timeout="0.5 s")
    pool.spec("double", "")
    pool.transports[0].failures = [UnavailableError("away")] * 100
    begin = time.monotonic()
    with pytest.raises((UnavailableError, DeadlineError), match=r"attempts in 0\.5 s|does not answer"):
        send(pool).infer()
    assert 0.4 < time.monotonic() - begin < 5
    assert pool.stats().in_flight == 0


def test_describes_the_model_once(make_pool):
    """Sixteen threads at first use make one metadata call."""
    pool = make_pool()
    threads = [threading.Thread(daemon=True, target=pool.spec, args=("double", "")) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.transports[0].spec_calls == 1


def test_unknown_model(make_pool):
    """A model that no endpoint has is an error at once, with what there is."""
    with pytest.raises(ModelNotFoundError, match="it has double"):
        make_pool(2).spec("triple", "")


def test_endpoint_without_the_model_is_left_out(make_pool):
    """Requests go only where the model is."""
    pool = make_pool(2, specs=[dataclasses.replace(SPEC, name="other"), SPEC])
    for call in [send(pool) for _ in range(6)]:
        answer(call)
    assert [len(t.rows) for t in pool.transports] == [0, 6]


def test_endpoint_away_at_first_is_used_later(make_pool):
    """An endpoint that was away at first contact joins when it is back."""
    pool = make_pool(2)
    pool.transports[0].failures = [UnavailableError("away")]
    pool.spec("double", "")
    until = time.monotonic() + 20
    while not pool.transports[0].rows and time.monotonic() < until:
        answer(send(pool))
    assert pool.transports[0].rows


def test_disagreeing_endpoints_are_refused(make_pool):
    """Two different models under one name are an error before anything is scored."""
    other = dataclasses.replace(SPEC, inputs=(TensorSpec("x", FLOAT, (3,)),))
    with pytest.raises(ServerError, match=r"disagree on model 'double'.*x: float32\[2\].*x: float32\[3\]"):
        make_pool(2, specs=[SPEC, other]).spec("double", "")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda i: {"y": i["x"][:, :1]}, r"float32\[1, 1\] for 1 rows"),
        (lambda i: {"y": np.repeat(i["x"], 2, axis=0)}, r"float32\[2, 2\] for 1 rows"),
        (lambda i: {"y": i["x"].astype("f8")}, "float64"),
        (lambda i: {"z": i["x"]}, "no output 'y'"),
    ],
)
def test_wrong_answers_are_errors(make_pool, wrong, named):
    """Wrong rows, shape, dtype or name in an answer never become data."""
    call = send(make_pool(function=wrong))
    with pytest.raises(ResponseError, match=named):
        answer(call)


def test_replaced_version_is_an_error(make_pool):
    """An answer by another version than at first contact is refused."""
    pool = make_pool()
    pool.spec("double", "")
    pool.transports[0]._spec = dataclasses.replace(SPEC, version="4")
    with pytest.raises(ResponseError, match="version 4 .* where version 3 began"):
        answer(send(pool))


def test_another_version_at_one_endpoint_leaves_the_others(make_pool):
    """In a rolling update the run goes on where its version still is, and ends when that is nowhere."""
    pool = make_pool(2)
    pool.spec("double", "")
    newer = dataclasses.replace(SPEC, version="4")
    pool.transports[0]._spec = newer
    for i in range(10):
        assert answer(send(pool, float(i)))[0, 0] == 2.0 * i
    assert len(pool.transports[1].rows) >= 9
    assert all(endpoint.healthy for endpoint in pool.stats().endpoints)
    pool.transports[1]._spec = newer
    with pytest.raises((ResponseError, ModelNotFoundError), match="version"):
        answer(send(pool))


def test_a_model_gone_from_one_endpoint_is_asked_for_at_the_others(make_pool):
    pool = make_pool(2)
    pool.spec("double", "")
    pool.transports[0].failures = [ModelNotFoundError("gone")]
    calls = [send(pool, float(i)) for i in range(6)]
    assert [answer(c)[0, 0] for c in calls] == [2.0 * i for i in range(6)]
    assert not pool.transports[0].failures


def test_an_endpoint_that_gets_the_model_later_joins(make_pool, monkeypatch):
    monkeypatch.setattr(endpoint, "ASK_AGAIN_S", 0.2)
    pool = make_pool(2, specs=[dataclasses.replace(SPEC, name="other"), SPEC])
    answer(send(pool))
    assert not pool.transports[0].rows
    pool.transports[0]._spec = SPEC
    until = time.monotonic() + 20
    while not pool.transports[0].rows and time.monotonic() < until:
        answer(send(pool))
    assert pool.transports[0].rows


def test_a_model_that_only_the_last_of_many_endpoints_has(make_pool):
    """It is found, though a worker uses four of them at a time."""
    other = dataclasses.replace(SPEC, name="other")
    pool = make_pool(9, specs=[other] * 8 + [SPEC])
    assert answer(send(pool, 3.0)).tolist() == [[6.0, 6.0]]
    with pytest.raises(ModelNotFoundError) as failure:
        pool.spec("triple", "")
    assert all(f"host{i}:1 has no model 'triple'" in str(failure.value) for i in range(9))


def test_closing_wakes_who_waits(make_pool):
    """A thread that waits for a permit ends with an error when the pool closes."""
    pool = make_pool(delay_s=1.0, window=1)
    send(pool)
    caught = []

    def wait():
        try:
            send(pool)
        except ServerError as error:
            caught.append(error)

    thread = threading.Thread(daemon=True, target=wait)
    thread.start()
    while not pool.stats().waiting:
        time.sleep(0.01)
    pool.close()
    thread.join(5)
    assert "closed" in str(caught[0])


def test_a_request_does_not_outlive_the_job(make_pool, monkeypatch):
    """Where SLURM says when it ends the job, waiting ends half a minute before."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 30.2))
    pool = make_pool(delay_s=0.0)
    pool.spec("double", "")
    pool.transports[0].failures += [UnavailableError("gone")] * 10_000
    begin = time.monotonic()
    with pytest.raises((UnavailableError, DeadlineError)):
        answer(send(pool))
    assert time.monotonic() - begin < 10  # of a timeout of five minutes


def test_a_straggler_is_asked_for_elsewhere(make_pool):
    """One slow endpoint among two: the answer comes from the quick one, and both permits come back."""
    pool = make_pool(2, delay_s=0.01, window=4)
    for _ in range(60):
        answer(send(pool))
    for transport in pool.transports:
        transport._delay_s = 5.0
    call = send(pool)
    time.sleep(0.02)
    for transport in pool.transports:
        transport._delay_s = 0.01
    begin = time.monotonic()
    answer(call)
    assert time.monotonic() - begin < 4
    assert call.attempts == 2
    assert pool.stats().hedges_total == 1
    assert pool.stats().retries_total == 0


def test_an_outage_is_told_once(make_pool, caplog):
    """However many requests notice it, one line says that an endpoint is away, and one that it is back."""
    pool = make_pool(2)
    answer(send(pool))
    with caplog.at_level("WARNING", logger="daskonic"):
        pool.transports[0].failures = [UnavailableError("gone")] * 5
        until = time.monotonic() + 20
        while (
            pool.transports[0].failures or not pool.stats().endpoints[0].healthy
        ) and time.monotonic() < until:
            answer(send(pool))
        back = len(pool.transports[0].rows)
        while len(pool.transports[0].rows) == back and time.monotonic() < until:
            answer(send(pool))
    assert [r.message for r in caplog.records] == [
        "host0:1 is away, its requests go elsewhere or wait: gone",
        "host0:1 is back",
    ]
