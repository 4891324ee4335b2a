"""Without servers calls go on, the report says where, and servers are used again when they are back."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import awkward as ak
import numpy as np
import pytest

import daskonic as dk
from daskonic import demo
from daskonic.config import resolve
from daskonic.errors import ConfigError, ModelNotFoundError, UnavailableError
from daskonic.pool import Pool
from daskonic.server import add_onnx, shared_server
from daskonic.tagging import read_file

FILES = demo.shipped()
FEATURES = dk.Features.from_weaver(FILES.features)
NOBODY = "127.0.0.1:9"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fallback")
    add_onnx(folder, "top_tagger", FILES.model)
    return folder


@pytest.fixture(scope="module")
def jets():
    return read_file(FILES.jets[0], FEATURES, stop=30).jets


def tagger(repository, kind, servers=(NOBODY,), **settings):
    settings = {"connect_timeout": "5 s", "window": 2, **settings}
    return dk.Model(
        "top_tagger",
        features=FEATURES,
        servers=list(servers),
        fallback=kind,
        fallback_repository=str(repository),
        **settings,
    )


def scored(model, jets):
    pending = model.submit(jets)
    return flat(pending.result()), pending.report


def flat(scores):
    return ak.to_numpy(ak.flatten(scores))


@pytest.fixture(scope="module")
def expected():
    return flat(demo.score_here(FILES.jets[0], FILES)[:30])


def test_in_process_gives_the_same_numbers_and_is_reported(repository, jets, expected, caplog):
    scores, report = scored(tagger(repository, "inprocess"), jets)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert set(report.endpoints) == {"in process"}
    assert any("no server answers" in r.message for r in caplog.records if r.levelno == logging.WARNING)


def test_a_nodes_own_server_gives_the_same_numbers(repository, jets, expected):
    scores, report = scored(tagger(repository, "server"), jets)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert set(report.endpoints) == {"local server"}


def test_servers_are_used_again_when_they_are_back(repository, jets, expected):
    """A server that dies in between: before and after it is used, meanwhile the fallback."""
    with dk.local_server(repository) as server:
        port = int(server.address.rsplit(":")[-1])
        model = tagger(repository, "inprocess", [server.address])
        assert set(scored(model, jets)[1].endpoints) == {server.address}
    scores, report = scored(model, jets)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert set(report.endpoints) == {"in process"}
    with dk.local_server(repository, grpc_port=port) as server:
        deadline = time.monotonic() + 30
        while server.address not in scored(model, jets)[1].endpoints:
            assert time.monotonic() < deadline
        np.testing.assert_allclose(scored(model, jets)[0], expected, atol=1e-6)


def test_without_a_fallback_it_is_an_error(jets):
    model = dk.Model("top_tagger", features=FEATURES, servers=[NOBODY], connect_timeout="0.2 s")
    with pytest.raises(UnavailableError):
        model(jets)


def test_a_model_that_the_repository_lacks_is_named(repository, jets):
    model = tagger(repository, "inprocess")
    model.name = "other"
    with pytest.raises(ModelNotFoundError, match=r"no model 'other'; it has top_tagger"):
        model(jets)


@pytest.mark.parametrize("wrong", [{"fallback": "inproces"}, {"fallback": "server"}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError, match="fallback"):
        dk.InferencePlugin([NOBODY], **wrong)


ASK = """
import sys
from daskonic.server import shared_server
print(shared_server(sys.argv[1]), flush=True)
sys.stdin.read()
"""


def test_processes_of_a_node_share_one_server(repository, tmp_path):
    """Two ask, one starts it; when that one is killed, the next to ask starts another."""
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}

    def ask():
        process = subprocess.Popen(
            [sys.executable, "-c", ASK, str(repository)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return process, process.stdout.readline().strip()

    first, address = ask()
    second, same = ask()
    try:
        assert same == address
        note = json.loads(next(tmp_path.glob("*.json")).read_text())
        assert note["pid"] == first.pid
        first.send_signal(signal.SIGKILL)
        first.wait()
        third, other = ask()
        assert other
        assert json.loads(next(tmp_path.glob("*.json")).read_text())["pid"] == third.pid
        third.communicate("")
    finally:
        second.communicate("")
        first.stdout.close()
        first.stdin.close()


def test_submitted_partitions_are_held_in_bounded_number():
    """The third submit waits until one of two that are under way has ended."""
    pool = Pool(resolve([NOBODY], partitions_held=2))
    go = threading.Event()
    running = [pool.start(go.wait, 10) for _ in range(2)]
    third = []
    thread = threading.Thread(daemon=True, target=lambda: third.append(pool.start(lambda: 3)))
    thread.start()
    thread.join(0.2)
    assert not third
    go.set()
    thread.join(10)
    assert third[0].result(10) == 3
    assert all(f.result(10) for f in running)
    pool.close()


def test_the_repository_of_a_shared_server_must_exist(tmp_path):
    with pytest.raises(dk.DaskonicError, match="does not exist"):
        shared_server(tmp_path / "gone")
