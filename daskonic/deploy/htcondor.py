"""HTCondor's commands and words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from daskonic.deploy.cluster import JobCluster
from daskonic.deploy.job import BatchJob
from daskonic.deploy.jobqueue import HTCondorCluster, HTCondorJob
from daskonic.deploy.state import JobState, call
from daskonic.ending import AGAIN

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
    "JobBatchName",
    "RemoteHost",
)
UNDEFINED = "undefined"
RECENT = 50


class HtcondorJob(BatchJob, HTCondorJob):
    """A job of HTCondor."""

    force_command = "condor_rm -forcex"  # else it stays until its lease is over, 40 minutes by default

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
            found |= await _history(constraint, len(gone))
        return found

    @classmethod
    async def named(cls, *names: str) -> dict[str, JobState]:
        """By name of the batch; one question for the queue and one for the last of the history."""
        constraint = " || ".join(f'JobBatchName == "{name}"' for name in names)
        queue = _states(await call("condor_q", "-constraint", constraint, "-af:t", *FIELDS), "runs")
        return await _history(constraint, RECENT) | queue

    def drive(self, lines: list[str], arguments: str, script: Path, is_on_node: bool) -> None:
        """Without cores it runs beside the queue, where it was submitted, as DAGMan does."""
        log = str(script.with_name("driver.log"))
        self.job_header_dict |= {
            **({} if is_on_node else {"universe": "local"}),
            "Output": log,
            "Error": log,
            "on_exit_remove": f"ExitCode =!= {AGAIN}",
            "periodic_remove": "False",
        }
        self._command_template = "; ".join(
            [*lines, *self._job_script_prologue, f"exec {self.python} {arguments}"]
        )

    def log_path(self) -> Path | None:
        """As dask-jobqueue names it."""
        return Path(self.log_directory) / f"worker-{self.job_id}.err" if self.log_directory else None


async def _history(constraint: str, at_most: int) -> dict[str, JobState]:
    """Jobs that have left the queue, as far as a short look finds them."""
    return _states(
        await call(
            "condor_history", "-constraint", constraint, "-match", str(at_most), "-scanlimit", str(RECENT),
            "-af:t", *FIELDS[:-1], "LastRemoteHost",
        )
    )  # fmt: skip


def _states(out: str, removed_phase: str = "ended") -> dict[str, JobState]:
    """Lines of ``-autoformat`` with tabulators; a job that is removed may run for a moment yet."""
    phases = PHASES | {REMOVED: removed_phase}
    found = {}
    for line in out.splitlines():
        cluster, status, rejected, held, removed, code, name, node = (
            part.strip() for part in line.split("\t")
        )
        number = int(status)
        why = {IDLE: rejected, HELD: held, REMOVED: removed}.get(number, UNDEFINED)
        words = [NAMES.get(number, "running"), *([f"({why})"] if why != UNDEFINED else [])]
        if number == COMPLETED and code != UNDEFINED:
            words.append(f"exit code {code}")
        host = "" if node == UNDEFINED else node.split("@", 1)[-1]
        found[f"{cluster}.0"] = JobState(phases.get(number, "ended"), " ".join(words), host, name)  # type: ignore[arg-type]
    return found


class Cluster(JobCluster, HTCondorCluster):
    """Dask workers in jobs of HTCondor."""

    job_cls = HtcondorJob  # type: ignore[assignment]
