"""Adapting stops where the servers are full: the policy on curves that are known, and workers at a Triton that is slow."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from distributed import Client
from faults import eventually
from triton_models import write_model

import daskonic as dk
from daskonic.deploy.adaptive import FIRST, Accounts, Knee, Load, ServerAdaptive


def held(workers, knee, power=1, noise=0.0):
    """Workers held up where servers take the work of ``knee``; threads that share a core are held up for longer than it."""
    used = min(knee / workers, 1.0) ** power
    return max(workers * (1 - used * random.gauss(1, noise)), 0.0)


def looked(knee, where, looks, power=1, noise=0.0, wanted=1000):
    """Numbers of workers after each look; all that are asked for are there at the next one."""
    seen = []
    for _ in range(looks):
        here = min(knee.most, wanted)
        load = Load(here, held(here, where, power, noise), 100.0)
        knee.see(load, here, may_grow=wanted > knee.most)
        seen.append(min(knee.most, wanted))
    return seen


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("where", [1, 2.9, 3, 3.1, 6.5, 20, 77])
def test_the_knee_is_found(where, power):
    """Within one worker, or a twentieth, and it stays there; where the servers take everything, so does the cluster."""
    knee = Knee(FIRST)
    numbers = looked(knee, where, 30, power)
    assert len(set(numbers[-10:])) == 1
    assert where - 1 <= numbers[-1] <= np.ceil(where) + 1 + where / 20
    assert max(numbers) <= max(2 * where + 2, FIRST)
    assert looked(Knee(FIRST), 1e6, 10, power, wanted=300)[-1] == 300


@pytest.mark.parametrize("where", [1, 3, 20])
def test_noise_moves_it_little(where):
    """A twentieth of noise in what is told: the mean number is right within one, and none is far off."""
    random.seed(0)
    numbers = looked(Knee(FIRST), where, 300, noise=0.05)[20:]
    assert abs(np.mean(numbers) - where) <= 1 + where / 20
    assert where - 2 <= min(numbers) <= max(numbers) <= where + 3 + where / 10


def test_it_follows_servers_that_come_and_go():
    """Three times the servers, and a quarter of them: found again within twelve looks."""
    knee = Knee(FIRST)
    for where in (10, 30, 7.5):
        assert where - 1 <= looked(knee, where, 12)[-1] <= np.ceil(where) + 2


def test_nothing_known_is_no_reason_to_let_workers_go():
    """No row got a score: a cluster that begins grows, for workers may read yet; one that knew full servers stays."""
    knee = Knee(FIRST)
    knee.see(Load(4, 4.0, 0.0), FIRST, may_grow=True)
    assert knee.most == 2 * FIRST
    looked(knee, 3, 10)
    there = knee.most
    knee.see(Load(4, 4.0, 0.0), there, may_grow=True)
    assert knee.most == there


def told(at_s, rows=0, held_s=0.0, waits_s=0.0, queued_s=0.0):
    return {
        "cores": 2,
        "at_s": at_s,
        "rows": rows,
        "held_s": held_s,
        "waits_s": waits_s,
        "queued_s": queued_s,
    }


def test_accounts_of_workers():
    """Sums begin anywhere; a young worker does not count; waits that an idle server takes as well are no queue."""
    accounts = Accounts()
    accounts.add("a", told(100, 50, 7))
    accounts.add("b", told(0))
    assert not accounts.load(5).rows_per_s
    accounts.add("a", told(110, 150, 17, waits_s=40, queued_s=30))
    accounts.add("b", told(10, 100, 0, waits_s=40, queued_s=30))
    accounts.add("young", told(3, 0, 0))
    assert accounts.load(5) == Load(2, pytest.approx(0.5), pytest.approx(20))
    accounts.add("a", told(110, 150, 17, waits_s=40, queued_s=4))
    accounts.add("b", told(10, 100, 0, waits_s=40, queued_s=4))
    assert accounts.load(5).held == pytest.approx(0.3 * 0.5)
    accounts.forget()
    assert not accounts.load(5).rows_per_s


ROWS, ROWS_PER_S, WORK_S = 40, 200, 0.6
"""Of a task, of the server, and what a task does before it needs 0.2 s of the server: three workers are its match."""


class Quick(ServerAdaptive):
    """Looks more often than is good for longer tasks, and begins with one worker."""

    look_s, first = 5.0, 1


def task(model, i):
    time.sleep(WORK_S)
    return bool((model(np.full((ROWS, 3), i, np.float32)) == i).all())


def rows_per_s(client, cluster, workers):
    """What so many workers do together."""
    cluster.scale(workers)
    client.wait_for_workers(workers, timeout=120)
    n, done_at = 8 * workers, []
    futures = client.map(task, [dk.Model("slow")] * n, range(n), pure=False)
    for future in futures:
        future.add_done_callback(lambda _: done_at.append(time.monotonic()))
    assert all(client.gather(futures))
    assert eventually(lambda: len(done_at) == n)
    first, last = n // 4, n - 1 - workers  # every worker has something to do
    return ROWS * (last - first) / (sorted(done_at)[last] - sorted(done_at)[first])


def test_adapting_stops_at_the_knee(tmp_path, caplog):
    """At a server of 200 rows/s: within one worker of the knee of the curve, which is measured; and one line says why."""
    write_model(tmp_path, "slow", kind="identity", per_item_us=1e6 / ROWS_PER_S)
    with (
        dk.local_server(tmp_path) as server,
        dk.local_cluster(
            0, servers=[server.address], threads_per_worker=1, settings={"partitions_held": 2}
        ) as cluster,
        Client(cluster) as client,
    ):
        adaptive = cluster.adapt(minimum=0, maximum=8, Adaptive=Quick)
        futures = client.map(task, [dk.Model("slow")] * 2000, range(2000), pure=False)
        numbers = []

        def is_steady():
            numbers.append(len(cluster.plan))
            return adaptive.knee and adaptive.knee.is_found and len(set(numbers[-20:])) == 1

        assert eventually(is_steady, 200, pause_s=1), numbers
        assert any("the servers are the bottleneck: " in r.message for r in caplog.records)
        adaptive.stop("seen")
        client.cancel(futures)
        knee = rows_per_s(client, cluster, 6) / rows_per_s(client, cluster, 1)
    assert abs(numbers[-1] - np.ceil(knee)) <= 1, (knee, numbers)
