"""``daskonic demo``: the whole chain on this machine, from nothing to a ROC curve."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from daskonic.errors import OutputError, ResponseError

__all__ = ["demo"]

TOLERANCE = 1e-5
"""Batches of another size change the last bits of float32 sums, not more."""


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
    from rich.console import Console

    from daskonic import demo as parts
    from daskonic.cli.tag import _print_summary, _progress_bar, _quiet
    from daskonic.deploy import local_cluster
    from daskonic.features import Features
    from daskonic.model import Model
    from daskonic.server import add_onnx, local_server
    from daskonic.tagging import tag

    _quiet()
    console = Console(stderr=True, highlight=False)
    files = parts.shipped()
    _make_room(output, parts.MODEL)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="daskonic-demo-") as repository:
        add_onnx(repository, parts.MODEL, files.model)
        with local_server(repository, progress=console.print) as server:
            console.print(f"Triton serves {parts.MODEL} on {server.address}")
            with local_cluster(workers, servers=[server.address]) as cluster, cluster.get_client() as client:
                console.print(f"{workers} Dask workers are ready")
                features = Features.from_weaver(files.features)
                model = Model(parts.MODEL, features=features, classes=features.labels)
                tagging = time.monotonic()
                with _progress_bar() as progress:
                    summary = tag(files.jets, model, output, client=client, chunk_size=500, progress=progress)
                tagging = time.monotonic() - tagging
    console.print("comparing every score with ONNX Runtime in this process")
    result = parts.compare(files, summary)
    if result.largest_difference > TOLERANCE:
        raise ResponseError(f"scores differ by {result.largest_difference:.1e} from ONNX Runtime in process")
    picture = output / "demo.png"
    auc = parts.draw(picture, result)
    seconds = time.monotonic() - begin
    if as_json:
        click.echo(json.dumps({
            "picture": str(picture), "auc": round(auc, 5), "largest_difference": result.largest_difference,
            "jets": summary.rows, "events": summary.events, "seconds": round(seconds, 1),
        }))  # fmt: skip
        return
    _print_summary(summary, tagging)
    _print_result(
        {
            "check": f"largest difference from ONNX Runtime in this process {result.largest_difference:.1e}",
            "AUC": f"{auc:.4f}, top against QCD",
            "picture": str(picture),
            "in all": f"{seconds:.0f} s",
        }
    )


def _print_result(facts: dict[str, str]) -> None:
    """What the demo adds to the summary of the tagging, in the same form."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in facts.items():
        table.add_row(name, value)
    Console(soft_wrap=True).print(table)


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
    for made in (output / "scores", output / "partitions.jsonl", manifest):
        shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
