"""Run ``ttbar.py`` on the shipped files, with Triton and two Dask workers on this machine.

    pip install -e '.[coffea,server]' && python examples/analysis/run.py

At a facility, only ``serve`` and the cluster are others: the processor stays as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coffea.nanoevents import NanoAODSchema
from coffea.processor import DaskExecutor, IterativeExecutor, Runner
from distributed import Client
from ttbar import TtbarAnalysis, assigner

import daskonic as dk
from daskonic.server import LocalServer, add_onnx

DATA = Path(__file__).parent / "data"
FILES = {"ttbar": ["ttbar_11.root", "ttbar_12.root"], "wjets": ["wjets_21.root"]}


@contextmanager
def serve() -> Iterator[LocalServer]:
    """Start a Triton with both networks: version 1 was trained on even events, version 2 on odd ones."""
    with TemporaryDirectory() as folder:
        for version, seen in ((1, "even"), (2, "odd")):
            path = DATA / f"trained_on_{seen}.onnx"
            add_onnx(folder, "jet_assignment", path, version=version, max_batch_size=8192)
        with dk.local_server(folder) as server:
            yield server


def fileset(data: Path = DATA) -> dict[str, Any]:
    """Return what coffea's Runner reads."""
    return {
        process: {"files": {str(data / name): "Events" for name in names}, "metadata": {"process": process}}
        for process, names in FILES.items()
    }


def analyse(score: Any, client: Client | None = None, **options: Any) -> dict[str, Any]:
    """Return the histograms of all files, made by a cluster if there is one; ``options`` are the Runner's."""
    executor = (
        IterativeExecutor(status=False) if client is None else DaskExecutor(client=client, status=False)
    )
    runner = Runner(executor=executor, schema=NanoAODSchema, **{"chunksize": 2500, **options})
    return runner(fileset(), TtbarAnalysis(score), treename="Events")


def main() -> None:
    """Print how far each variation moves the mass of the hadronic top."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with (
        serve() as server,
        dk.local_cluster(args.workers, servers=[server.address]) as cluster,
        Client(cluster) as client,
    ):
        made = analyse(assigner(), client)
    top = made["observable"][{"process": "ttbar", "region": "4j2b"}]
    print(f"{made['events']} events")
    for variation in top.axes["variation"]:
        one = top[{"variation": variation}]
        total, mean = one.sum().value, (one.values() * one.axes[0].centers).sum() / one.values().sum()
        print(f"{variation:16} {total:8.1f} events in 4j2b, hadronic top {mean:6.1f} GeV on average")


if __name__ == "__main__":
    main()
