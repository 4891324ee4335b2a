"""Do coffea's chunks wait for one another? Processors with inference against the same processor without.

The shipped PFNano files in chunks, by coffea's own ``Runner`` and ``DaskExecutor``, on two workers of one core each. A
chunk takes 0.4 s of CPU, about 0.1 s more for coffea to open and read it, and 0.5 s of a server that has room for all of
them. Four forms of one analysis:

none       no inference: the scores are made of the same columns
sync       ``process`` with ``scores = model(jets)`` in its middle
two-phase  ``dk.TwoPhaseProcessor`` with ``acquire`` and ``produce``
blocking   ``process`` with tritonclient's ``infer``, as in a client of one's own

on two clusters: a user's ``LocalCluster`` with one thread a worker, as coffea starts it, and ``dk.local_cluster``. Accumulators
are compared with those of the form without inference. ``of_none`` is the throughput over that of ``none``, in the same round.

CPU time is a sleep under a lock of the process by default, as in ``bench_overlap.py``; reading and merging come on top of it.

    python benchmarks/bench_processor.py --rounds 5
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import awkward as ak
import numpy as np
from bench_overlap import CORE
from coffea import processor
from coffea.nanoevents import PFNanoAODSchema
from distributed import Client, LocalCluster
from results import Row, add_arguments, finish, ratios, spread
from servers import Served, serve

import daskonic as dk
from daskonic import demo

LENGTH = 16
COLUMNS = ("pt", "eta", "phi", "mass")
FORMS = ("none", "sync", "two-phase", "blocking")
TARGETS = {"sync": 0.85, "two-phase": 0.93}
WIRE = {"shared_memory": "never"}  # the server stands for one elsewhere


def inputs(jets: Any) -> dict[str, list[Any]]:
    """The four-vector of each jet, several times."""
    return {"X": [jets[COLUMNS[i % len(COLUMNS)]] for i in range(LENGTH)]}


def compute(seconds: float) -> None:
    """Use the worker's core for a while."""
    with CORE:
        time.sleep(seconds)


def select(events: Any, cpu_s: float) -> Any:
    """What comes before the scores."""
    compute(0.75 * cpu_s)
    return events.FatJet[events.FatJet.pt > 200]


def count(events: Any, scores: Any, cpu_s: float) -> dict[str, Any]:
    """What comes after: numbers that tell whether every jet has its own scores."""
    compute(0.25 * cpu_s)
    sums = [float(ak.sum(ak.values_astype(scores[..., i], np.float64))) for i in range(2)]
    return {events.metadata["dataset"]: {"events": len(events), "jets": int(ak.sum(ak.num(scores))), "sums": np.array(sums)}}  # fmt: skip


class Synchronous(processor.ProcessorABC):
    """The plain form; ``scorer`` may be a model or any function."""

    def __init__(self, scorer: Any, cpu_s: float) -> None:
        self.scorer, self.cpu_s = scorer, cpu_s

    def process(self, events: Any) -> dict[str, Any]:
        return count(events, self.scorer(select(events, self.cpu_s)), self.cpu_s)


class TwoPhase(dk.TwoPhaseProcessor):
    """The same in two phases."""

    def __init__(self, model: dk.Model, cpu_s: float) -> None:
        self.model, self.cpu_s = model, cpu_s

    def acquire(self, events: Any) -> Any:
        return self.model.submit(select(events, self.cpu_s))

    def produce(self, events: Any, scores: Any) -> dict[str, Any]:
        return count(events, scores, self.cpu_s)


def score_locally(jets: Any) -> Any:
    """What the server answers: the first two numbers."""
    columns = [jets[name] for name in COLUMNS]  # all that the model reads
    return ak.concatenate([ak.values_astype(c, np.float32)[..., None] for c in columns], axis=-1)[..., :2]


class Blocking:
    """A client of one's own: one request after the other, made when it is unpickled."""

    def __init__(self, address: str, batch: int) -> None:
        self.address, self.batch = address, batch

    def __call__(self, jets: Any) -> Any:
        from tritonclient import grpc

        flat = ak.to_numpy(ak.flatten(ak.concatenate([jets[c][..., None] for c in COLUMNS], axis=-1)))
        x = np.tile(flat.astype(np.float32), (1, LENGTH // len(COLUMNS)))
        client, answers = grpc.InferenceServerClient(self.address), [np.empty((0, 2), np.float32)]
        for start in range(0, len(x), self.batch):
            piece = x[start : start + self.batch]
            tensor = grpc.InferInput("X", piece.shape, "FP32")
            tensor.set_data_from_numpy(piece)
            answers.append(client.infer("accelerator", [tensor]).as_numpy("Y"))
        client.close()
        return ak.unflatten(np.concatenate(answers), ak.num(jets))


@contextmanager
def clusters(address: str, args: argparse.Namespace) -> Iterator[dict[str, Client]]:
    """Clients of the clusters that are wanted."""
    with ExitStack() as stack:
        made: dict[str, Client] = {}
        if "user's" in args.clusters:
            users = stack.enter_context(
                LocalCluster(args.workers, threads_per_worker=1, dashboard_address=":0")
            )
            made["user's, 1 thread"] = stack.enter_context(Client(users))
            made["user's, 1 thread"].register_plugin(dk.InferencePlugin(servers=[address], **WIRE))
        if "daskonic's" in args.clusters:
            ours = stack.enter_context(dk.local_cluster(args.workers, servers=[address], settings=WIRE))
            made["daskonic's"] = stack.enter_context(Client(ours))
        yield made


def chunks(args: argparse.Namespace) -> list[Any]:
    """Work items of coffea, as many as asked for: those of the shipped files, again and again under other names."""
    files = {str(path): "Events" for path in demo.shipped().jets}
    runner = processor.Runner(
        processor.IterativeExecutor(status=False), schema=PFNanoAODSchema, chunksize=args.events
    )
    items: list[Any] = []
    while len(items) < args.chunks:
        items += list(runner.preprocess({f"pass {len(items)}": {"files": files}}))
    return items[: args.chunks]


def run(client: Client, form: Any, items: list[Any]) -> tuple[float, Any]:
    """Wall time and accumulator."""
    executor = processor.DaskExecutor(client=client, status=False, retries=0)
    runner = processor.Runner(executor, schema=PFNanoAODSchema)
    begin = time.perf_counter()
    made = runner(items, form)
    return time.perf_counter() - begin, made


def check(form: str, made: Any, right: Any) -> None:
    """SystemExit unless both accumulators are the same."""
    for name, numbers in right.items():
        if made[name]["jets"] != numbers["jets"] or not np.allclose(
            made[name]["sums"], numbers["sums"], rtol=1e-12
        ):
            raise SystemExit(f"{form}: {made[name]} is not {numbers}")


def measure(args: argparse.Namespace) -> list[Row]:
    """All forms on all clusters, in turns."""
    items = chunks(args)
    batch = -(-2 * args.events // args.requests)  # about two jets in each event
    served = Served(
        "accelerator", "accelerator", LENGTH, fixed_ms=args.wait_ms / args.requests, at_once=args.at_once
    )
    features, cpu_s = dk.Features(inputs), args.cpu_ms / 1e3
    model = dk.Model("accelerator", features=features, batch_size=batch)
    walls: dict[tuple[str, str], list[float]] = {}
    with serve([served]) as server, clusters(server.address, args) as clients:
        forms = {
            "none": Synchronous(score_locally, cpu_s),
            "sync": Synchronous(model, cpu_s),
            "two-phase": TwoPhase(model, cpu_s),
            "blocking": Synchronous(Blocking(server.address, batch), cpu_s),
        }
        for client in clients.values():  # imports, first contact
            for form in args.forms:
                run(client, forms[form], items[: 4 * args.workers])
        for _ in range(args.rounds):
            for cluster, client in clients.items():
                right = None
                for form in args.forms:
                    wall_s, made = run(client, forms[form], items)
                    right = made if right is None else right
                    check(form, made, right)
                    walls.setdefault((cluster, form), []).append(wall_s)
    return [
        {
            "cluster": cluster,
            "form": form,
            "wall_s": spread(seconds),
            "of_none": ratios(walls[cluster, "none"], seconds),
            "target": TARGETS.get(form),
        }
        for (cluster, form), seconds in walls.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--events", type=int, default=36, help="in each chunk")
    parser.add_argument("--cpu-ms", type=float, default=400.0)
    parser.add_argument("--wait-ms", type=float, default=500.0, help="server time of a chunk")
    parser.add_argument("--requests", type=int, default=1, help="that share a chunk's server time")
    parser.add_argument("--at-once", type=int, default=12, help="batches the server works on")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument(
        "--clusters", nargs="+", choices=["user's", "daskonic's"], default=["user's", "daskonic's"]
    )
    add_arguments(parser, rounds=3)
    args = parser.parse_args()
    if args.forms[0] != "none":
        args.forms = ["none", *args.forms]
    finish("processor", args, measure(args))


if __name__ == "__main__":
    import bench_processor  # processors must belong to a module that workers can import, not to __main__

    bench_processor.main()
