"""``daskonic models load``, ``unload`` and ``list``: models that a run brings to servers."""

from __future__ import annotations

import datetime as dt
import json
import logging
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import click

from daskonic.cli.options import servers_option
from daskonic.errors import InputError

__all__ = ["list_", "load", "unload"]


@click.command()
@click.argument("entry", type=click.Path(path_type=Path))
@click.argument("command", nargs=-1)
@servers_option
@click.option("--name", help="What it is to be called there  [default: a name that no other has].")
@click.pass_context
def load(
    ctx: click.Context, entry: Path, command: tuple[str, ...], servers: tuple[str, ...], name: str | None
) -> None:
    """Bring the model in the folder ENTRY to servers that let their clients do so.

    With a COMMAND after "--", the model is there while it runs, {} in it is the model's name, and the exit code is the
    command's. Without one, the name is printed, and the model stays until "daskonic models unload".

    As in: daskonic models load models/tagger --server gpu7:8001 -- daskonic tag --model {} ...
    """
    from daskonic import server

    if not command:
        click.echo(server.load(entry, servers or None, name=name))
        return
    logging.basicConfig(format="daskonic: %(message)s", level=logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP, and so it stays
            signal.signal(number, _terminate)
    with server.loaded(entry, servers or None, name=name) as made:
        code = _run([word.replace("{}", made) for word in command])
    ctx.exit(code)


@click.command()
@click.argument("names", nargs=-1, required=True)
@servers_option
def unload(names: tuple[str, ...], servers: tuple[str, ...]) -> None:
    """Take models away that somebody brought; the servers' own are left alone."""
    from daskonic import server

    for name in names:
        for address in server.unload(name, servers or None):
            click.echo(f"{address} has unloaded {name}")


@click.command("list")
@servers_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(servers: tuple[str, ...], as_json: bool) -> None:
    """Tell which models were brought to servers, by whom and when."""
    from rich.console import Console
    from rich.table import Table

    from daskonic import server

    found = server.listed(servers or None)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found]))
        return
    table = Table("server", "model", "owner", "loaded", "content", box=None)
    for one in found:
        table.add_row(one.server, one.name, one.owner, _ago(one.since), one.content[:12])
    console = Console(soft_wrap=True, highlight=False)
    console.print(table if found else "nobody brought a model")


def _run(command: list[str]) -> int:
    """Exit code of a command, which Ctrl-C is for."""
    # Not ignored, or the command would ignore it too; and no exception, with which subprocess may lose the exit code.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with subprocess.Popen(command) as process:
            try:
                return _exit_code(process.wait())
            finally:
                if process.poll() is None:  # this process is terminated
                    process.terminate()
    except OSError as error:
        raise InputError(f"{command[0]} cannot be run: {error.strerror}") from error
    finally:
        signal.signal(signal.SIGINT, before)


def _exit_code(code: int) -> int:
    """As a shell tells it: 128 and more for a signal."""
    return code if code >= 0 else 128 - code


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Leave by an exception, so that the model is taken away."""
    sys.exit(128 + number)


def _ago(since: str) -> str:
    """How long ago, in the largest unit."""
    seconds = (dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(since)).total_seconds()
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
