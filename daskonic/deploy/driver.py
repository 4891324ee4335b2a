"""Jobs of a run by their names: the one that drives it, to be submitted, and all of them, to be watched and cancelled.

The driver's job runs a command that exits with :data:`~daskonic.ending.AGAIN` when its time is over before its work;
then the job is submitted or started again. Where workers are jobs of their own, they are submitted from there: on SLURM
from a node, on HTCondor from the submit machine itself (local universe), as few pools let nodes submit.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskonic.deploy.batch import cluster_class, named, options_of, preset
from daskonic.deploy.state import JobState, call
from daskonic.errors import BatchSystemError, ConfigError

if TYPE_CHECKING:
    from daskonic.deploy.job import BatchJob

__all__ = ["cancel", "driver_name", "jobs_named", "submit"]

logger = logging.getLogger(__name__)

FOR_CLUSTER = (
    "scheduler_options",
    "shared_temp_directory",
    "security",
    "silence_logs",
    "host",
    "servers",
    "settings",
)
FOR_WORKERS = (
    "cores",
    "memory",
    "disk",
    "processes",
    "threads",
    "environment",
    "python",
    "walltime",
    "margin",
)
"""Parameters of a cluster that are not those of a job, and of worker jobs that are not the driver's."""

HANDED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SLURM_CONF", "CONDOR_CONFIG")
"""Environment that a job may not inherit, besides Dask's configuration."""

CANCELLED_S, FORCED_S, ASK_S = 90.0, 45.0, 1.0
"""How long cancelled jobs have; a worker needs half of the second at most, so that later its node must be lost."""


def driver_name(name: str) -> str:
    """How the batch system shows the job that drives a run, whose worker jobs have the run's name."""
    return f"{name}-driver"


def submit(
    cluster: str,
    name: str,
    arguments: Sequence[str],
    folder: Path,
    *,
    workers: int | None = None,
    of_workers: dict[str, Any],
    of_driver: dict[str, Any],
) -> tuple[str, Path]:
    """Submit a job that runs ``daskonic`` with these arguments, in the folder and with the configuration of this process.

    Parameters
    ----------
    cluster : str
        Batch system or preset.
    name : str
        Of the run.
    arguments : sequence of str
    folder : Path
        For the job's script and log; nodes see it too.
    workers : int, optional
        Worker processes in the driver's own job; default is none, the command submits jobs for them.
    of_workers, of_driver : dict
        Parameters of worker jobs, and those in which the driver's job differs; see :func:`daskonic.slurm_cluster`.

    Returns
    -------
    job, script
        Id of the job, and what was submitted.

    Raises
    ------
    ConfigError, BatchSystemError
        As for :func:`daskonic.slurm_cluster`.
    """
    system, site = named(cluster)
    given = preset(system, site) | of_workers
    if workers is None:
        # SLURM ends every job some time; on HTCondor a driver without walltime may stay as long as the run.
        kept = ("environment", "python", "walltime", "margin") if system == "slurm" else ()
        given = {key: value for key, value in given.items() if key not in FOR_WORKERS or key in kept}
    else:
        given = {"cores": workers, "memory": f"{2 * workers} GB"} | given
    job = _job(system, driver_name(name), {"log_directory": str(folder)} | given | of_driver)
    script = folder / f"driver.{system}"
    job.drive(_as_here(), shlex.join(["-m", "daskonic", *arguments]), script, is_on_node=workers is not None)
    script.write_text(job.job_script(), "utf-8")
    out = asyncio.run(call(*shlex.split(job.submit_command), str(script)))
    return str(job._job_id_from_submit_output(out)), script


def jobs_named(system: str, *names: str) -> dict[str, JobState]:
    """The user's jobs of these names, by job id.

    Raises
    ------
    BatchSystemError
        The batch system cannot be asked.
    """
    return asyncio.run(_job_class(system).named(*names))


def cancel(system: str, *names: str) -> list[str]:
    """End all jobs of these names, the first name's first, and wait until none is left.

    Returns
    -------
    list of str
        Ids of the jobs that were there.

    Raises
    ------
    BatchSystemError
        The batch system cannot be asked, or jobs are still there after a while.
    """
    return asyncio.run(_cancel(system, names))


async def _cancel(system: str, names: Sequence[str]) -> list[str]:
    """Ask and cancel in turns: one that drives may submit others until it ends."""
    job_class = _job_class(system)
    command, force = shlex.split(job_class.cancel_command), shlex.split(job_class.force_command)
    end = time.monotonic() + CANCELLED_S
    told: dict[str, float] = {}
    while left := _alive(await job_class.named(*names)):
        if time.monotonic() > end:
            listed = ", ".join(f"{job} {state.words}" for job, state in left.items())
            raise BatchSystemError(
                f"jobs are still there {CANCELLED_S:g} s after they were cancelled: {listed}"
            )
        first = [job for job, state in left.items() if state.name == names[0]]
        new = [job for job in first or left if job not in told]
        if new:
            told |= dict.fromkeys(new, time.monotonic())
            with suppress(BatchSystemError):  # one that has just ended
                await call(*command, *new)
        stuck = [job for job in left if force and time.monotonic() > told.get(job, math.inf) + FORCED_S]
        if stuck:
            told |= dict.fromkeys(stuck, math.inf)  # once
            logger.warning("node lost: %s taken off the books without its word", ", ".join(stuck))
            with suppress(BatchSystemError):
                await call(*force, *stuck)
        await asyncio.sleep(ASK_S)
    return list(told)


def _alive(jobs: dict[str, JobState]) -> dict[str, JobState]:
    """Those that have not ended."""
    return {job: state for job, state in jobs.items() if state.phase != "ended"}


def _job_class(system: str) -> type[BatchJob]:
    """Of a batch system."""
    return cluster_class(system).job_cls


def _job(system: str, name: str, given: dict[str, Any]) -> BatchJob:
    """A job as workers have it."""
    job_class = _job_class(system)  # before the options: dask-jobqueue brings its configuration
    options = options_of(system, **given, name=name)
    try:
        return job_class("", **{key: value for key, value in options.items() if key not in FOR_CLUSTER})
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def _as_here() -> list[str]:
    """Lines that take a job to where this process is."""
    names = [*HANDED_ON, *(name for name in os.environ if name.startswith("DASK_"))]
    there = {name: os.environ[name] for name in names if name in os.environ}
    return [*(f"export {k}={shlex.quote(v)}" for k, v in there.items()), f"cd {shlex.quote(os.getcwd())}"]
