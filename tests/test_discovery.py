"""Clients of a fleet: they wait for its first server, follow those that come and go, and say why there is none."""

from __future__ import annotations

import threading

import dask.config
import numpy as np
import pytest
from faults import eventually
from fleet_folder import list_servers, spec

from daskonic.config import resolve
from daskonic.errors import BatchSystemError, ConfigError, UnavailableError
from daskonic.pool import Pool
from daskonic.pool.discovery import servers_now
from daskonic.roster import Folder
from daskonic.tensors import ModelSpec, Request, TensorSpec
from daskonic.transport.memory import MemoryTransport

FLOAT = np.dtype("f4")
SPEC = ModelSpec("double", "1", (TensorSpec("x", FLOAT, (2,)),), (TensorSpec("y", FLOAT, (2,)),), 8)


@pytest.fixture
def folder(tmp_path):
    """An empty fleet that this process controls."""
    folder = Folder(tmp_path / "fleets" / "toy")
    spec(tmp_path).write(folder)
    list_servers(folder)
    return folder


@pytest.fixture
def make_pool():
    """A pool of memory transports; ``pool.transports`` has them by address."""
    pools = []

    def make(folder, **settings):
        transports = {}

        def connect(address):
            transports[address] = MemoryTransport(address, SPEC, lambda i: {"y": 2 * i["x"]}, 0.05)
            return transports[address]

        pools.append(Pool(resolve([f"fleet:{folder.path}"], **settings), connect))
        pools[-1].transports = transports
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def score(pool, value=1.0):
    found = pool.spec("double", "")
    call = pool.submit(
        Request("double", "1", {"x": np.full((1, 2), value, FLOAT)}, ("y",), 1), found, ("double", "")
    )
    return call.decode(call.infer()).outputs["y"][0, 0]


def test_a_call_waits_for_the_first_server(folder, make_pool):
    """Where a fleet has no server, a call asks for one, and goes on when it is listed."""
    pool, asked = make_pool(folder), folder.asked()
    answers = []
    thread = threading.Thread(daemon=True, target=lambda: answers.append(score(pool, 21.0)))
    thread.start()
    assert eventually(lambda: folder.asked() != asked)
    assert not answers
    list_servers(folder, "host:1")
    thread.join(30)
    assert answers == [42.0]


def test_servers_that_leave_get_no_more_requests(folder, make_pool):
    """Requests under way end where they are; those after it go to the servers of now, and the old connection is closed."""
    list_servers(folder, "old:1")
    pool = make_pool(folder)
    assert score(pool) == 2.0
    list_servers(folder, "new:1")
    assert eventually(lambda: score(pool) == 2.0 and "new:1" in pool.transports)
    before = len(pool.transports["old:1"].rows)
    for i in range(10):
        assert score(pool, float(i)) == 2.0 * i
    assert len(pool.transports["old:1"].rows) == before
    assert eventually(lambda: [e.connected for e in pool.stats().endpoints] == [False, True])
    samples, asked = 2, sum(len(transport.rows) for transport in pool.transports.values())
    assert pool.stats().requests_total + samples == asked


def test_a_worker_keeps_to_its_part_of_servers_that_change(folder, make_pool):
    """However many servers come and go, a worker is connected to at most as many as it may be."""
    pool = make_pool(folder, endpoints_per_worker=2)
    for first in range(3):
        servers = [f"host{i}:1" for i in range(first, first + 6)]
        list_servers(folder, *servers)
        assert eventually(
            lambda servers=servers: score(pool) and {e.address for e in pool._balancer.line} == set(servers)
        )
        threads = [threading.Thread(daemon=True, target=score, args=(pool,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(e.connected for e in pool.stats().endpoints) <= 2


def test_trouble_is_told_at_once(folder, make_pool):
    """Where there will be no server, a call does not wait for its timeout."""
    pool = make_pool(folder)
    list_servers(folder, trouble="sbatch: error: invalid partition")
    with pytest.raises(BatchSystemError, match="fleet 'toy' has no server: sbatch: error: invalid partition"):
        score(pool)


def test_nobody_there_is_told(folder, tmp_path, make_pool):
    """A call that waited in vain says what the fleet waits for, that nobody controls it, or that there is none."""
    list_servers(folder, note="jobs: 1 PENDING (Resources)")
    with pytest.raises(
        UnavailableError, match=r"within 0\.5 s: fleet 'toy' has no server: jobs: 1 PENDING \(Resources\)"
    ):
        score(make_pool(folder, timeout="0.5 s"))
    list_servers(folder, pid=0)
    with pytest.raises(UnavailableError, match="nobody controls it: daskonic fleet attach toy"):
        score(make_pool(folder, timeout="0.5 s"))
    with pytest.raises(UnavailableError, match="there is no fleet in"):
        score(make_pool(Folder(tmp_path / "none"), timeout="0.5 s"))
    with pytest.raises(UnavailableError, match="start the fleet with a minimum of 1"):
        servers_now([f"fleet:{folder.path}"])


def test_names_are_folders():
    """``fleet:NAME`` means a folder in ``daskonic.fleets``, whatever the worker's own configuration says."""
    with dask.config.set({"daskonic.fleets": "/shared/fleets"}):
        assert resolve("fleet:toy").servers == ("fleet:/shared/fleets/toy",)
        assert resolve(["fleet:/elsewhere/toy", "a:1"]).servers == ("fleet:/elsewhere/toy", "a:1")
        with pytest.raises(ConfigError, match="needs a name of letters"):
            resolve("fleet:")
