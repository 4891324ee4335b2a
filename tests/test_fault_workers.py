"""Faults of Dask workers and clients: a worker that dies, futures that nobody wants, processes that come and go."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from distributed import Client
from fault_proxy import FaultProxy
from faults import BATCH, ROWS, assert_right, connections, eventually, jagged

import daskonic as dk


@pytest.fixture(scope="module")
def cluster(pair):
    with dk.local_cluster(2, servers=[s.address for s in pair], threads_per_worker=2) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client


def test_worker_killed(client, pair):
    """A worker process dies in the middle of its tasks: another one makes the same scores, and no connection stays."""
    model = dk.Model("sum", batch_size=BATCH)
    jets = [jagged(seed, ROWS) for seed in range(16)]
    pids = client.run(os.getpid)
    before, _ = pair[0].executed("sum")
    futures = client.map(model, jets, pure=False)
    assert eventually(lambda: pair[0].executed("sum")[0] > before + 10)
    os.kill(next(iter(pids.values())), signal.SIGKILL)
    for scores, partition in zip(client.gather(futures), jets, strict=True):
        assert_right(scores, partition)
    client.wait_for_workers(2)
    assert not set(client.run(os.getpid).values()) >= set(pids.values())
    assert connections([pair[0].address]) <= 2


def slow(seed):
    """More batches than anybody has time for."""
    return dk.Model("sleep", batch_size=1)(np.full((2000, 16), seed, np.float32))


@pytest.mark.parametrize("how", ["cancelled", "released", "client closed"])
def test_requests_of_tasks_that_nobody_wants(cluster, pair, how):
    """Cancelled futures, futures let go and a closed client: the servers soon see no more of their requests."""
    client = Client(cluster)
    futures = client.map(slow, range(20), pure=False)
    before = sum(server.executed("sleep")[0] for server in pair)
    assert eventually(lambda: sum(server.executed("sleep")[0] for server in pair) > before)
    if how == "cancelled":
        client.cancel(futures)
    if how == "client closed":
        client.close()
    del futures
    assert eventually(lambda: is_idle(pair))
    client.close()


def late(seed):
    """Busy with something else until long after it is cancelled."""
    time.sleep(2)
    return slow(seed)


def test_requests_of_tasks_cancelled_before_their_first(client, pair):
    """A task that runs and has sent nothing when it is cancelled sends nothing that goes on."""
    futures = client.map(late, range(4), pure=False)
    assert eventually(lambda: sum(map(len, client.processing().values())) == 4)
    time.sleep(0.5)
    client.cancel(futures)
    time.sleep(2)
    assert eventually(lambda: is_idle(pair))


def is_idle(pair):
    """Whether no server executes anything in the time of several executions."""
    before = [server.executed("sleep") for server in pair]
    time.sleep(1.5)
    return [server.executed("sleep") for server in pair] == before


def score(seed):
    jets = jagged(seed, ROWS)
    assert_right(dk.Model("sum", batch_size=BATCH)(jets), jets)


def test_connections_as_the_cluster_grows(pair):
    """Never more than each worker may have, from 2 to 6 processes, and none five seconds after closing."""
    proxies = [FaultProxy(server.address) for server in (*pair, *pair)]
    addresses = [proxy.address for proxy in proxies]
    counts, over = [], threading.Event()

    def count():
        while not over.wait(0.05):
            counts.append(connections(addresses))

    thread = threading.Thread(target=count)
    thread.start()
    settings = {"endpoints_per_worker": 2}
    with (
        dk.local_cluster(2, servers=addresses, threads_per_worker=1, settings=settings) as cluster,
        Client(cluster) as client,
    ):
        for n in (2, 4, 6):
            cluster.scale(n)
            client.wait_for_workers(n)
            client.gather(client.map(score, range(4 * n), pure=False))
            workers = list(client.scheduler_info(n_workers=-1)["workers"])
            client.gather([client.submit(score, 0, workers=[w], pure=False) for w in workers])
            assert n <= connections(addresses) <= 2 * n
    assert eventually(lambda: connections(addresses) == 0, 5)
    over.set()
    thread.join()
    assert max(counts) <= 2 * 6
    for proxy in proxies:
        proxy.close()
