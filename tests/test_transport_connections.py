"""Connections counted where the kernel sees them: how many, how long, and what becomes of them in a fork."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from daskonic.errors import ServerError, UnavailableError
from daskonic.tensors import Request
from daskonic.transport.grpc import OPTIONS, GrpcTransport

TRITON_LEAST_BETWEEN_PINGS_MS = 300_000  # --grpc-http2-min-recv-ping-interval-without-data, its default
TRITON_LEAST_WITHOUT_CALLS = "grpc.keepalive_permit_without_calls"


def connections(address):
    """Sockets of this process that are connected to a port of this machine: descriptors by local port."""
    port = int(address.rpartition(":")[2])
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.getpeername()[1] == port:
                    found[sock.getsockname()[1]] = int(name)
        except (OSError, IndexError):
            continue
    return found


class Opened:
    """Connections that are opened from now on."""

    def __init__(self, address):
        self._address = address
        self._others = set(connections(address))

    def descriptors(self):
        return [fd for port, fd in connections(self._address).items() if port not in self._others]


def eventually(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def request(rows=2):
    return Request("identity", "1", {"X": np.ones((rows, 8), "f4")}, ("Y",), rows)


def infer(transport):
    return transport.decode(transport.submit(transport.encode(request()), 20).result()).outputs["Y"]


def test_one_connection_however_many_requests(triton):
    """Fifty requests under way share one connection; it is opened by the first."""
    opened = Opened(triton.address)
    transport = GrpcTransport(triton.address)
    assert opened.descriptors() == []
    replies = [transport.submit(transport.encode(request()), 20) for _ in range(50)]
    for reply in replies:
        reply.result()
    assert len(opened.descriptors()) == 1
    transport.close()


def test_each_transport_has_its_own_and_gives_it_back(triton):
    """Equal channels share connections unless told not to; ours do not, and closing leaves none."""
    opened = Opened(triton.address)
    transports = [GrpcTransport(triton.address) for _ in range(5)]
    for transport in transports:
        infer(transport)
    assert len(opened.descriptors()) == 5
    for transport in transports:
        transport.close()
    assert eventually(lambda: opened.descriptors() == [])


def test_a_closed_transport_says_so(triton):
    """Use after close is a ServerError, not gRPC's ValueError."""
    transport = GrpcTransport(triton.address)
    infer(transport)
    transport.close()
    with pytest.raises(ServerError, match="connection is closed"):
        infer(transport)
    with pytest.raises(ServerError, match="connection is closed"):
        transport.model_spec("identity", "", 5)


def attempts(options):
    """Connections that a channel makes in some seconds to a port that closes each at once."""
    count = 0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        listener.settimeout(0.05)
        channel = grpc.insecure_channel(f"127.0.0.1:{listener.getsockname()[1]}", options=options)
        call = channel.unary_unary("/service/method").future(b"", timeout=30, wait_for_ready=True)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                listener.accept()[0].close()
                count += 1
            except TimeoutError:
                pass
        call.cancel()
        channel.close()
    return count


def test_a_server_that_comes_back_is_soon_noticed():
    """With our options a channel knocks at least twice as often as with gRPC's own, from the first second on."""
    counts = {}
    threads = [
        threading.Thread(
            daemon=True, target=lambda name=name, options=options: counts.update({name: attempts(options)})
        )
        for name, options in (("ours", OPTIONS), ("default", [("grpc.use_local_subchannel_pool", 1)]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts["ours"] >= 2 * counts["default"] >= 2


def test_keep_alive_that_a_default_triton_accepts(triton):
    """Pings are rarer than Triton's limit and never without a request; the kernel watches unacknowledged bytes."""
    options = dict(OPTIONS)
    assert options["grpc.keepalive_time_ms"] > TRITON_LEAST_BETWEEN_PINGS_MS
    assert TRITON_LEAST_WITHOUT_CALLS not in options
    opened = Opened(triton.address)
    transport = GrpcTransport(triton.address)
    infer(transport)
    (own,) = opened.descriptors()
    with socket.socket(fileno=os.dup(own)) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    transport.close()


def test_reset_connections_come_back(triton):
    """A connection cut underneath is replaced: the next requests find a new one."""
    opened = Opened(triton.address)
    transport = GrpcTransport(triton.address)
    infer(transport)
    (own,) = opened.descriptors()
    with socket.socket(fileno=os.dup(own)) as sock:
        sock.shutdown(socket.SHUT_RDWR)

    def works():
        try:
            return infer(transport) is not None
        except UnavailableError:
            return False

    assert eventually(works)
    assert eventually(lambda: len(opened.descriptors()) == 1)
    transport.close()


FORK = """
import os, sys, warnings
import numpy as np
from daskonic.tensors import Request
from daskonic.transport.grpc import GrpcTransport

warnings.simplefilter("ignore")  # Python 3.12 and later warn of a fork beside threads

def infer(transport, value):
    x = np.full((1000, 128), value, "f4")
    message = transport.encode(Request("identity", "1", {"X": x}, ("Y",), len(x)))
    return np.array_equal(transport.decode(transport.submit(message, 20).result()).outputs["Y"], x)

transport = GrpcTransport(sys.argv[1])
assert infer(transport, 1.0)
children = []
for i in range(2):
    pid = os.fork()
    if pid == 0:
        right = all(infer(transport, 10.0 * i + j) for j in range(5))
        transport.close()
        os._exit(0 if right else 1)
    children.append(pid)
right = all(infer(transport, 100.0 + j) for j in range(5))
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
right = right and infer(transport, 7.0)
transport.close()
print(right, codes)
"""


def test_a_forked_child_has_connection_and_memory_of_its_own(triton):
    """Parent and two children use one transport at the same time, through shared memory; each is answered right."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, triton.address], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "True [0, 0]\n", done.stderr
    assert not list(Path("/dev/shm").glob("daskonic.*"))
