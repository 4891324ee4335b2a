"""``daskonic tag``: score the jets of files."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from daskonic.cli.options import model_options, read_features
from daskonic.cli.terminal import (
    OutOfTime,
    ends_in_order,
    ends_later,
    facts_of,
    interrupts_ignored,
    logged_to,
    print_summary,
    progress_bar,
    quiet,
    quiet_workers,
)
from daskonic.ending import AGAIN
from daskonic.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client

    from daskonic.model import Model
    from daskonic.plugin import InferencePlugin

__all__ = ["options_from", "tag"]

EVENTS_PER_TASK = 5_000
SCHEDULER_TIMEOUT = "10 s"


def options_from(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:  # noqa: ARG001
    """``key=value`` as a mapping, values read as YAML where that is a number or a list, times left as they are."""
    import yaml

    options: dict[str, Any] = {}
    for text in values:
        key, is_pair, value = text.partition("=")
        if not (is_pair and key):
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        is_time = ":" in value and value[0] not in "[{"
        options[key.replace("-", "_")] = value if is_time else yaml.safe_load(value)
    return options


@click.command()
@click.argument("files", nargs=-1, required=True)
@model_options
@click.option(
    "--output",
    required=True,
    metavar="DIR",
    help="Folder for the scores; a run that was interrupted there is continued.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Dask scheduler, as in tcp://host:8786  [default: a cluster on this machine].",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Worker processes of the cluster on this machine  [default: one for each core].",
)
@click.option(
    "--cluster",
    "batch",
    metavar="NAME",
    help="Workers as batch jobs: slurm, htcondor, or a preset in daskonic.sites of Dask's configuration.",
)
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Jobs of --cluster  [default: 1].")
@click.option(
    "--job-option",
    "job_options",
    callback=options_from,
    multiple=True,
    metavar="KEY=VALUE",
    help="Parameter of dk.slurm_cluster or dk.htcondor_cluster, as in walltime=02:00:00; can be repeated.",
)
@click.option(
    "--chunk-size",
    type=click.IntRange(1),
    default=EVENTS_PER_TASK,
    show_default=True,
    help="Events of one task, and in one Parquet file.",
)
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["parquet", "root"]),
    default="parquet",
    show_default=True,
    help="Parquet files, or a friend tree for each input file.",
)
@click.option(
    "--lock",
    "locks",
    multiple=True,
    metavar="FILE",
    help="What daskonic lock wrote: servers with another model are not used  [default: daskonic.locks].",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.pass_context
def tag(
    ctx: click.Context,
    /,
    files: tuple[str, ...],
    servers: tuple[str, ...],
    output: str,
    scheduler: str | None,
    workers: int | None,
    batch: str | None,
    jobs: int | None,
    job_options: dict[str, Any],
    locks: tuple[str, ...],
    as_json: bool,
    jets: str,
    chunk_size: int,
    fmt: str,
    tree: str,
    **of_model: Any,
) -> None:
    """Score the jets of ROOT (TTree, RNTuple) or Parquet files.

    FILES are paths, globs (also quoted) or URLs. The scores go to OUTPUT/scores, aligned with the
    input event by event and jet by jet; OUTPUT/manifest.json says who made them. A run that was
    interrupted is continued by the same command.
    """
    from daskonic.plugin import InferencePlugin
    from daskonic.tagging import run
    from daskonic.tagging.manifest import refuse_endless

    quiet()
    own = {"locks": locks} if locks else {}
    plugin = InferencePlugin(servers or None, **own)
    model = _model(plugin, files, **of_model)
    begin = time.monotonic()
    try:
        with (
            ends_in_order(),
            _in_jobs(output, batch, scheduler, workers) as of_jobs,
            _client(plugin, scheduler, workers, batch, jobs, of_jobs | job_options, own) as client,
            progress_bar() as progress,
        ):
            summary = run.tag(
                files,
                model,
                output,
                jets=jets,
                client=client,
                chunk_size=chunk_size,
                fmt=fmt,
                tree=tree,
                progress=progress,
            )
    except OutOfTime:
        refuse_endless(output, has_workers=batch is None)
        click.echo(
            "daskonic: this job ends soon; what is done is kept, the same command in another job continues",
            err=True,
        )
        ctx.exit(AGAIN)
    except KeyboardInterrupt:
        click.echo(
            "daskonic: interrupted; what is done is kept, run the same command again to continue", err=True
        )
        ctx.exit(130)
    seconds = time.monotonic() - begin
    if as_json:
        click.echo(json.dumps(facts_of(summary, seconds)))
    else:
        print_summary(summary, seconds)


def _model(
    plugin: InferencePlugin,
    files: tuple[str, ...],
    model_name: str,
    version: str,
    features: str | None,
    nan: Any,
    classes: tuple[str, ...] | None,
    outputs: tuple[str, ...] | None,
    batch_size: int | None,
) -> Model:
    """The handle, after all that can be checked without a cluster has been checked."""
    from daskonic.model import Model
    from daskonic.plugin import pool_for
    from daskonic.tagging.sources import check_found

    made = None if features is None else read_features(features, nan)
    check_found(files)
    spec = pool_for(plugin.settings).spec(model_name, version)
    if made is None:
        inputs = ", ".join(str(t) for t in spec.inputs)
        raise ConfigError(f"model {model_name!r} takes {inputs}; say with --features how jets become that")
    wanted = [t for t in spec.outputs if outputs is None or t.name in outputs]
    labels = made.labels
    if classes is None and labels and len(wanted) == 1 and wanted[0].shape[-1:] == (len(labels),):
        classes = labels
    return Model(model_name, spec.version, made, classes=classes, outputs=outputs, batch_size=batch_size)


@contextmanager
def _in_jobs(
    output: str, batch: str | None, scheduler: str | None, workers: int | None
) -> Iterator[dict[str, Any]]:
    """Let ``daskonic status`` and ``daskonic cancel`` find a run with batch jobs; parameters of its cluster."""
    if batch is None or scheduler is not None or workers is not None:
        yield {}
        return
    from daskonic.deploy.batch import named
    from daskonic.tagging.jobs import RunJobs

    run = RunJobs.of(output, named(batch)[0])
    with run.driven(), logged_to(run.log):
        yield {"name": run.name, "log_directory": str(run.folder)}


@contextmanager
def _client(
    plugin: InferencePlugin,
    scheduler: str | None,
    workers: int | None,
    batch: str | None,
    jobs: int | None,
    job_options: dict[str, Any],
    own: dict[str, Any],
) -> Iterator[Client]:
    """A client of the scheduler named, or of a cluster that lives as long as the command, with settings of its own."""
    from distributed import Client

    from daskonic.deploy import cluster_named, local_cluster

    if sum(given is not None for given in (scheduler, workers, batch)) > 1:
        raise ConfigError(
            "--scheduler (a cluster that exists), --workers (one on this machine) and --cluster (batch jobs) "
            "exclude each other"
        )
    if (jobs is not None or job_options) and batch is None:
        raise ConfigError("--jobs and --job-option are for --cluster, such as --cluster slurm")
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=SCHEDULER_TIMEOUT)  # type: ignore[no-untyped-call]
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"no Dask scheduler at {scheduler!r}: {error}") from error
        with client:
            client.register_plugin(plugin)
            yield client
        return
    of_cluster: dict[str, Any] = {"servers": plugin.settings.servers, "silence_logs": logging.CRITICAL}
    of_cluster["settings"] = own
    with ExitStack() as stack:
        with ends_later():
            if batch is not None:
                cluster: Any = cluster_named(batch, jobs or 1, **(of_cluster | job_options))
            else:
                with interrupts_ignored():
                    cluster = local_cluster(workers or len(os.sched_getaffinity(0)), **of_cluster)
            stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster))  # type: ignore[no-untyped-call]
        client.register_plugin(quiet_workers())
        yield client
