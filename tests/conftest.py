"""Real parts for the tests: a Triton server and Dask worker processes."""

from __future__ import annotations

import pytest
from faults import FaultyServer, write_faulty
from triton_models import write_model
from weaver_inputs import import_weaver

import daskonic as dk


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


@pytest.fixture(scope="session")
def weaver():
    """Weaver's own input building."""
    return import_weaver()
