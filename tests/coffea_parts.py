"""What tests with coffea share: its executors, schemas, and processors whose accumulators tell every score."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from typing import Any

import awkward as ak
from coffea import processor
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory, PFNanoAODSchema

import daskonic as dk

EXECUTORS = ("iterative", "loky", "fork", "threads", "dask")


class Nano(NanoAODSchema):
    """NanoAOD; the tests' files have few of its branches."""

    warn_missing_crossrefs = False


class PFNano(PFNanoAODSchema):
    """PFNano."""

    warn_missing_crossrefs = False


class Own(NanoAODSchema):
    """A user's: jets are plain vectors, candidates too."""

    warn_missing_crossrefs = False
    mixins = {"FatJet": "PtEtaPhiMLorentzVector", "PFCands": "PtEtaPhiMLorentzVector"}  # noqa: RUF012


def executor(name: str, client: Any = None) -> Any:
    """One of coffea's executors, with two workers where it has any."""
    if name == "iterative":
        return processor.IterativeExecutor(status=False)
    if name == "dask":
        return processor.DaskExecutor(client=client, status=False, retries=0)
    pools = {
        "threads": {"pool": concurrent.futures.ThreadPoolExecutor},
        "fork": {"pool": forking},
        "loky": {},
    }
    return processor.FuturesExecutor(workers=2, status=False, **pools[name])


def forking(max_workers: int) -> concurrent.futures.ProcessPoolExecutor:
    """Processes that are copies of this one, threads and connections and all: the default before Python 3.14."""
    context = multiprocessing.get_context("fork")
    return concurrent.futures.ProcessPoolExecutor(max_workers, mp_context=context)


def run(
    executor: Any, made: Any, files: dict[str, Any], schema: Any = PFNano, chunksize: int = 25, **options: Any
) -> Any:
    """The accumulator of a processor; ``files`` are lists by the name of the data set."""
    runner = processor.Runner(executor, schema=schema, chunksize=chunksize, **options)
    fileset = {name: {"files": {str(path): "Events" for path in paths}} for name, paths in files.items()}
    return runner(fileset, made)


def nano_events(
    path: Any, schema: Any = PFNano, mode: str = "virtual", dataset: str = "jets", **options: Any
) -> Any:
    """Events as coffea's own tools give them."""
    return NanoEventsFactory.from_root(
        {str(path): "Events"}, schemaclass=schema, mode=mode, metadata={"dataset": dataset}, **options
    ).events()


def codes(jets: Any) -> dict[str, Any]:
    """Codes of the constituents, of which the model ``sum`` gives the sum."""
    return {"X": jets["constituents"]["code"]}


CODES = dk.Features(codes, pad={"X": dk.Pad(16)})


def by_event(events: Any, scores: Any) -> dict[str, Any]:
    """All scores, by data set and event number."""
    pairs = zip(ak.to_list(events.event), ak.to_list(scores), strict=True)
    return {events.metadata["dataset"]: {"events": len(events), "scores": dict(pairs)}}


class Synchronous(processor.ProcessorABC):
    """The plain form."""

    def __init__(self, model: dk.Model) -> None:
        self.model = model

    def process(self, events: Any) -> dict[str, Any]:
        return by_event(events, self.model(dk.link_constituents(events))[..., 0])


class TwoPhase(dk.TwoPhaseProcessor):
    """The same in two phases."""

    def __init__(self, model: dk.Model) -> None:
        self.model = model

    def acquire(self, events: Any) -> dk.Pending:
        return self.model.submit(dk.link_constituents(events))

    def produce(self, events: Any, scores: Any) -> dict[str, Any]:
        return by_event(events, scores[..., 0])


def truth(**datasets: Any) -> dict[str, Any]:
    """What they must give, from the lists that the files were made from."""
    return {
        name: {"events": len(events), "scores": dict(zip(events.event, events.sums(), strict=True))}
        for name, events in datasets.items()
    }
