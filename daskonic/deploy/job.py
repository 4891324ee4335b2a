"""One batch job with a Dask worker, as SLURM and HTCondor have it in common."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distributed.core import Status

from daskonic import __version__
from daskonic.deploy.jobqueue import Job
from daskonic.deploy.node import UNFIT
from daskonic.errors import BatchSystemError

__all__ = ["BatchJob", "JobState", "call", "last_words"]

logger = logging.getLogger(__name__)

COMMAND_S = 60.0
LOG_NBYTES = 4096


@dataclass(frozen=True, slots=True)
class JobState:
    """What the batch system says of a job.

    Attributes
    ----------
    phase : {"waits", "runs", "ended"}
    words : str
        Its own words: state, reason, exit code.
    node : str
        Where it runs or ran; empty if nowhere.
    name : str
        Of the run that it belongs to, as the batch system shows it.
    """

    phase: Literal["waits", "runs", "ended"]
    words: str
    node: str = ""
    name: str = ""


async def call(*command: str) -> str:
    """Output of a command of the batch system.

    Raises
    ------
    BatchSystemError
        It is not there, takes too long, or fails; with what it says.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise BatchSystemError(
            f"cannot run {command[0]!r} ({error.strerror}); jobs are submitted from a machine that has the batch "
            "system's commands, such as a login node"
        ) from error
    try:
        out, err = await asyncio.wait_for(process.communicate(), COMMAND_S)
    except TimeoutError:
        process.kill()
        raise BatchSystemError(f"{command[0]} has not answered for {COMMAND_S:g} s") from None
    if process.returncode:
        words = "; ".join(dict.fromkeys(filter(None, map(str.strip, (err or out).decode().splitlines()))))
        raise BatchSystemError(f"{command[0]}: {words or f'exit code {process.returncode}'}")
    return out.decode()


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


def last_words(path: Path) -> str:
    """The last line of a log that says something; daskonic's own before others."""
    try:
        text = path.read_bytes()[-LOG_NBYTES:].decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    ours = [line for line in lines if line.startswith("daskonic: ")]
    return (ours or lines or [""])[-1]
