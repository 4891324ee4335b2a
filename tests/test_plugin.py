"""On real Dask workers: every worker, early or late, has one pool, and gives it back."""

from __future__ import annotations

import os
import pickle
import threading
import time
from pathlib import Path

import awkward as ak
import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster, get_worker
from triton_models import write_model

import daskonic as dk
from daskonic.errors import ConfigError


@pytest.fixture(scope="module")
def cluster(triton):
    with dk.local_cluster(2, servers=[triton.address], threads_per_worker=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster):
    with Client(cluster) as client:
        yield client


def sums(model, seed):
    """Score on a worker; who did it, and through which pool."""
    x = np.random.default_rng(seed).normal(size=(100, 16)).astype(np.float32)
    right = np.allclose(model(x)[:, 0], x.sum(axis=1), atol=1e-4)
    return right, get_worker().address, os.getpid(), id(dk.current_pool())


def test_a_task_finds_the_pool_of_its_worker(client):
    """Twenty tasks on two processes use one pool in each."""
    model = dk.Model("sum")
    done = client.gather(client.map(sums, [model] * 20, range(20), pure=False))
    assert all(right for right, *_ in done)
    pools = {(address, pool) for _, address, _, pool in done}
    assert len(pools) == len({address for _, address, *_ in done}) == 2
    assert os.getpid() not in {pid for _, _, pid, _ in done}


def test_a_worker_that_comes_late_has_it_too(cluster, client):
    cluster.scale(3)
    client.wait_for_workers(3)
    addresses = list(client.scheduler_info(n_workers=-1)["workers"])
    done = [client.submit(sums, dk.Model("sum"), 0, workers=[a], pure=False).result() for a in addresses]
    assert {address for _, address, *_ in done} == set(addresses)
    cluster.scale(2)


def test_map_partitions_over_jagged_partitions(client):
    """Partitions of different sizes, an empty one among them, each with its own jets."""
    rng = np.random.default_rng(0)
    partitions = []
    for n_events in (50, 0, 120, 1):
        counts = rng.integers(0, 4, n_events)
        rows = rng.normal(size=(counts.sum(), 16)).astype(np.float32)
        partitions.append(ak.unflatten(ak.from_numpy(rows, regulararray=True), counts))
    scores = client.gather(client.map(dk.Model("sum"), partitions, pure=False))
    for jets, made in zip(partitions, scores, strict=True):
        assert ak.all(ak.num(made) == ak.num(jets))
        assert ak.all(ak.isclose(made[..., 0], ak.sum(jets, axis=-1), atol=1e-4))


def test_errors_keep_their_class_through_dask(client):
    with pytest.raises(dk.DaskonicError, match="no model 'summ'"):
        client.submit(dk.Model("summ"), np.ones((1, 16), np.float32), pure=False).result()
    with pytest.raises(dk.DaskonicError, match="fails on purpose"):
        client.submit(dk.Model("fail"), np.ones((1, 16), np.float32), pure=False).result()


def connections(address):
    """Established TCP connections from here to a port of this machine."""
    port = f":{int(address.rsplit(':')[-1]):04X}"
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()
    ]
    return sum(remote.endswith(port) and state == "01" for _, _, remote, state, *_ in lines)


def test_a_closed_cluster_leaves_no_connection(triton):
    """One connection for each worker process while it works, however many tasks; none after."""
    before = connections(triton.address)
    with (
        dk.local_cluster(2, servers=[triton.address], threads_per_worker=2) as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(sums, [dk.Model("sum")] * 8, range(8), pure=False))
        during = connections(triton.address)
    assert before < during <= before + 2
    assert connections(triton.address) <= before


def test_settings_are_resolved_where_the_user_is(triton):
    """A plugin travels with its settings; a worker's own configuration is not asked."""
    with dask.config.set({"daskonic.servers": [triton.address], "daskonic.window": 3}):
        plugin = dk.InferencePlugin()
    there = pickle.loads(pickle.dumps(plugin))
    assert there.settings == plugin.settings
    assert there.settings.window == 3
    assert there.pool() is None


def test_bad_settings_are_refused_at_once():
    with pytest.raises(ConfigError, match=r"did you mean daskonic\.window"):
        dk.InferencePlugin(["a:1"], windw=3)
    with pytest.raises(ConfigError, match="no server is named"), dask.config.set({"daskonic.servers": []}):
        dk.local_cluster(1)


def test_without_dask_one_pool_serves_the_process(triton):
    with dask.config.set({"daskonic.servers": [triton.address]}):
        assert dk.current_pool() is dk.current_pool()
        assert dk.Model("sum").pool() is dk.current_pool()
        assert dk.Model("sum")(np.ones((3, 16), np.float32)).shape == (3, 2)


def slow_task(model, i):
    """How many tasks of this process are between beginning and end, and how many of them compute."""
    worker = get_worker()
    counts = worker.__dict__.setdefault(
        "_test_counts", {"alive": 0, "computing": 0, "lock": threading.Lock()}
    )
    with counts["lock"]:
        counts["alive"] += 1
        counts["computing"] += 1
        seen = counts["alive"], counts["computing"]
    time.sleep(0.01)
    with counts["lock"]:
        counts["computing"] -= 1
    scores = model(np.full((2, 3), i, np.float32))
    with counts["lock"]:
        counts["alive"] -= 1
    return *seen, bool((scores == i).all())


def test_a_worker_of_one_thread_is_busy_while_tasks_wait(tmp_path):
    """Other tasks run meanwhile: a bounded number is held, and code runs on one thread at a time all the same."""
    write_model(tmp_path, "slow", kind="sleep", seconds=0.1, instances=8)
    with (
        dk.local_server(tmp_path) as server,
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(dk.InferencePlugin([server.address], window=8, partitions_held=4))
        model = dk.Model("slow")
        client.submit(model, np.zeros((2, 3), np.float32), pure=False).result()
        done = client.gather(client.map(slow_task, [model] * 30, range(30), pure=False))
    assert all(right for *_, right in done)
    assert 2 < max(alive for alive, *_ in done) <= 1 + 4 + 1
    assert max(computing for _, computing, _ in done) == 1


LOCK = threading.Lock()


def locked_task(model, i):
    with LOCK:
        return bool((model(np.full((2, 3), i, np.float32)) == i).all())


def test_tasks_that_hold_a_lock_while_they_wait_end(tmp_path):
    """The one that holds it goes on beside the one that has the only thread and waits for it."""
    write_model(tmp_path, "slow", kind="sleep", seconds=0.1)
    with (
        dk.local_server(tmp_path) as server,
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(dk.InferencePlugin([server.address]))
        done = client.map(locked_task, [dk.Model("slow")] * 4, range(4), pure=False)
        assert client.gather(done) == [True] * 4
