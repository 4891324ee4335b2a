"""``daskonic check``: everything that can be known of a run before it starts."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, Literal

import click

from daskonic.cli.options import model_options, read_features
from daskonic.errors import ConfigError, InputError

if TYPE_CHECKING:
    from daskonic.features import Features
    from daskonic.preflight import CheckReport
    from daskonic.tagging.sources import Source

__all__ = ["check"]

COLOURS = {"✗": "bold red", "!": "yellow", "✓": "green"}


@click.command()
@click.argument("files", nargs=-1, required=True)
@model_options
@click.option(
    "--reference",
    metavar="PATH",
    help="The model as an ONNX file, or a repository with it, to score the same jets here  [default: "
    "daskonic.fallback-repository].",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1e-5,
    show_default=True,
    help="Largest difference of scores that is no mistake.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.pass_context
def check(
    ctx: click.Context,
    files: tuple[str, ...],
    model_name: str,
    version: str,
    servers: tuple[str, ...],
    features: str | None,
    nan: Literal["error", "zero"],
    jets: str,
    tree: str,
    classes: tuple[str, ...] | None,
    outputs: tuple[str, ...] | None,
    batch_size: int | None,
    reference: str | None,
    tolerance: float,
    as_json: bool,
) -> None:
    """Find out with a few events what is wrong with a run, and what it will cost.

    FILES are those of `daskonic tag`, or some of them. Each server is asked by itself, the features are held against the
    model, and the first jets are scored in batches of different sizes, which must not matter. Ends with 0 if the run can
    start, else with the code of the error that it would end in.
    """
    from daskonic.config import resolve
    from daskonic.model import Model
    from daskonic.tagging.reading import needed_columns
    from daskonic.tagging.sources import scan

    if features is None:
        raise ConfigError("say with --features how jets become the inputs of the model")
    made = read_features(features, nan)
    addresses = resolve(servers or None).servers
    model = Model(model_name, version, made, addresses, classes, outputs, batch_size)
    sources = scan(files, tree=tree, check=functools.partial(needed_columns, features=made, jets=jets))
    events, n_jets = _first_jets(sources, made, jets)
    n_rows = round(sum(source.entries for source in sources) * n_jets / len(events))
    report = model.check(events, reference, n_rows=n_rows or None, tolerance=tolerance)
    if as_json:
        click.echo(json.dumps(report.facts()))
    else:
        _show(report)
    ctx.exit(report.exit_code)


def _first_jets(sources: list[Source], features: Features, jets: str) -> tuple[Any, int]:
    """The first events of the first file that has any, and the number of their jets."""
    import awkward as ak

    from daskonic.preflight import EVENTS
    from daskonic.tagging import read_file

    for source in sources:
        if source.entries:
            events = read_file(source.path, features, jets, stop=EVENTS, tree=source.tree).jets
            return events, int(ak.sum(ak.num(events)))
    raise InputError(f"no events in {', '.join(source.path for source in sources[:3])}; name other files")


def _show(report: CheckReport) -> None:
    """The report in colours."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 1))
    for mark, what, text in report.lines():
        table.add_row(Text(mark, COLOURS.get(mark, "")), Text(what, "bold"), Text(text))
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(f"{report.title}: {report.verdict}", "bold"))
    console.print(table)
