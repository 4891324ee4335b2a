"""What travels, and what the server makes of it: rows padded to the full length against rows in batches of similar length.

The shipped jets and the shipped ParticleNet (points, features and mask of up to 128 constituents), a real Triton on this
machine, two Dask workers of four threads each. Both ways run in turns in every round. Told are

- bytes sent for each useful byte (values of the jets' own constituents, in the model's dtype),
- jets per second, all of it: reading apart, features, sending, inference,
- executions of the server that joined several requests. Triton's statistics give requests and executions; a few lines
  added to the served model write down how many requests each execution had, and how many runs of ONNX Runtime it made
  of them, one for each shape.

``ragged`` is the model as ``daskonic.server.add_onnx`` writes it, whose inputs may come in different lengths in
one execution (``allow_ragged_batch``); ``equal`` is the same without, where only requests of one shape that wait next to
each other are joined.

    python benchmarks/bench_wire.py [--rounds 3] [--rows 128] [--files 4] [--models ragged equal]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import awkward as ak
from distributed import Client, LocalCluster
from results import Row, add_arguments, finish, ratios, spread

import daskonic as dk
from daskonic import demo, server, tagging

WINDOW = 8
WAYS = ("auto", "never")
FEW = 100

RECORDER = """

class Recorded(TritonPythonModel):
    def execute(self, requests):
        self.runs = 0
        responses = super().execute(requests)
        with open(RECORD, "a") as file:
            file.write(f"{len(requests)} {self.runs}\\n")
        return responses

    def run(self, inputs):
        self.runs += 1
        return super().run(inputs)


TritonPythonModel = Recorded
"""


def add_model(repository: Path, name: str) -> Path:
    """The shipped network with a recorder; the file that it writes."""
    model = server.add_onnx(repository, name, demo.shipped().model)
    record = repository.parent / f"{name}.txt"
    record.touch()
    code = model / "1" / "model.py"
    code.write_text(code.read_text() + f"\n\nRECORD = {str(record)!r}" + RECORDER)
    if name == "equal":
        config = model / "config.pbtxt"
        config.write_text(config.read_text().replace(" allow_ragged_batch: true", ""))
    return record


def counts(address: str, model: str) -> Counter[str]:
    """Triton's own counters of a model."""
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(address) as client:
        (stats,) = client.get_inference_statistics(model).model_stats
    return Counter(
        rows=stats.inference_count,
        executions=stats.execution_count,
        requests=stats.inference_stats.success.count,
    )


def score(model: dk.Model, jets: Any) -> dk.Report:
    """One task."""
    pending = model.submit(jets)
    pending.result()
    return pending.report


def measure(
    client: Client, address: str, record: Path, model: dk.Model, jets: Sequence[Any]
) -> dict[str, float]:
    """All jets once, in one task for each array."""
    before, begin = counts(address, model.name), time.perf_counter()
    record.write_text("")
    report = dk.Report.merge(client.gather([client.submit(score, model, j, pure=False) for j in jets]))
    wall_s = time.perf_counter() - begin
    server_side = counts(address, model.name) - before
    executions = [tuple(map(int, line.split())) for line in record.read_text().splitlines()]
    return {
        "bytes": report.sent_nbytes / report.useful_nbytes,
        "jets_per_s": report.rows / wall_s,
        "requests": server_side["requests"],
        "executions": server_side["executions"],
        "joined": sum(n > 1 for n, _ in executions) / len(executions),
        "runs": sum(runs for _, runs in executions),
    }


def few_at_a_time(address: str, features: dk.Features, jets: Sequence[Any]) -> Row:
    """Bytes where each call has 100 jets only."""
    calls = [part for j in jets for part in (ak.flatten(j)[s : s + FEW] for s in range(0, 10 * FEW, FEW))]
    row: Row = {"call": f"{FEW} jets"}
    for way in WAYS:
        model = dk.Model("ragged", features=features, servers=[address], trim=way)
        reports = [score(model, part) for part in calls][1:]  # the first one tries the lengths
        row[f"bytes, {way}"] = spread(r.sent_nbytes / r.useful_nbytes for r in reports)
    return row


def compare(
    client: Client,
    address: str,
    record: Path,
    name: str,
    features: dk.Features,
    jets: Sequence[Any],
    args: Any,
) -> list[Row]:
    """Both ways in turns on one model."""
    models = {way: dk.Model(name, features=features, trim=way, batch_size=args.rows) for way in WAYS}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(2):  # each worker tries the lengths once
        measure(client, address, record, models["auto"], jets)
    for _ in range(args.rounds):
        for way in WAYS:
            found[way].append(measure(client, address, record, models[way], jets))
    faster = ratios(*([f["jets_per_s"] for f in found[way]] for way in WAYS))
    return [
        {
            "model": name,
            "trim": way,
            "bytes sent / useful": spread(f["bytes"] for f in found[way]),
            "jets/s": spread(f["jets_per_s"] for f in found[way]),
            "against never": faster if way == "auto" else None,
            "requests": found[way][-1]["requests"],
            "executions": spread(f["executions"] for f in found[way]),
            "joined": spread(f["joined"] for f in found[way]),
            "ONNX runs": spread(f["runs"] for f in found[way]),
        }
        for way in WAYS
    ]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Start server and workers, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, rounds=3)
    parser.add_argument("--rows", type=int, default=128, help="most rows in one request")
    parser.add_argument("--files", type=int, default=4, help="of the shipped files")
    parser.add_argument("--models", nargs="+", choices=("ragged", "equal"), default=("ragged", "equal"))
    args = parser.parse_args(arguments)
    files = demo.shipped()
    features = dk.Features.from_weaver(files.features)
    jets = [tagging.read_file(path, features).jets for path in files.jets[: args.files]]
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        records = {name: add_model(repository, name) for name in {"ragged", *args.models}}
        with (
            dk.local_server(repository) as triton,
            LocalCluster(n_workers=2, threads_per_worker=4, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            client.register_plugin(dk.InferencePlugin([triton.address], window=WINDOW))
            few = [few_at_a_time(triton.address, features, jets[:1])]
            rows: list[Row] = []
            for name in args.models:
                rows += compare(client, triton.address, records[name], name, features, jets, args)
    finish("wire", args, few, rows)
    return few + rows


if __name__ == "__main__":
    main()
