"""``daskonic submit``: a run that drives itself, as a batch job."""

from __future__ import annotations

import json
from typing import Any

import click

from daskonic.cli.tag import options_from, tag
from daskonic.errors import ConfigError

__all__ = ["submit"]

TO_OTHERS = ("batch", "jobs", "job_options")
"""Parameters of ``tag`` that a job with its own workers is not told: it needs them itself."""


class _AsTag(click.Command):
    """A command with all parameters of ``daskonic tag``, which keeps the words they came in."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as ever."""
        ctx.meta["given"] = self.make_parser(ctx).parse_args(list(args))[0]
        return super().parse_args(ctx, args)


def submit_run(ctx: click.Context, /, **given: Any) -> None:
    """Submit a job that scores the jets of files, as ``daskonic tag`` does here.

    The job runs Dask's scheduler and submits the jobs of the workers (--jobs), or has all workers
    itself, where jobs may not submit others (--workers). When its time ends before its work, it is
    submitted again and goes on. ``daskonic status OUTPUT`` tells how far it is, ``daskonic cancel
    OUTPUT`` ends it.
    """
    from daskonic.deploy.batch import named
    from daskonic.tagging.jobs import RunJobs
    from daskonic.tagging.sources import check_found

    batch, workers = given["batch"], given["workers"]
    if batch is None:
        raise ConfigError(
            "say with --cluster where: slurm, htcondor, or a preset in daskonic.sites of the Dask configuration"
        )
    if workers is not None and given["jobs"] is not None:
        raise ConfigError(
            "--jobs (workers in jobs of their own) and --workers (all in one job) exclude each other"
        )
    check_found(given["files"])
    run = RunJobs.of(given["output"], named(batch)[0])
    job, script = run.submit(
        batch,
        ["tag", *_words(ctx, () if workers is None else TO_OTHERS)],
        workers=workers,
        of_workers=given["job_options"],
        of_driver=given["driver_options"],
    )
    if given["as_json"]:
        click.echo(
            json.dumps(
                {
                    "job": job,
                    "system": run.system,
                    "name": run.name,
                    "output": str(run.output),
                    "script": str(script),
                }
            )
        )
        return
    click.echo(f"job {job} is submitted to {run.system} ({script})")
    click.echo(
        f"daskonic status {given['output']} tells how far it is, daskonic cancel {given['output']} ends it"
    )


def _words(ctx: click.Context, left_out: tuple[str, ...]) -> list[str]:
    """The command line again, for ``tag``."""
    words, given = [], ctx.meta["given"]
    for parameter in tag.params:
        name, value = str(parameter.name), given.get(str(parameter.name))
        if value is None or name in ("files", "as_json", *left_out):
            continue
        values = value if parameter.multiple else [value]
        words += [word for each in values for word in (parameter.opts[0], str(each))]
    return [*words, "--", *given["files"]]


submit = _AsTag(
    "submit",
    callback=click.pass_context(submit_run),
    help=submit_run.__doc__,
    params=[
        *(parameter for parameter in tag.params if parameter.name != "scheduler"),
        click.Option(
            ["--driver-option", "driver_options"],
            callback=options_from,
            multiple=True,
            metavar="KEY=VALUE",
            help="What is other for this job than for those of workers, as in walltime=2-00:00:00; can be repeated.",
        ),
    ],
)
