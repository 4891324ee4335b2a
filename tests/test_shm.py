"""Shared memory with a real Triton on this host: same numbers, nothing left behind, and the wire where it cannot be."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from triton_models import write_model
from tritonclient.grpc import service_pb2 as pb

import daskonic as dk
from daskonic import errors
from daskonic.tensors import Request
from daskonic.transport import region, shm
from daskonic.transport.grpc import GrpcTransport
from daskonic.transport.shm import SharedMessage

FLOAT = np.dtype("f4")
LARGE = shm.SMALLEST_NBYTES // 4 // 128  # rows of 128 numbers


def request(x, model="identity"):
    return Request(model, "1", {"X": x}, ("Y",), len(x))


def numbers(seed, rows=LARGE):
    return np.random.default_rng(seed).normal(size=(rows, 128)).astype(FLOAT)


def infer(transport, req, timeout_s=20.0):
    return transport.decode(transport.submit(transport.encode(req), timeout_s).result()).outputs


def registered(transport):
    """Names of our regions that the server knows."""
    status = transport._call("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(), 5)
    return {name for name in status.regions if name.startswith("daskonic.")}


def files():
    """Our files in /dev/shm."""
    return [name for name in os.listdir("/dev/shm") if region.NAME.fullmatch(name)]


@pytest.fixture
def transport(triton):
    transport = GrpcTransport(triton.address)
    yield transport
    transport.close()


def test_large_requests_go_through_shared_memory(transport):
    """A large message is a header of some hundred bytes, a small one the numbers; both are answered right."""
    message = transport.encode(request(numbers(1)))
    assert isinstance(message, SharedMessage)
    assert len(message.content) < 300
    np.testing.assert_array_equal(
        transport.decode(transport.submit(message, 20).result()).outputs["Y"], numbers(1)
    )
    assert isinstance(transport.encode(request(numbers(1, rows=3))), bytes)
    np.testing.assert_array_equal(infer(transport, request(numbers(2, rows=3)))["Y"], numbers(2, rows=3))


def test_regions_are_used_again(transport):
    """One request after another needs one region; as many as run side by side need one each."""
    for seed in range(5):
        np.testing.assert_array_equal(infer(transport, request(numbers(seed)))["Y"], numbers(seed))
    assert len(registered(transport)) == 1
    replies = [transport.submit(transport.encode(request(numbers(seed, 900))), 20) for seed in range(6)]
    for seed, reply in enumerate(replies):
        outputs = transport.decode(reply.result()).outputs
        np.testing.assert_array_equal(outputs["Y"], numbers(seed, 900))
    assert 2 <= len(registered(transport)) <= 7


def test_results_outlive_the_region(transport):
    """Scores are no view of a region: they stay as they are while later requests are written."""
    first = infer(transport, request(numbers(1)))["Y"]
    for seed in range(2, 8):
        infer(transport, request(numbers(seed)))
    np.testing.assert_array_equal(first, numbers(1))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A server with ``wide``, Y = X in float32[128], and ``liar``, the same but said to be float32[64]."""
    repository = tmp_path_factory.mktemp("wide")
    for name, length in (("wide", 128), ("liar", 64)):
        config = write_model(repository, name, kind="identity", max_batch_size=8192) / "config.pbtxt"
        text = config.read_text().replace("dims: [ -1 ]", "dims: [ 128 ]", 1)
        config.write_text(text.replace("dims: [ -1 ]", f"dims: [ {length} ]"))
    with dk.local_server(repository) as server:
        yield server


@pytest.fixture
def wide_transport(wide):
    transport = GrpcTransport(wide.address)
    transport.model_spec("wide", "", 10)
    transport.model_spec("liar", "", 10)
    yield transport
    transport.close()


def test_large_outputs_of_known_size_come_through_shared_memory(wide_transport):
    """Right numbers, read-only, and as many bytes on the wire as a header has."""
    message = wide_transport.encode(request(numbers(1, 2000), model="wide"))
    answer = wide_transport.submit(message, 20).result()
    assert isinstance(answer, shm.SharedAnswer)
    assert len(answer.content) < 300
    y = wide_transport.decode(answer).outputs["Y"]
    np.testing.assert_array_equal(y, numbers(1, 2000))
    assert not y.flags.writeable
    small = infer(wide_transport, request(numbers(2, 3), model="wide"))["Y"]
    np.testing.assert_array_equal(small, numbers(2, 3))


def test_a_region_waits_for_the_last_view_of_it(wide_transport):
    """Outputs stay as they are while anything of them is held; then their region is used again."""
    held = [infer(wide_transport, request(numbers(s, 2000), model="wide"))["Y"][::7, 3:] for s in range(4)]
    for seed in range(10, 14):
        infer(wide_transport, request(numbers(seed, 2000), model="wide"))
    for seed, part in enumerate(held):
        np.testing.assert_array_equal(part, numbers(seed, 2000)[::7, 3:])
    del held, part
    before = registered(wide_transport)
    for seed in range(4):
        infer(wide_transport, request(numbers(seed, 2000), model="wide"))
    assert registered(wide_transport) == before


def test_answers_that_nobody_reads_give_their_region_back(wide_transport):
    """Answers that are not decoded, as of the slower of two, cost no region."""
    for seed in range(6):
        wide_transport.submit(wide_transport.encode(request(numbers(seed, 2000), model="wide")), 20).result()
    assert len(registered(wide_transport)) <= 3


def test_an_output_larger_than_described_comes_over_the_wire(wide_transport):
    """A region that turns out too small is no error of the transport's: what comes is for others to judge."""
    y = infer(wide_transport, request(numbers(1, 3000), model="liar"))["Y"]
    np.testing.assert_array_equal(y, numbers(1, 3000))


def test_large_outputs_through_a_model(wide):
    """Joined in order from views of regions."""
    x = numbers(0, 40_000)
    np.testing.assert_array_equal(dk.Model("wide", servers=[wide.address])(x), x)


@pytest.mark.parametrize("model", ["identity", "wide"])
def test_many_threads(triton, wide, model):
    """Eight threads with requests of many sizes: every answer belongs to its question."""
    transport = GrpcTransport(triton.address if model == "identity" else wide.address)
    transport.model_spec(model, "", 10)
    wrong = []

    def work(thread):
        rng = np.random.default_rng(thread)
        for i in range(15):
            x = numbers(100 * thread + i, rows=int(rng.integers(1, 1024)))
            if not np.array_equal(infer(transport, request(x, model))["Y"], x):
                wrong.append((thread, i))

    threads = [threading.Thread(daemon=True, target=work, args=(t,)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    transport.close()


def test_no_file_while_running_and_no_name_after_closing(triton):
    """The file is gone as soon as the server has the memory; closing takes the name out of the server too."""
    observer, transport = GrpcTransport(triton.address), GrpcTransport(triton.address)
    before = registered(observer)
    infer(transport, request(numbers(1)))
    assert files() == []
    assert len(registered(observer) - before) == 1
    transport.close()
    assert registered(observer) <= before
    observer.close()


def test_never_means_never(triton):
    """daskonic.shared-memory: never sends everything over the wire."""
    transport = GrpcTransport(triton.address, shared_memory="never")
    assert isinstance(transport.encode(request(numbers(1))), bytes)
    transport.close()
    model = dk.Model("identity", servers=[triton.address], shared_memory="never")
    np.testing.assert_array_equal(model(numbers(1)), numbers(1))
    with pytest.raises(errors.ConfigError, match=r"daskonic\.shared-memory is 'always'; known: auto, never"):
        dk.Model("identity", servers=[triton.address], shared_memory="always")


def test_a_server_without_shared_memory_gets_the_wire(triton, monkeypatch, caplog):
    """A server that cannot see our memory, as one behind a tunnel: the wire, and one line that says so."""
    monkeypatch.setattr(region, "FOLDER", Path("/tmp"))  # where no server looks
    transport = GrpcTransport(triton.address)
    with caplog.at_level(logging.INFO, logger="daskonic"):
        for seed in range(3):
            np.testing.assert_array_equal(infer(transport, request(numbers(seed)))["Y"], numbers(seed))
    assert [r.levelname for r in caplog.records if "over the wire" in r.message] == ["INFO"]
    assert not [name for name in os.listdir("/tmp") if region.NAME.fullmatch(name)]
    transport.close()


def test_full_shared_memory_gets_the_wire(triton, monkeypatch):
    """No room in /dev/shm is no error, and not a SIGBUS when the region is written."""
    monkeypatch.setattr(
        region.os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    transport = GrpcTransport(triton.address)
    np.testing.assert_array_equal(infer(transport, request(numbers(1)))["Y"], numbers(1))
    assert files() == []
    transport.close()


def test_a_small_dev_shm_is_left_to_the_models(triton, monkeypatch, caplog):
    """A container's 64 MB are shared with the server's own processes: most of what is free stays free."""

    class Small:
        f_bavail, f_frsize = 3, shm.SMALLEST_NBYTES

    monkeypatch.setattr(region.os, "statvfs", lambda path: Small)
    transport = GrpcTransport(triton.address)
    with caplog.at_level(logging.INFO, logger="daskonic"):
        for seed in range(3):
            np.testing.assert_array_equal(infer(transport, request(numbers(seed)))["Y"], numbers(seed))
    assert len([r for r in caplog.records if "so over the wire" in r.message]) == 1
    assert registered(transport) == set()
    transport.close()


def test_memory_is_bounded(transport, monkeypatch):
    """Beyond the bound requests go over the wire; free regions of other sizes make room."""
    monkeypatch.setattr(shm, "MOST_NBYTES", 3 * shm.SMALLEST_NBYTES)
    messages = [transport.encode(request(numbers(seed))) for seed in range(5)]
    assert [isinstance(m, SharedMessage) for m in messages] == [True, True, True, False, False]
    del messages
    assert isinstance(transport.encode(request(numbers(1, 2 * LARGE))), SharedMessage)
    assert len(registered(transport)) == 2


def test_a_cancelled_request_keeps_its_region(transport):
    """The server may still read it: no later request is written there, and its name goes when it is free."""
    reply = transport.submit(transport.encode(request(numbers(1), model="sleep")), 20)
    time.sleep(0.3)
    (name,) = registered(transport)
    reply.cancel()
    with pytest.raises(errors.ServerError):
        reply.result()
    message = transport.encode(request(numbers(2)))
    assert name.encode() not in message.content
    del message
    time.sleep(1.0)
    messages = [transport.encode(request(numbers(seed))) for seed in range(3)]
    assert name not in registered(transport)
    del messages


def test_a_restarted_server_is_shared_with_anew(tmp_path):
    """After a restart the same transport goes on, through shared memory, with right numbers."""
    write_model(tmp_path / "models", "identity", kind="identity")
    first = dk.local_server(tmp_path / "models")
    first.start()
    port = int(first.address.rpartition(":")[2])
    transport = GrpcTransport(first.address)
    infer(transport, request(numbers(1)))
    old = registered(transport)
    first.stop()
    with dk.local_server(tmp_path / "models", grpc_port=port):
        begin = time.monotonic()
        while True:
            message = transport.encode(request(numbers(2)))
            assert isinstance(message, SharedMessage)
            try:
                outputs = transport.decode(transport.submit(message, 20).result()).outputs
                break
            except errors.UnavailableError:
                assert time.monotonic() - begin < 10
                time.sleep(0.05)
        np.testing.assert_array_equal(outputs["Y"], numbers(2))
        infer(transport, request(numbers(3)))
        assert len(registered(transport)) == 1
        assert not registered(transport) & old
        transport.close()


def test_an_unknown_region_is_not_the_callers_business(transport):
    """A region that the server has forgotten: the request in question goes over the wire, the next by a new one."""
    infer(transport, request(numbers(1)))
    (name,) = registered(transport)
    transport._call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=name), 5)
    np.testing.assert_array_equal(infer(transport, request(numbers(2)))["Y"], numbers(2))
    assert registered(transport) == set()
    np.testing.assert_array_equal(infer(transport, request(numbers(3)))["Y"], numbers(3))
    assert len(registered(transport)) == 1


CLIENT = """
import os, sys, numpy as np
from daskonic.tensors import Request
from daskonic.transport.grpc import GrpcTransport
from daskonic.transport import region, shm
transport = GrpcTransport(sys.argv[1])
x = np.ones((2000, 128), np.float32)
transport.submit(transport.encode(Request("identity", "1", {"X": x[:1000]}, ("Y",), 1000)), 20).result()
reply = transport.submit(transport.encode(Request("sleep", "1", {"X": x[:1000]}, ("Y",), 1000)), 20)
region.Region.hide = lambda region: None
left = region.Region(1 << 20)  # as if killed before the server had mapped it
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_client_leaves_nothing(triton, transport):
    """Files and names of a client that died by SIGKILL are gone after the next one's first large request."""
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, triton.address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout.readline() == "ready\n"
        observer = GrpcTransport(triton.address)
        theirs = {name for name in registered(observer) if f".{client.pid}." in name}
        assert len(theirs) == 2
        assert len(files()) == 1
        client.send_signal(signal.SIGKILL)
        client.wait()
    time.sleep(1.2)  # the model sleeps one second: till then it uses the region
    infer(transport, request(numbers(1)))
    assert files() == []
    assert not theirs & registered(observer)
    observer.close()


def test_whose_a_name_is():
    """A live process's region is not stale, a dead one's is; of another PID namespace nothing is known."""
    with subprocess.Popen(["sleep", "60"]) as other:
        start = region._start_time(other.pid)
        there = f"daskonic.{region._namespace()}.{other.pid}.{start}.0.00000000"
        assert not region.is_stale(there)
        assert region.is_stale(there.replace(f".{start}.", ".1."))
        assert not region.is_stale(there.replace(region._namespace(), "1"))
        other.kill()
    assert region.is_stale(there)
    assert not region.is_stale("daskonic-0123456789abcdef_1")


@pytest.mark.parametrize(
    ("host", "here"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("", True)]
)
def test_this_host(host, here):
    assert region.is_here(host) is here


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_another_host(host):
    """Addresses of documentation and names that do not exist are not this host."""
    assert not region.is_here(host)


def test_through_a_model(triton):
    """The whole way: many batches through shared memory, every row in its place."""
    model = dk.Model("sum", servers=[triton.address])
    x = np.random.default_rng(0).normal(size=(20_000, 16)).astype(FLOAT)
    np.testing.assert_allclose(model(x)[:, 0], x.sum(axis=1), atol=1e-4)
