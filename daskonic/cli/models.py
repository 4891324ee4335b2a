"""``daskonic models``: entries of a model repository."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click

__all__ = ["models"]


@click.group()
def models() -> None:
    """Write entries of a model repository, and find what is wrong with them."""


@models.command()
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("onnx_path", metavar="FILE.onnx", type=click.Path(path_type=Path))
@click.option("--name", help="What clients call the model; default is the file's name without .onnx.")
@click.option("--version", type=click.IntRange(1), default=1, show_default=True, help="Version to write.")
@click.option("--max-batch-size", type=click.IntRange(0), default=1024, show_default=True,
              help="Most rows in a request; 0 if the model has no batch dimension.")  # fmt: skip
@click.option("--instances", type=click.IntRange(1), default=1, show_default=True,
              help="Copies of the model that work side by side.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of each copy.")
@click.option("--queue-delay-us", type=click.IntRange(0), default=500, show_default=True,
              help="How long a request waits for others to share its execution.")  # fmt: skip
@click.option("--queue-size", type=click.IntRange(1),
              help="Most requests that wait; default is any number, since a limit slows Triton 2.51 down.")  # fmt: skip
@click.option("--backend", type=click.Choice(["python", "onnxruntime"]), default="python", show_default=True,
              help="Triton's backend: python is in every Triton, onnxruntime for production.")  # fmt: skip
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True,
              help="Where the copies work.")  # fmt: skip
@click.option("--label", "labels", multiple=True, help="Name of a class, in order; repeat it.")
def add(
    repository: Path,
    onnx_path: Path,
    name: str | None,
    version: int,
    max_batch_size: int,
    instances: int,
    threads: int,
    queue_delay_us: int,
    queue_size: int | None,
    backend: Literal["python", "onnxruntime"],
    device: Literal["cpu", "gpu"],
    labels: tuple[str, ...],
) -> None:
    """Add an ONNX file to REPOSITORY, or replace one of a model's versions.

    Names, types and dimensions are read from the file.
    """
    from daskonic.server import add_onnx

    folder = add_onnx(
        repository,
        name or onnx_path.stem,
        onnx_path,
        version=version,
        max_batch_size=max_batch_size,
        instances=instances,
        threads=threads,
        queue_delay_us=queue_delay_us,
        queue_size=queue_size,
        backend=backend,
        device=device,
        labels=labels or None,
    )
    click.echo(str(folder))


@models.command()
@click.argument("repository", type=click.Path(path_type=Path))
@click.option("--cores", type=click.IntRange(1), help="Of the serving machine; default is this one's.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as a JSON list.")
@click.pass_context
def doctor(ctx: click.Context, repository: Path, cores: int | None, as_json: bool) -> None:
    """Tell what is wrong with the entries of REPOSITORY, and what to do about it.

    Ends with 0 if nothing is, with 1 otherwise.
    """
    from rich.console import Console
    from rich.markup import escape

    from daskonic.server import examine

    findings = examine(repository, cores=cores)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        console = Console(soft_wrap=True, highlight=False)
        for f in findings:
            console.print(f"[bold]{escape(f.model)}[/bold] ({f.rule}): {escape(f.what)}")
            console.print(f"    remedy: {escape(f.remedy)}")
        if not findings:
            console.print(f"nothing is wrong in {escape(str(repository))}")
    ctx.exit(1 if findings else 0)


@models.command()
@click.argument("onnx_path", metavar="FILE.onnx", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--inputs", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A .npz of real inputs, by the model's names.")  # fmt: skip
@click.option("--tolerance", type=click.FloatRange(0), required=True,
              help="Largest difference of outputs of a variant that is kept, absolute plus relative.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the variants as a JSON list.")
def variants(onnx_path: Path, folder: Path, inputs: Path, tolerance: float, as_json: bool) -> None:
    """Make an optimised, a half-precision and an 8-bit variant of an ONNX file in FOLDER.

    Each is compared with the original on real inputs; one that differs too much is not kept.
    """
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from daskonic.server.variants import make_variants

    with np.load(inputs) as arrays:
        made = make_variants(onnx_path, folder, dict(arrays), tolerance=tolerance)
    if as_json:
        click.echo(json.dumps([asdict(v) | {"path": v.path and str(v.path)} for v in made]))
        return
    table = Table("variant", "bytes", "difference", "speed", "", box=None)
    for v in made:
        nbytes, difference = (f"{v.nbytes:,}" if v.nbytes else "", _number(v.difference, ".2g"))
        kept = v.path.name if v.path else f"not kept: {v.why_not}"
        table.add_row(v.kind, nbytes, difference, _number(v.speed, ".2f"), kept)
    Console(soft_wrap=True).print(table)


def _number(value: float | None, form: str) -> str:
    """A number, or nothing."""
    return "" if value is None else format(value, form)
