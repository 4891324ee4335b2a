"""SLURM's commands and words."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from daskonic.deploy.cluster import JobCluster
from daskonic.deploy.job import BatchJob
from daskonic.deploy.jobqueue import SLURMCluster, SLURMJob
from daskonic.deploy.state import JobState, call
from daskonic.ending import AGAIN

__all__ = ["Cluster"]

FIELDS = ("JobID", "State", "Reason", "exit_code", "NodeList", "Name")
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
RUNNING = ("CONFIGURING", "RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED")


class SlurmJob(BatchJob, SLURMJob):
    """A job of SLURM."""

    @classmethod
    async def states(cls, jobs: Iterable[BatchJob]) -> dict[str, JobState]:
        """One question for all jobs of the user with the cluster's name."""
        return await cls.named(*{str(job.job_name) for job in jobs})

    @classmethod
    async def named(cls, *names: str) -> dict[str, JobState]:
        """By name; SLURM forgets jobs a few minutes after their end."""
        out = await call(
            "squeue",
            "--noheader",
            "--me",
            "--states=all",
            f"--name={','.join(sorted(names))}",
            f"--Format={','.join(f'{field}:|' for field in FIELDS)}",
        )
        found = {}
        for line in out.splitlines():
            job_id, state, reason, code, node, name = (
                part.strip() for part in line.split("|")[: len(FIELDS)]
            )
            phase = "waits" if state in WAITING else "runs" if state in RUNNING else "ended"
            words = [state, *([f"({reason})"] if reason not in ("", "None") else [])]
            if phase == "ended" and code not in ("", "0"):
                status = int(code)  # of wait(): 256 times the exit code, or the number of a signal
                words.append(f"exit code {status >> 8}" if status >> 8 else f"signal {status}")
            found[job_id] = JobState(phase, " ".join(words), node, name)  # type: ignore[arg-type]
        return found

    def drive(self, lines: list[str], arguments: str, script: Path, is_on_node: bool) -> None:  # noqa: ARG002
        """A node that is lost, or a job that goes first, is SLURM's to mend; it would not start again what had no time."""
        log = script.with_name("driver.log")
        directives = ("--requeue", "--open-mode=append", f"-o {log}", f"-e {log}")
        self.job_header = "\n".join([str(self.job_header), *(f"#SBATCH {each}" for each in directives)])
        self._job_script_prologue = [*lines, *self._job_script_prologue]
        again = f"[ $code -ne {AGAIN} ] || exec sbatch {shlex.quote(str(script))}"
        # trap: the shell is told to end as well, and must outlive the command.
        self._command_template = f"trap : TERM\n{self.python} {arguments}\ncode=$?\n{again}\nexit $code"

    def log_path(self) -> Path | None:
        """As dask-jobqueue names it."""
        return Path(self.log_directory) / f"{self.job_name}-{self.job_id}.err" if self.log_directory else None


class Cluster(JobCluster, SLURMCluster):
    """Dask workers in jobs of SLURM."""

    job_cls = SlurmJob  # type: ignore[assignment]
