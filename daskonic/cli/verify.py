"""``daskonic verify``: whether servers still have a model that was locked."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from daskonic.cli.lock import server_options
from daskonic.errors import ConfigError, ResponseError, ServerError

__all__ = ["verify"]


@click.command()
@click.argument("path", metavar="FILE.lock")
@server_options
def verify(path: str, servers: tuple[str, ...], repository: str | None, as_json: bool) -> None:
    """Ask every server whether it still has the model of a lock."""
    from rich.console import Console
    from rich.table import Table

    from daskonic.config import resolve
    from daskonic.lock import Lock
    from daskonic.provenance import verify as ask

    locked = Lock.read(path)
    settings = resolve(servers or None)
    if not settings.servers:
        raise ConfigError(
            "no server is named: use --server HOST:PORT, or daskonic.servers in Dask's configuration"
        )
    found = ask(locked, settings, repository)
    if as_json:
        servers_told = [asdict(v) for v in found]
        click.echo(json.dumps({"fingerprint": locked.fingerprint, "servers": servers_told}))
    else:
        table = Table("server", "model", "", box=None)
        for v in found:
            table.add_row(v.address, v.state, "\n".join(filter(None, (v.why, *v.notes))))
        Console().print(table)
    for state, kind in (("other", ResponseError), ("no answer", ServerError)):
        first = next((v for v in found if v.state == state), None)
        if first is not None:
            count = sum(v.state == state for v in found)
            what = "do not have the model of" if state == "other" else "do not answer, asked for the model of"
            raise kind(f"{count} of {len(found)} servers {what} {path}; {first.address}: {first.why}")
