"""Against ``perf_analyzer``, Triton's own load generator in C++: how much of its throughput is left in Python.

Same model (``sink``: answers at once), Triton, request size and requests in flight, in turns:

c++         ``perf_analyzer --async``
daskonic    ``dk.Model`` on an array, window pinned: split, encode, send, decode and join, on the wire
in Dask     the same in a task of a Dask worker with the plugin
shm         the same, through shared memory instead of the wire
grpcio      futures of gRPC's own Python and nothing else, the message packed as daskonic does it: what is left
            between this and C++ is not daskonic's to gain
sync        ``tritonclient``, a thread for each request in flight
async       ``tritonclient.async_infer``, as many in flight

Each has a process of its own, or daskonic's malloc setting would help all of them. CPU is that of the whole client
process, from warm; answers are checked. perf_analyzer is taken from the wheel of
tritonclient 2.50.0, fetched once with pip into daskonic's cache folder; where that is not possible it is left out.

    python benchmarks/bench_native.py --rounds 5
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import multiprocessing
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from distributed import Client
from results import Row, add_arguments, finish, ratios, spread
from servers import Served, serve
from tritonclient import grpc as triton

import daskonic as dk
from daskonic.server import installation
from daskonic.tensors import Request
from daskonic.transport.grpc import INFER, OPTIONS
from daskonic.transport.message import packed, unpacked

LENGTH = 2048  # 8 kB a row
PERF_ANALYZER = "tritonclient==2.50.0"  # later ones need glibc 2.38, or carry no binary


@dataclass(frozen=True)
class Case:
    """Size of a request and how many are in flight; targets from the project's plan."""

    name: str
    rows: int
    in_flight: int
    target: float

    @property
    def megabytes(self) -> float:
        """Of one request."""
        return self.rows * LENGTH * 4 / 1e6


CASES = {
    case.name: case
    for case in (Case("8MB", 1000, 4, 0.95), Case("1MB", 128, 4, 0.85), Case("8kB", 1, 16, 0.70))
}
Rate = tuple[float, float]
"""Requests a second; CPU seconds for each."""


@functools.cache
def make_rows(n_rows: int) -> np.ndarray:
    """Input of a client; kept."""
    return np.random.default_rng(1).normal(size=(n_rows, LENGTH)).astype(np.float32)


def make_batches(case: Case, requests: int) -> list[np.ndarray]:
    """The same for clients that take one batch at a time: as large, so that no cache holds them for one alone."""
    return np.split(make_rows(requests * case.rows), requests)


def timed(send: Callable[[], int], seconds: float) -> Rate:
    """Call ``send``, which tells the number of requests it made, until the time is over."""
    send()
    wall, cpu, requests = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < wall + seconds:
        requests += send()
    return requests / (time.perf_counter() - wall), (time.process_time() - cpu) / requests


def by_daskonic(address: str, case: Case, seconds: float, memory: str = "never") -> Rate:
    """Whole calls of a model."""
    # Long calls, so that beginning and end count little, but short ones in a short run.
    requests = max(8 * case.in_flight, min(int(64 / case.megabytes), int(1000 * seconds)))
    rows = make_rows(requests * case.rows)
    settings = {"window": case.in_flight, "batch_bytes": "16 MiB", "shared_memory": memory}
    model = dk.Model("sink", servers=[address], batch_size=case.rows, **settings)

    def send() -> int:
        check(model(rows), rows)
        return requests

    return timed(send, seconds)


def by_grpcio(address: str, case: Case, seconds: float) -> Rate:
    """Requests as futures, a semaphore for each in flight."""
    dk.Model("sink", servers=[address]).pool()  # for its malloc setting
    requests = 8 * case.in_flight
    batches = make_batches(case, requests)
    permits = threading.Semaphore(case.in_flight)
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        infer = channel.unary_unary(INFER)

        def send() -> int:
            sent = deque[tuple[Any, np.ndarray]]()
            for rows in batches:
                permits.acquire()
                future = infer.future(
                    packed(Request("sink", "1", {"X": rows}, ("Y",), len(rows))), timeout=60
                )
                future.add_done_callback(lambda _: permits.release())
                sent.append((future, rows))
                while sent and sent[0][0].done():
                    take(*sent.popleft())
            for future, rows in sent:
                take(future, rows)
            return requests

        def take(future: Any, rows: np.ndarray) -> None:
            check(unpacked(future.result(), address).outputs["Y"], rows)

        return timed(send, seconds)


def inputs(rows: np.ndarray) -> list[triton.InferInput]:
    """What tritonclient takes; the rows are copied."""
    x = triton.InferInput("X", list(rows.shape), "FP32")
    x.set_data_from_numpy(rows)
    return [x]


def by_tritonclient_sync(address: str, case: Case, seconds: float) -> Rate:
    """Blocking requests from threads."""
    requests = 8 * case.in_flight
    batches = make_batches(case, requests)
    with (
        triton.InferenceServerClient(address) as client,
        ThreadPoolExecutor(case.in_flight) as pool,
    ):

        def one(rows: np.ndarray) -> None:
            check(client.infer("sink", inputs(rows)).as_numpy("Y"), rows)

        def send() -> int:
            return len(list(pool.map(one, batches)))

        return timed(send, seconds)


def by_tritonclient_async(address: str, case: Case, seconds: float) -> Rate:
    """Requests with a callback, a semaphore for each in flight."""
    requests = 8 * case.in_flight
    batches = make_batches(case, requests)
    permits = threading.Semaphore(case.in_flight)
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

    def answered(result: Any, error: Any) -> None:
        permits.release()
        answers.put((result, error))

    with triton.InferenceServerClient(address) as client:

        def send() -> int:
            for number, rows in enumerate(batches):
                permits.acquire()
                client.async_infer("sink", inputs(rows), answered, request_id=str(number))
            for _ in range(requests):
                result, error = answers.get()
                if error is not None:
                    raise error
                check(result.as_numpy("Y"), batches[int(result.get_response().id)])
            return requests

        return timed(send, seconds)


def check(scores: np.ndarray, rows: np.ndarray) -> None:
    """The sink answers with the first two numbers of each row."""
    if not np.array_equal(scores, rows[:, :2]):
        raise ValueError("answers are not those of the rows")


# -- perf_analyzer -----------------------------------------------------------------------------------


def perf_analyzer() -> tuple[Path, dict[str, str]] | None:
    """The program and the variables it needs; None, and a word why, where it cannot be had."""
    folder = installation.cache_folder() / PERF_ANALYZER.replace("==", "-")
    program = folder / "perf_analyzer"
    libraries = Path(installation.find().library_path.split(os.pathsep)[0])
    try:
        if not program.exists():
            fetch(folder)
        for name in ("libcudart.so.12", "libb64.so.0d"):  # Triton's wheel has both, under longer names
            stem, _, version = name.partition(".so.")
            (found,) = libraries.glob(f"{stem}-*.so.{version}*")
            link = folder / name
            link.unlink(missing_ok=True)
            link.symlink_to(found)
        variables = os.environ | {"LD_LIBRARY_PATH": str(folder)}
        # It ends with an error code when asked for its version, too; only a failure to start matters.
        told = subprocess.run(
            [program, "--version"], check=False, env=variables, capture_output=True, text=True
        )
        if "error while loading" in told.stderr or "GLIBC" in told.stderr:
            raise OSError(told.stderr.strip())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"without perf_analyzer: {error}")
        return None
    return program, variables


def fetch(folder: Path) -> None:
    """The program out of a wheel."""
    with tempfile.TemporaryDirectory() as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary]
        subprocess.run([*pip, PERF_ANALYZER], check=True, capture_output=True, timeout=120)
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [n for n in archive.namelist() if n.endswith("/bin/perf_analyzer")]
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f"perf_analyzer-{os.getpid()}"
            partial.write_bytes(archive.read(member))
    partial.chmod(0o755)
    partial.rename(folder / "perf_analyzer")


def by_perf_analyzer(
    program: Path, variables: dict[str, str], address: str, case: Case, seconds: float
) -> Rate:
    """Mean of its last three windows, whatever they vary; its CPU, much of it preparation, is not told."""
    window_ms = max(500, int(seconds * 1000 / 3))  # in shorter ones it finds too few requests and gives up
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.csv"
        command = [
            program, "-m", "sink", "-u", address, "-i", "grpc", "--async", "-b", case.rows, "--input-data", "random",
            "--concurrency-range", case.in_flight, "-p", window_ms, "-r", 10, "-s", 999, "-f", told,
        ]  # fmt: skip
        subprocess.run([str(c) for c in command], env=variables, check=True, capture_output=True)
        (line,) = csv.DictReader(told.open())
    return float(line["Inferences/Second"]) / case.rows, math.nan


# -- here --------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> list[Row]:
    """All cases, everyone in turns."""
    native = None if args.without_native else perf_analyzer()
    cases = [CASES[name] for name in args.cases]
    with ExitStack() as stack:
        server = stack.enter_context(serve([Served("sink", "sink", LENGTH, at_once=args.instances)]))
        address = server.address

        def alone(measured: Callable[..., Rate]) -> Callable[[Case], Rate]:
            process = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
            process.submit(
                os.getpid
            ).result()  # begun before Dask sets its malloc variable for all later children
            return lambda case: process.submit(measured, address, case, args.seconds).result()

        who: dict[str, Callable[[Case], Rate]] = {
            "daskonic": alone(by_daskonic),
            "shm": alone(functools.partial(by_daskonic, memory="auto")),
            "grpcio": alone(by_grpcio),
            "sync": alone(by_tritonclient_sync),
            "async": alone(by_tritonclient_async),
        }
        cluster = stack.enter_context(dk.local_cluster(1, servers=[address], threads_per_worker=1))
        client = stack.enter_context(Client(cluster))
        who["in Dask"] = lambda case: client.submit(
            by_daskonic, address, case, args.seconds, pure=False
        ).result()
        if native is not None:
            who["c++"] = lambda case: by_perf_analyzer(*native, address, case, args.seconds)
        seen: dict[tuple[str, str], list[Rate]] = {(c.name, name): [] for c in cases for name in who}
        for turn in range(args.rounds):
            for case in cases:
                for name in list(who)[:: 1 if turn % 2 else -1]:
                    seen[case.name, name].append(who[name](case))
    return [line(case, name, seen) for case in cases for name in who]


def line(case: Case, name: str, seen: dict[tuple[str, str], list[Rate]]) -> Row:
    """One client in one case."""

    def rates(name: str) -> list[float]:
        return [rate for rate, _ in seen.get((case.name, name), [])]

    def cpus(name: str) -> list[float]:
        return [cpu * 1e3 / case.megabytes for _, cpu in seen[case.name, name]]

    ours = name in ("daskonic", "in Dask")
    cheapest = [min(pair) for pair in zip(cpus("sync"), cpus("async"), strict=True)]
    return {
        "request": f"{case.name} x {case.in_flight}",
        "client": name,
        "requests_s": spread(rates(name)),
        "MB_s": spread(r * case.megabytes for r in rates(name)),
        "to_c++": ratios(rates(name), rates("c++")) if rates("c++") else None,
        "target": case.target if ours else None,
        "to_grpcio": ratios(rates(name), rates("grpcio")),
        "to_daskonic": ratios(rates(name), rates("daskonic")),
        "cpu_ms_MB": spread(cpus(name)) if name != "c++" else None,
        "cpu_to_sync": ratios(cpus(name), cpus("sync")) if name != "c++" else None,
        "cpu_to_best": ratios(cpus(name), cheapest) if name != "c++" else None,
        "cpu_target": 0.6 if ours else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seconds", type=float, default=2.0, help="for each client, case and round")
    parser.add_argument("--instances", type=int, default=2, help="of the model")
    parser.add_argument("--without-native", action="store_true", help="leave perf_analyzer out")
    add_arguments(parser, rounds=3)
    args = parser.parse_args()
    finish("native", args, measure(args))


if __name__ == "__main__":
    import bench_native  # tasks must belong to a module that workers can import, not to __main__

    bench_native.main()
