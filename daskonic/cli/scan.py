"""``daskonic scan``: throughput against batch size and requests in flight."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daskonic.cli.options import servers_option, shapes, sizes

if TYPE_CHECKING:
    from daskonic.scan import Scan

__all__ = ["scan"]

NOISY = 1.5  # spread of a point's rates


@click.command()
@click.argument("model")
@servers_option
@click.option("--repository", type=click.Path(path_type=Path),
              help="Serve the model of this repository on this machine, instead of asking servers.")  # fmt: skip
@click.option(
    "--instances", callback=sizes, metavar="N,N,...", help="Copies of the model, with --repository."
)
@click.option("--version", default="", metavar="V", help="Version  [default: the one that answers now].")
@click.option(
    "--batch-sizes",
    callback=sizes,
    metavar="N,N,...",
    help="Rows in a request  [default: 1,4,16,64,256,1024].",
)
@click.option(
    "--concurrencies", callback=sizes, metavar="N,N,...", help="Requests in flight  [default: 1,2,4,8]."
)
@click.option("--inputs", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A .npz of real rows, by the model's names  [default: normal numbers].")  # fmt: skip
@click.option("--shape", multiple=True, callback=shapes, metavar="NAME=N,N,...",
              help="Of a row, for an input that leaves dimensions open; repeat it.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
              help="Of each point in each round.")  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, help="How often each point is measured."
)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file for daskonic models tune.")
@click.option("--plot", type=click.Path(path_type=Path), help="Picture of it, such as scan.png.")
@click.option("--json", "as_json", is_flag=True, help="Print the scan as one JSON object.")
def scan(
    model: str,
    servers: tuple[str, ...],
    repository: Path | None,
    instances: tuple[int, ...],
    batch_sizes: tuple[int, ...],
    concurrencies: tuple[int, ...],
    inputs: Path | None,
    shape: dict[str, tuple[int, ...]],
    output: Path | None,
    plot: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure how many rows a second MODEL does, by batch size and requests in flight.

    Points are measured in turns; the table has medians with the least and the most of the rounds.
    """
    import numpy as np

    from daskonic.scan import scan as measure
    from daskonic.scan import scan_entry

    if bool(servers) and repository is not None:
        raise click.UsageError("--server and --repository exclude each other")
    if instances and repository is None:
        raise click.UsageError("--instances needs --repository: a running server has as many as it has")
    given |= {"batch_sizes": batch_sizes} if batch_sizes else {}
    given |= {"concurrencies": concurrencies} if concurrencies else {}
    if inputs is not None:
        with np.load(inputs) as arrays:
            given["inputs"] = dict(arrays)
    with _bar() as advance:
        given |= {"shapes": shape or None, "progress": advance}
        if repository is not None:
            found = scan_entry(repository, model, instances=instances, **given)
        else:
            found = measure(model, servers or None, **given)
    if output is not None:
        found.write(output)
    if plot is not None:
        found.plot(plot)
    if as_json:
        click.echo(json.dumps(found.facts()))
    else:
        _show(found)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; nothing where stderr is a file."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("measuring", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _show(found: Scan) -> None:
    """The points as a table, and what follows from them."""
    from rich.console import Console
    from rich.table import Table

    from daskonic.scan import recommended

    several = len({p.instances for p in found.points}) > 1
    columns = (
        "rows",
        "in flight",
        "rows/s",
        "(least to most)",
        "latency ms",
        "(least to most)",
        "compute ms",
        "queue ms",
    )
    table = Table(box=None)
    for column in (*(("instances",) if several else ()), *columns):
        table.add_column(column, justify="right", no_wrap=True)
    for p in found.points:
        cells = (
            *((str(p.instances),) if several else ()),
            str(p.batch_size or "all"),
            str(p.concurrency),
            f"{p.rows_per_s:,.0f}",
            f"({p.rows_per_s_least:,.0f} to {p.rows_per_s_most:,.0f})",
            f"{p.latency_ms:.2f}",
            f"({p.latency_ms_least:.2f} to {p.latency_ms_most:.2f})",
            f"{p.compute_ms:.2f}",
            f"{p.queue_ms:.2f}",
        )
        table.add_row(*cells, style="bold" if p is found.best else None)
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{found.model} (version {found.version}), medians of {found.rounds} rounds of {found.seconds:g} s"
    )
    console.print(table)
    if found.spread > NOISY:
        console.print(
            f"rounds differ by a factor of up to {found.spread:.1f}: others use the machine, or --seconds is short"
        )
    wanted = ", ".join(f"{key}={value}" for key, value in recommended(found).items())
    console.print(
        f"recommended: {wanted}" if wanted else "nothing is recommended for a model without a batch dimension"
    )
