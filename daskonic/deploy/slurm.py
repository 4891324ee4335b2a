"""SLURM's commands and words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dask_jobqueue.slurm import SLURMCluster, SLURMJob

from daskonic.deploy.cluster import JobCluster
from daskonic.deploy.job import BatchJob, JobState, call

__all__ = ["Cluster"]

FIELDS = ("JobID", "State", "Reason", "exit_code", "NodeList")
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
RUNNING = ("CONFIGURING", "RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED")


class SlurmJob(BatchJob, SLURMJob):
    """A job of SLURM."""

    @classmethod
    async def states(cls, jobs: Iterable[BatchJob]) -> dict[str, JobState]:
        """One question for all jobs of the user with the cluster's name."""
        names = {str(job.job_name) for job in jobs}
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
            job_id, state, reason, code, node = (part.strip() for part in line.split("|")[: len(FIELDS)])
            phase = "waits" if state in WAITING else "runs" if state in RUNNING else "ended"
            words = [state, *([f"({reason})"] if reason not in ("", "None") else [])]
            if phase == "ended" and code not in ("", "0"):
                status = int(code)  # of wait(): 256 times the exit code, or the number of a signal
                words.append(f"exit code {status >> 8}" if status >> 8 else f"signal {status}")
            found[job_id] = JobState(phase, " ".join(words), node)  # type: ignore[arg-type]
        return found

    def log_path(self) -> Path | None:
        """As dask-jobqueue names it."""
        return Path(self.log_directory) / f"{self.job_name}-{self.job_id}.err" if self.log_directory else None


class Cluster(JobCluster, SLURMCluster):
    """Dask workers in jobs of SLURM."""

    job_cls = SlurmJob  # type: ignore[assignment]
