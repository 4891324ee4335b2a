"""The window that is found by itself against fixed ones, and two clusters that know nothing of each other on one server.

The server is a real Triton, the accelerator pretends: a batch takes a known time, one at a time, so what it can do is known.

window    one process with many threads on models of 5, 50 and 500 ms: requests answered per second with the default window,
          over those with the best of some fixed windows
fair      two processes, each with a pool of its own, on one model: Jain's index of the requests that they got answered,
          and how much of what the accelerator can do they used together
          both without a limit to the server's queue and on one of four: there, the part of the requests turned away, too

Everything is repeated in turns; ``median (low to high)``.

    python benchmarks/bench_fair.py --rounds 5
"""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time
from typing import Any

import numpy as np
from results import Row, add_arguments, finish, spread
from servers import Served, serve

import daskonic as dk

LENGTH = 16
WARM_S = 10.0
MODELS_MS, SHARED_MS = (5, 50, 500), 50


def answered(model: dk.Model, threads: int, begin: float, end: float) -> tuple[int, int]:
    """Requests answered to so many threads between two moments, and turned away."""
    counts, turned_away = [0] * threads, []

    def ask(i: int) -> None:
        x = np.full((1, LENGTH), i, np.float32)
        while (now := time.time()) < end:
            if not np.array_equal(model(x), x[:, :2]):
                raise SystemExit("scores are not those of the rows")
            counts[i] += begin <= now

    def watch() -> None:
        time.sleep(max(begin - time.time(), 0))
        turned_away.append(rejections(model))

    running = [threading.Thread(target=ask, args=(i,)) for i in range(threads)]
    running.append(threading.Thread(target=watch))
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(counts), rejections(model) - turned_away[0]


def rejections(model: dk.Model) -> int:
    """Requests that found the server's queue full, so far."""
    return sum(e.rejections_total for e in model.pool().stats().endpoints)


def client(address: str, name: str, threads: int, begin: float, end: float, told: Any) -> None:
    """One cluster: a process of its own."""
    told.put(answered(dk.Model(name, servers=[address], shared_memory="never"), threads, begin, end))


def together(address: str, name: str, args: argparse.Namespace, seconds: float) -> list[tuple[int, int]]:
    """What each of two clients got, after both have had time to begin."""
    context = multiprocessing.get_context("spawn")
    told, begin = context.Queue(), time.time() + args.warm_s
    where = (address, name, args.threads, begin, begin + seconds, told)
    processes = [context.Process(target=client, args=where) for _ in range(2)]
    for process in processes:
        process.start()
    got = [told.get() for _ in processes]
    for process in processes:
        process.join()
    return got


def rate(address: str, name: str, window: int | None, args: argparse.Namespace, seconds: float) -> float:
    """Requests per second of one client."""
    model = dk.Model(name, servers=[address], window=window, shared_memory="never")
    begin = time.time() + min(args.warm_s, 0.5 * seconds)
    n, _ = answered(model, args.threads, begin, begin + seconds)
    model.pool().close()
    return n / seconds


def jain(shares: list[int]) -> float:
    """1 if all are equal, 1/n if one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(x * x for x in shares))


def measure_windows(address: str, args: argparse.Namespace) -> list[Row]:
    """The default window against fixed ones."""
    rates: dict[tuple[int, int | None], list[float]] = {}
    for _ in range(args.rounds):
        for ms in args.models_ms:
            for window in (None, *args.windows):
                seconds = max(args.seconds, 20 * ms / 1e3)
                rates.setdefault((ms, window), []).append(rate(address, f"m{ms}", window, args, seconds))
    rows: list[Row] = []
    for ms in args.models_ms:
        best = max(args.windows, key=lambda w: spread(rates[ms, w])["median"])
        ratios = [a / b for a, b in zip(rates[ms, None], rates[ms, best], strict=True)]
        capacity = [r * ms / 1e3 for r in rates[ms, None]]
        rows.append({
            "window": f"{ms} ms", "best_fixed": best, "default_to_best": spread(ratios),
            "of_capacity": spread(capacity), "target": 0.95,
        })  # fmt: skip
    return rows


def measure_fairness(address: str, args: argparse.Namespace) -> list[Row]:
    """Two clients of one server."""
    rows: list[Row] = []
    for name in args.shared:
        got = [together(address, name, args, 4 * args.seconds) for _ in range(args.rounds)]
        total = [sum(n for n, _ in both) for both in got]
        rows.append({
            "two clients": name,
            "jain": spread(jain([n for n, _ in both]) for both in got),
            "target": 0.95,
            "of_capacity": spread(n * SHARED_MS / 1e3 / (4 * args.seconds) for n in total),
            "rejected_most": max(sum(r for _, r in both) / n for both, n in zip(got, total, strict=True)),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=16, help="that ask one request after the other")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--warm-s", type=float, default=WARM_S, help="before it")
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--models-ms", type=int, nargs="+", choices=MODELS_MS, default=list(MODELS_MS))
    parser.add_argument("--parts", nargs="+", choices=["window", "fair"], default=["window", "fair"])
    parser.add_argument("--shared", nargs="+", choices=["m50", "short"], default=["m50", "short"])
    add_arguments(parser, rounds=3)
    args = parser.parse_args()
    models = [Served(f"m{ms}", "accelerator", LENGTH, fixed_ms=ms, max_batch_size=64) for ms in MODELS_MS]
    models.append(Served("short", "accelerator", LENGTH, fixed_ms=SHARED_MS, max_batch_size=64, queue=4))
    windows, fair = [], []
    with serve(models) as server:
        if "window" in args.parts:
            windows = measure_windows(server.address, args)
        if "fair" in args.parts:
            fair = measure_fairness(server.address, args)
    finish("fair", args, windows, fair)


if __name__ == "__main__":
    import bench_fair  # functions must belong to a module that processes can import, not to __main__

    bench_fair.main()
