"""Models for the benchmarks, and a real Triton that serves them.

``accelerator`` pretends to be a device: a batch takes ``fixed_ms + rows * per_row_us``. Each of its
instances is a device of its own, so ``instances=16`` works on 16 batches at once. With ``device``
the instances share one: one batch at a time, whose end is booked on a clock in a small shared file,
so that the host's work for one batch overlaps the device's for another. ``sink`` answers at once with
the first two numbers of each row; ``identity`` sends everything back. All take X float32[any].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import daskonic as dk
from daskonic.server import LocalServer

MODEL = '''\
import ctypes
import fcntl
import json
import mmap
import os
import struct
import time

import numpy as np
import triton_python_backend_utils as pb_utils

NUMPY_2 = int(np.__version__.split(".")[0]) >= 2
PR_SET_TIMERSLACK = 29


class Device:
    """One that instances share: the time at which it will be free lies in a file."""

    def __init__(self, path):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if os.fstat(file).st_size < 8:
            os.ftruncate(file, 8)
        self.file, self.memory = file, mmap.mmap(file, 8)

    def book(self, seconds):
        fcntl.flock(self.file, fcntl.LOCK_EX)
        try:
            end = max(struct.unpack("d", self.memory[:8])[0], time.monotonic()) + seconds
            self.memory[:8] = struct.pack("d", end)
            return end
        finally:
            fcntl.flock(self.file, fcntl.LOCK_UN)


class TritonPythonModel:
    def initialize(self, args):
        given = json.loads(args["model_config"])["parameters"]
        given = {key: value["string_value"] for key, value in given.items()}
        self.fixed_s = float(given["fixed_ms"]) / 1e3
        self.per_row_s = float(given["per_row_us"]) / 1e6
        self.identity = given["kind"] == "identity"
        self.device = Device(given["device"]) if given["device"] else None
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)  # sleep to the microsecond

    def execute(self, requests):
        xs = [array(request) for request in requests]
        seconds = self.fixed_s + self.per_row_s * sum(len(x) for x in xs)
        end = self.device.book(seconds) if self.device else time.monotonic() + seconds
        ys = [x if self.identity else x[:, :2] for x in xs]
        answers = [pb_utils.InferenceResponse(output_tensors=[tensor(y)]) for y in ys]
        left = end - time.monotonic()
        if left > 0:
            time.sleep(left)
        return answers


def array(request):
    x = pb_utils.get_input_tensor_by_name(request, "X")
    return np.from_dlpack(x) if NUMPY_2 else x.as_numpy()


def tensor(values):
    values = np.ascontiguousarray(values)
    return pb_utils.Tensor.from_dlpack("Y", values) if NUMPY_2 else pb_utils.Tensor("Y", values)
'''

# Messages of 8 MB, several at once, in the shared memory between Triton and a model's process.
LARGE_MESSAGES = ("--backend-config=python,shm-default-byte-size=67108864",)


@dataclass(frozen=True)
class Served:
    """One model of a benchmark.

    Attributes
    ----------
    kind : {"accelerator", "sink", "identity"}
    length : int
        float32 numbers in a row of X; 4 bytes each.
    at_once : int
        Instances.
    device : str
        Name of the device that the instances share; none: each has its own.
    merge : bool
        Let Triton merge waiting requests into one batch.
    queue : int
        Requests that may wait; more are rejected. 0: any number.
    """

    name: str
    kind: str = "sink"
    length: int = 2048
    fixed_ms: float = 0.0
    per_row_us: float = 0.0
    at_once: int = 1
    device: str = ""
    max_batch_size: int = 1000
    merge: bool = False
    queue: int = 0

    def write(self, repository: Path) -> None:
        """Put it into a model repository."""
        folder = repository / self.name / "1"
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(MODEL)
        (repository / self.name / "config.pbtxt").write_text(self._config(repository))

    def _config(self, repository: Path) -> str:
        """Text of ``config.pbtxt``."""
        width = self.length if self.kind == "identity" else 2
        lines = [
            f'name: "{self.name}"',
            'backend: "python"',
            f"max_batch_size: {self.max_batch_size}",
            f'input [ {{ name: "X" data_type: TYPE_FP32 dims: [ {self.length} ] }} ]',
            f'output [ {{ name: "Y" data_type: TYPE_FP32 dims: [ {width} ] }} ]',
            f"instance_group [ {{ count: {self.at_once} kind: KIND_CPU }} ]",
        ]
        given = {
            "kind": self.kind,
            "fixed_ms": self.fixed_ms,
            "per_row_us": self.per_row_us,
            "device": str(repository / f".{self.device}") if self.device else "",
        }
        lines += [f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in given.items()]
        if self.merge or self.queue:
            size = self.max_batch_size if self.merge else 1
            queue = f"default_queue_policy {{ max_queue_size: {self.queue} }} " if self.queue else ""
            lines.append(f"dynamic_batching {{ preferred_batch_size: [ {size} ] {queue}}}")
        return "\n".join(lines) + "\n"


@contextmanager
def serve(models: Sequence[Served]) -> Iterator[LocalServer]:
    """A Triton with these models."""
    with TemporaryDirectory(prefix="daskonic-bench-") as folder:
        for model in models:
            model.write(Path(folder))
        with dk.local_server(folder, flags=LARGE_MESSAGES) as server:
            yield server
