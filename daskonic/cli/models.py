"""``daskonic models``: entries of a model repository."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from daskonic.cli.loading import list_, load, unload
from daskonic.cli.options import pairs, shapes, sizes

__all__ = ["models"]


@click.group()
def models() -> None:
    """Write entries of a model repository, find what is wrong with them, and bring them to servers."""


for command in (list_, load, unload):
    models.add_command(command)


@models.command()
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("source", metavar="FILE|MODULE:FUNCTION")
@click.option("--name", help="What clients call the model; default is the file's or the function's name.")
@click.option("--version", type=click.IntRange(1), default=1, show_default=True, help="Version to write.")
@click.option("--input", "inputs", multiple=True, callback=pairs, metavar="NAME=TYPE[DIMS]",
              help="Of a row, for TorchScript and functions, as in x=FP32[2,-1]; repeat it.")  # fmt: skip
@click.option("--output", "outputs", multiple=True, callback=pairs, metavar="NAME=TYPE[DIMS]",
              help="The same for outputs, in their order.")  # fmt: skip
@click.option(
    "--onnx", "onnx_path", type=click.Path(path_type=Path), help="What a TensorRT plan was built from."
)
@click.option("--max-batch-size", type=click.IntRange(0), default=1024, show_default=True,
              help="Most rows in a request; 0 if the model has no batch dimension.")  # fmt: skip
@click.option("--preferred-batch-sizes", callback=sizes, metavar="N,N,...",
              help="Rows that are executed at once, without the delay.")  # fmt: skip
@click.option("--instances", type=click.IntRange(1), default=1, show_default=True,
              help="Copies of the model that work side by side.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of each copy.")
@click.option("--queue-delay-us", type=click.IntRange(0), default=500, show_default=True,
              help="How long a request waits for others to share its execution.")  # fmt: skip
@click.option("--queue-size", type=click.IntRange(1),
              help="Most requests that wait; default is any number, since a limit slows Triton 2.51 down.")  # fmt: skip
@click.option("--queue-timeout-us", type=click.IntRange(1), help="Longest wait; later requests are rejected.")
@click.option("--latest", type=click.IntRange(1), help="Serve the latest so many versions; default is all.")
@click.option("--backend", type=click.Choice(["python", "onnxruntime", "pytorch", "tensorrt"]),
              help="Triton's backend: python is in every Triton, the others are for production  [default: python; "
              "tensorrt for a plan].")  # fmt: skip
@click.option(
    "--device",
    type=click.Choice(["cpu", "gpu"]),
    help="Where the copies work  [default: cpu; gpu for a plan].",
)
@click.option("--tensorrt", type=click.Choice(["FP32", "FP16"]),
              help="Precision in which ONNX Runtime on a GPU uses TensorRT; default is not at all.")  # fmt: skip
@click.option("--warm-up", multiple=True, callback=shapes, metavar="NAME=N,N,...",
              help="Shape of a row, for a request of zeros before the model is ready; repeat it for each input.")  # fmt: skip
@click.option("--from-scan", "scanned", type=click.Path(path_type=Path),
              help="A file of daskonic scan, which decides batch sizes, delay and instances.")  # fmt: skip
@click.option("--label", "labels", multiple=True, help="Name of a class, in order; repeat it.")
def add(
    repository: Path,
    source: str,
    name: str | None,
    inputs: dict[str, str],
    outputs: dict[str, str],
    onnx_path: Path | None,
    backend: str | None,
    device: Literal["cpu", "gpu"] | None,
    latest: int | None,
    labels: tuple[str, ...],
    warm_up: dict[str, tuple[int, ...]],
    scanned: Path | None,
    version: int,
    **settings: Any,
) -> None:
    """Add a model to REPOSITORY, or replace one of its versions.

    It is an ONNX file, a PyTorch file of torch.export (.pt2) or TorchScript (.pt), a TensorRT engine (.plan), or a
    function of NumPy arrays, as in physics.taggers:score. Names, types and dimensions are read from it as far as it has
    them.
    """
    from daskonic import server
    from daskonic.scan import Scan, recommended
    from daskonic.server.function import named_function

    settings |= dict(recommended(Scan.read(scanned))) if scanned else {}
    settings |= {"backend": backend} if backend else {}
    settings |= {"device": device} if device else {}
    settings |= {"versions": latest} if latest else {}
    what = {"version": version, "labels": labels or None, "warm_up": warm_up or None, **settings}
    path = Path(source)
    if path.suffix == ".onnx":
        _refuse(
            inputs or outputs, f"{source} has names, types and dimensions: leave --input and --output out"
        )
        folder = server.add_onnx(repository, name or path.stem, path, **what)
    elif path.suffix in (".pt", ".pt2"):
        folder = server.add_torch(
            repository, name or path.stem, path, inputs=inputs or None, outputs=outputs or None, **what
        )
    elif path.suffix in (".plan", ".engine"):
        _refuse(
            onnx_path is None, f"say by --onnx what {source} was built from: nothing but TensorRT can read it"
        )
        folder = server.add_plan(repository, name or path.stem, path, Path(str(onnx_path)), **what)
    elif ":" in source:
        sys.path.insert(0, os.getcwd())  # as python -m does
        function = named_function(source)
        made = name or source.partition(":")[2]
        folder = server.add_function(repository, made, function, inputs=inputs, outputs=outputs, **what)
    else:
        raise click.BadParameter(f"{source} is no .onnx, .pt2, .pt or .plan, and no module:function")
    click.echo(str(folder))


def _refuse(wrong: object, text: str) -> None:
    """Wrong usage, in one line."""
    if wrong:
        raise click.UsageError(text)


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
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("name")
@click.argument("scanned", metavar="SCAN.json", type=click.Path(path_type=Path))
def tune(repository: Path, name: str, scanned: Path) -> None:
    """Write into the entry NAME of REPOSITORY what follows from a file of "daskonic scan".

    That is the batch sizes, the delay and, where several were scanned, the number of instances, as "daskonic scan"
    recommends them.
    """
    from daskonic.scan import Scan
    from daskonic.scan import tune as write

    changed = write(repository, name, Scan.read(scanned))
    for what, (before, after) in changed.items():
        click.echo(f"{what}: {before} → {after}")
    if not changed:
        click.echo("nothing changes")


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
