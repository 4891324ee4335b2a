"""What a check found: mistakes with their remedies, what is in order, and what a run will cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from dask.utils import format_bytes, format_time

from daskonic import display
from daskonic.errors import (
    ConfigError,
    DaskonicError,
    InputError,
    ModelNotFoundError,
    ResponseError,
    ServerError,
    SpecError,
)

__all__ = ["CheckReport", "Estimate", "Finding", "Kind"]

Kind = Literal[
    "setting", "host", "port", "tls", "token", "load gate", "not ready", "model", "version", "servers differ",
    "features", "values", "name", "mask", "rank", "shape", "transposed", "dtype", "batch", "outputs",
    "failed", "neighbours", "padding", "not finite", "reference",
]  # fmt: skip

ERRORS: dict[type[DaskonicError], tuple[Kind, ...]] = {
    ConfigError: ("setting",),
    InputError: ("values",),
    SpecError: ("features", "name", "mask", "rank", "shape", "transposed", "dtype", "batch", "outputs"),
    ModelNotFoundError: ("model", "version"),
    ServerError: ("host", "port", "tls", "token", "load gate", "not ready", "servers differ"),
    ResponseError: ("failed", "neighbours", "padding", "not finite", "reference"),
}
"""The error that a run would end in, and so the exit code."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and how to mend it.

    Attributes
    ----------
    kind : str
        What sort of mistake: ``"transposed"``, ``"token"``, ``"neighbours"``, ...
    message : str
        One line: where, what is wrong, how to mend it.
    fatal : bool
        Whether a run would fail or give wrong scores; otherwise it costs time or bytes.
    """

    kind: Kind
    message: str
    fatal: bool = True

    @property
    def error(self) -> type[DaskonicError]:
        """Class of error that stands for it."""
        return next(error for error, kinds in ERRORS.items() if self.kind in kinds)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will cost, from what a few events cost.

    Attributes
    ----------
    rows : int
        Rows that the numbers are for.
    requests, nbytes : int
        Full requests, and bytes sent to the servers.
    features_s : float
        Time of one core for the inputs.
    server_s : float
        Time at one server with one request after the other, on the way there and back included.
    """

    rows: int
    requests: int
    nbytes: int
    features_s: float
    server_s: float

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows: {self.requests:,} requests, {format_bytes(self.nbytes)}; "
            f"{format_time(self.features_s)} of one core for the inputs, {format_time(self.server_s)} at one server "
            "with one request at a time"
        )


@dataclass(slots=True, repr=False)
class CheckReport:
    """What :meth:`daskonic.Model.check` found.

    Attributes
    ----------
    model, version : str
    findings : list of Finding
        Empty if all is well; the fatal ones first.
    passed : dict of str to str
        What is in order: each step that was reached, and its result.
    differences : dict of str to float
        Largest difference of a score between the two ways that the key tells apart, such as ``"batches of 1 and 7"``.
    estimate : Estimate or None
        None if no scores could be made.
    """

    model: str
    version: str = ""
    findings: list[Finding] = field(default_factory=list)
    passed: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    estimate: Estimate | None = None

    @property
    def ok(self) -> bool:
        """Whether a run can start: nothing that is fatal was found."""
        return not any(finding.fatal for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """0, or what the command line says for the first fatal finding."""
        return next((f.error.exit_code for f in self.findings if f.fatal), 0)

    def add(self, kind: Kind, message: str, *, fatal: bool = True) -> None:
        """One more finding, once; the message becomes one line."""
        finding = Finding(kind, " ".join(message.split()), fatal)
        if finding not in self.findings:
            self.findings.append(finding)
            self.findings.sort(key=lambda f: not f.fatal)

    def facts(self) -> dict[str, Any]:
        """Everything, for a script; None for a difference that is no number."""
        differences = {what: d if math.isfinite(d) else None for what, d in self.differences.items()}
        told = {"ok": self.ok, "exit_code": self.exit_code, "differences": differences}
        return dataclasses.asdict(self) | told

    def lines(self) -> Iterator[tuple[str, str, str]]:
        """Mark, what, and text of each line, for whoever shows them."""
        for finding in self.findings:
            yield "✗" if finding.fatal else "!", finding.kind, finding.message
        for step, result in self.passed.items():
            yield "✓", step, result
        if self.estimate is not None:
            yield "≈", "estimate", str(self.estimate)

    @property
    def title(self) -> str:
        """Model and version."""
        return f"{self.model}, version {self.version}" if self.version else self.model

    @property
    def verdict(self) -> str:
        """All in a few words."""
        n_fatal = sum(f.fatal for f in self.findings)
        if n_fatal:
            return f"{n_fatal} thing{'s' * (n_fatal > 1)} to mend"
        return "ready, with a remark" if self.findings else "ready"

    def __repr__(self) -> str:
        lines = [f"{self.title}: {self.verdict}"]
        lines += [f"  {mark} {what:10} {text}" for mark, what, text in self.lines()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(f"{mark} {what}", text) for mark, what, text in self.lines()]
        return display.card(self.title, self.verdict, display.table(rows))
