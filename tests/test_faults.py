"""Faults of the network between workers and real servers: every row still has its own score, or there is an error."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fault_proxy import ENHANCE_YOUR_CALM, NO_ERROR, FaultProxy
from faults import (
    BATCH,
    BIG_BATCH,
    BIG_ROWS,
    FEW,
    ROWS,
    SEEDS,
    WIDE,
    Losses,
    Strike,
    assert_right,
    jagged,
    struck,
)

from daskonic.errors import (
    DeadlineError,
    ServerError,
    UnavailableError,
)
from daskonic.model import _score


def test_port_closed(proxies, make_model, quiet_s):
    """Connections are reset and new ones refused for a while."""
    model, losses = make_model("sum", proxies), Losses(quiet_s)
    for seed in range(SEEDS):
        jets, proxy, away_s = jagged(seed, ROWS), proxies[seed % 2], random.Random(seed).uniform(0, 0.25)

        def outage(proxy=proxy, away_s=away_s):
            proxy.refuse()
            time.sleep(away_s)
            proxy.heal()

        scores, spent_s, outage_s = struck(model, jets, seed, outage)
        assert_right(scores, jets)
        losses.add(spent_s, outage_s)
    losses.check()


def test_all_gone_for_ten_seconds(proxies, make_model, quiet_s, moment):
    """Nobody can serve for ten seconds; then the run goes on where it stopped."""
    model, jets, losses = make_model("sum", proxies), jagged(1, ROWS), Losses(quiet_s)

    def outage():
        for proxy in proxies:
            proxy.refuse()
        time.sleep(10)
        for proxy in proxies:
            proxy.heal()

    scores, spent_s, outage_s = struck(model, jets, moment, outage)
    assert_right(scores, jets)
    losses.add(spent_s, outage_s)
    losses.check()


def test_all_gone_for_good(proxies, make_model):
    """Nobody comes back: at the deadline an error says who does not answer, and no sooner."""
    model, jets = make_model("sum", proxies, timeout="2 s"), jagged(1, ROWS)
    strike = Strike(model, 5, lambda: [proxy.refuse() for proxy in proxies])
    begin = time.monotonic()
    with pytest.raises((UnavailableError, DeadlineError), match="does not answer|attempts in 2 s"):
        model(jets)
    assert time.monotonic() - begin >= 2
    strike.join()


def test_half_of_the_endpoints_gone(pair, make_model, quiet_s, moment):
    """Two of four endpoints go for good in the middle of a run; the next runs find the others at once."""
    proxies = [FaultProxy(server.address) for server in (*pair, *pair)]
    model, losses = make_model("sum", proxies), Losses(quiet_s)
    scores, spent_s, _ = struck(
        model, jagged(0, ROWS), moment, lambda: [proxy.refuse() for proxy in proxies[:2]]
    )
    assert_right(scores, jagged(0, ROWS))
    losses.add(spent_s, 0)
    for seed in range(1, SEEDS):
        begin = time.monotonic()
        assert_right(model(jagged(seed, ROWS)), jagged(seed, ROWS))
        losses.add(time.monotonic() - begin, 0, rests=0)
    losses.check()
    for proxy in proxies:
        proxy.close()


def test_half_of_the_endpoints_hang_at_first_contact(pair, make_model):
    """Endpoints that accept and never answer do not keep a model from being found at the others."""
    proxies = [FaultProxy(server.address) for server in (*pair, *pair)]
    for proxy in proxies[:2]:
        proxy.deafen()
    model = make_model("sum", proxies, connect_timeout="6 s", attempt_timeout="1 s")
    assert_right(model(jagged(0, ROWS)), jagged(0, ROWS))
    for proxy in proxies:
        proxy.close()


def test_deaf_connection(proxies, make_model, quiet_s):
    """A connection stays open and carries nothing for a while, answers under way included."""
    model, losses = make_model("sum", proxies, attempt_timeout="0.5 s"), Losses(quiet_s)
    for seed in range(SEEDS):
        jets, deaf_s = jagged(seed, ROWS), random.Random(seed).uniform(0, 0.6)

        def outage(proxy=proxies[seed % 2], deaf_s=deaf_s):
            proxy.deafen()
            time.sleep(deaf_s)
            proxy.heal()

        scores, spent_s, outage_s = struck(model, jets, seed, outage)
        assert_right(scores, jets)
        losses.add(spent_s, outage_s)
    losses.check()


def test_slow_network(proxies, make_model):
    """A line that becomes slow and late gives the same scores later."""
    model = make_model("sum", proxies)
    for seed in range(SEEDS):
        jets, rng, proxy = jagged(seed, ROWS), random.Random(seed), proxies[seed % 2]
        rate, delay_s = rng.choice([0, 40e3, 400e3]), rng.uniform(0, 0.03)
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
def test_cut_in_mid_message(proxies, make_model, how, of):
    """A message ends after any number of its bytes; what was cut is sent again, and nothing is mixed up."""
    model = make_model("wide", proxies[:1], BIG_BATCH, shared_memory="never")
    for seed in range(FEW):
        jets, after = jagged(seed, BIG_ROWS, WIDE), random.Random(f"{how} {of} {seed}").randrange(1, 10**6)
        cuts = proxies[0].faults
        proxies[0].cut(after, of=of, how=how)
        assert_right(model(jets), jets, "wide")
        assert proxies[0].faults == cuts + 1


def test_goaway(proxies, make_model):
    """The other side ends connections gracefully or not, having seen all calls or not: none is lost."""
    model = make_model("sum", proxies)
    for seed in range(SEEDS):
        jets, rng = jagged(seed, ROWS), random.Random(seed)
        unseen, code = rng.randrange(4), rng.choice([NO_ERROR, NO_ERROR, ENHANCE_YOUR_CALM])
        scores, _, _ = struck(
            model, jets, seed, lambda u=unseen, c=code: [p.goaway(unseen=u, code=c) for p in proxies]
        )
        assert_right(scores, jets)
    assert sum(proxy.faults for proxy in proxies) >= SEEDS


def test_one_connection_for_threads_that_begin_together(proxies, make_model):
    """Sixteen threads that are first at once make one connection, and a closed pool makes no other."""
    model = make_model("sum", proxies[:1])
    model.spec()
    before = proxies[0].connections_total
    model.pool().all_endpoints()[0].detach().close()
    together = threading.Barrier(16)

    def first(seed):
        together.wait()
        assert_right(model(jagged(seed, BATCH)), jagged(seed, BATCH))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(first, range(16)))
    assert proxies[0].connections_total == before + 1
    pool = model.pool()
    pool.close()
    with pytest.raises(ServerError, match="closed"):
        _score(model, jagged(0, BATCH), pool)
    assert proxies[0].connections_total == before + 1
