"""What a call did: rows, requests, who answered, and where the time went."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dask.utils import format_bytes, format_time

from daskonic import display

__all__ = ["SHARES", "STAGES", "Report", "waiting_for"]

STAGES = (
    "features",
    "flatten",
    "split",
    "encode",
    "submit",
    "infer",
    "decode",
    "join",
    "unflatten",
)
"""Steps of the spine. ``submit`` is time without a permit, ``infer`` time without an answer."""


SHARES = (
    "features",
    "full servers",
    "server queue",
    "server compute",
    "network",
    "servers",
    "reading",
    "writing",
)
"""What the time of a run goes into."""

OWN_SHARES = ("features", "reading", "writing")
"""What of it is the workers' own; the others wait for servers."""

SHARES_SHOWN = 3


def waiting_for(spent_s: Mapping[str, float]) -> str:
    """The largest shares of :meth:`Report.spent_s` in words; empty if nothing was spent."""
    total = sum(spent_s.values())
    if total <= 0:
        return ""
    largest = sorted(spent_s.items(), key=lambda part: -part[1])[:SHARES_SHOWN]
    return "time goes to " + ", ".join(f"{name} {s / total:.0%}" for name, s in largest if s >= 0.05 * total)


class _Stage:
    """A stop watch; a class of its own, since a generator costs a fifth of a small request."""

    __slots__ = ("_begin", "_name", "_stages_s")

    def __init__(self, stages_s: dict[str, float], name: str) -> None:
        self._stages_s = stages_s
        self._name = name

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent_s = time.perf_counter() - self._begin
        self._stages_s[self._name] = self._stages_s.get(self._name, 0.0) + spent_s


COUNTS = ("rows", "joined", "saved", "requests", "retries", "masked", "cut", "sent_nbytes", "useful_nbytes")


@dataclass(slots=True, repr=False)
class Report:
    """Account of one call, or of several merged.

    Attributes
    ----------
    rows, requests, retries : int
        Rows scored, requests sent with all their attempts, attempts beyond the first.
    joined : int
        Rows whose scores are in their place; while a call is under way, fewer than ``rows``.
    saved : int
        Further rows, of :class:`~daskonic.Variations`, that have the score of one that is equal bit by bit.
    masked : int
        Rows without scores, where the model's policy is to go on without them.
    cut : int
        Rows longer than the input's length, of which the end was left out as in the training.
    sent_nbytes : int
        Bytes of the messages' tensors, each counted once.
    useful_nbytes : int
        Bytes of the rows' own values in the model's dtypes; the rest of ``sent_nbytes`` is padding.
    endpoints : Counter of str
        Requests answered by each address.
    model, model_version, config_digest, fingerprint : str
        Who made the numbers; the fingerprint is that of the lock, where there is one.
    stages_s : dict of str to float
        Seconds of the calling thread in each step of :data:`STAGES`.
    server_s : dict of str to float
        Seconds of these requests in the servers' ``queue`` and ``compute``, by the servers' own mean times, and between
        sending and answer beside that, ``network``; empty where servers tell none. Several are on their way together, so
        the sum may be more than the thread waited for.
    """

    rows: int = 0
    joined: int = 0
    saved: int = 0
    requests: int = 0
    retries: int = 0
    masked: int = 0
    cut: int = 0
    sent_nbytes: int = 0
    useful_nbytes: int = 0
    endpoints: Counter[str] = field(default_factory=Counter)
    model: str = ""
    model_version: str = ""
    config_digest: str = ""
    fingerprint: str = ""
    stages_s: dict[str, float] = field(default_factory=dict)
    server_s: dict[str, float] = field(default_factory=dict)

    def add_server_s(self, queue_s: float, compute_s: float, network_s: float) -> None:
        """Count one request's time in a server, and on the way there and back."""
        for name, seconds in (("queue", queue_s), ("compute", compute_s), ("network", network_s)):
            self.server_s[name] = self.server_s.get(name, 0.0) + seconds

    def spent_s(self) -> dict[str, float]:
        """Seconds by what they went into, waiting included; the shares of a run.

        Returns
        -------
        dict of str to float
            ``reading`` and ``writing`` of files; ``features`` and all else that the worker computes; ``full servers``: waiting
            for a place at a server; ``server queue``, ``server compute`` and ``network``: waiting for answers, divided as
            the requests' time was; ``servers`` where that is not known.
        """
        stages_s = dict(self.stages_s)  # in one step: a call under way may add to it
        waiting_s = {"full servers": stages_s.pop("submit", 0.0)}
        answers_s = stages_s.pop("infer", 0.0)
        names = {"queue": "server queue", "compute": "server compute", "network": "network"}
        parts = {names[name]: max(seconds, 0.0) for name, seconds in dict(self.server_s).items()}
        total = sum(parts.values())
        parts = (
            {name: answers_s * part / total for name, part in parts.items()}
            if total
            else {"servers": answers_s}
        )
        files_s = {"reading": stages_s.pop("events", 0.0), "writing": stages_s.pop("write", 0.0)}
        shares = {"features": sum(stages_s.values())} | waiting_s | parts | files_s
        return {name: seconds for name, seconds in shares.items() if seconds > 0}

    def facts(self) -> list[tuple[str, str]]:
        """What a person wants to know, by name."""
        padding = self.sent_nbytes / self.useful_nbytes if self.useful_nbytes else 0.0
        told = {
            "rows": f"{self.rows:,}",
            "without scores": f"{self.masked:,}" if self.masked else "",
            "saved": f"{self.saved:,} more rows are equal to one of these" if self.saved else "",
            "cut": f"{self.cut:,} rows are longer than the inputs" if self.cut else "",
            "requests": f"{self.requests:,}"
            + (f", {self.retries:,} of them retries" if self.retries else ""),
            "sent": format_bytes(self.sent_nbytes)
            + (f", {padding:.2f} times the rows' own values" if padding else ""),
            "servers": ", ".join(f"{address} ({n:,})" for address, n in sorted(self.endpoints.items())),
        }
        return [(name, text) for name, text in told.items() if text]

    @property
    def title(self) -> str:
        """Model and version."""
        return (
            f"{self.model}, version {self.model_version}" if self.model_version else self.model or "no call"
        )

    def __repr__(self) -> str:
        spent_s = self.spent_s()
        total = sum(spent_s.values())
        lines = [*self.facts()]
        if total:
            each = (
                f"{name} {seconds / total:.0%}"
                for name, seconds in spent_s.items()
                if seconds >= 0.005 * total
            )
            lines.append(("time", f"{format_time(total)}: {'  '.join(each)}"))
        return "\n".join([f"Report of {self.title}", *(f"  {name:15}{text}" for name, text in lines)])

    def _repr_html_(self) -> str:
        spent_s = self.spent_s()
        about = f"{self.rows:,} rows in {format_time(sum(spent_s.values()))} of worker threads"
        return display.card(
            self.title, about, display.shares(spent_s, SHARES), display.table(self.facts()[1:])
        )

    def move(self, seconds: float, start: str, to: str) -> None:
        """Count time to another step than the one it was spent in."""
        self.stages_s[start] = self.stages_s.get(start, 0.0) - seconds
        self.stages_s[to] = self.stages_s.get(to, 0.0) + seconds

    def stage(self, name: str) -> _Stage:
        """Count the time of a ``with`` block to one step."""
        return _Stage(self.stages_s, name)

    @classmethod
    def merge(cls, reports: Iterable[Report]) -> Report:
        """Sum of several reports; names are kept where all agree, and ``"mixed"`` where not."""
        total = cls()
        names: dict[str, set[str]] = {
            "model": set(),
            "model_version": set(),
            "config_digest": set(),
            "fingerprint": set(),
        }
        for report in reports:
            for count in COUNTS:
                setattr(total, count, getattr(total, count) + getattr(report, count))
            total.endpoints.update(report.endpoints)
            for spent, seconds_of in ((total.stages_s, report.stages_s), (total.server_s, report.server_s)):
                for name, seconds in seconds_of.items():
                    spent[name] = spent.get(name, 0.0) + seconds
            for field_name, seen in names.items():
                seen.add(getattr(report, field_name))
        for field_name, seen in names.items():
            seen.discard("")
            setattr(total, field_name, seen.pop() if len(seen) == 1 else "mixed" if seen else "")
        return total
