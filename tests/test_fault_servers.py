"""Faults of real servers and their models: every row still has its own score, or there is an error that says why not."""

from __future__ import annotations

import itertools
import random
import re
import signal
import threading
import time

import numpy as np
import pytest
from fault_proxy import FaultProxy
from faults import (
    BATCH,
    BATCHES,
    BIG_BATCH,
    BIG_BATCHES,
    BIG_ROWS,
    FEW,
    RESTARTS,
    ROWS,
    SEEDS,
    WIDE,
    FaultyServer,
    Losses,
    Strike,
    assert_right,
    eventually,
    jagged,
    struck,
    write_faulty,
)

import daskonic as dk
from daskonic.errors import (
    DeadlineError,
    InferenceError,
    ModelNotFoundError,
    ResponseError,
    ServerError,
    UnavailableError,
)
from daskonic.tensors import Request


@pytest.fixture
def mended(pair):
    """In the end the models are as they were."""
    yield
    mend(pair)


def mend(pair):
    for server in pair:
        server.fault("")
        folder = server.repository / "sum"
        if (folder / "2").exists():
            (folder / "2").rename(folder / "1")
        server.unload("sum")
        server.load("sum")


def score_for_ever(model):
    """Until there is an error; whatever comes before it is right."""
    for seed in itertools.count():
        assert_right(model(jagged(seed, ROWS)), jagged(seed, ROWS))


def repeat(model, over):
    while not over.is_set():
        model(jagged(0, 8 * BATCH, WIDE))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_server_killed_or_stopped_and_restarted(pair, make_model, quiet_s, number):
    """One of two servers dies in the middle of a run, by turns, and comes back on its port: no score differs."""
    model, losses = make_model("sum", pair), Losses(quiet_s)
    for seed in range(RESTARTS):
        jets = jagged(seed, ROWS)
        scores, spent_s, outage_s = struck(model, jets, seed, lambda: pair[seed % 2].restart(number))  # noqa: B023
        assert_right(scores, jets)
        losses.add(spent_s, outage_s)
    losses.check()


def test_the_only_server_restarted(pair, make_model, quiet_s, moment):
    """With one server, a run waits for it to come back and goes on."""
    model, losses, jets = make_model("sum", pair[:1]), Losses(quiet_s), jagged(0, ROWS)
    scores, spent_s, outage_s = struck(model, jets, moment, lambda: pair[0].restart(signal.SIGKILL))
    assert_right(scores, jets)
    losses.add(spent_s, outage_s)
    losses.check()


@pytest.mark.parametrize("shared_memory", ["auto", "never"])
def test_server_restarted_under_large_requests(pair, make_model, shared_memory, moment):
    """In shared memory, of which a server that comes back knows nothing, and on the wire: every row arrives."""
    model, jets = (
        make_model("wide", pair[:1], BIG_BATCH, shared_memory=shared_memory),
        jagged(0, BIG_ROWS, WIDE),
    )
    scores, _, _ = struck(model, jets, moment, lambda: pair[0].restart(signal.SIGKILL), batches=BIG_BATCHES)
    assert_right(scores, jets, "wide")


def test_server_hangs(pair, make_model, quiet_s):
    """A frozen server keeps its connections and does not answer: others take over, also its requests."""
    model, losses = make_model("sum", pair, attempt_timeout="0.5 s"), Losses(quiet_s)
    for seed in range(SEEDS):
        jets, hang_s = jagged(seed, ROWS), random.Random(seed).uniform(0.1, 0.6)
        scores, spent_s, outage_s = struck(model, jets, seed, lambda: pair[seed % 2].freeze(hang_s))  # noqa: B023
        assert_right(scores, jets)
        losses.add(spent_s, outage_s)
    losses.check()


def test_server_hangs_with_requests_in_its_memory(pair, make_model):
    """What a frozen server may still read is not overwritten by the next request."""
    model = make_model("wide", pair[:1], BIG_BATCH, attempt_timeout="0.3 s")
    for seed in range(FEW):
        jets, batches = jagged(seed, BIG_ROWS, WIDE), BIG_BATCHES
        scores, _, _ = struck(model, jets, seed, lambda: pair[0].freeze(0.4), batches=batches)
        assert_right(scores, jets, "wide")


def test_server_that_ends_connections_by_age(tmp_path, make_model):
    """Triton itself says GOAWAY to a connection that is old enough, again and again, in the middle of requests."""
    write_faulty(tmp_path)
    server = FaultyServer(tmp_path, "--grpc-max-connection-age=150", "--grpc-max-connection-age-grace=50")
    with FaultProxy(server.address) as proxy:
        model = make_model("sum", [proxy])
        for seed in range(FEW):
            assert_right(model(jagged(seed, ROWS)), jagged(seed, ROWS))
        assert proxy.connections_total > 1
    server.stop()


def test_model_unloaded(pair, make_model, quiet_s):
    """A model that is unloaded at one server, then at all for a while, is awaited."""
    model, losses = make_model("sum", pair), Losses(quiet_s)
    for seed in range(FEW // 2):
        jets = jagged(seed, ROWS)
        away = pair if seed % 2 else pair[:1]

        def outage(away=away):
            for server in away:
                server.unload("sum")
            for server in away:
                server.load("sum")

        scores, spent_s, outage_s = struck(model, jets, seed, outage)
        assert_right(scores, jets)
        losses.add(spent_s, outage_s)
    losses.check()


@pytest.mark.parametrize("how", ["load", "restart"])
def test_model_replaced(pair, mended, make_model, how, moment):
    """Another version takes the place of the model: never scores of two versions in one answer, but an error, and soon."""
    model = make_model("sum", pair)

    def replace():
        for server in pair:
            folder = server.repository / "sum"
            (folder / "1").rename(folder / "2")
            if how == "load":
                server.unload("sum")
                server.load("sum")
            else:
                server.restart(signal.SIGKILL)

    strike = Strike(model, 20 + moment, replace)
    with pytest.raises((ServerError, ModelNotFoundError), match="version") as caught:
        score_for_ever(model)
    assert not isinstance(caught.value, DeadlineError)
    strike.join()


def test_rolling_update(pair, mended, make_model, moment):
    """Another version takes the model's place at one server: the run goes on at the other, and both serve their other models."""
    model, wide = make_model("sum", pair), make_model("wide", pair)
    wide(jagged(0, 8 * BATCH, WIDE))

    def update():
        folder = pair[0].repository / "sum"
        (folder / "1").rename(folder / "2")
        pair[0].unload("sum")
        pair[0].load("sum")

    jets = jagged(0, ROWS)
    scores, _, _ = struck(model, jets, moment, update)
    assert_right(scores, jets)
    alone, others = pair[1].executed("sum")[0], pair[0].executed("wide")[0]
    for seed in range(3):
        assert_right(model(jagged(seed, ROWS)), jagged(seed, ROWS))
        assert_right(wide(jagged(seed, 8 * BATCH, WIDE)), jagged(seed, 8 * BATCH, WIDE), "wide")
    assert pair[1].executed("sum")[0] >= alone + 3 * BATCHES // 2
    assert pair[0].executed("wide")[0] > others
    mend(pair[:1])
    before = pair[0].executed("sum")[0]
    assert eventually(lambda: model(jagged(1, ROWS)) is not None and pair[0].executed("sum")[0] > before)


def test_requests_for_a_model_that_is_gone_come_slowly(pair, mended, make_model):
    """Where a server is well but for one model, its good answers to others do not let the retries storm."""
    wide, model = make_model("wide", pair[:1]), make_model("sum", pair[:1])
    assert model.pool() is wide.pool()
    model(jagged(0, 8 * BATCH))
    pair[0].unload("sum")
    over, scores = threading.Event(), {}
    others = [threading.Thread(daemon=True, target=repeat, args=(wide, over)) for _ in range(4)]
    waiting = threading.Thread(daemon=True, target=lambda: scores.update(sum=model(jagged(1, 8 * BATCH))))
    for other in others:
        other.start()
    waiting.start()
    time.sleep(2)
    retries = wide.pool().stats().retries_total
    pair[0].load("sum")
    waiting.join()
    over.set()
    for other in others:
        other.join()
    assert_right(scores["sum"], jagged(1, 8 * BATCH))
    assert 0 < retries <= 8 * 10


def test_model_process_crashed(pair, mended, make_model, moment):
    """At one server the model's process dies and stays dead: the other one serves. At both: an error that says so."""
    model = make_model("sum", pair, timeout="3 s")
    jets = jagged(0, ROWS)
    scores, _, _ = struck(model, jets, moment, lambda: pair[0].fault("crash"))
    assert_right(scores, jets)
    for seed in range(1, 3):
        assert_right(model(jagged(seed, ROWS)), jagged(seed, ROWS))
    pair[1].fault("crash")
    with pytest.raises((UnavailableError, DeadlineError), match="process on the server has died"):
        score_for_ever(model)
    mend(pair)
    assert_right(model(jets), jets)


@pytest.mark.parametrize("fault", ["rows", "columns"])
def test_wrong_shape_from_the_server(pair, mended, make_model, fault, moment):
    """A server that begins to answer in another shape gives an error at once, and no scores."""
    model = make_model("sum", pair)
    strike = Strike(model, 5 + moment, lambda: pair[0].fault(fault))
    with pytest.raises((ResponseError, InferenceError), match="Y"):
        score_for_ever(model)
    strike.join()
    mend(pair)
    assert_right(model(jagged(0, ROWS)), jagged(0, ROWS))


def test_queue_full(pair, make_model, moment):
    """32 tasks at once against a queue of 4: none is lost, and once the window is found few are turned away."""
    model = make_model("short", pair[:1], 16)
    results = {}

    def task(i):
        for j in range(2):
            jets = jagged(64 * moment + 2 * i + j, 40)
            results[i, j] = model(jets), jets

    threads = [threading.Thread(daemon=True, target=task, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 32 * 2
    for scores, jets in results.values():
        assert_right(scores, jets)
    (endpoint,) = model.pool().stats().endpoints
    print(f"{endpoint.rejections_total} of {endpoint.requests_total} requests were turned away")


def test_permanent_errors_are_tried_once(pair, proxies, make_model):
    """By the server's own count and the proxy's: one attempt of what fails in the model or is refused."""
    model = make_model("fail", proxies[:1])
    spec = model.spec()
    calls, (_, failed) = proxies[0].calls, pair[0].executed("fail")
    with pytest.raises(InferenceError, match="fails on purpose"):
        model(np.ones((3, 16), np.float32))
    assert pair[0].executed("fail")[1] == failed + 1
    assert proxies[0].calls == calls + 1
    wrong = Request("fail", spec.version, {"Z": np.ones((3, 16), np.float32)}, ("Y",), 3)
    with pytest.raises(InferenceError, match=re.compile("unexpected|Z")):
        model.pool().submit(wrong, spec, ("fail", "")).infer()
    assert proxies[0].calls == calls + 2


def test_closed_pool_cancels_its_requests(pair, make_model):
    """Closing the pool ends what is under way: the server drops what it has not begun."""
    model = make_model("sleep", pair[:1], 1, window=8)
    model.spec()
    done, _ = pair[0].executed("sleep")
    pending = [model.submit(np.ones((20, 16), np.float32)) for _ in range(4)]
    assert eventually(lambda: model.pool().stats().in_flight == 8)
    model.pool().close()
    for one in pending:
        with pytest.raises(dk.DaskonicError, match="closed|cancelled"):
            one.result(30)
    time.sleep(1)
    settled = pair[0].executed("sleep")[0]
    time.sleep(1)
    assert pair[0].executed("sleep")[0] == settled < done + 40
