"""What tests of faults share: servers that can be killed, inputs whose scores tell every row, and a moment to strike."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
import time
import urllib.request
from pathlib import Path

import awkward as ak
import numpy as np
from distributed import Worker
from triton_models import write_model

import daskonic as dk
from daskonic.pool.breaker import BACKOFF_LONGEST_S

SEEDS, FEW, RESTARTS = 20, 6, 2
"""Runs of each fault, each with the fault at another moment: of cheap ones, of those that take seconds, of servers that
start again. ``pytest --seeds N`` sets all three, and runs those N times that run once otherwise."""
ROWS, BATCH = 320, 8
BATCHES = ROWS // BATCH
BIG_ROWS, BIG_BATCH = 256, 32
BIG_BATCHES = BIG_ROWS // BIG_BATCH
WIDE = 4096
"""Numbers in a row of the model ``wide``: 32 rows are more than go without shared memory."""


def write_faulty(repository: Path) -> None:
    """A repository of models that are slow enough to be struck: ``sum`` and ``wide`` (identity), ``fail``, ``short`` with a queue of 4."""
    fault = repository / ".fault"
    write_model(repository, "sum", kind="sum", instances=2, fixed_ms=4, fault=str(fault))
    write_model(repository, "wide", kind="identity", fixed_ms=4)
    write_model(repository, "fail", kind="fail")
    write_model(repository, "sleep", kind="sleep", seconds=0.25, instances=2, max_batch_size=4)
    config = write_model(repository, "short", kind="sum", max_batch_size=16, fixed_ms=20) / "config.pbtxt"
    queue = "dynamic_batching { default_queue_policy { max_queue_size: 4 } "
    config.write_text(config.read_text().replace("dynamic_batching {", queue))


class FaultyServer:
    """A Triton that is killed, stopped, frozen, started again on its port, and whose models come and go."""

    def __init__(self, repository: Path, *flags: str) -> None:
        self.repository = repository
        self._flags = ("--load-model=*", *flags)
        self._port: int | None = None
        self.start()

    def start(self) -> None:
        self._triton = dk.local_server(
            self.repository, grpc_port=self._port, model_control="explicit", flags=self._flags
        )
        self._triton.start()
        self.address = self._triton.address
        self._port = int(self.address.rpartition(":")[2])

    def end(self, number: int) -> None:
        """By a signal; returns when the process is gone and its port closed."""
        os.kill(self._triton.pid, number)
        self._triton.wait(60)
        self._triton.stop()

    def restart(self, number: int) -> None:
        self.end(number)
        self.start()

    def freeze(self, seconds: float) -> None:
        """Connections stay, the kernel takes bytes, nobody answers."""
        os.kill(self._triton.pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(self._triton.pid, signal.SIGCONT)

    def stop(self) -> None:
        self._triton.stop(grace_s=1)

    def unload(self, model: str) -> None:
        self._ask("POST", f"/v2/repository/models/{model}/unload")
        assert eventually(lambda: not self._is_ready(model))

    def load(self, model: str) -> None:
        self._ask("POST", f"/v2/repository/models/{model}/load")

    def executed(self, model: str) -> tuple[int, int]:
        """Requests that it answered well, and those that failed, by its own account."""
        stats = json.loads(self._ask("GET", f"/v2/models/{model}/stats"))["model_stats"]
        inference = [s["inference_stats"] for s in stats]
        return sum(s["success"]["count"] for s in inference), sum(s["fail"]["count"] for s in inference)

    def fault(self, word: str) -> None:
        """What the process of its model ``sum`` does wrong from now on; empty for nothing."""
        path = self.repository / ".fault"
        if word:
            path.with_suffix(".new").write_text(word)
            path.with_suffix(".new").rename(path)
        else:
            path.unlink(missing_ok=True)

    def _is_ready(self, model: str) -> bool:
        index = json.loads(self._ask("POST", "/v2/repository/index"))
        return any(m["name"] == model and m.get("state") == "READY" for m in index)

    def _ask(self, method: str, path: str) -> bytes:
        url = self._triton.http_address + path
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=60) as answer:
            return answer.read()


def jagged(seed: int, n_rows: int, width: int = 16) -> ak.Array:
    """Events with 0 to 3 rows of whole numbers, no two rows with the same sum; exact in float32 in any order."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, n_rows)
    counts = counts[np.cumsum(counts) <= n_rows]
    rows = np.zeros((counts.sum(), width), np.float32)
    rows[:, 1:16] = rng.integers(-8, 8, (len(rows), 15))
    rows[:, 0] = 1000 * np.arange(len(rows)) + 100_000 * (seed % 50)
    return ak.unflatten(ak.from_numpy(rows, regulararray=True), counts)


def assert_right(scores: ak.Array, jets: ak.Array, model: str = "sum") -> None:
    """Same counts, and every bit of every score that of its own row."""
    assert ak.to_list(ak.num(scores)) == ak.to_list(ak.num(jets))
    x = ak.to_numpy(ak.flatten(jets))
    expected = x if model == "wide" else np.stack([x.sum(axis=1), -x.sum(axis=1)], axis=1)
    assert ak.to_numpy(ak.flatten(scores)).tobytes() == expected.astype(np.float32).tobytes()


class Strike:
    """Does something on a thread of its own when the pool of a model has sent so many more requests.

    Attributes
    ----------
    seconds : float
        How long that took.
    """

    def __init__(self, model: dk.Model, after: int, act) -> None:
        self._pool = model.pool()
        self._due = self._pool.stats().requests_total + after
        self._act = act
        self._error: Exception | None = None
        self._thread = threading.Thread(daemon=True, target=self._run, name="strike")
        self.seconds = 0.0
        self._thread.start()

    def _run(self) -> None:
        if not eventually(lambda: self._pool.stats().requests_total >= self._due, 60, 0.001):
            self._error = AssertionError("the moment to strike did not come")
            return
        begin = time.monotonic()
        try:
            self._act()
        except Exception as error:  # noqa: BLE001 - raised again by join
            self._error = error
        self.seconds = time.monotonic() - begin

    def join(self) -> float:
        """Wait for its end."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.seconds


def struck(model, jets, seed, act, *, batches=BATCHES):
    """Scores of a run with a fault at a random moment, its time, and how long the fault took."""
    strike = Strike(model, random.Random(seed).randrange(1, int(0.7 * batches)), act)
    begin = time.monotonic()
    scores = model(jets)
    spent_s = time.monotonic() - begin
    return scores, spent_s, strike.join()


class Losses:
    """Time lost to faults, against what structure allows: the outages, one rest of the breaker for each, and noise.

    Noise is in proportion: other work on the machine slows undisturbed runs as well.
    """

    NOISE = 10

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._spent_s = self._allowed_s = 0.0

    def add(self, spent_s: float, outage_s: float, rests: int = 1) -> None:
        self._spent_s += spent_s
        self._allowed_s += self.NOISE * self._quiet_s + outage_s + rests * BACKOFF_LONGEST_S

    def check(self) -> None:
        assert self._spent_s <= self._allowed_s


def eventually(condition, timeout_s: float = 20.0, pause_s: float = 0.02) -> bool:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(pause_s)
    return bool(condition())


def connections(addresses) -> int:
    """Established TCP connections from this machine to these ports of it.

    Different ones: while connections come and go, the kernel's table may show the same one twice.
    """
    ports = {f"{int(address.rpartition(':')[2]):04X}" for address in addresses}
    tables = [Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    fields = [line.split() for table in tables for line in table]
    return len({(f[1], f[2]) for f in fields if f[2].rpartition(":")[2] in ports and f[3] == "01"})


def run_worker(scheduler: str) -> None:
    """The main function of a worker process."""

    async def run():
        async with Worker(scheduler, nthreads=1, memory_limit=0) as worker:
            await worker.finished()

    asyncio.run(run())
