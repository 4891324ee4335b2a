"""How a run is, seen from another shell."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from daskonic.deploy.state import JobState, last_words
from daskonic.errors import BatchSystemError, OutputError
from daskonic.tagging.jobs import RunJobs
from daskonic.tagging.manifest import Record, holder, read_manifest, records

__all__ = ["Status", "status"]

LOG_NBYTES = 65_536


@dataclass(frozen=True, slots=True)
class Status:
    """A run, as its folder and the batch system know it.

    Attributes
    ----------
    output : str
    state : {"waits", "runs", "stopped", "complete"}
        ``waits``: for the job that drives it to begin.
    driver : str
        Who drives it, with the batch system's words.
    workers : mapping of str to int
        Worker jobs that wait or run, by the batch system's words.
    partitions, partitions_total, events, events_total, rows : int
        What is done, that of earlier runs included, and all; totals are 0 until a worker was there.
    rows_per_s : float
        Jets per second of the last driver.
    left_s : float
        Time left at this rate; infinite if there is none.
    trouble : str
        The last warning or error.
    log : str
        File that says what happened; empty if there is none.
    """

    output: str
    state: str
    driver: str = ""
    workers: Mapping[str, int] = field(default_factory=dict)
    partitions: int = 0
    partitions_total: int = 0
    events: int = 0
    events_total: int = 0
    rows: int = 0
    rows_per_s: float = 0.0
    left_s: float = float("inf")
    trouble: str = ""
    log: str = ""


def status(output: str | os.PathLike[str]) -> Status:
    """Look at a run.

    Raises
    ------
    OutputError
        There is none in this folder.
    """
    path = Path(os.path.realpath(os.path.expanduser(output)))
    run, manifest = RunJobs.found(path), path / "manifest.json"
    if run is None and not manifest.exists():
        raise OutputError(f"no run in {path}: neither manifest.json nor jobs/run.json is there")
    known = read_manifest(manifest) if manifest.exists() else {}
    done = list({record.index: record for record in records(path)}.values())
    facts: dict[str, Any] = _progress(known, done)
    process = holder(path / ".lock") if run is None else run.process()
    state = "runs" if process else "complete" if known.get("complete") else "stopped"
    if run is None:
        return Status(str(path), state, process, **facts)
    driver, workers = process, {}
    try:
        states = run.states()
    except BatchSystemError as error:
        driver = f"{process}; {error}" if process else str(error)
    else:
        job = _last_driver(run, states)
        if job and (not process or states[job].phase != "ended"):
            driver = f"job {job}: {_told(states[job])}"
            if states[job].phase != "ended":
                state = states[job].phase
        workers = dict(
            Counter(
                s.words for s in states.values() if s.name == run.name and s.phase != "ended"
            ).most_common()
        )
    return Status(str(path), state, driver, workers, trouble=_trouble(run, state), log=_log(run), **facts)


def _progress(manifest: dict[str, Any], done: list[Record]) -> dict[str, Any]:
    """How far it is, and how fast the last driver went."""
    last = (manifest.get("runs") or [{}])[-1]
    facts: dict[str, Any] = {
        "partitions": len(done),
        "partitions_total": last.get("partitions_total", 0),
        "events": sum(r.events for r in done),
        "events_total": last.get("events_total", 0),
        "rows": sum(r.rows for r in done),
    }
    started = datetime.fromisoformat(last["started"]) if "started" in last else None
    fresh = [r for r in done if started and datetime.fromisoformat(r.finished) >= started]
    if started and fresh:
        seconds = max(
            (max(datetime.fromisoformat(r.finished) for r in fresh) - started).total_seconds(), 1e-3
        )
        facts["rows_per_s"] = sum(r.rows for r in fresh) / seconds
        facts["left_s"] = (
            (facts["events_total"] - facts["events"]) * seconds / max(1, sum(r.events for r in fresh))
        )
    return facts


def _last_driver(run: RunJobs, states: Mapping[str, JobState]) -> str:
    """Id of the driver's job that lives, else of the last one that is known."""
    jobs = [job for job, s in states.items() if s.name == run.driver_name]
    return max(jobs, key=lambda job: (states[job].phase != "ended", float(job)), default="")


def _told(state: JobState) -> str:
    """The batch system's words, and where."""
    return f"{state.words} on {state.node}" if state.node else state.words


def _log(run: RunJobs) -> str:
    """Where to read on."""
    logs = (run.log, run.folder / "driver.log")
    return next((str(path) for path in logs if path.exists()), "")


def _trouble(run: RunJobs, state: str) -> str:
    """What a driver that is no more said last, else the last warning in the log."""
    if state == "complete":
        return ""
    if state == "stopped" and (said := last_words(run.folder / "driver.log")):
        return said
    try:
        text = run.log.read_bytes()[-LOG_NBYTES:].decode(errors="replace")
    except OSError:
        return ""
    return ([line for line in text.splitlines() if re.match(r"\S+ \S+ (WARNING|ERROR) ", line)] or [""])[-1]
