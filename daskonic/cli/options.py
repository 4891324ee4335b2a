"""Options that commands share: which model, at which servers, with what inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from daskonic.errors import ConfigError

if TYPE_CHECKING:
    from daskonic.features import Features

__all__ = ["features_option", "model_options", "pairs", "read_features", "servers_option", "shapes", "sizes"]

Command = TypeVar("Command", bound=Callable[..., Any])


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:  # noqa: ARG001
    """``a,b`` as a tuple; None if not given."""
    if value is None:
        return None
    names = tuple(part.strip() for part in value.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise click.BadParameter("different names, separated by commas, are needed")
    return names


def pairs(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:  # noqa: ARG001
    """``NAME=WORDS``, repeated, as a dictionary."""
    parts = [text.partition("=") for text in value]
    if not all(name and words for name, _, words in parts):
        raise click.BadParameter("NAME=... is needed, as in x=FP32[2,-1]")
    return {name: words for name, _, words in parts}


def sizes(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:  # noqa: ARG001
    """``1,2,4`` as numbers; none if not given."""
    try:
        return tuple(int(part) for part in value.split(",")) if value else ()
    except ValueError as error:
        raise click.BadParameter("numbers, separated by commas, are needed") from error


def shapes(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """``NAME=2,50``, repeated, as shapes."""
    return {name: sizes(ctx, param, words) for name, words in pairs(ctx, param, value).items()}


def read_features(given: str, nan: Literal["error", "zero"] = "error") -> Features:
    """What ``--features`` names: a file of weaver or of CMSSW, or features that are ready.

    Raises
    ------
    SpecError
        There is no such YAML, or it is not one of weaver's.
    ConfigError
        There is no such file, nor features of that name; or NaN should become 0 where that is not weaver's.
    """
    from daskonic.features import Features

    path = Path(given)
    if path.suffix in (".yaml", ".yml") or (path.exists() and path.suffix != ".json"):
        return Features.from_weaver(path, nan=nan)  # which says it where there is no such file
    if nan != "error":
        raise ConfigError(f"--nan {nan} is for a YAML of weaver, and --features {given} is not one")
    if path.exists():
        return Features.from_cmssw(path)
    try:
        return Features.ready(given)
    except ConfigError as error:
        raise ConfigError(f"--features: there is no file {given}, and {error}") from error


features_option = click.option(
    "--features",
    metavar="FILE|NAME",
    help="What makes the inputs: weaver's data configuration (YAML), CMSSW's preprocess.json, or features that are ready, "
    "such as jetclass-kin.",
)

servers_option = click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="HOST:PORT",
    help="gRPC port of a Triton server; can be repeated  [default: daskonic.servers of Dask's configuration].",
)

_OPTIONS = (
    click.option(
        "--model", "model_name", required=True, metavar="NAME", help="Model in the servers' repository."
    ),
    click.option(
        "--version", default="", metavar="V", help="Its version  [default: the one that answers now]."
    ),
    servers_option,
    features_option,
    click.option(
        "--nan",
        type=click.Choice(["error", "zero"]),
        default="error",
        show_default=True,
        help="What to do with NaN in an input; weaver's own reader makes it 0.",
    ),
    click.option("--jets", default="FatJet", show_default=True, help="Collection to score."),
    click.option("--tree", default="", help="Tree to read  [default: Events, else the only one]."),
    click.option(
        "--classes",
        callback=_names,
        metavar="A,B,...",
        help="Names of the output's numbers  [default: the labels in --features].",
    ),
    click.option("--outputs", callback=_names, metavar="A,B,...", help="Outputs to keep  [default: all]."),
    click.option(
        "--batch-size",
        type=click.IntRange(1),
        help="Most jets in one request, where the server does not say.",
    ),
)


def model_options(command: Command) -> Command:
    """All of them, in this order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
