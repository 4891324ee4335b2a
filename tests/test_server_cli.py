"""``daskonic serve``: ready, used, ended, and an exit code for each way to fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_repository import identity
from test_server import gone, infer, processes_of
from triton_models import write_model

import daskonic as dk

COMMAND = [sys.executable, "-c", "from daskonic.cli import main; main()", "serve"]


def serve(*arguments, **given):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "COLUMNS": "200", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | given,
    )


def outcome(*arguments, **given):
    """Exit code and stderr of a call that ends by itself."""
    with serve(*arguments, **given) as process:
        _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    write_model(folder, "identity", kind="identity")
    return folder


def test_json_and_sigterm(repository):
    """One line of JSON has what a script needs; SIGTERM ends all, with 143."""
    with serve(repository, "--json") as process:
        about = json.loads(process.stdout.readline())
        x = np.ones((2, 2), "f4")
        np.testing.assert_array_equal(infer(about["address"], "identity", x), x)
        assert about["models"] == [{"name": "identity", "version": "1", "state": "READY", "reason": ""}]
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert not Path(f"/proc/{about['pid']}").exists()
    assert not processes_of(str(repository))


def test_table_and_ctrl_c(repository, tmp_path):
    """For readers: address, models, where the log is; Ctrl-C ends all, with 130."""
    log = tmp_path / "triton.log"
    with serve(repository, "--log", log) as process:
        lines = []
        while "Ctrl-C" not in "".join(lines[-1:]):
            lines.append(process.stdout.readline())
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    text = "".join(lines)
    assert process.returncode == 130
    assert "interrupted" in err
    assert all(part in text for part in ("identity", "READY", "127.0.0.1:", str(log)))
    assert not processes_of(str(repository))


def test_one_onnx_file(tmp_path):
    """A single ONNX file is served under its name; its temporary repository goes with the server."""
    file = identity(tmp_path / "mirror.onnx")
    with serve(file, "--json", TMPDIR=str(tmp_path)) as process:
        about = json.loads(process.stdout.readline())
        x = np.arange(6, dtype="f4").reshape(2, 3)
        np.testing.assert_array_equal(infer(about["address"], "mirror", x), x)
        process.terminate()
        process.communicate(timeout=60)
    assert os.listdir(tmp_path) == ["mirror.onnx"]


def test_sigterm_while_starting(tmp_path):
    """Ended before it was ready, it leaves nothing either."""
    file = write_model(tmp_path, "slow", kind="identity") / "1" / "model.py"
    file.write_text(
        file.read_text().replace("        self.kind = ", "        time.sleep(600)\n        self.kind = ")
    )
    with serve(tmp_path) as process:
        end = time.monotonic() + 30
        while not any("triton_python_backend_stub" in line for line in processes_of(str(tmp_path))):
            assert time.monotonic() < end
            time.sleep(0.05)
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert gone(str(tmp_path), "none")


def test_closed_terminal(tmp_path):
    """SIGHUP ends it like SIGTERM, its temporary repository included."""
    file = identity(tmp_path / "mirror.onnx")
    with serve(file, "--json", TMPDIR=str(tmp_path)) as process:
        json.loads(process.stdout.readline())
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == 129
    assert os.listdir(tmp_path) == ["mirror.onnx"]


def test_server_that_dies(repository):
    """If Triton ends by itself, so does the command, with the code of local servers."""
    with serve(repository, "--json") as process:
        os.kill(json.loads(process.stdout.readline())["pid"], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "ended by itself with code 137" in err


def test_port_in_use(repository):
    """A port that is taken: code 7, the port named."""
    with dk.local_server(repository) as server:
        port = server.address.rpartition(":")[2]
        code, err = outcome(repository, "--grpc-port", port)
        server.stop(grace_s=0)
    assert (code, f"port {port} of 127.0.0.1 is in use" in err) == (7, True)


def test_exit_codes(tmp_path):
    """Usage 2, input 3, no batch dimension 4, a model that does not load 7: one line each."""
    write_model(tmp_path / "broken", "bad", kind="fails_to_load")
    (tmp_path / "no.onnx").touch()
    fixed = identity(tmp_path / "fixed.onnx", shape=(1, 3))
    for arguments, expected, text in (
        ((), 2, "Missing argument"),
        ((tmp_path / "nowhere",), 3, "does not exist"),
        ((tmp_path / "no.onnx",), 3, "not an ONNX model"),
        ((fixed,), 4, "first dimension of X is fixed to 1"),
        ((tmp_path / "broken",), 7, "the weights are not where they should be"),
    ):
        code, err = outcome(*arguments)
        assert code == expected, err
        assert text in err
        assert "Traceback" not in err
        if code != 2:
            assert len(err.splitlines()) == 1


def test_install_only():
    """Says where Triton is, and starts nothing."""
    with serve("--install-only") as process:
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert (Path(out.strip()) / "bin" / "python").exists()
