"""HTCondor's commands and words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dask_jobqueue.htcondor import HTCondorCluster, HTCondorJob

from daskonic.deploy.cluster import JobCluster
from daskonic.deploy.job import BatchJob, JobState, call

__all__ = ["Cluster"]

IDLE, RUNNING, REMOVED, COMPLETED, HELD, TRANSFERRING, SUSPENDED = range(1, 8)
NAMES = {IDLE: "idle", RUNNING: "running", REMOVED: "removed", COMPLETED: "completed", HELD: "held"}
PHASES = {IDLE: "waits", RUNNING: "runs", TRANSFERRING: "runs", SUSPENDED: "runs"}
FIELDS = (
    "ClusterId",
    "JobStatus",
    "LastRejMatchReason",
    "HoldReason",
    "RemoveReason",
    "ExitCode",
    "RemoteHost",
)
UNDEFINED = "undefined"
RECENT = 50


class HtcondorJob(BatchJob, HTCondorJob):
    """A job of HTCondor."""

    @classmethod
    async def states(cls, jobs: Iterable[BatchJob]) -> dict[str, JobState]:
        """One question for the queue, and one for the history if a job has left it."""
        ids = [str(job.job_id).split(".")[0] for job in jobs if job.job_id]
        if not ids:
            return {}
        constraint = " || ".join(f"ClusterId == {i}" for i in ids)
        found = _states(await call("condor_q", "-constraint", constraint, "-af:t", *FIELDS))
        gone = [i for i in ids if f"{i}.0" not in found]
        if gone:
            constraint = " || ".join(f"ClusterId == {i}" for i in gone)
            fields = (*FIELDS[:-1], "LastRemoteHost")
            past = await call(
                "condor_history", "-constraint", constraint, "-match", str(len(gone)), "-scanlimit", str(RECENT),
                "-af:t", *fields,
            )  # fmt: skip
            found |= _states(past)
        return found

    def log_path(self) -> Path | None:
        """As dask-jobqueue names it."""
        return Path(self.log_directory) / f"worker-{self.job_id}.err" if self.log_directory else None


def _states(out: str) -> dict[str, JobState]:
    """Lines of ``-autoformat`` with tabulators."""
    found = {}
    for line in out.splitlines():
        cluster, status, rejected, held, removed, code, node = (part.strip() for part in line.split("\t"))
        number = int(status)
        why = {IDLE: rejected, HELD: held, REMOVED: removed}.get(number, UNDEFINED)
        words = [NAMES.get(number, "running"), *([f"({why})"] if why != UNDEFINED else [])]
        if number == COMPLETED and code != UNDEFINED:
            words.append(f"exit code {code}")
        host = "" if node == UNDEFINED else node.split("@", 1)[-1]
        found[f"{cluster}.0"] = JobState(PHASES.get(number, "ended"), " ".join(words), host)  # type: ignore[arg-type]
    return found


class Cluster(JobCluster, HTCondorCluster):
    """Dask workers in jobs of HTCondor."""

    job_cls = HtcondorJob  # type: ignore[assignment]
