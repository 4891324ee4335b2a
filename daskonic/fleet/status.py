"""What a fleet is doing, as anybody who sees its folder can tell."""

from __future__ import annotations

import time
from dataclasses import dataclass

from daskonic import display
from daskonic.config import fleet_folder
from daskonic.fleet.spec import Spec
from daskonic.roster import Entry, Folder, Roster

__all__ = ["FleetStatus", "JobStatus", "fleet_status"]

HEARD_S = 15.0
COLUMNS = ("job", "node", "state", "server", "requests", "in queues", "leaves in", "models")


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One job of a fleet.

    Attributes
    ----------
    job, node : str
        Number in the batch system, and where it runs; empty while it waits.
    state : {"waits", "starts", "serves", "silent", "leaves", "ended"}
    address : str
        Of its server.
    requests : int
        Answered.
    queue_ms : float
        Mean time that they waited.
    leaves_s : float
        When it leaves, from now; infinite if nobody says.
    models : tuple of str
    """

    job: str
    node: str
    state: str
    address: str
    requests: int
    queue_ms: float
    leaves_s: float
    models: tuple[str, ...]

    @classmethod
    def of(cls, job: str, entry: Entry, listed: tuple[str, ...]) -> JobStatus:
        """From what the job and the controller say."""
        state: str = entry.state if entry.beat else "waits"
        if state == "serves" and entry.address not in listed:
            state = "silent" if time.time() - entry.written_s > HEARD_S else "starts"
        queue_ms = 1e3 * entry.queue_s / max(entry.requests, 1)
        leaves_s = entry.leaves_s - time.time()
        return cls(
            job or entry.job,
            entry.node,
            state,
            entry.address,
            entry.requests,
            queue_ms,
            leaves_s,
            entry.models,
        )


@dataclass(frozen=True, slots=True, repr=False)
class FleetStatus:
    """A fleet.

    Attributes
    ----------
    name, path : str
    system : str
    controller : str
        The process that controls it; empty if none does.
    minimum, maximum : int
    jobs : tuple of JobStatus
    note, trouble : str
        What is waited for, and why there is no server.
    """

    name: str
    path: str
    system: str
    controller: str
    minimum: int
    maximum: int
    jobs: tuple[JobStatus, ...]
    note: str
    trouble: str

    @classmethod
    def of(cls, folder: Folder) -> FleetStatus:
        """Read it; ConfigError if there is no such fleet."""
        spec, roster = Spec.read(folder), folder.roster() or Roster()
        heard = roster.pid and time.time() - roster.written_s < HEARD_S
        return cls(
            name=folder.path.name,
            path=str(folder.path),
            system=spec.system,
            controller=roster.who if heard else "",
            minimum=spec.minimum,
            maximum=spec.maximum,
            jobs=tuple(
                JobStatus.of(n, folder.entry(k) or Entry(), roster.servers) for k, n in roster.jobs.items()
            ),
            note=roster.note,
            trouble=roster.trouble,
        )

    def __repr__(self) -> str:
        rows = [COLUMNS, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        )
        return "\n".join([f"Fleet {self.name}: {self.account()}", *(f"  {line}" for line in lines)])

    def _repr_html_(self) -> str:
        return display.card(f"Fleet {self.name}", self.account(), display.table(self.rows(), COLUMNS))

    def account(self) -> str:
        """The fleet in a line."""
        serving = sum(job.state == "serves" for job in self.jobs)
        words = [
            f"{serving} servers, {len(self.jobs)} jobs of {self.system} ({self.minimum} to {self.maximum})",
            f"controlled by {self.controller}" if self.controller else "nobody controls it",
            *filter(None, (self.note, self.trouble)),
        ]
        return "; ".join(words)

    def rows(self) -> list[tuple[str, ...]]:
        """Each job in words, by :data:`COLUMNS`."""
        return [
            (
                job.job or "-",
                job.node or "-",
                job.state,
                job.address or "-",
                f"{job.requests:,}",
                f"{job.queue_ms:.1f} ms",
                f"{job.leaves_s:.0f} s" if job.leaves_s < float("inf") else "-",
                ", ".join(job.models),
            )
            for job in self.jobs
        ]


def fleet_status(name: str) -> FleetStatus:
    """What a fleet is doing.

    Raises
    ------
    ConfigError
        There is no such fleet.
    """
    return FleetStatus.of(Folder(fleet_folder(name)))
