"""``daskonic serve``: a Triton on this machine until Ctrl-C."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from daskonic.errors import LocalServerError
from daskonic.server import LocalServer, add_onnx, find, local_server

__all__ = ["serve"]

PORT = click.IntRange(1, 65535)


@click.command()
@click.argument("repository", type=click.Path(path_type=Path), required=False)
@click.option("--grpc-port", type=PORT, help="Port for clients; default is a free one.")
@click.option("--http-port", type=PORT, help="Port of the HTTP interface; default is a free one.")
@click.option("--metrics-port", type=PORT, help="Port of the Prometheus metrics; default is a free one.")
@click.option("--max-batch-size", type=click.IntRange(0), default=1024, show_default=True,
              help="Most rows in a request, for a single ONNX file; 0 if it has no batch dimension.")  # fmt: skip
@click.option("--log", type=click.Path(path_type=Path), help="File for the server's output.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON when the server is ready.")
@click.option(
    "--install-only", is_flag=True, help="Fetch Triton unless it is there, say where it is, and end."
)
def serve(
    repository: Path | None,
    grpc_port: int | None,
    http_port: int | None,
    metrics_port: int | None,
    max_batch_size: int,
    log: Path | None,
    as_json: bool,
    install_only: bool,
) -> None:
    """Run a Triton server on this machine until Ctrl-C.

    REPOSITORY is a folder with one folder a model, or a single ONNX file, which is served under its
    name without ".onnx". Only programs on this machine can reach the server.
    """
    progress = functools.partial(Console(stderr=True).print, highlight=False, markup=False, soft_wrap=True)
    if install_only:
        _say_installation(as_json, str(find(progress).path))
        return
    if repository is None:
        raise click.UsageError("Missing argument 'REPOSITORY'.")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP, and so it stays
            signal.signal(number, _terminate)
    with _repository(repository, max_batch_size) as models:
        server = local_server(
            models,
            grpc_port=grpc_port,
            http_port=http_port,
            metrics_port=metrics_port,
            log=log,
            progress=progress,
        ).start()
        try:
            _say_ready(server, as_json)
            code = server.wait()
            raise LocalServerError(f"Triton has ended by itself with code {code}; its log is {server.log}")
        finally:
            server.stop()


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Leave by an exception, so that everything is stopped on the way."""
    sys.exit(128 + number)


@contextlib.contextmanager
def _repository(path: Path, max_batch_size: int) -> Iterator[Path]:
    """The repository as it is, or one around a single ONNX file."""
    if path.suffix != ".onnx" or path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="daskonic-models-") as folder:
        add_onnx(folder, path.stem, path, max_batch_size=max_batch_size)
        yield Path(folder)


def _say_installation(as_json: bool, path: str) -> None:
    """Where Triton is."""
    click.echo(json.dumps({"installation": path}) if as_json else path)


def _say_ready(server: LocalServer, as_json: bool) -> None:
    """Addresses and models, for a reader or a script."""
    models = server.models()
    about: dict[str, Any] = {
        "address": server.address,
        "http_address": server.http_address,
        "metrics_address": server.metrics_address,
        "log": str(server.log),
    }
    if as_json:
        click.echo(json.dumps(about | {"pid": server.pid, "models": models}))
        return
    table = Table("model", "version", "state")
    for model in models:
        table.add_row(model["name"], model["version"], model["state"])
    console = Console()
    console.print(table)
    console.print(f"Triton is ready. Address for clients: [bold]{server.address}[/bold]", highlight=False)
    for what in ("http_address", "metrics_address", "log"):
        console.print(f"{what.removesuffix('_address'):8} {about[what]}", highlight=False, soft_wrap=True)
    console.print("Ctrl-C ends it.")
    sys.stdout.flush()
