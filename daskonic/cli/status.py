"""``daskonic status``: how a run is, from another shell."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from daskonic.tagging.status import Status

__all__ = ["status"]


@click.command()
@click.argument("output", default=".")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(output: str, as_json: bool) -> None:
    """Tell how far a run is that writes to OUTPUT, and what it waits for.

    OUTPUT is the folder that the run was given  [default: the current one].
    """
    from daskonic.tagging.status import status as look

    found = look(output)
    if as_json:
        click.echo(
            json.dumps(asdict(found) | {"left_s": found.left_s if math.isfinite(found.left_s) else None})
        )
    else:
        _print(found)


def _print(found: Status) -> None:
    """For a person."""
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2))
    part = found.events / found.events_total if found.events_total else 0.0
    for name, value in (
        ("run", found.output),
        ("state", found.state),
        ("driver", found.driver),
        ("workers", ", ".join(f"{n} {words}" for words, n in found.workers.items())),
        ("done", ProgressBar(1.0, part, width=40) if found.events_total else ""),
        (
            "partitions",
            f"{found.partitions:,} of {found.partitions_total:,}" if found.partitions_total else "",
        ),
        ("events", f"{found.events:,} of {found.events_total:,}" if found.events_total else ""),
        ("jets", f"{found.rows:,}"),
        ("rate", f"{found.rows_per_s:,.0f} jets/s{_left(found)}" if found.rows_per_s else ""),
        ("last words", found.trouble),
        ("log", found.log),
    ):
        if value:
            table.add_row(name, value)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # lines as long as they are
        console.width = 1_000
    console.print(table)


def _left(found: Status) -> str:
    """How long it takes yet."""
    if found.state != "runs" or not math.isfinite(found.left_s):
        return ""
    minutes, seconds = divmod(round(found.left_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f", {hours}:{minutes:02}:{seconds:02} left"
