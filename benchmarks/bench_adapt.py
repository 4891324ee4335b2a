"""Where adapting stops against the throughput curve, and how long allocated workers do nothing, beside Dask's own ``adapt()``.

The server is a real Triton that takes ``--rows-per-s`` at most, whatever the batch. A task works (it sleeps, so that the machine
may be small) and has its rows scored; workers are processes of one thread. Idle is what was allocated less what tasks worked.

curve     rows per second of 1, 2, ... workers; its knee is the highest rate over that of one worker
adapt     the same tasks under ``cluster.adapt()`` and under Dask's, in turns: workers in the end (the median of the last third),
          their seconds in all, those without work, and the time of the run

``--cluster slurm`` or ``htcondor`` has the workers in jobs of a batch system.

    python benchmarks/bench_adapt.py --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import distributed
import numpy as np
from distributed import Client
from results import Row, add_arguments, finish, spread
from servers import Served, serve

import daskonic as dk
from daskonic.deploy import cluster_named
from daskonic.deploy.adaptive import ServerAdaptive
from daskonic.plugin import LOAD

LENGTH = 16
EVERY_S = 0.5
ADAPTIVES = {"daskonic's": ServerAdaptive, "Dask's": distributed.Adaptive}


def task(model: dk.Model, i: int, rows: int, work_s: float) -> bool:
    """Work, then score."""
    time.sleep(work_s)
    x = np.full((rows, LENGTH), i, np.float32)
    return bool(np.array_equal(model(x), x[:, :2]))


def cluster_of(address: str, args: argparse.Namespace) -> Any:
    """Without workers yet."""
    if args.cluster == "local":
        return dk.local_cluster(0, servers=[address], threads_per_worker=1)
    small = {"threads": 1, "memory": "500 MB"} | ({"disk": "100 MB"} if args.cluster == "htcondor" else {})
    return cluster_named(args.cluster, servers=[address], **small)


def submit(client: Client, n: int, args: argparse.Namespace) -> list[Any]:
    """So many tasks."""
    common = ([args.rows] * n, [args.work_s] * n)
    return client.map(task, [dk.Model("slow")] * n, range(n), *common, pure=False)


def scored(cluster: Any) -> float:
    """Rows of all workers so far."""
    return sum(w.metrics[LOAD]["rows"] for w in cluster.scheduler.workers.values() if LOAD in w.metrics)


def curve(address: str, args: argparse.Namespace) -> dict[int, float]:
    """Rows per second by number of workers."""
    rates = {}
    with cluster_of(address, args) as cluster, Client(cluster) as client:
        futures = submit(client, 100_000, args)
        for workers in range(1, args.most + 1):
            cluster.scale(workers)
            client.wait_for_workers(workers)
            time.sleep(args.warm_s)
            before, begin = scored(cluster), time.monotonic()
            time.sleep(args.seconds)
            rates[workers] = (scored(cluster) - before) / (time.monotonic() - begin)
        client.cancel(futures)
    return rates


def adapted(address: str, name: str, args: argparse.Namespace) -> dict[str, float]:
    """A run under ``adapt()``, watched."""
    with cluster_of(address, args) as cluster, Client(cluster) as client:
        cluster.adapt(minimum=0, maximum=args.most, Adaptive=ADAPTIVES[name])
        begin = last = time.monotonic()
        futures = submit(client, args.tasks, args)
        here, worker_s = [], 0.0
        while not all(future.done() for future in futures):
            time.sleep(EVERY_S)
            now = time.monotonic()
            here.append(len(cluster.scheduler.workers))
            worker_s, last = worker_s + here[-1] * (now - last), now
        if not all(client.gather(futures)):
            raise SystemExit("scores are not those of the rows")
        end = statistics.median(here[len(here) * 2 // 3 :])
        return {
            "workers": end, "worker_s": worker_s,
            "idle_s": worker_s - args.tasks * args.work_s, "run_s": now - begin,
        }  # fmt: skip


def measure_curve(address: str, args: argparse.Namespace) -> list[Row]:
    """Rates, and the knee."""
    curves = [curve(address, args) for _ in range(args.rounds)]
    rows: list[Row] = [
        {"workers": str(n), "rows_per_s": spread(rates[n] for rates in curves)} for n in curves[0]
    ]
    return [*rows, {"workers": "knee", "rows_per_s": spread(max(c.values()) / c[1] for c in curves)}]


def measure_adapted(address: str, args: argparse.Namespace) -> list[Row]:
    """Both, in turns."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ADAPTIVES}
    for _ in range(args.rounds):
        for name, of_name in runs.items():
            of_name.append(adapted(address, name, args))
    rows = []
    for name, of_name in runs.items():
        idle = zip(of_name, runs["Dask's"], strict=True)
        row: Row = {"adapt": name} | {key: spread(run[key] for run in of_name) for key in of_name[0]}
        rows.append(
            row | {"idle_to_Dask's": spread(ours["idle_s"] / theirs["idle_s"] for ours, theirs in idle)}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows-per-s", type=float, default=200, help="of the server")
    parser.add_argument("--rows", type=int, default=20, help="of a task")
    parser.add_argument("--work-s", type=float, default=0.5, help="of a task, before its rows are scored")
    parser.add_argument("--tasks", type=int, default=1200, help="of a run")
    parser.add_argument("--most", type=int, default=12, help="workers")
    parser.add_argument("--warm-s", type=float, default=10.0, help="before a point of the curve")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a point of the curve")
    parser.add_argument("--cluster", choices=["local", "slurm", "htcondor"], default="local")
    parser.add_argument("--parts", nargs="+", choices=["curve", "adapt"], default=["curve", "adapt"])
    add_arguments(parser, rounds=3)
    args = parser.parse_args()
    slow = Served("slow", "accelerator", LENGTH, per_row_us=1e6 / args.rows_per_s)
    points: list[Row] = []
    runs: list[Row] = []
    with serve([slow]) as server:
        if "curve" in args.parts:
            points = measure_curve(server.address, args)
        if "adapt" in args.parts:
            runs = measure_adapted(server.address, args)
    finish("adapt", args, points, runs)


if __name__ == "__main__":
    import bench_adapt  # functions must belong to a module that processes can import, not to __main__

    bench_adapt.main()
