"""A local Triton starts, says what is wrong, and leaves nothing behind, however its owner ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from triton_models import write_model

import daskonic as dk
import daskonic.server.local
from daskonic import errors
from daskonic.server.launch import free_ports
from daskonic.tensors import Request
from daskonic.transport.grpc import GrpcTransport

SHM = Path("/dev/shm")


def infer(address, model, x, timeout_s=30.0):
    """One request by way of the package's transport."""
    transport = GrpcTransport(address)
    try:
        request = Request(model, "", {"X": x}, ("Y",), len(x))
        return transport.decode(transport.submit(transport.encode(request), timeout_s).result()).outputs["Y"]
    finally:
        transport.close()


def command_line(pid):
    """The command line of a process, or nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def processes_of(marker):
    """Command lines of all processes, and not zombies, that name ``marker``."""
    return [
        line for p in Path("/proc").iterdir() if p.name.isdigit() and marker in (line := command_line(p.name))
    ]


def gone(marker, shm_prefix, within_s=20.0):
    """Whether all processes and shared memory that bear these names go away."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not processes_of(marker) and not list(SHM.glob(f"{shm_prefix}*")):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with ``identity`` and ``sleep``."""
    folder = tmp_path_factory.mktemp("repository")
    write_model(folder, "identity", kind="identity")
    write_model(folder, "sleep", kind="sleep", seconds=60, touch=str(folder / "touched"))
    return folder


@pytest.fixture(scope="module")
def running(repository, tmp_path_factory):
    """One server for the tests that only look."""
    with dk.local_server(repository, log=tmp_path_factory.mktemp("log") / "triton.log") as server:
        yield server
        server.stop(grace_s=0)


class TestRunning:
    def test_answers_when_started(self, running):
        """After ``start`` the first request is answered, with the right numbers."""
        x = np.random.default_rng(0).normal(size=(5, 7)).astype("f4")
        np.testing.assert_array_equal(infer(running.address, "identity", x), x)

    def test_tells_its_models(self, running):
        """Names, versions and states, as the repository index has them."""
        assert [(m["name"], m["version"], m["state"]) for m in running.models()] == [
            ("identity", "1", "READY"),
            ("sleep", "1", "READY"),
        ]

    def test_addresses(self, running):
        """Three ports of the loopback interface; nothing listens on any other address."""
        assert re.fullmatch(r"127\.0\.0\.1:\d+", running.address)
        with urllib.request.urlopen(running.metrics_address) as page:
            assert b"nv_inference_request_success" in page.read()
        with urllib.request.urlopen(f"{running.http_address}/v2/health/ready") as page:
            assert page.status == 200
        with socket.socket() as sock:
            sock.settimeout(2)
            assert sock.connect_ex((_other_address(), int(running.address.rpartition(":")[2])))

    def test_output_is_in_the_log(self, running):
        """The file named has what Triton printed."""
        assert "Started GRPCInferenceService" in running.log.read_text()
        assert running.pid in {int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()}

    def test_not_started_twice(self, running):
        """A second ``start`` is refused while the first runs."""
        with pytest.raises(errors.LocalServerError, match="is running already"):
            running.start()

    def test_several_side_by_side(self, running, tmp_path):
        """Another server has its own ports, models and shared memory."""
        write_model(tmp_path, "other", kind="identity")
        x = np.ones((1, 1), "f4")
        with dk.local_server(tmp_path) as server:
            assert server.address != running.address
            np.testing.assert_array_equal(infer(server.address, "other", x), x)
            np.testing.assert_array_equal(infer(running.address, "identity", x), x)
            with pytest.raises(errors.DaskonicError):
                infer(running.address, "other", x)
            server.stop(grace_s=0)
        np.testing.assert_array_equal(infer(running.address, "identity", x), x)

    def test_port_in_use(self, running, repository):
        """A port asked for and taken is an error that names it, at once."""
        port = int(running.address.rpartition(":")[2])
        with pytest.raises(errors.LocalServerError, match=f"port {port} .* in use"):
            dk.local_server(repository, grpc_port=port).start()

    @pytest.mark.parametrize("which", [0, 1])
    def test_port_lost_in_the_meantime(self, running, tmp_path, monkeypatch, which):
        """If a free port is taken before Triton opens it, others are tried; never is the other's answer ours."""
        write_model(tmp_path, "late", kind="identity")
        chosen = []

        def unlucky(given):
            ports = list(free_ports(given))
            if not chosen:
                ports[which] = int((running.address, running.http_address)[which].rpartition(":")[2])
            chosen.append(tuple(ports))
            return chosen[-1]

        monkeypatch.setattr(daskonic.server.local, "free_ports", unlucky)
        with dk.local_server(tmp_path) as server:
            assert [m["name"] for m in server.models()] == ["late"]
            assert len(chosen) == 2
            server.stop(grace_s=0)


def _other_address():
    """An address of this machine that is not 127.0.0.1."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9))  # nothing is sent: this only chooses a route
        return sock.getsockname()[0]
    return "127.0.0.2"


class TestWrongRepository:
    def test_missing(self, tmp_path):
        """A folder that is not there is an InputError with its path."""
        with pytest.raises(errors.InputError, match=r"nowhere does not exist"):
            dk.local_server(tmp_path / "nowhere").start()

    def test_file(self, tmp_path):
        """A file is no repository."""
        (tmp_path / "file").touch()
        with pytest.raises(errors.InputError, match="is a file, not a folder"):
            dk.local_server(tmp_path / "file").start()

    def test_empty(self, tmp_path):
        """A folder without models is refused before Triton starts."""
        with pytest.raises(errors.InputError, match="has no model"):
            dk.local_server(tmp_path).start()

    def test_model_instead_of_repository(self, tmp_path):
        """The folder of a model is recognised, and its parent named."""
        model = write_model(tmp_path, "identity", kind="identity")
        with pytest.raises(errors.InputError, match=f"its repository is {tmp_path}"):
            dk.local_server(model).start()

    def test_load_errors_are_shown_as_they_are(self, tmp_path):
        """Exceptions of models, wrong syntax and missing files come in Triton's words, all at once."""
        write_model(tmp_path, "fine", kind="identity")
        write_model(tmp_path, "broken", kind="fails_to_load")
        config = write_model(tmp_path, "typo", kind="identity") / "config.pbtxt"
        config.write_text(config.read_text() + "max_bach_size: 3\n")
        (tmp_path / "nothing" / "1").mkdir(parents=True)
        (tmp_path / ".git").mkdir()
        server = dk.local_server(tmp_path)
        with pytest.raises(errors.LocalServerError) as caught:
            server.start()
        text = str(caught.value)
        assert "cannot load 3 of 4 models" in text
        assert "RuntimeError: the weights are not where they should be" in text
        assert 'no field named "max_bach_size"' in text
        assert "nothing: failed to open text file for read" in text
        assert str(server.log) in text
        assert not processes_of(str(tmp_path))

    def test_models_on_request(self, tmp_path):
        """With explicit model control nothing is loaded, so that nothing fails."""
        write_model(tmp_path, "broken", kind="fails_to_load")
        with dk.local_server(tmp_path, model_control="explicit") as server:
            assert [m["state"] for m in server.models()] == [""]
            server.stop(grace_s=0)

    def test_unknown_model_control(self, tmp_path):
        """A word that Triton does not know is refused, with those it does."""
        with pytest.raises(errors.ConfigError, match="known: none, explicit, poll"):
            dk.local_server(tmp_path, model_control="all")

    def test_unknown_flag(self, repository):
        """If Triton ends at once, so does the wait, with its last words."""
        begin = time.monotonic()
        with pytest.raises(errors.LocalServerError, match=r"(?s)ended with code 1.*--no-such-flag"):
            dk.local_server(repository, flags=["--no-such-flag"]).start()
        assert time.monotonic() - begin < 60

    def test_not_ready_in_time(self, tmp_path):
        """A model that takes too long to load is given up, and nothing stays."""
        folder = write_model(tmp_path, "slow", kind="identity") / "1" / "model.py"
        folder.write_text(
            folder.read_text().replace(
                "        self.kind = ", "        time.sleep(600)\n        self.kind = "
            )
        )
        with pytest.raises(errors.LocalServerError, match=r"not ready after 1\.5 s"):
            dk.local_server(tmp_path, timeout_s=1.5).start()
        assert not processes_of(str(tmp_path))


class TestStop:
    def test_nothing_is_left(self, tmp_path):
        """After the block: no process, no shared memory, no folder; a second stop does nothing."""
        write_model(tmp_path, "identity", kind="identity")
        with dk.local_server(tmp_path) as server:
            prefix, run, pid = server._shm_prefix, server._run, server.pid
            assert list(SHM.glob(f"{prefix}*"))
            assert run.exists()
        assert not list(SHM.glob(f"{prefix}*"))
        assert not run.exists()
        assert not command_line(pid)
        assert not processes_of(str(tmp_path))
        server.stop()
        with pytest.raises(errors.LocalServerError, match="is not running"):
            server.address  # noqa: B018

    def test_requests_under_way_may_finish(self, tmp_path):
        """A stop with time to spare lets a request end well."""
        touched = tmp_path / "touched"
        write_model(tmp_path, "sleep", kind="sleep", seconds=1.0, touch=str(touched))
        with dk.local_server(tmp_path) as server:
            transport, reply = send_to_sleep(server, touched)
        np.testing.assert_array_equal(transport.decode(reply.result()).outputs["Y"], [[1]])
        transport.close()

    def test_busy_model_after_an_exception(self, repository):
        """An exception ends the server at once, a model that is busy for a minute included."""
        begin = time.monotonic()
        server = dk.local_server(repository)

        def fails_while_busy():
            with server:
                transport, _ = send_to_sleep(server, repository / "touched")
                transport.close()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fails_while_busy()
        assert time.monotonic() - begin < 30
        assert not processes_of(server._id)
        assert gone(server._shm_prefix, server._shm_prefix, within_s=0.1)

    def test_crashed_model(self, tmp_path):
        """A model process that died leaves nothing either."""
        write_model(tmp_path, "crash", kind="crash")
        with dk.local_server(tmp_path) as server:
            with pytest.raises(errors.DaskonicError):
                infer(server.address, "crash", np.ones((1, 1), "f4"))
            server.stop(grace_s=0)
        assert gone(server._id, server._shm_prefix, within_s=0.1)

    def test_server_that_died(self, repository):
        """A server killed by somebody else is noticed, and cleared up after."""
        with dk.local_server(repository) as server:
            assert server.wait(0.01) is None
            os.kill(server.pid, signal.SIGKILL)
            assert server.wait(20) == 128 + signal.SIGKILL
        assert gone(server._id, server._shm_prefix)

    def test_supervisor_that_died(self, repository):
        """Even without its supervisor a server does not survive ``stop``."""
        with dk.local_server(repository) as server:
            server._process.kill()
            server._process.wait()
        assert gone(server._id, server._shm_prefix)
        assert not server._run.exists()


def send_to_sleep(server, touched):
    """Send a request to ``sleep`` and return when the model works on it."""
    touched.unlink(missing_ok=True)
    transport = GrpcTransport(server.address)
    request = Request("sleep", "", {"X": np.ones((1, 1), "f4")}, ("Y",), 1)
    reply = transport.submit(transport.encode(request), 60)
    end = time.monotonic() + 20
    while not touched.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    return transport, reply


OWNER = """
    import os, sys, time
    from pathlib import Path
    import daskonic as dk
    from test_server import send_to_sleep

    server = dk.local_server(sys.argv[1]).start()
    in_flight = send_to_sleep(server, Path(sys.argv[1], "touched"))
    print(server._shm_prefix, flush=True)
    {end}
"""

ENDS = {
    "exit without stop": ("sys.exit(0)", None, 0),
    "exception": ("raise ZeroDivisionError", None, 1),
    "os._exit": ("os._exit(5)", None, 5),
    "SIGINT": ("time.sleep(60)", signal.SIGINT, -signal.SIGINT),
    "SIGTERM": ("time.sleep(60)", signal.SIGTERM, -signal.SIGTERM),
    "SIGKILL": ("time.sleep(60)", signal.SIGKILL, -signal.SIGKILL),
    "SIGKILL with a forked child": (
        "os.fork() or (os.close(1), os.close(2), time.sleep(8), os._exit(0)); time.sleep(60)",
        signal.SIGKILL,
        -signal.SIGKILL,
    ),
}


@pytest.mark.parametrize("how", ENDS)
def test_nothing_outlives_the_owner(repository, how, tmp_path):
    """However the owning process ends, with a model in the middle of a request: nothing is left."""
    end, number, code = ENDS[how]
    script = tmp_path / "owner.py"
    script.write_text(textwrap.dedent(OWNER).format(end=end))
    environment = os.environ | {"GRPC_VERBOSITY": "NONE", "TMPDIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    owner = subprocess.Popen(
        [sys.executable, script, repository],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    with owner:
        prefix = owner.stdout.readline().strip()
        assert prefix.startswith("daskonic-")
        assert processes_of(prefix)
        if number is not None:
            owner.send_signal(number)
        assert owner.wait(30) == code
    assert gone(prefix, prefix)
    assert not list(tmp_path.glob("daskonic-server-*"))
