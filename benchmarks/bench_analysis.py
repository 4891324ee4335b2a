"""The t t̄ analysis of ``examples/analysis`` in three forms, on two Dask workers, in turns; the same histograms.

daskonic       all variations and both folds in one call: each distinct row once, all requests in flight together
coffea         coffea's ``triton_wrapper``, a call for each variation and fold, as the Analysis Grand Challenge has it
in process     ONNX Runtime in the worker, one thread, a session for each network
none           no inference at all: what reading, selecting, making inputs and filling cost

Server and workers share the cores of one machine, and the network is small, so this tells what each way of
calling costs, not what an accelerator gains.

    python benchmarks/bench_analysis.py --rounds 5
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory
from distributed import Client, LocalCluster
from results import Row, add_arguments, finish, ratios, spread

import daskonic as dk

EXAMPLE = Path(__file__).parents[1] / "examples" / "analysis"
sys.path.insert(0, str(EXAMPLE))

import run as example
import ttbar

FORMS = ("daskonic", "coffea", "in process", "none")


class ByHand:
    """Scores as analyses without daskonic make them: each variation by itself, even and odd events apart."""

    def __call__(self, variations: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
        """The same as a KFold of Variations."""
        return {name: self.scores(c, numbers[name]) for name, c in variations.items()}

    def scores(self, c: Any, number: Any) -> Any:
        """Scores of one variation: those of even events by the network that was trained on odd ones."""
        columns = [ak.to_numpy(ak.flatten(f)) for f in ttbar.features(c)]
        x = np.stack(columns, axis=1).astype(np.float32)
        even = np.repeat(ak.to_numpy(number) % 2 == 0, ak.num(c))
        score = np.empty(len(x), np.float32)
        for which, seen in ((even, "odd"), (~even, "even")):
            score[which] = self.infer(x[which], seen)[:, 0]
        return ak.unflatten(ak.zip({"right": score}), ak.num(c))

    def infer(self, x: np.ndarray, seen: str) -> np.ndarray:  # noqa: ARG002
        """No inference."""
        return np.zeros((len(x), 1), np.float32)


class ByCoffea(ByHand):
    """coffea's wrapper, whose clients are made once in each process."""

    def __init__(self, address: str) -> None:
        self.address = address

    def infer(self, x: np.ndarray, seen: str) -> np.ndarray:
        """One network on the server."""
        wrapper = coffea_wrapper(self.address, {"even": 1, "odd": 2}[seen])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return wrapper(["score"], {"features": x})["score"]


class InProcess(ByHand):
    """ONNX Runtime here."""

    def infer(self, x: np.ndarray, seen: str) -> np.ndarray:
        """One network in this process."""
        return session(seen).run(["score"], {"features": x})[0]


@cache
def coffea_wrapper(address: str, version: int) -> Any:
    """The wrapper as a user writes it; it finds the batch size by itself."""
    from coffea.ml_tools.triton_wrapper import triton_wrapper

    class Wrapper(triton_wrapper):
        def prepare_awkward(self, *_: Any) -> Any:
            raise NotImplementedError  # only NumPy here

    return Wrapper(f"triton+grpc://{address}/jet_assignment/{version}", client_args={"ssl": False})


@cache
def session(seen: str) -> Any:
    """ONNX Runtime's session of one network."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(EXAMPLE / "data" / f"trained_on_{seen}.onnx", options)


def bins(made: Mapping[str, Any]) -> dict[tuple[str, ...], bytes]:
    """Contents and variances of every bin, by histogram and categories, bit by bit."""
    told = {}
    for name in ("observable", "score"):
        h = made[name]
        labels = [list(axis) for axis in h.axes if isinstance(axis[0], str)]
        for index in np.ndindex(*map(len, labels)):
            key = (name, *(some[i] for some, i in zip(labels, index, strict=True)))
            told[key] = h[(*index, ...)].view(flow=True).tobytes()
    return told


def counts(score: dk.KFold) -> tuple[int, int]:
    """Rows of the first 500 events that are sent, and those that need not be."""
    path = str(example.DATA / example.FILES["ttbar"][0])
    events = NanoEventsFactory.from_root(
        {path: "Events"}, schemaclass=NanoAODSchema, mode="eager", entry_stop=500
    ).events()
    chosen = {
        name: ttbar.select(events, factor(events.Jet))["4j2b"] for name, factor in ttbar.VARIATIONS.items()
    }
    objects = dk.Variations({name: ttbar.candidates(some) for name, some in chosen.items()})
    pending = score.submit(objects, {name: some.number for name, some in chosen.items()})
    pending.result()
    return pending.report.rows, pending.report.saved


def measure(args: argparse.Namespace) -> list[Row]:
    """One line for each form."""
    times_s: dict[str, list[float]] = {form: [] for form in args.forms}
    expected: dict[tuple[str, ...], bytes] = {}
    with (
        example.serve() as server,
        LocalCluster(args.workers, threads_per_worker=args.threads, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(dk.InferencePlugin(servers=[server.address], shared_memory="never"))
        scores: dict[str, Any] = {
            "daskonic": ttbar.assigner(),
            "coffea": ByCoffea(server.address),
            "in process": InProcess(),
            "none": ByHand(),
        }
        sent, saved = counts(ttbar.assigner(servers=[server.address]))
        for turn in range(args.rounds + 1):
            for form in args.forms:
                begin = time.perf_counter()
                made = example.analyse(scores[form], client, chunksize=args.chunksize, maxchunks=args.chunks)
                if turn:  # the first one imports, connects and compiles
                    times_s[form].append(time.perf_counter() - begin)
                if form != "none" and bins(made) != (expected := expected or bins(made)):
                    raise ValueError(f"histograms of {form} are not those of {args.forms[0]}")
    n_events = sum(made["events"].values())
    return [
        {
            "form": form,
            "events": n_events,
            "seconds": spread(times),
            "to_in_process": ratios(times, times_s["in process"]) if "in process" in times_s else None,
            "rows_saved": saved / (sent + saved) if form == "daskonic" else 0.0,
        }
        for form, times in times_s.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--chunksize", type=int, default=2500)
    parser.add_argument("--chunks", type=int, default=None, help="of each process; default is all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of a worker")
    add_arguments(parser, rounds=3)
    args = parser.parse_args()
    finish("analysis", args, measure(args))


if __name__ == "__main__":
    import bench_analysis  # tasks must belong to a module that workers can import, not to __main__

    bench_analysis.main()
