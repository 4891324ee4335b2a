"""Many workers on virtual time, with the pool's own policy: servers are busy, shares equal, no storm of retries."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from simulate import figures
from virtual_time import Setup, Simulation

SETUPS = {
    "many workers": Setup(workers=300, servers=6, seconds=30, cpu_s=0.1),
    "a server that merges": Setup(workers=60, servers=3, seconds=15, service_s=0.05, item_s=1e-4, merge=64),
    "two clients": Setup(workers=2, servers=1, seconds=60, service_s=0.05, cpu_s=0.01, threads=8),
    "ten clients": Setup(workers=10, servers=1, seconds=60),
}


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_servers_are_busy_and_shares_equal(name, seed):
    """Utilisation at least 0.9 of what servers or workers can do, Jain's index at least 0.9."""
    setup = dataclasses.replace(SETUPS[name], seed=seed)
    numbers = figures(setup, Simulation(setup).run())
    assert numbers["utilisation"] >= 0.9
    assert numbers["jain"] >= 0.9
    assert numbers["requests_per_answer"] <= 1.1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_fifth_of_the_servers_vanishes_and_comes_back(seed):
    """The others go on at once, no request is sent much more often than needed, and all are used again."""
    setup = Setup(workers=100, servers=5, seconds=45, vanish=0.2, seed=seed)
    numbers = figures(setup, Simulation(setup).run())
    assert numbers["utilisation_without"] >= 0.9
    assert numbers["requests_per_answer"] <= 1.1
    assert numbers["seconds_to_recover"] <= 10


def test_a_short_queue_rejects_few():
    """Two clients with 16 threads each and a queue of four: under one percent after ten seconds."""
    setup = Setup(workers=2, servers=1, seconds=60, service_s=0.05, cpu_s=0.001, threads=16, queue=4)
    numbers = figures(setup, Simulation(setup).run())
    assert numbers["rejected_late"] < 0.01
    assert numbers["utilisation"] > 0.9


def test_is_the_same_every_time():
    setup = Setup(workers=20, servers=2, seconds=5)
    assert Simulation(setup).run() == Simulation(setup).run()


@pytest.mark.parametrize(("workers", "cap"), [(6, 16), (40, 15), (100, 30)])
def test_a_limit_for_all_workers_holds_and_is_used(workers, cap):
    """With places for all and with fewer than workers: never one too many, nearly all of them in use, equal shares."""
    setup = Setup(workers=workers, servers=20, seconds=40, cap=cap, service_s=0.05, cpu_s=0.01)
    numbers = figures(setup, Simulation(setup).run())
    assert numbers["most_in_flight"] <= cap
    assert numbers["in_flight"] >= 0.9 * cap
    assert numbers["jain"] >= 0.9
