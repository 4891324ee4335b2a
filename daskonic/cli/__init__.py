"""The command line: parse, validate, call the library, print."""

from __future__ import annotations

import importlib
from typing import Any

import click

from daskonic import __version__
from daskonic.errors import ConfigError, DaskonicError

__all__ = ["main"]

COMMANDS = {
    "cancel": "End a run and all its batch jobs.",
    "check": "Find out with a few events what is wrong with a run, and what it will cost.",
    "demo": "Tag the shipped jets on this machine, from nothing to a ROC curve.",
    "fleet": "Triton servers in jobs of a batch system, as many as the load wants.",
    "lock": "Write down what a model is, so that it can be recognised.",
    "models": "Write entries of a model repository, mend them, and bring them to servers.",
    "scan": "Measure how many rows a second a model does, by batch size and requests in flight.",
    "serve": "Run a Triton server on this machine until Ctrl-C.",
    "status": "Tell how far a run is, and what it waits for.",
    "submit": "Score the jets of files, all of it as batch jobs.",
    "tag": "Score the jets of ROOT or Parquet files.",
    "verify": "Ask every server whether it still has a locked model.",
}


EXTRAS = {
    "dask_jobqueue": "jobqueue",
    "fsspec": "root",
    "matplotlib": "demo",
    "onnx": "server",
    "onnxruntime": "demo",
    "pyarrow": "root",
    "uproot": "root",
}
"""Packages that are imported when used, by the extra that brings them."""


class _Failure(click.ClickException):
    """A :class:`DaskonicError` as one line and its exit code."""

    def __init__(self, error: DaskonicError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click meant it for classes

    def show(self, file: Any = None) -> None:  # noqa: ARG002
        """One line on stderr, whatever the message held."""
        click.echo(f"daskonic: error: {' '.join(self.message.split())}", err=True)


class _Commands(click.Group):
    """Commands that are imported when called, so that ``daskonic --help`` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names in the order of the alphabet."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"daskonic.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run, with daskonic's errors as one line."""
        try:
            return super().invoke(ctx)
        except DaskonicError as error:
            raise _Failure(error) from error
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package not in EXTRAS:
                raise
            fix = f"pip install 'daskonic[{EXTRAS[package]}]'"
            raise _Failure(ConfigError(f"this needs the package {package}: {fix}")) from error
        except KeyboardInterrupt:
            click.echo("daskonic: interrupted", err=True)
            ctx.exit(130)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="daskonic")
def main() -> None:
    """Inference for particle physics from Dask workers, by shared Triton servers.

    Exit codes: 0 done, 2 wrong usage or setting, 3 input, 4 features do not fit the model,
    5 no such model, 6 output, 7 local server, 8 server away or busy, 9 model failed,
    10 batch system, 75 to be continued by another job, 130 interrupted.
    """
