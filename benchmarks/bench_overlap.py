"""Does a worker compute while it waits? Wall time of many small tasks, with and without the wait.

200 chunks of 20 ms CPU and one batch of 60 ms on an accelerator (16 batches at once), two Dask
workers of one core each, in two shapes:

delayed   ``dask.delayed``: make the inputs, ``model(inputs)``, use the scores: three tasks a chunk
process   a synchronous function of coffea's kind that does all of it in one task

on two clusters: ``dk.local_cluster`` as it is by default, and a user's own ``LocalCluster`` with one thread a
worker and the plugin. Each is compared, within a round, with the same tasks where the model is
``instant`` (the same request, no wait) and where it is ``local`` (no request at all).

CPU time is a sleep under a lock of the process by default: one core a worker that nobody else on this machine
(the server above all) can take away. ``--cpu real`` computes instead, workers pinned to a core each.

``held`` is the most chunks whose inputs a worker had at one time, ``peak`` its most resident memory above that of
its start.

    python benchmarks/bench_overlap.py --rounds 5
"""

from __future__ import annotations

import argparse
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
from distributed import Client, LocalCluster, Worker
from results import Row, add_arguments, finish, ratios, spread
from servers import Served, serve

import daskonic as dk

LENGTH = 2048  # 8 kB a row
WIRE = {"shared_memory": "never"}  # the server stands for one elsewhere
MODELS = ("accelerator", "instant", "local")
CORE = threading.Lock()
REAL_CPU = False
Scorer = Callable[[Any], Any]


# -- on the workers --------------------------------------------------------------------------------


class Held:
    """Chunks alive in this process."""

    lock = threading.Lock()
    now = most = 0

    @classmethod
    def change(cls, by: int) -> None:
        with cls.lock:
            cls.now += by
            cls.most = max(cls.most, cls.now)


def compute(seconds: float) -> None:
    """Use the worker's core for a while."""
    if REAL_CPU:
        numbers, end = np.arange(4096.0), time.thread_time() + seconds
        while time.thread_time() < end:
            np.sin(numbers)
    else:
        with CORE:
            time.sleep(seconds)


def make_inputs(chunk: int, rows: int, cpu_s: float) -> np.ndarray:
    """Inputs of one chunk: its number, everywhere."""
    Held.change(+1)
    compute(cpu_s)
    inputs = np.full((rows, LENGTH), chunk, np.float32)
    weakref.finalize(inputs, Held.change, -1)
    return inputs


def use(scores: np.ndarray, cpu_s: float) -> float:
    """Something small from the scores."""
    compute(cpu_s)
    return float(scores.mean())


def process(chunk: int, rows: int, scorer: Scorer, cpu_s: float) -> float:
    """A synchronous analysis of one chunk."""
    return use(scorer(make_inputs(chunk, rows, 0.75 * cpu_s)), 0.25 * cpu_s)


def score_locally(inputs: np.ndarray) -> np.ndarray:
    """What the models on the server answer."""
    return inputs[:, :2].copy()


def begin(dask_worker: Worker, real_cpu: bool, cores: dict[str, int]) -> None:
    """Forget peaks; take the core that is this worker's."""
    global REAL_CPU
    REAL_CPU = real_cpu
    if real_cpu:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {cores[dask_worker.address]})
    Held.most = Held.now
    Path("/proc/self/clear_refs").write_text("5")  # peak memory becomes the present one


def peaks() -> tuple[int, float]:
    """Chunks and MB since :func:`begin`."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Held.most, int(status["VmHWM"].split()[0]) / 1e3


# -- here --------------------------------------------------------------------------------------------


@contextmanager
def clusters(address: str, args: argparse.Namespace) -> Iterator[dict[str, Client]]:
    """Clients of both clusters."""
    options = {"dashboard_address": ":0", "processes": True}
    with ExitStack() as stack:
        ours = stack.enter_context(
            dk.local_cluster(args.workers, servers=[address], threads_per_worker=args.threads, settings=WIRE)
        )
        users = stack.enter_context(LocalCluster(args.workers, threads_per_worker=1, **options))
        made = {"daskonic's": Client(ours), "user's, 1 thread": Client(users)}
        for client in made.values():
            stack.enter_context(client)
        made["user's, 1 thread"].register_plugin(dk.InferencePlugin(servers=[address], **WIRE))
        yield made


def run(client: Client, shape: str, scorer: Scorer, args: argparse.Namespace) -> tuple[float, int, float]:
    """Wall time of all chunks, most chunks held and peak memory in MB of any worker; results are checked."""
    cpu_s = args.cpu_ms / 1e3
    cores = dict(zip(client.scheduler_info(n_workers=-1)["workers"], os.sched_getaffinity(0), strict=False))
    client.run(begin, real_cpu=args.cpu == "real", cores=cores)
    before = [nbytes for _, nbytes in client.run(peaks).values()]
    start = time.perf_counter()
    if shape == "process":
        futures = client.map(
            process, range(args.chunks), rows=args.rows, scorer=scorer, cpu_s=cpu_s, pure=False
        )
        means = client.gather(futures)
    else:
        means = dask.compute(*delayed_chunks(scorer, args, cpu_s), scheduler=client)
    wall_s = time.perf_counter() - start
    if list(means) != [float(i) for i in range(args.chunks)]:
        raise SystemExit(f"{shape}: scores are not those of their chunks")
    after = client.run(peaks).values()
    return wall_s, max(h for h, _ in after), max(a - b for (_, a), b in zip(after, before, strict=True))


def delayed_chunks(scorer: Scorer, args: argparse.Namespace, cpu_s: float) -> list[Any]:
    """Three tasks for each chunk."""
    inputs = [dask.delayed(make_inputs)(i, args.rows, 0.75 * cpu_s) for i in range(args.chunks)]
    scores = [dask.delayed(scorer, pure=False)(x) for x in inputs]
    return [dask.delayed(use)(s, 0.25 * cpu_s) for s in scores]


def measure(args: argparse.Namespace) -> list[Row]:
    """All shapes on all clusters, in turns."""
    served = [
        Served("accelerator", "accelerator", LENGTH, fixed_ms=args.wait_ms, at_once=args.at_once),
        Served("instant", "sink", LENGTH, at_once=2),
    ]
    scorers = {"accelerator": dk.Model("accelerator"), "instant": dk.Model("instant"), "local": score_locally}
    seen: dict[tuple[str, str, str], list[tuple[float, int, float]]] = {}
    with serve(served) as server, clusters(server.address, args) as clients:
        for client in clients.values():  # imports, first contact
            client.gather([client.submit(m, np.ones((1, LENGTH), "f4"), workers=[w], pure=False)
                           for m in scorers.values() for w in client.scheduler_info(n_workers=-1)["workers"]])  # fmt: skip
        for _ in range(args.rounds):
            for shape in args.shapes:
                for name, client in clients.items():
                    for model in MODELS:
                        seen.setdefault((shape, name, model), []).append(
                            run(client, shape, scorers[model], args)
                        )
    device_s = args.chunks * args.wait_ms / 1e3 / args.at_once
    return [row(shape, name, seen, device_s) for shape in args.shapes for name in clients]


def row(shape: str, cluster: str, seen: dict[Any, Any], device_s: float) -> Row:
    """One line of the table."""
    walls = {m: [wall for wall, _, _ in seen[shape, cluster, m]] for m in MODELS}
    return {
        "tasks": shape,
        "cluster": cluster,
        "wall_s": spread(walls["accelerator"]),
        "to_instant": ratios(walls["accelerator"], [max(w, device_s) for w in walls["instant"]]),
        "to_local": ratios(walls["accelerator"], [max(w, device_s) for w in walls["local"]]),
        "target": 1.05 if cluster == "daskonic's" else 1.3,
        "held": max(held for _, held, _ in seen[shape, cluster, "accelerator"]),
        "peak_MB": max(peak for _, _, peak in seen[shape, cluster, "accelerator"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--rows", type=int, default=128, help="of 8 kB, in each chunk")
    parser.add_argument("--cpu-ms", type=float, default=20.0)
    parser.add_argument("--wait-ms", type=float, default=60.0)
    parser.add_argument("--at-once", type=int, default=16, help="batches the accelerator works on")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--threads", type=int, help="of a worker of daskonic's cluster, instead of its default"
    )
    parser.add_argument("--cpu", choices=["virtual", "real"], default="virtual")
    parser.add_argument("--shapes", nargs="+", choices=["delayed", "process"], default=["delayed", "process"])
    add_arguments(parser, rounds=3)
    args = parser.parse_args()
    finish("overlap", args, measure(args))


if __name__ == "__main__":
    import bench_overlap  # tasks must belong to a module that workers can import, not to __main__

    bench_overlap.main()
