"""All that can be known of a run before it starts, found out with a few events in a few seconds.

::

    servers → features → the same rows in several ways → in process → one call as in the run → estimate
"""

from __future__ import annotations

import math
import os
import time
from typing import Any, Protocol

import awkward as ak

from daskonic.errors import DaskonicError, ServerError, SpecError
from daskonic.features import GraphRows, Rows
from daskonic.pool import Pool
from daskonic.preflight.inputs import batch_of, made
from daskonic.preflight.reference import compare_in_process, onnx_file
from daskonic.preflight.report import CheckReport, Estimate
from daskonic.preflight.scores import Scored, compare
from daskonic.preflight.servers import ask_all
from daskonic.report import Report
from daskonic.tensors import ModelSpec, TensorSpec
from daskonic.wanted import Meant, batched, outputs_of

__all__ = ["EVENTS", "check"]

EVENTS = 200
"""Events that are looked at, of those given."""

ROWS = 1_000_000
"""Rows of the estimate, where the run's own number is not known."""


class Scores(Protocol):
    """A call under way."""

    def result(self) -> Any:
        """Wait for the scores."""

    @property
    def report(self) -> Report:
        """Account of the call."""


class Checked(Meant, Protocol):
    """A model, as far as it is looked at here."""

    name: str
    version: str

    @property
    def trim(self) -> str:
        """Whether rows of variable length are sent short."""

    def pool(self) -> Pool:
        """Where its servers are named."""

    def submit(self, objects: Any) -> Scores:
        """A call as in the run."""


def check(
    model: Checked,
    objects: Any,
    reference: str | os.PathLike[str] | None,
    n_rows: int | None,
    tolerance: float,
) -> CheckReport:
    """See :meth:`daskonic.Model.check`, which says the same of its arguments."""
    report = CheckReport(model.name, model.version)
    objects = _few(objects)
    settings = model.pool().settings
    path = onnx_file(reference, settings.fallback_repository, model.name, model.version)
    servers = ask_all(settings, model.name, model.version, report)
    if servers:
        report.version = servers[0].spec.version
    spec, outputs = _meant(model, servers[0].spec, report) if servers else (None, ())
    rows = None if spec is None else made(model.features, objects, spec, report)
    scored = None
    if spec is not None and rows is not None and _has_rows(rows, report):
        report.passed["features"] = _shapes(rows)
        _refuse_large(model, spec, report)
        most = _most(model, spec, rows, settings.batch_nbytes)
        try:
            scored = compare(
                servers, rows, outputs, most, tolerance, report, is_trimmed=model.trim == "always"
            )
        except ServerError as error:
            report.add("failed", str(error))
    if path is not None:
        compare_in_process(
            path, scored, outputs, lambda of: _fits_file(model, objects, of, report), tolerance, report
        )
    if report.differences:
        ways = (f"{what}: {d:.1g}" if d else f"{what}: 0" for what, d in report.differences.items())
        report.passed["scores"] = f"largest differences, {'; '.join(ways)}"
    if report.ok and scored is not None and spec is not None:
        _estimate(model, objects, spec, scored, n_rows or ROWS, report)
    return report


def _few(objects: Any) -> Any:
    """The first events, read into memory if they are not yet."""
    few = objects[:EVENTS]
    return ak.materialize(few) if isinstance(few, ak.Array) and hasattr(ak, "materialize") else few


def _meant(
    model: Checked, spec: ModelSpec, report: CheckReport
) -> tuple[ModelSpec | None, tuple[TensorSpec, ...]]:
    """The model as its user means it, and the outputs wanted; nothing if it cannot be meant so."""
    try:
        own = batched(model, spec)
    except SpecError as error:
        report.add("batch", str(error))
        return None, ()
    try:
        return own, outputs_of(model, own)
    except SpecError as error:
        report.add("outputs", str(error))
        return None, ()


def _has_rows(rows: Rows | GraphRows, report: CheckReport) -> bool:
    """Without any row nothing can be tried."""
    if not len(rows):
        report.add("values", "these events have no rows to score; give others", fatal=False)
    return len(rows) > 0


def _shapes(rows: Rows | GraphRows) -> str:
    """What the features make, in one line."""
    return "; ".join(f"{name}: {a.dtype.name}{list(a.shape[1:])}" for name, a in batch_of(rows, 1).items())


def _refuse_large(model: Checked, spec: ModelSpec, report: CheckReport) -> None:
    """A batch size that the server does not take is cut, which its user should know."""
    if model.batch_size is not None and 0 < spec.max_batch_size < model.batch_size:
        report.add(
            "batch",
            f"batch_size={model.batch_size:,} is more than the {spec.max_batch_size:,} rows that the server takes in one request; "
            "leave it out, or have max_batch_size raised on the server",
            fatal=False,
        )


def _most(model: Checked, spec: ModelSpec, rows: Rows | GraphRows, batch_nbytes: int) -> int:
    """Rows in the largest request of a run."""
    row_nbytes = sum(tensor.nbytes for tensor in batch_of(rows, 1).values())
    limits = (spec.max_batch_size, model.batch_size, batch_nbytes // max(row_nbytes, 1))
    return max(1, min(n for n in limits if n))


def _fits_file(model: Checked, objects: Any, spec: ModelSpec, report: CheckReport) -> None:
    """The features against the model's own file, which may be stricter than the server's description."""
    if not model.features.is_graph:
        made(model.features, objects, spec, report)


def _estimate(
    model: Checked, objects: Any, spec: ModelSpec, scored: Scored, n_rows: int, report: CheckReport
) -> None:
    """One call as in the run, and what many of its kind will cost."""
    try:
        pending = model.submit(objects)
        pending.result()
    except DaskonicError as error:
        report.add("failed", str(error))
        return
    account = pending.report
    begin = time.perf_counter()
    batch_of(model.features(objects, spec).flatten())
    features_s = time.perf_counter() - begin
    report.estimate = Estimate(
        rows=n_rows,
        requests=math.ceil(n_rows / scored.largest),
        nbytes=round(n_rows * account.sent_nbytes / account.rows),
        features_s=n_rows * features_s / account.rows,
        server_s=n_rows / scored.rows_per_s if scored.rows_per_s else 0.0,
    )
