"""Real parts for the tests: a Triton server and Dask worker processes."""

from __future__ import annotations

import os
import signal
import threading
import time

import faults
import pytest
from fault_proxy import FaultProxy
from faults import BATCH, ROWS, FaultyServer, assert_right, connections, eventually, jagged, write_faulty
from triton_models import write_model
from weaver_inputs import import_weaver

import daskonic as dk
from daskonic import plugin


def pytest_addoption(parser):
    parser.addoption("--seeds", type=int, help="runs of each fault, each at another moment")


def pytest_configure(config):
    if config.option.seeds:  # before tests import them
        faults.SEEDS = faults.FEW = faults.RESTARTS = config.option.seeds
    # Started in the background of a shell, this process ignores Ctrl-C, and so would all its children.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc):
    if "moment" in metafunc.fixturenames:
        metafunc.parametrize("moment", range(metafunc.config.option.seeds or 1))


@pytest.fixture(scope="session")
def triton(tmp_path_factory):
    """A Triton server with small models, each with the name of its kind, and ``half``, an identity of FP16."""
    repository = tmp_path_factory.mktemp("models")
    for kind in ("identity", "sum", "two_outputs", "sleep", "fail", "graph", "graph_sum"):
        write_model(repository, kind, kind=kind)
    write_model(repository, "half", kind="identity", dtype="FP16")
    with dk.local_server(repository) as server:
        yield server


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Two Triton servers with the same models, to be mistreated; a test leaves them as they were."""
    servers = []
    for name in "ab":
        repository = tmp_path_factory.mktemp(name)
        write_faulty(repository)
        servers.append(FaultyServer(repository))
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def proxies(pair):
    """A proxy in front of each server."""
    with FaultProxy(pair[0].address) as first, FaultProxy(pair[1].address) as second:
        yield [first, second]


@pytest.fixture
def make_model():
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
    for model in made:
        plugin._process_pools.pop((os.getpid(), model._settings, None), None)
    addresses = {a for model in made for a in model._settings.servers}
    assert eventually(lambda: connections(addresses) == 0, 5)
    assert eventually(lambda: not new_threads(threads)), new_threads(threads)


def new_threads(before):
    return [t for t in threading.enumerate() if t not in before and t.name != "fault-proxy"]


@pytest.fixture(scope="session")
def quiet_s(pair):
    """Time of a run that nobody disturbs."""
    model, jets = dk.Model("sum", servers=[s.address for s in pair], batch_size=BATCH), jagged(0, ROWS)
    model(jets)
    begin = time.monotonic()
    assert_right(model(jets), jets)
    seconds = time.monotonic() - begin
    model.pool().close()
    return seconds


@pytest.fixture(scope="session")
def weaver():
    """Weaver's own input building."""
    return import_weaver()
