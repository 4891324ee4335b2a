"""``daskonic demo``: the whole chain on this machine, from nothing to a ROC curve."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from daskonic.errors import OutputError, ResponseError

__all__ = ["demo"]

PICTURE = "demo.png"


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("daskonic-demo"), show_default=True,
    help="Folder for the scores and the picture; those of an earlier demo there are replaced.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Dask worker processes."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def demo(output: Path, workers: int, as_json: bool) -> None:
    """Tag the shipped jets: a Triton server and Dask workers on this machine, and a check of every score.

    Starts a local Triton with the shipped ParticleNet and a Dask cluster, tags top and QCD jets of four ROOT files,
    compares every score with ONNX Runtime in this process, and draws the ROC curve. Nothing is left running.
    """
    import matplotlib  # noqa: F401, ICN001 - what is missing is said at the beginning
    from distributed import Client
    from rich.console import Console

    from daskonic import demo as parts
    from daskonic.cli.terminal import interrupts_ignored, print_summary, progress_bar, quiet, quiet_workers
    from daskonic.deploy import local_cluster
    from daskonic.features import Features
    from daskonic.model import Model
    from daskonic.server import add_onnx, local_server
    from daskonic.tagging import tag
    from daskonic.tolerance import TOLERANCE
    from daskonic.transport.onnx import import_onnxruntime

    import_onnxruntime()
    quiet()
    console = Console(stderr=True, highlight=False)
    files = parts.shipped()
    _make_room(output, parts.MODEL)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="daskonic-demo-") as repository:
        add_onnx(repository, parts.MODEL, files.model)
        with local_server(repository, progress=console.print) as server:
            console.print(f"Triton serves {parts.MODEL} on {server.address}")
            tagging = time.monotonic()
            with interrupts_ignored():
                cluster = local_cluster(workers, servers=[server.address], silence_logs=logging.CRITICAL)
            with (
                cluster,
                Client(cluster) as client,  # type: ignore[no-untyped-call]
                progress_bar() as progress,
            ):
                client.register_plugin(quiet_workers())
                console.print(f"{workers} Dask workers are ready")
                features = Features.from_weaver(files.features)
                model = Model(parts.MODEL, features=features, classes=features.labels)
                summary = tag(files.jets, model, output, client=client, chunk_size=500, progress=progress)
            tagging = time.monotonic() - tagging
    console.print("comparing every score with ONNX Runtime in this process")
    result = parts.compare(files, summary)
    if result.largest_difference > TOLERANCE:
        raise ResponseError(f"scores differ by {result.largest_difference:.1e} from ONNX Runtime in process")
    picture = output / PICTURE
    auc = parts.draw(picture, result)
    seconds = time.monotonic() - begin
    if as_json:
        click.echo(json.dumps({
            "picture": str(picture), "auc": round(auc, 5), "largest_difference": result.largest_difference,
            "jets": summary.rows, "events": summary.events, "seconds": round(seconds, 1),
        }))  # fmt: skip
        return
    print_summary(
        summary,
        tagging,
        {
            "check": f"largest difference from ONNX Runtime in this process {result.largest_difference:.1e}",
            "AUC": f"{auc:.4f}, top against QCD",
            "picture": str(picture),
            "in all": f"{seconds:.0f} s",
        },
    )


def _make_room(output: Path, model: str) -> None:
    """Remove what an earlier demo left; anything else in the folder is not ours to remove."""
    manifest = output / "manifest.json"
    try:
        earlier: Any = json.loads(manifest.read_text())["identity"]["model"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(
            f"{manifest} cannot be read ({error}); choose another folder with --output"
        ) from error
    if earlier != model:
        raise OutputError(f"{output} holds scores of model {earlier!r}; choose another folder with --output")
    for made in (
        output / "scores",
        output / "partitions.jsonl",
        output / ".lock",
        output / PICTURE,
        manifest,
    ):
        shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
