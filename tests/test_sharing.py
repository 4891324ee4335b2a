"""Limits of a site for all workers of a cluster, counted between real workers and a real server."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import dask
import numpy as np
import pytest
from distributed import Client
from fault_proxy import FaultProxy
from faults import eventually
from triton_models import write_model

import daskonic as dk

ROWS, WIDTH = 32, 16


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory):
    """A server that takes any number of requests at once, and 0.2 s."""
    repository = tmp_path_factory.mktemp("slow")
    write_model(repository, "slow", kind="sleep", seconds=0.2, instances=2)
    write_model(repository, "quick", kind="identity")
    with dk.local_server(repository) as server:
        yield server


@pytest.fixture
def proxy(slow_server):
    with FaultProxy(slow_server.address) as proxy:
        yield proxy


@contextmanager
def workers(proxy, n, limits, **settings):
    """Processes of four threads, whose windows alone would let 24 requests of each go."""
    settings = {
        "window": 24,
        "cluster": limits,
        "tolerance": np.inf,
        **settings,
    }  # no samples: all is counted
    with (
        dk.local_cluster(n, servers=[proxy.address], threads_per_worker=4, settings=settings) as cluster,
        Client(cluster) as client,
    ):
        yield cluster, client


def score(name, seed, n_batches=40, rows=ROWS):
    x = np.full((n_batches * rows, WIDTH), seed, np.float32)
    assert (dk.Model(name, batch_size=rows)(x) == seed).all()
    return seed


def work(client, name, n, n_batches=40, rows=ROWS, **where):
    return client.map(score, [name] * n, range(n), n_batches=n_batches, rows=rows, pure=False, **where)


def most_in_a_second(sent, begin, end):
    """Bytes of the busiest second."""
    sent = [(t, n) for t, n in sent if begin <= t <= end]
    return max(
        sum(n for t, n in sent if first <= t < first + 1) for first, _ in sent[:: max(len(sent) // 200, 1)]
    )


def mean_in_flight(proxy, seconds):
    """Requests at the server, on average over some time."""
    seen, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        seen.append(proxy.large)
        time.sleep(0.005)
    return sum(seen) / len(seen)


def test_requests_of_all_workers_are_capped(proxy):
    """From two workers to six and back: never more at the server than the limit, and hardly less while there is work."""
    cap = 9
    with workers(proxy, 2, {"requests-in-flight": cap}) as (cluster, client):
        futures = work(client, "slow", 200, 20)
        assert eventually(lambda: proxy.large == cap)
        assert mean_in_flight(proxy, 2) >= 0.9 * cap
        cluster.scale(6)
        client.wait_for_workers(6)
        assert eventually(lambda: proxy.n_open == 6)
        assert mean_in_flight(proxy, 3) >= 0.9 * cap
        shares = client.run(requests_share).values()
        assert sum(shares) <= cap
        assert all(1 <= share <= 2 for share in shares)
        cluster.scale(3)
        assert eventually(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 3)
        assert mean_in_flight(proxy, 3) >= 0.9 * cap
        client.cancel(futures)
    assert proxy.most_large == cap


def requests_share(dask_worker):
    return dask_worker.plugins["daskonic"].share.requests


def test_bandwidth_of_all_workers_is_capped(proxy):
    """Two workers, then four: in no second more bytes from them than the limit and 5 %, on average 90 % of it or more."""
    limit = 4e6
    with workers(proxy, 2, {"bytes-per-second": int(limit)}) as (cluster, client):
        client.gather(
            [client.submit(score, "quick", 0, 1, workers=[w], pure=False) for w in addresses(client)]
        )
        futures = work(client, "quick", 200, n_batches=50, rows=256)
        time.sleep(1)
        begin = time.monotonic()
        time.sleep(3)
        cluster.scale(4)
        client.wait_for_workers(4)
        assert eventually(lambda: proxy.n_open == 4)
        time.sleep(3)
        end = time.monotonic()
        client.cancel(futures)
    sent = sum(n for t, n in proxy.sent if begin <= t < end)
    assert 0.9 * limit <= sent / (end - begin) <= 1.05 * limit
    assert most_in_a_second(proxy.sent, begin, end) <= 1.05 * limit


def addresses(client):
    return list(client.scheduler_info(n_workers=-1)["workers"])


def test_the_share_goes_to_who_needs_it(proxy):
    """One of three workers has all the work: it has nearly all of the limit, and loses it when others have work, too."""
    cap = 12
    with workers(proxy, 3, {"requests-in-flight": cap}) as (_, client):
        alone, *others = addresses(client)
        futures = work(client, "slow", 20, n_batches=200, workers=[alone])
        assert eventually(lambda: client.run(requests_share)[alone] >= cap - 2)
        futures += work(client, "slow", 20, n_batches=200, workers=others)
        assert eventually(lambda: max(client.run(requests_share).values()) == cap / 3)
        client.cancel(futures)
    assert proxy.most_large <= cap


def test_a_scheduler_that_takes_no_plugin(proxy, capfd):
    """Then each worker has an even share, the limit holds, and the workers live and say so."""
    cap = 7
    blocked = {"distributed.scheduler.blocked-handlers": ["register_scheduler_plugin"]}
    with dask.config.set(blocked), workers(proxy, 2, {"requests-in-flight": cap}) as (cluster, client):
        first = set(addresses(client))
        futures = work(client, "slow", 60)
        assert eventually(lambda: proxy.large == 6)
        cluster.scale(3)
        client.wait_for_workers(3)
        assert eventually(lambda: set(client.run(requests_share).values()) == {2})
        assert eventually(lambda: proxy.n_open == 3)
        assert mean_in_flight(proxy, 1) >= 0.9 * 6
        assert first <= set(addresses(client))
        assert "gets an even share" in capfd.readouterr().err
        client.cancel(futures)
    assert proxy.most_large <= cap


def test_all_pools_of_a_worker_keep_to_one_share(proxy):
    """A model with servers of its own is no way around the limit."""
    with workers(proxy, 1, {"requests-in-flight": 2}) as (_, client):
        mine = client.map(own_servers, [proxy.address] * 3, range(3), pure=False)
        client.gather(mine + work(client, "slow", 3, 5))
    assert proxy.most_large == 2


def own_servers(address, seed):
    x = np.full((5 * ROWS, WIDTH), seed, np.float32)
    assert (dk.Model("slow", servers=[address], batch_size=ROWS, window=24)(x) == seed).all()


def test_a_new_limit_holds_at_once(proxy):
    """Registering the plugin again with another limit, or none."""
    with workers(proxy, 2, {"requests-in-flight": 4}) as (_, client):
        client.gather(work(client, "slow", 4, 5))
        assert proxy.most_large == 4
        client.register_plugin(
            dk.InferencePlugin([proxy.address], window=24, cluster={"requests_in_flight": 8})
        )
        client.gather(work(client, "slow", 8, 5))
        assert proxy.most_large == 8
        client.register_plugin(dk.InferencePlugin([proxy.address], window=24))
        client.gather(work(client, "slow", 8, 5))
        assert proxy.most_large > 8


def test_without_a_cluster_the_limit_is_for_this_process(proxy):
    """A notebook is a cluster of one."""
    model = dk.Model(
        "slow", servers=[proxy.address], batch_size=ROWS, window=24, cluster={"requests-in-flight": 3}
    )
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda seed: model(np.full((3 * ROWS, WIDTH), seed, np.float32)), range(4)))
    assert proxy.most_large == 3
    model.pool().close()
