"""Faults of real servers, and of the network in front of them: every row still has its own score, or there is an error."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time

import numpy as np
import pytest
from fault_proxy import ENHANCE_YOUR_CALM, NO_ERROR, FaultProxy
from faults import (
    WIDE,
    FaultyServer,
    Losses,
    Strike,
    assert_right,
    connections,
    eventually,
    jagged,
    write_faulty,
)

import daskonic as dk
from daskonic import plugin
from daskonic.errors import (
    DeadlineError,
    InferenceError,
    ModelNotFoundError,
    ResponseError,
    UnavailableError,
)
from daskonic.tensors import Request

SEEDS = 20
RESTARTS = int(os.environ.get("DASKONIC_TEST_RESTARTS", "4"))
"""Restarts of a real server in each test of them; each takes seconds."""
ROWS, BATCH = 320, 8
BATCHES = ROWS // BATCH
BIG_ROWS, BIG_BATCH = 256, 32


@pytest.fixture
def proxies(pair):
    """A proxy in front of each server."""
    with FaultProxy(pair[0].address) as first, FaultProxy(pair[1].address) as second:
        yield [first, second]


@pytest.fixture
def make():
    """A model with a pool of its own; in the end all permits, connections and threads must be back."""
    made, threads = [], set(threading.enumerate())

    def model(name, servers, batch_size=BATCH, **settings):
        patient = {"timeout": "60 s", "attempt_timeout": "10 s", "connect_timeout": "20 s"}
        addresses = [server.address for server in servers]
        made.append(dk.Model(name, servers=addresses, batch_size=batch_size, **(patient | settings)))
        made[-1].pool()
        return made[-1]

    yield model
    for model in made:
        pool = model.pool()
        assert eventually(lambda pool=pool: pool.stats().in_flight == 0)
        assert pool.stats().waiting == 0
        pool.close()
        del plugin._process_pools[os.getpid(), model._settings]
    addresses = {a for model in made for a in model._settings.servers}
    assert eventually(lambda: connections(addresses) == 0, 5)
    assert eventually(lambda: not new_threads(threads)), new_threads(threads)


def new_threads(before):
    return [t for t in threading.enumerate() if t not in before and t.name != "fault-proxy"]


@pytest.fixture(scope="module")
def quiet_s(pair):
    """Time of a run that nobody disturbs."""
    model, jets = dk.Model("sum", servers=[s.address for s in pair], batch_size=BATCH), jagged(0, ROWS)
    model(jets)
    begin = time.monotonic()
    assert_right(model(jets), jets)
    seconds = time.monotonic() - begin
    model.pool().close()
    return seconds


def struck(model, jets, seed, act, *, batches=BATCHES):
    """Scores of a run with a fault at a random moment, its time, and how long the fault took."""
    strike = Strike(model, random.Random(seed).randrange(1, int(0.7 * batches)), act)
    begin = time.monotonic()
    scores = model(jets)
    spent_s = time.monotonic() - begin
    return scores, spent_s, strike.join()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_server_killed_or_stopped_and_restarted(pair, make, quiet_s, number):
    """One of two servers dies in the middle of a run, by turns, and comes back on its port: no score differs."""
    model, losses = make("sum", pair), Losses(quiet_s)
    for seed in range(RESTARTS):
        jets = jagged(seed, ROWS)
        scores, spent_s, outage_s = struck(model, jets, seed, lambda: pair[seed % 2].restart(number))  # noqa: B023
        assert_right(scores, jets)
        losses.add(spent_s, outage_s)
    losses.check()


def test_the_only_server_restarted(pair, make, quiet_s):
    """With one server, a run waits for it to come back and goes on."""
    model, losses = make("sum", pair[:1]), Losses(quiet_s)
    for seed in range(RESTARTS):
        jets = jagged(seed, ROWS)
        scores, spent_s, outage_s = struck(model, jets, seed, lambda: pair[0].restart(signal.SIGKILL))
        assert_right(scores, jets)
        losses.add(spent_s, outage_s)
    losses.check()


@pytest.mark.parametrize("big", [False, True])
def test_server_restarted_under_large_requests(pair, make, big):
    """Requests in shared memory: a server that comes back knows none of it, and every row arrives."""
    model = make("wide", pair[:1], BIG_BATCH, shared_memory="auto" if big else "never")
    for seed in range(2):
        jets = jagged(seed, BIG_ROWS, WIDE)
        batches = BIG_ROWS // BIG_BATCH
        scores, _, _ = struck(model, jets, seed, lambda: pair[0].restart(signal.SIGKILL), batches=batches)
        assert_right(scores, jets, "wide")


def test_server_hangs(pair, make, quiet_s):
    """A frozen server keeps its connections and does not answer: others take over, also its requests."""
    model, losses = make("sum", pair, attempt_timeout="1 s"), Losses(quiet_s)
    for seed in range(SEEDS):
        jets, hang_s = jagged(seed, ROWS), random.Random(seed).uniform(0.1, 1.5)
        scores, spent_s, outage_s = struck(model, jets, seed, lambda: pair[seed % 2].freeze(hang_s))  # noqa: B023
        assert_right(scores, jets)
        losses.add(spent_s, outage_s)
    losses.check()


def test_server_hangs_with_requests_in_its_memory(pair, make):
    """What a frozen server may still read is not overwritten by the next request."""
    model = make("wide", pair[:1], BIG_BATCH, attempt_timeout="0.3 s")
    for seed in range(SEEDS // 2):
        jets, batches = jagged(seed, BIG_ROWS, WIDE), BIG_ROWS // BIG_BATCH
        scores, _, _ = struck(model, jets, seed, lambda: pair[0].freeze(0.5), batches=batches)
        assert_right(scores, jets, "wide")


def test_port_closed(proxies, make, quiet_s):
    """Connections are reset and new ones refused for a while."""
    model, losses = make("sum", proxies), Losses(quiet_s)
    for seed in range(SEEDS):
        jets, proxy, away_s = jagged(seed, ROWS), proxies[seed % 2], random.Random(seed).uniform(0, 0.5)

        def outage(proxy=proxy, away_s=away_s):
            proxy.refuse()
            time.sleep(away_s)
            proxy.heal()

        scores, spent_s, outage_s = struck(model, jets, seed, outage)
        assert_right(scores, jets)
        losses.add(spent_s, outage_s)
    losses.check()


def test_all_gone_for_seconds(proxies, make, quiet_s):
    """Nobody can serve for seconds; then the run goes on where it stopped."""
    model, jets, losses = make("sum", proxies), jagged(1, ROWS), Losses(quiet_s)

    def outage():
        for proxy in proxies:
            proxy.refuse()
        time.sleep(4)
        for proxy in proxies:
            proxy.heal()

    scores, spent_s, outage_s = struck(model, jets, 1, outage)
    assert_right(scores, jets)
    losses.add(spent_s, outage_s)
    losses.check()


def test_all_gone_for_good(proxies, make):
    """Nobody comes back: at the deadline an error says who does not answer, and no sooner."""
    model, jets = make("sum", proxies, timeout="2 s"), jagged(1, ROWS)
    strike = Strike(model, 5, lambda: [proxy.refuse() for proxy in proxies])
    begin = time.monotonic()
    with pytest.raises((UnavailableError, DeadlineError), match="does not answer|attempts in 2 s"):
        model(jets)
    assert time.monotonic() - begin >= 2
    strike.join()


def test_half_of_the_endpoints_gone(pair, make, quiet_s):
    """Two of four endpoints go for good in the middle of a run; the next runs find the others at once."""
    proxies = [FaultProxy(server.address) for server in (*pair, *pair)]
    model, losses = make("sum", proxies), Losses(quiet_s)
    scores, spent_s, _ = struck(model, jagged(0, ROWS), 0, lambda: [proxy.refuse() for proxy in proxies[:2]])
    assert_right(scores, jagged(0, ROWS))
    losses.add(spent_s, 0)
    for seed in range(1, SEEDS):
        begin = time.monotonic()
        assert_right(model(jagged(seed, ROWS)), jagged(seed, ROWS))
        losses.add(time.monotonic() - begin, 0, rests=0)
    losses.check()
    for proxy in proxies:
        proxy.close()


def test_half_of_the_endpoints_hang_at_first_contact(pair, make):
    """Endpoints that accept and never answer do not keep a model from being found at the others."""
    proxies = [FaultProxy(server.address) for server in (*pair, *pair)]
    for proxy in proxies[:2]:
        proxy.deafen()
    model = make("sum", proxies, connect_timeout="8 s", attempt_timeout="1 s")
    assert_right(model(jagged(0, ROWS)), jagged(0, ROWS))
    for proxy in proxies:
        proxy.close()


def test_deaf_connection(proxies, make, quiet_s):
    """A connection stays open and carries nothing for a while, answers under way included."""
    model, losses = make("sum", proxies, attempt_timeout="1 s"), Losses(quiet_s)
    for seed in range(SEEDS):
        jets, deaf_s = jagged(seed, ROWS), random.Random(seed).uniform(0, 1.2)

        def outage(proxy=proxies[seed % 2], deaf_s=deaf_s):
            proxy.deafen()
            time.sleep(deaf_s)
            proxy.heal()

        scores, spent_s, outage_s = struck(model, jets, seed, outage)
        assert_right(scores, jets)
        losses.add(spent_s, outage_s)
    losses.check()


def test_slow_network(proxies, make):
    """A line that becomes slow and late gives the same scores later."""
    model = make("sum", proxies)
    for seed in range(SEEDS):
        jets, rng, proxy = jagged(seed, ROWS), random.Random(seed), proxies[seed % 2]
        rate, delay_s = rng.choice([0, 20e3, 200e3]), rng.uniform(0, 0.05)
        scores, _, _ = struck(
            model,
            jets,
            seed,
            lambda p=proxy, r=rate, d=delay_s: p.slow(bytes_per_s=r, delay_s=d),
        )
        assert_right(scores, jets)
        proxy.heal()


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("of", ["requests", "answers"])
def test_cut_in_mid_message(proxies, make, how, of):
    """A message ends after any number of its bytes; what was cut is sent again, and nothing is mixed up."""
    model = make("wide", proxies[:1], BIG_BATCH, shared_memory="never")
    for seed in range(SEEDS // 4, SEEDS // 2):
        jets, after = jagged(seed, BIG_ROWS, WIDE), random.Random(f"{how} {of} {seed}").randrange(1, 10**6)
        cuts = proxies[0].faults
        proxies[0].cut(after, of=of, how=how)
        assert_right(model(jets), jets, "wide")
        assert proxies[0].faults == cuts + 1


def test_goaway(proxies, make):
    """The other side ends connections gracefully or not, having seen all calls or not: none is lost."""
    model = make("sum", proxies)
    for seed in range(SEEDS):
        jets, rng = jagged(seed, ROWS), random.Random(seed)
        unseen, code = rng.randrange(4), rng.choice([NO_ERROR, NO_ERROR, ENHANCE_YOUR_CALM])
        scores, _, _ = struck(
            model, jets, seed, lambda u=unseen, c=code: [p.goaway(unseen=u, code=c) for p in proxies]
        )
        assert_right(scores, jets)
    assert sum(proxy.faults for proxy in proxies) >= SEEDS


def test_server_that_ends_connections_by_age(tmp_path, make):
    """Triton itself says GOAWAY to a connection that is old enough, again and again, in the middle of requests."""
    write_faulty(tmp_path)
    server = FaultyServer(tmp_path, "--grpc-max-connection-age=150", "--grpc-max-connection-age-grace=50")
    with FaultProxy(server.address) as proxy:
        model = make("sum", [proxy])
        for seed in range(SEEDS):
            assert_right(model(jagged(seed, ROWS)), jagged(seed, ROWS))
        assert proxy.connections_total > 1
    server.stop()


def test_model_unloaded(pair, make, quiet_s):
    """A model that is unloaded at one server, then at all for a while, is awaited."""
    model, losses = make("sum", pair), Losses(quiet_s)
    for seed in range(SEEDS // 4):
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


def test_model_replaced(pair, make):
    """Another version takes the place of the model: never scores of two versions in one answer, but an error."""
    model = make("sum", pair, timeout="5 s")
    folders = [server.repository / "sum" for server in pair]

    def replace():
        for server, folder in zip(pair, folders, strict=True):
            (folder / "1").rename(folder / "2")
            server.unload("sum")
            server.load("sum")

    strike = Strike(model, 20, replace)
    with pytest.raises((ResponseError, ModelNotFoundError, UnavailableError), match="version|unknown model"):
        for seed in range(1000):
            jets = jagged(seed, ROWS)
            assert_right(model(jets), jets)
    strike.join()
    for server, folder in zip(pair, folders, strict=True):
        (folder / "2").rename(folder / "1")
        server.unload("sum")
        server.load("sum")


def test_model_process_crashed(pair, make):
    """At one server the model's process dies and stays dead: the other one serves. At both: an error that says so."""
    model = make("sum", pair, timeout="6 s")
    jets = jagged(0, ROWS)
    scores, _, _ = struck(model, jets, 0, lambda: pair[0].fault("crash"))
    assert_right(scores, jets)
    for seed in range(1, SEEDS // 4):
        assert_right(model(jagged(seed, ROWS)), jagged(seed, ROWS))
    pair[1].fault("crash")
    with pytest.raises((UnavailableError, DeadlineError), match="process on the server|does not answer"):
        model(jets)
    for server in pair:
        server.fault("")
        server.unload("sum")
        server.load("sum")
    assert eventually(lambda: not model.pool().stats().waiting)
    assert_right(model(jets), jets)


@pytest.mark.parametrize("fault", ["rows", "columns"])
def test_wrong_shape_from_the_server(pair, make, fault):
    """A server that begins to answer in another shape gives an error at once, and no scores."""
    model = make("sum", pair)
    strike = Strike(model, 5, lambda: pair[0].fault(fault))
    with pytest.raises((ResponseError, InferenceError), match="Y"):
        for seed in range(1000):
            model(jagged(seed, ROWS))
    strike.join()
    pair[0].fault("")
    assert_right(model(jagged(0, ROWS)), jagged(0, ROWS))


def test_queue_full(pair, make):
    """32 tasks at once against a queue of 4: none is lost, and once the window is found few are turned away."""
    model = make("short", pair[:1], 16)
    results = {}

    def task(i):
        for j in range(5):
            jets = jagged(5 * i + j, 40)
            results[i, j] = model(jets), jets

    threads = [threading.Thread(target=task, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 32 * 5
    for scores, jets in results.values():
        assert_right(scores, jets)
    (endpoint,) = model.pool().stats().endpoints
    print(f"{endpoint.rejections_total} of {endpoint.requests_total} requests were turned away")


def test_permanent_errors_are_tried_once(pair, proxies, make):
    """By the server's own count and the proxy's: one attempt of what fails in the model or is refused."""
    model = make("fail", proxies[:1])
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


def test_closed_pool_cancels_its_requests(pair, make):
    """Closing the pool ends what is under way: the server drops what it has not begun."""
    model = make("sleep", pair[:1], 1, window=8)
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
