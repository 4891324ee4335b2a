"""What a call did: rows, requests, who answered, and where the time went."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["STAGES", "Report"]

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


COUNTS = ("rows", "requests", "retries", "masked", "cut", "sent_nbytes", "useful_nbytes")


@dataclass(slots=True)
class Report:
    """Account of one call, or of several merged.

    Attributes
    ----------
    rows, requests, retries : int
        Rows scored, requests sent with all their attempts, attempts beyond the first.
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
    model, model_version, config_digest : str
        Who made the numbers.
    stages_s : dict of str to float
        Seconds of the calling thread in each step of :data:`STAGES`.
    server_s : dict of str to float
        Seconds of these requests in the servers' ``queue`` and ``compute``, by the servers' own mean times; empty
        where they tell none. What is left of ``infer`` is wire, and waiting of the thread for a core.
    """

    rows: int = 0
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
    stages_s: dict[str, float] = field(default_factory=dict)
    server_s: dict[str, float] = field(default_factory=dict)

    def add_server_s(self, queue_s: float, compute_s: float) -> None:
        """Count one request's time in a server."""
        for name, seconds in (("queue", queue_s), ("compute", compute_s)):
            self.server_s[name] = self.server_s.get(name, 0.0) + seconds

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
        names: dict[str, set[str]] = {"model": set(), "model_version": set(), "config_digest": set()}
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
