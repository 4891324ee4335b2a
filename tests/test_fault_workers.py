"""Faults of Dask workers and clients: a worker that dies, futures that nobody wants, processes that come and go."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from contextlib import contextmanager

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster, wait
from fault_proxy import FaultProxy
from faults import BATCH, ROWS, assert_right, connections, eventually, jagged, run_worker

import daskonic as dk


@pytest.fixture(scope="module")
def cluster(pair):
    # Where a killed worker takes longer to come back than this, Dask does without it for good.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "300 s"}),
        dk.local_cluster(2, servers=[s.address for s in pair], threads_per_worker=2) as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client


def test_worker_killed(client, pair, moment):
    """A worker process dies in the middle of its tasks: another one makes the same scores, and no connection stays."""
    model = dk.Model("sum", batch_size=BATCH)
    jets = [jagged(seed, ROWS) for seed in range(16)]
    pids = client.run(os.getpid)
    before, _ = pair[0].executed("sum")
    futures = client.map(model, jets, pure=False)
    assert eventually(lambda: pair[0].executed("sum")[0] > before + 10 * (1 + moment))
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


@contextmanager
def growing_cluster(plugin):
    """A scheduler, and a function that starts so many more worker processes: forked from one that has imported all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faults", "distributed", "daskonic.model", "daskonic.transport.grpc"])
    processes = []
    with LocalCluster(n_workers=0, dashboard_address=":0") as cluster, Client(cluster) as client:
        client.register_plugin(plugin)

        def start(n):
            for _ in range(n):
                processes.append(context.Process(target=run_worker, args=[cluster.scheduler_address]))
                processes[-1].start()
            client.wait_for_workers(len(processes), timeout=120)

        try:
            yield client, start
            client.retire_workers()
            for process in processes:
                process.join(30)
        finally:
            for process in processes:
                process.kill()


def gathered(client, futures):
    """Results; where they do not come, an account of what the workers do instead."""
    try:
        wait(futures, timeout=120)
    except TimeoutError:
        pytest.fail(f"{client.processing()}\n{client.call_stack()}")
    return client.gather(futures)


def test_connections_as_the_cluster_grows(pair):
    """Never more than each worker may have, from 2 to 20 processes, and none five seconds after closing."""
    proxies = [FaultProxy(server.address) for server in (*pair, *pair)]
    addresses = [proxy.address for proxy in proxies]
    counts, over = [], threading.Event()

    def count():
        while not over.wait(0.05):
            counts.append(connections(addresses))

    thread = threading.Thread(daemon=True, target=count)
    thread.start()
    with growing_cluster(dk.InferencePlugin(addresses, endpoints_per_worker=2)) as (client, start):
        for n in (2, 8, 20):
            start(n - len(client.scheduler_info(n_workers=-1)["workers"]))
            gathered(client, client.map(score, range(2 * n), pure=False))
            workers = list(client.scheduler_info(n_workers=-1)["workers"])
            gathered(client, [client.submit(score, 0, workers=[w], pure=False) for w in workers])
            assert n <= connections(addresses) <= 2 * n
            assert max(counts) <= 2 * n
    assert eventually(lambda: connections(addresses) == 0, 5)
    over.set()
    thread.join()
    for proxy in proxies:
        proxy.close()
