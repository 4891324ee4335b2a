"""``daskonic lock``: write down what a model is, so that it can be recognised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from daskonic.cli.options import features_option, read_features, servers_option
from daskonic.errors import ConfigError

__all__ = ["lock", "server_options"]

EVENTS = 100


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of the commands that ask all servers."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option(
            "--repository",
            type=click.Path(exists=True, file_okay=False),
            help="Model repository of the servers, where this machine sees it: its files are compared too.",
        ),
        servers_option,
    ):
        command = option(command)
    return command


@click.command()
@click.argument("model_name", metavar="MODEL")
@click.argument("file", metavar="[FILE]", required=False)
@click.option("--version", default="", metavar="V", help="Its version  [default: the one that answers now].")
@features_option
@click.option("--jets", default="FatJet", show_default=True, help="Collection in FILE.")
@click.option(
    "--tolerance", type=click.FloatRange(0), help="Difference that counts as none  [default: 1e-5]."
)
@click.option(
    "--batch-size", type=click.IntRange(1), help="Most rows in one request, where the server does not say."
)
@click.option("--output", metavar="FILE.lock", help="Where to write  [default: MODEL.lock].")
@server_options
def lock(
    model_name: str,
    file: str | None,
    version: str,
    features: str | None,
    jets: str,
    tolerance: float | None,
    batch_size: int | None,
    output: str | None,
    servers: tuple[str, ...],
    repository: str | None,
    as_json: bool,
) -> None:
    """Write down what MODEL is: version, tensors, servers, and its answers to a probe.

    The probe is the first jets of FILE (ROOT or Parquet), or invented without one. With the lock in
    daskonic.locks of Dask's configuration, or --lock of daskonic tag, a server is used only if it gives the same answers.
    """
    from daskonic.model import Model
    from daskonic.provenance import lock as make
    from daskonic.tagging import read_file
    from daskonic.tolerance import TOLERANCE

    if (file is None) != (features is None):
        raise ConfigError("a probe from jets needs both: FILE and --features")
    made = None if features is None else read_features(features)
    settings: dict[str, Any] = {"servers": list(servers)} if servers else {}
    model = Model(model_name, version, made, batch_size=batch_size, **settings)
    objects = None if file is None or made is None else read_file(file, made, jets, stop=EVENTS).jets
    locked = make(
        model, objects, tolerance=TOLERANCE if tolerance is None else tolerance, repository=repository
    )
    path = Path(output or f"{model_name}.lock")
    locked.write(path)
    if as_json:
        click.echo(
            json.dumps({"path": str(path), "fingerprint": locked.fingerprint, "spread": locked.spread})
        )
        return
    click.echo(
        f"{path}: {locked.model}, version {locked.version or 'not told'}, fingerprint {locked.fingerprint[:16]}"
    )
    click.echo(
        f"{locked.rows} rows on {len(locked.servers)} servers, alone and together: differences up to {locked.spread:.2g}, "
        f"tolerance {locked.tolerance:g}"
    )
