"""Each network of the papers through a real Triton and in this process, on the same CPU and in turns.

Both begin with the same jagged toy events and end with the scores of all rows, and ONNX Runtime has one thread in either.
On the server's way there are messages, copies and the nesting around the scores as well; but a second process, too, that
computes while this one makes the next inputs, and rows of similar length together, where the network takes any length. The largest
difference is absolute up to 1 and relative above, as is the tolerance that the script of the network declares.

    python benchmarks/bench_models.py [--rounds 5] [--seconds 2] [--models NAME ...] [--markdown]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tritonclient.grpc
from results import Row, add_arguments, finish, ratios, spread

import daskonic as dk
from daskonic.tensors import TensorSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from models.catalogue import NETWORKS
from models.served import InProcess, Served

MOST_EVENTS = 4096


def shape(tensors: tuple[TensorSpec, ...], wanted: Any = None) -> str:
    """Dimensions of one row of each tensor, a repeated one once."""
    told: dict[str, int] = {}
    for tensor in tensors:
        if not wanted or tensor.name in wanted:
            dims = "x".join("n" if d < 0 else str(d) for d in tensor.shape) or "1"
            told[dims] = told.get(dims, 0) + 1
    return ", ".join(f"{n} of {dims}" if n > 1 else dims for dims, n in told.items())


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time and result of one call."""
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def enough(served: Served, in_process: InProcess, at_least_s: float) -> Any:
    """Events that take about this long in process."""
    n_events = 1
    while True:
        objects = served.sample(np.random.default_rng(n_events), n_events)
        if (
            seconds(lambda objects=objects: in_process(objects))[0] > at_least_s / 2
            or n_events >= MOST_EVENTS
        ):
            return objects
        n_events *= 2


def compare(served: Served, server: dk.LocalServer, args: argparse.Namespace) -> Row:
    """One network: shapes, rates of both, difference."""
    folder = served.add_to(server.repository)
    with tritonclient.grpc.InferenceServerClient(server.address) as client:
        client.load_model(served.name)
        try:
            return measure(served, server.address, folder / "1" / "model.onnx", args)
        finally:
            client.unload_model(served.name)


def measure(served: Served, address: str, path: Path, args: argparse.Namespace) -> Row:
    """Both ways in turns."""
    model = served.model([address], batch_bytes="64 MiB", timeout="5 m")
    spec = model.spec()
    in_process = InProcess(served, path, spec)
    objects = enough(served, in_process, args.seconds)
    n_rows = model.submit(objects).report.rows  # and lengths are tried, shared memory is made
    ways: dict[str, Callable[[], Any]] = {
        "server": lambda: model(objects),
        "in process": lambda: in_process(objects),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    last = {}
    for i in range(args.rounds):
        for way in list(ways)[:: 1 if i % 2 else -1]:
            wall_s, last[way] = seconds(ways[way])
            rates[way].append(n_rows / wall_s)
    told = {p.key: p.value for p in onnx.load(path).metadata_props}
    difference = in_process.difference(last["server"], last["in process"])
    return {
        "model": served.name,
        "inputs": shape(spec.inputs),
        "outputs": shape(spec.outputs, served.outputs),
        "parameters": int(told["parameters"]) if "parameters" in told else None,
        "batch": served.batch,
        "row": served.row,
        "rows": n_rows,
        "rows/s server": spread(rates["server"]),
        "rows/s in process": spread(rates["in process"]),
        "server / in process": ratios(rates["server"], rates["in process"]),
        "difference": f"{difference:.0e}" if difference else "0",
        "tolerance": served.tolerance,
    }


def print_markdown(rows: list[Row]) -> None:
    """The README's table."""
    print(
        "| network | inputs of a row | outputs | parameters | batch | rows/s server | in process | ratio | difference |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        rate, own, ratio = (row[k] for k in ("rows/s server", "rows/s in process", "server / in process"))
        parameters = "-" if row["parameters"] is None else f"{row['parameters']:,}"
        print(
            f"| `{row['model']}` | {row['inputs']} | {row['outputs']} | {parameters} | {row['batch']:,} {row['row']}s | "
            f"{three_digits(rate['median'])} | {three_digits(own['median'])} | {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) | "
            f"{row['difference']} |"
        )


def three_digits(value: float) -> str:
    """A number rounded, with commas."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, rounds=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="about the time of one measurement")
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--markdown", action="store_true", help="print the README's table, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="daskonic-bench-") as folder:
        flags = ("--backend-config=python,shm-default-byte-size=67108864",)  # requests of 64 MB
        with dk.local_server(folder, model_control="explicit", flags=flags) as server:
            rows = [compare(NETWORKS[name], server, args) for name in args.models]
    finish("models", args, rows)
    if args.markdown:
        print_markdown(rows)


if __name__ == "__main__":
    main()
