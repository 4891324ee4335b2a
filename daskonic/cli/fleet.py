"""``daskonic fleet``: Triton servers in jobs of a batch system."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from typing import TYPE_CHECKING, Any

import click

from daskonic.cli.tag import options_from

if TYPE_CHECKING:
    from daskonic.fleet import FleetStatus

__all__ = ["fleet"]


@click.group()
def fleet() -> None:
    """Triton servers in jobs of a batch system, as many as the load wants.

    Its clients name it as a server, fleet:NAME. It lives in a folder of ~/.daskonic/fleets (daskonic.fleets), which this machine,
    the nodes of the servers and the workers must share.
    """


@fleet.command()
@click.argument("name")
@click.option(
    "--cluster", required=True, metavar="SYSTEM", help="slurm, htcondor, or a preset of daskonic.sites."
)
@click.option(
    "--models", "repository", required=True, metavar="DIR", help="Model repository, seen from the nodes."
)
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="One of its models; repeat it  [default: all]."
)
@click.option(
    "--models-per-server",
    type=click.IntRange(1),
    help="Spread the models over servers  [default: all on all].",
)
@click.option(
    "--min", "minimum", type=click.IntRange(0), default=0, show_default=True, help="Fewest servers."
)
@click.option("--max", "maximum", type=click.IntRange(1), default=1, show_default=True, help="Most servers.")
@click.option("--gpus", type=click.IntRange(0), default=1, show_default=True, help="GPUs of each job.")
@click.option("--queue-time", metavar="TIME",
              help="Requests that wait longer on average bring another server  [default: half of their computing].")  # fmt: skip
@click.option(
    "--settle", default="10 s", show_default=True, metavar="TIME", help="... if they do for so long."
)
@click.option(
    "--idle",
    default="5 m",
    show_default=True,
    metavar="TIME",
    help="How long a server may have nothing to do.",
)
@click.option("--patience", default="10 m", show_default=True, metavar="TIME",
              help="How long servers go on without a controller.")  # fmt: skip
@click.option("--triton", default="", metavar="COMMAND",
              help="Instead of daskonic's own Triton, such as 'apptainer exec --nv triton.sif tritonserver'.")  # fmt: skip
@click.option("--job-option", "job_options", multiple=True, metavar="KEY=VALUE", callback=options_from,
              help="Of the jobs, such as queue=gpu, walltime=04:00:00, memory='8 GB'; can be repeated.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def start(
    name: str, cluster: str, repository: str, models: tuple[str, ...], triton: str, job_options: dict[str, Any],
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Make a fleet, and control it from a process in the background.

    Servers are submitted when a client waits for one, more of them when requests wait long, and go when there is nothing to do.
    """
    from daskonic.fleet import ServerFleet
    from daskonic.fleet.background import control

    made = ServerFleet(
        name, cluster, repository, models=models or None, triton=shlex.split(triton), **options, **job_options
    )
    made.create()
    _say_controlled(made.name, control(name), as_json)


@fleet.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def attach(name: str, as_json: bool) -> None:
    """Control a fleet whose controller is gone; its servers go on."""
    from daskonic.fleet.background import control

    _say_controlled(name, control(name), as_json)


@fleet.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def status(name: str, as_json: bool) -> None:
    """Say what the servers of a fleet do."""
    from daskonic.fleet import fleet_status

    found = fleet_status(name)
    if as_json:
        click.echo(json.dumps(_facts(found)))
    else:
        _show(found)


@fleet.command()
@click.argument("name")
def stop(name: str) -> None:
    """Cancel all jobs of a fleet, and forget it."""
    from daskonic.fleet.background import stop as stop_it

    stop_it(name)


def _say_controlled(name: str, pid: int, as_json: bool) -> None:
    """How to use it."""
    if as_json:
        click.echo(json.dumps({"address": f"fleet:{name}", "pid": pid}))
        return
    click.echo(f"Address for clients: fleet:{name} (controlled by process {pid} of this machine)")


def _facts(found: FleetStatus) -> dict[str, Any]:
    """For a script."""
    facts = dataclasses.asdict(found)
    for job in facts["jobs"]:
        job["leaves_s"] = job["leaves_s"] if math.isfinite(job["leaves_s"]) else None
    return facts


def _show(found: FleetStatus) -> None:
    """For a person."""
    from rich.console import Console
    from rich.table import Table

    from daskonic.fleet.status import COLUMNS

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Fleet {found.name}: {found.account()}", markup=False)
    table = Table(*COLUMNS, box=None)
    for row in found.rows():
        table.add_row(*row)
    if found.jobs:
        console.print(table)
