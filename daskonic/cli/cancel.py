"""``daskonic cancel``: end a run from another shell."""

from __future__ import annotations

import json

import click

from daskonic.errors import OutputError

__all__ = ["cancel"]


@click.command()
@click.argument("output", default=".")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cancel(output: str, as_json: bool) -> None:
    """End a run that writes to OUTPUT, with all its jobs; what is done is kept.

    OUTPUT is the folder that the run was given  [default: the current one]. The same command as
    before continues it.
    """
    from daskonic.tagging.jobs import RunJobs

    run = RunJobs.found(output)
    if run is None:
        raise OutputError(f"no run with batch jobs in {output}: there is no jobs/run.json")
    jobs = run.cancel()
    if as_json:
        click.echo(json.dumps({"output": str(run.output), "jobs": jobs}))
    else:
        click.echo(f"cancelled {len(jobs)} jobs: {', '.join(jobs)}" if jobs else "there was no job left")
