"""A server of the KServe v2 protocol that is not Triton: MLServer, in a virtual environment of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

RELEASE = "1.7.1"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "daskonic-tests"

RUNTIME = """\
import asyncio
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Model(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0])
        extra = self.settings.parameters.extra or {}
        await asyncio.sleep(extra.get("seconds", 0))
        if extra.get("fails"):
            raise ValueError("this model fails on purpose")
        y = x.sum(axis=1, keepdims=True) * [[1, -1]] if extra.get("sums") else x
        fault = Path(__file__).with_name(".fault")
        word = fault.read_text() if extra.get("sums") and fault.exists() else ""
        if word == "rows":
            y = y[:-1]
        if word == "columns":
            y = np.concatenate([y, y], axis=1)
        output = NumpyCodec.encode_output("Y", y.astype("float32"))
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])
"""

MODELS = {"identity": {}, "sum": {"sums": True}, "sleep": {"seconds": 1.0}, "fail": {"fails": True}}


def environment() -> Path:
    """The environment with MLServer, made at first use."""
    if sys.version_info >= (3, 13):
        pytest.skip(f"MLServer {RELEASE} takes Python 3.12 at most")
    place = CACHE / f"mlserver-{RELEASE}-py3{sys.version_info.minor}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "complete").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
            subprocess.run([place / "bin" / "pip", "install", "-qq", f"mlserver=={RELEASE}"], check=True)
            (place / "complete").touch()
    return place


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class KserveServer:
    """MLServer with small models; can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = [free_port() for _ in range(3)]
        self.address = f"127.0.0.1:{ports[1]}"
        (folder / "runtime.py").write_text(RUNTIME)
        settings = {
            "host": "127.0.0.1",
            "http_port": ports[0],
            "grpc_port": ports[1],
            "metrics_port": ports[2],
            "parallel_workers": 0,
            "grpc_max_message_length": 2**31 - 1,
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        for name, extra in MODELS.items():
            (folder / name).mkdir()
            (folder / name / "model-settings.json").write_text(json.dumps(self._described(name, extra)))
        self.process = None

    @staticmethod
    def _described(name, extra):
        tensors = {"datatype": "FP32", "shape": [-1, -1]}
        return {
            "name": name,
            "implementation": "runtime.Model",
            "platform": "numpy",
            "parameters": {"version": "1", "extra": extra},
            "inputs": [{"name": "X", **tensors}],
            "outputs": [{"name": "Y", "datatype": "FP32", "shape": [-1, 2 if extra.get("sums") else -1]}],
        }

    def start(self) -> None:
        """Start, and wait for the gRPC port."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [environment() / "bin" / "mlserver", "start", "."],
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": str(self.folder), "NO_COLOR": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        host, port = self.address.split(":")
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text())
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                return
            time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text())

    def freeze(self, seconds: float) -> None:
        """Connections stay, and nobody answers."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def fault(self, word: str) -> None:
        """What the model ``sum`` does wrong from now on: answer a row less (``rows``), twice the ``columns``, or nothing."""
        (self.folder / ".new").write_text(word)
        (self.folder / ".new").rename(self.folder / ".fault")

    def kill(self) -> None:
        """As a node that fails."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
