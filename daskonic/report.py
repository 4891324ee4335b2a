"""What a call did: rows, requests, who answered, and where the time went."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


@dataclass(slots=True)
class Report:
    """Account of one call, or of several merged.

    Attributes
    ----------
    rows, requests, retries : int
        Rows scored, requests sent with all their attempts, attempts beyond the first.
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
    """

    rows: int = 0
    requests: int = 0
    retries: int = 0
    sent_nbytes: int = 0
    useful_nbytes: int = 0
    endpoints: Counter[str] = field(default_factory=Counter)
    model: str = ""
    model_version: str = ""
    config_digest: str = ""
    stages_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a ``with`` block to one step."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.stages_s[name] = self.stages_s.get(name, 0.0) + time.perf_counter() - begin

    @classmethod
    def merge(cls, reports: Iterable[Report]) -> Report:
        """Sum of several reports; names are kept where all agree, and ``"mixed"`` where not."""
        total = cls()
        names: dict[str, set[str]] = {"model": set(), "model_version": set(), "config_digest": set()}
        for report in reports:
            for count in ("rows", "requests", "retries", "sent_nbytes", "useful_nbytes"):
                setattr(total, count, getattr(total, count) + getattr(report, count))
            total.endpoints.update(report.endpoints)
            for stage, seconds in report.stages_s.items():
                total.stages_s[stage] = total.stages_s.get(stage, 0.0) + seconds
            for name, seen in names.items():
                seen.add(getattr(report, name))
        for name, seen in names.items():
            seen.discard("")
            setattr(total, name, seen.pop() if len(seen) == 1 else "mixed" if seen else "")
        return total
