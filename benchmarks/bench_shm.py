"""Is shared memory worth it? The same requests to a server on this host, through it and over the wire.

One thread, a window of requests under way, a transport without a pool. Rates are those of whole
requests answered; both ways run in turn within a round, in changing order, and the ratio is taken per
round.

    python benchmarks/bench_shm.py --rounds 9
"""

from __future__ import annotations

import argparse
import time
from collections import deque

import numpy as np
from results import Row, add_arguments, finish, ratios, spread
from servers import Served, serve

from daskonic.heap import keep_messages
from daskonic.tensors import Request
from daskonic.transport.grpc import GrpcTransport

LENGTH = 2048  # 8 kB a row
WAYS = ("auto", "never")


def rate(transport: GrpcTransport, request: Request, n: int, window: int) -> tuple[float, float]:
    """Requests per second, and seconds of this process's CPU for each."""
    under_way: deque = deque()
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for _ in range(n):
        if len(under_way) == window:
            transport.decode(under_way.popleft().result())
        under_way.append(transport.submit(transport.encode(request), 60))
    while under_way:
        transport.decode(under_way.popleft().result())
    return n / (time.perf_counter() - begin), (time.process_time() - begin_cpu) / n


def compare(transports: dict[str, GrpcTransport], model: str, rows: int, args: argparse.Namespace) -> Row:
    """One size of request, both ways."""
    x = np.random.default_rng(0).normal(size=(rows, LENGTH)).astype("f4")
    request = Request(model, "1", {"X": x}, ("Y",), rows)
    n = max(args.window, min(300, round(args.mbytes * 1e6 / x.nbytes)))
    for transport in transports.values():
        transport.model_spec(model, "", 10)  # tells the size of outputs
        rate(transport, request, args.window, args.window)  # regions, connections, caches
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    for i in range(args.rounds):
        for way in WAYS if i % 2 else WAYS[::-1]:
            per_s, cpu_s = rate(transports[way], request, n, args.window)
            rates[way].append(per_s)
            cpu[way].append(cpu_s / x.nbytes * 1e9)
    return {
        "model": model,
        "MB": x.nbytes / 1e6,
        "MB/s wire": spread(r * x.nbytes / 1e6 for r in rates["never"]),
        "shared memory / wire": ratios(rates["auto"], rates["never"]),
        "CPU ms/MB wire": spread(cpu["never"]),
        "CPU shared / wire": ratios(cpu["auto"], cpu["never"]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, rounds=9)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 128, 32, 16, 8])
    parser.add_argument("--models", nargs="+", default=["sink", "identity"])
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--mbytes", type=float, default=300, help="sent in each measurement")
    args = parser.parse_args()
    keep_messages()
    models = [Served(kind, kind=kind, length=LENGTH, at_once=2) for kind in args.models]
    with serve(models) as server:
        transports = {way: GrpcTransport(server.address, shared_memory=way) for way in WAYS}
        rows = [compare(transports, model, n, args) for model in args.models for n in args.rows]
        for transport in transports.values():
            transport.close()
    finish("shared memory", args, rows)


if __name__ == "__main__":
    main()
