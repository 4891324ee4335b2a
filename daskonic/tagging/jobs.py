"""The batch jobs of a run, found again from its output folder.

::

    OUTPUT/jobs/
      run.json        which batch system; locked while a process drives the run
      run.log         what happened, of all drivers
      driver.*        script and output of the driver's job, where it was submitted
      *.err, *.out    output of worker jobs
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from daskonic.deploy import driver
from daskonic.deploy.state import JobState
from daskonic.errors import OutputError
from daskonic.tagging.manifest import JOBS, holder, locked, refuse_foreign

__all__ = ["RunJobs"]

STOPPED_S = 60.0


@dataclass(frozen=True, slots=True)
class RunJobs:
    """What a run into one folder has in a batch system.

    Attributes
    ----------
    output : Path
        The run's output folder.
    system : str
        Batch system.
    """

    output: Path
    system: str

    @classmethod
    def of(cls, output: str | os.PathLike[str], system: str) -> Self:
        """Of a run that begins."""
        return cls(Path(os.path.realpath(os.path.expanduser(output))), system)

    @classmethod
    def found(cls, output: str | os.PathLike[str]) -> Self | None:
        """Of a run that began in another shell; None if it has no batch jobs."""
        run = cls.of(output, "")
        try:
            system = json.loads((run.folder / "run.json").read_text("utf-8"))["system"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cls(run.output, str(system))

    @property
    def folder(self) -> Path:
        """For scripts and logs of jobs."""
        return self.output / JOBS

    @property
    def log(self) -> Path:
        """What happened."""
        return self.folder / "run.log"

    @property
    def name(self) -> str:
        """Name of worker jobs, the same for all runs into this folder: what an earlier one left can be found."""
        return f"daskonic-{hashlib.sha256(str(self.output).encode()).hexdigest()[:8]}"

    @property
    def driver_name(self) -> str:
        """Name of the job that drives."""
        return driver.driver_name(self.name)

    def submit(self, cluster: str, arguments: Sequence[str], **options: Any) -> tuple[str, Path]:
        """Submit the job that drives; see :func:`daskonic.deploy.driver.submit`.

        Raises
        ------
        OutputError
            The run is driven already.
        """
        self._begin()
        living = [j for j, s in self.states().items() if s.name == self.driver_name and s.phase != "ended"]
        if by := f"job {living[0]}" if living else self.process():
            raise OutputError(
                f"{self.output} has a run already ({by}); see daskonic status, and daskonic cancel"
            )
        return driver.submit(cluster, self.name, arguments, self.folder, **options)

    @contextmanager
    def driven(self) -> Iterator[None]:
        """Drive the run from this process: nobody else does meanwhile, and jobs that a killed driver left are cancelled.

        Raises
        ------
        OutputError
            Another process drives it.
        """
        self._begin()
        with locked(self._lock):
            driver.cancel(self.system, self.name)
            yield

    def states(self) -> dict[str, JobState]:
        """What the batch system says of driver and workers, by job id."""
        return driver.jobs_named(self.system, self.driver_name, self.name)

    def process(self) -> str:
        """The process that drives the run, such as ``process 12 on login1``; empty if there is none."""
        return holder(self._lock)

    def cancel(self) -> list[str]:
        """End driver and workers, and wait for that; finished partitions stay.

        Returns
        -------
        list of str
            Ids of the jobs.

        Raises
        ------
        OutputError
            A process on another machine drives the run.
        BatchSystemError
            The jobs cannot be cancelled.
        """
        driving = any(s.name == self.driver_name and s.phase != "ended" for s in self.states().values())
        if not driving and (process := self.process()):
            self._end(process)
        return driver.cancel(self.system, self.driver_name, self.name)

    @property
    def _lock(self) -> Path:
        return self.folder / ".driver"

    def _begin(self) -> None:
        """Let other shells find the jobs; OutputError where the folder is not a run's."""
        try:
            refuse_foreign(self.output)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "run.json").write_text(json.dumps({"system": self.system}) + "\n", "utf-8")
        except OSError as error:
            raise OutputError(f"cannot write to {self.folder}: {error.strerror or error}") from error

    def _end(self, process: str) -> None:
        """As Ctrl-C where it runs, which has its jobs cancelled."""
        found = re.fullmatch(r"process (\d+) on (\S+)", process)
        if found is None or found[2] != socket.gethostname():
            raise OutputError(f"the run is driven by {process}: end it there, with Ctrl-C")
        with suppress(ProcessLookupError):
            os.kill(int(found[1]), signal.SIGTERM)
        end = time.monotonic() + STOPPED_S
        while self.process() and time.monotonic() < end:
            time.sleep(0.2)
