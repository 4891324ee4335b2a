"""One batch job with a Dask worker, as SLURM and HTCondor have it in common."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distributed.core import Status

from daskonic import __version__
from daskonic.deploy.jobqueue import Job
from daskonic.deploy.node import UNFIT
from daskonic.deploy.state import JobState, call, last_words

__all__ = ["BatchJob"]

logger = logging.getLogger(__name__)


class BatchJob(Job):
    """A job that looks at its node first, and a refusal that is one line.

    Attributes
    ----------
    force_command : str
        Takes a cancelled job off the books whose node does not answer; empty where the batch system does that.
    """

    force_command = ""

    def __init__(
        self, scheduler: str | None = None, name: str | None = None, *, python: str, **kwargs: Any
    ) -> None:
        self.python = python
        look = f"{python} -m daskonic.deploy.node {__version__} {scheduler} || exit {UNFIT}"
        # exec: signals of the batch system reach the nanny, and no shell dies of them before it.
        super().__init__(scheduler, name, python=f"{look}; exec {python}", **kwargs)

    async def start(self) -> None:
        """Submit."""
        self.submitted_s = time.time()
        try:
            await super().start()
            logger.info("job %s is submitted", self.job_id)
        except BaseException:
            self.status = Status.failed
            raise

    async def close(self) -> None:
        """Take it out of the batch system, where it still is there."""
        await super().close()
        self.status = Status.closed

    @staticmethod
    async def _call(cmd: list[str], **_: Any) -> str:
        """Every command of dask-jobqueue."""
        return await call(*cmd)

    @classmethod
    async def states(cls, jobs: Iterable[BatchJob]) -> dict[str, JobState]:
        """What the batch system says, by job id; one that it does not know any more is left out."""
        raise NotImplementedError

    @classmethod
    async def named(cls, *names: str) -> dict[str, JobState]:
        """The user's jobs of these names, by job id; of those that have ended only what is still known."""
        raise NotImplementedError

    def drive(self, lines: list[str], arguments: str, script: Path, is_on_node: bool) -> None:
        """Make this the job that drives a run: Python with these arguments, and again while its exit code is ``AGAIN``.

        Parameters
        ----------
        lines : list of str
            Shell commands before it.
        arguments : str
            Of Python, quoted.
        script : Path
            Where the job's script will be; the log lies beside it.
        is_on_node : bool
            Whether a node's cores are needed: the workers are in this job.
        """
        raise NotImplementedError

    def log_path(self) -> Path | None:
        """Where its errors are, if anywhere."""
        raise NotImplementedError

    def last_words(self) -> str:
        """The last line that says something in its log."""
        path = self.log_path()
        return "" if path is None else last_words(path)
