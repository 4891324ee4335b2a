"""The same rows scored in several ways, which must not matter: batches, neighbours, padding, servers, in process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from daskonic.errors import DaskonicError, InferenceError, ResponseError
from daskonic.features import Batch, GraphRows, Rows
from daskonic.preflight.report import CheckReport
from daskonic.preflight.servers import AT_ONCE, Server
from daskonic.ragged import Counts
from daskonic.tensors import Array, TensorSpec
from daskonic.tolerance import apart

__all__ = ["Scored", "compare", "tensors_of"]

SAMPLE = 64
"""Rows that are scored in every way: ten requests of seven."""

FEW = 7
"""No divisor of usual sizes, so that padding a batch to one of them would show."""

Scores = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Scored:
    """Rows in batches of :data:`FEW`, what a server made of them, and how fast it is with large batches."""

    rows: Rows | GraphRows
    batches: Sequence[Batch]
    scores: Scores
    largest: int
    rows_per_s: float


@dataclass(frozen=True, slots=True)
class _Ways:
    """What all the ways share."""

    server: Server
    rows: Rows | GraphRows
    outputs: tuple[TensorSpec, ...]
    report: CheckReport
    tolerance: float

    def score(self, batches: Sequence[Batch]) -> dict[str, Array]:
        """Outputs, one request after the other: nothing is merged with a neighbour on the way."""
        names = tuple(t.name for t in self.outputs)
        parts = [self.server.score(tensors_of(self.rows, b), names, b.n_rows) for b in batches]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def timed(self, batch: Batch) -> tuple[dict[str, Array], float]:
        """Outputs of one batch, and the shorter time of two requests: the first may have to warm the model up."""
        tensors, names = tensors_of(self.rows, batch), tuple(t.name for t in self.outputs)
        seconds = []
        for _ in range(2):
            begin = time.perf_counter()
            answer = self.server.score(tensors, names, batch.n_rows)
            seconds.append(time.perf_counter() - begin)
        return answer, min(seconds)

    def split(self, size: int) -> list[Batch]:
        """The first :data:`SAMPLE` rows in batches of one size, all in the full length."""
        batches = [Batch(b.which, b.n_rows, self.full) for b in self.rows.split(size, 2**31)]
        return batches[: -(-SAMPLE // size)]

    def batch(self, numbers: Counts) -> Batch:
        """Some rows, perhaps several times, in the full length."""
        return Batch(numbers, len(numbers), self.full)

    @property
    def full(self) -> Mapping[str, int]:
        """The length that the longest row needs."""
        buckets = self.rows.buckets()
        return {} if buckets is None else buckets.lengths(buckets.full)


def compare(
    servers: Sequence[Server],
    rows: Rows | GraphRows,
    outputs: tuple[TensorSpec, ...],
    most: int,
    tolerance: float,
    report: CheckReport,
    *,
    is_trimmed: bool,
) -> Scored | None:
    """Score a sample in every way; None if the model cannot score it.

    Parameters
    ----------
    servers : sequence of Server
        The first one scores in every way, the others score once.
    most : int
        Rows of the largest request that a run would send.
    is_trimmed : bool
        Whether a run would send rows short even if that changed their scores.
    """
    if isinstance(rows, Rows):
        rows = rows.take(np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64)))
    ways = _Ways(servers[0], rows, outputs, report, tolerance)
    few = ways.split(min(FEW, most))
    try:
        single = ways.score(ways.split(1)[:FEW])
    except (InferenceError, ResponseError) as error:
        report.add("failed", f"{error}; see the server's log, and whether the inputs are as in the training")
        return None
    try:
        scores = ways.score(few)
    except (InferenceError, ResponseError) as error:
        _too_large(1, few[0].n_rows, str(error), report)
        return None
    report.differences[f"batches of 1 and {FEW}"] = apart(single, _first(scores, single))
    largest, rows_per_s = few[0].n_rows, 0.0
    if isinstance(rows, Rows):
        _change_neighbours(ways, scores, few[0].n_rows)
        largest, rows_per_s = _enlarge(ways, scores, most)
        if rows.buckets() is not None:
            _change_padding(ways, is_trimmed=is_trimmed)
        else:
            _change_masked(ways, scores, few[0])
    _judge(scores, rows, tolerance, report)
    _change_server(ways, servers, scores, few[0])
    return Scored(rows, few, scores, largest, rows_per_s)


def tensors_of(rows: Rows | GraphRows, batch: Batch) -> dict[str, Array]:
    """Inputs of one batch."""
    return rows.tensors(rows.features(batch.which), batch.lengths)


def _first(scores: Scores, like: Scores) -> dict[str, Array]:
    """As many entries as there are in ``like``."""
    return {name: scores[name][: len(values)] for name, values in like.items()}


def _change_neighbours(ways: _Ways, scores: Scores, size: int) -> None:
    """The first row of a batch, at its place in a batch of the same size, but among others."""
    if 2 <= size < len(ways.rows):
        numbers = np.concatenate([[0], np.arange(len(ways.rows) - size + 1, len(ways.rows))])
        again = ways.score([ways.batch(numbers)])
        first = {name: values[:1] for name, values in again.items()}
        ways.report.differences["other neighbours"] = apart(first, _first(scores, first))


def _enlarge(ways: _Ways, scores: Scores, most: int) -> tuple[int, float]:
    """Score the largest batch, or the largest that the model takes after all; its size, and rows per second."""
    good, bad, why, seconds = min(FEW, len(ways.rows), most), most + 1, "", 0.0
    size = most
    while size > good and bad - good > (good // 8 if why else 0):
        numbers = np.arange(size) % len(ways.rows)
        try:
            whole, seconds = ways.timed(ways.batch(numbers))
        except (InferenceError, ResponseError) as error:
            bad, why = size, why or str(error)
        else:
            good = size
            if not why:
                expected = {name: values[numbers] for name, values in scores.items()}
                what = f"batches of {FEW} and {size:,}"
                ways.report.differences[what] = apart(whole, expected)
        size = (good + bad) // 2
    if why:
        _too_large(good, most, why, ways.report)
    return good, good / (seconds or ways.timed(ways.batch(np.arange(good) % len(ways.rows)))[1])


def _too_large(good: int, bad: int, why: str, report: CheckReport) -> None:
    """A batch that the server allows and the model does not take."""
    report.add(
        "batch",
        f"a request of {bad:,} rows fails, one of {good:,} does not; say dk.Model(..., batch_size={good}), and have "
        f"max_batch_size lowered on the server ({why})",
    )


def _change_padding(ways: _Ways, *, is_trimmed: bool) -> None:
    """Rows in their full length against rows as short as a run would send them."""
    buckets = ways.rows.buckets()
    assert buckets is not None
    largest, why = 0.0, ""
    for shape, ends in buckets.extremes().items():
        numbers = np.unique(ends)
        full, short = (Batch(numbers, len(numbers), buckets.lengths(s)) for s in (buckets.full, shape))
        try:
            difference = apart(ways.score([full]), ways.score([short]))
        except (InferenceError, ResponseError) as error:
            difference, why = float("inf"), f" ({error})"
        largest = max(largest, difference)
    ways.report.differences["long and short padding"] = largest
    if largest > ways.tolerance:
        so = (
            "Leave out trim='always', which sends them short"
            if is_trimmed
            else "Rows are sent in full length"
        )
        ways.report.add(
            "padding",
            f"scores change by up to {largest:.2g} with the padding behind a row{why}: has the model a mask, and does it use "
            f"it everywhere? {so}, and scores are those of the training only if that padded to the same length",
            fatal=is_trimmed,
        )


def _change_masked(ways: _Ways, scores: Scores, batch: Batch) -> None:
    """A batch with the numbers of each row's first item wherever a mask says padding."""
    tensors = tensors_of(ways.rows, batch)
    filled = dict(tensors)
    for name, mask in tensors.items():
        whose, is_mask, _ = name.lower().partition("mask")
        for other, x in tensors.items():
            alike = x.ndim == mask.ndim == 3 and x.shape[2] == mask.shape[2]
            if is_mask and alike and other != name and other.startswith(whose):
                filled[other] = np.where(mask[:, :1] == 0, x[..., :1], x)
    if all(np.array_equal(x, filled[name]) for name, x in tensors.items()):
        return
    again = ways.server.score(filled, tuple(t.name for t in ways.outputs), batch.n_rows)
    difference = ways.report.differences["padding of other numbers"] = apart(_first(scores, again), again)
    if difference > ways.tolerance:
        ways.report.add(
            "padding",
            f"scores change by up to {difference:.2g} with the numbers at places where the mask is 0: does the model use its "
            "mask everywhere? They are those of the training only if that was padded with the same numbers",
            fatal=False,
        )


def _change_server(ways: _Ways, servers: Sequence[Server], scores: Scores, batch: Batch) -> None:
    """A batch at every server that promises the same model."""
    first, *others = servers
    promised = first.spec.version, first.spec.inputs, first.spec.outputs
    alike = [s for s in others if (s.spec.version, s.spec.inputs, s.spec.outputs) == promised]
    if not alike:
        return
    tensors, names = tensors_of(ways.rows, batch), tuple(t.name for t in ways.outputs)

    def difference(server: Server) -> float | DaskonicError:
        try:
            again = server.score(tensors, names, batch.n_rows)
        except DaskonicError as error:
            return error
        return apart(_first(scores, again), again)

    with ThreadPoolExecutor(min(AT_ONCE, len(alike))) as executor:
        found = dict(zip(alike, executor.map(difference, alike), strict=True))
    numbers = {s: d for s, d in found.items() if isinstance(d, float)}
    for error in (d for d in found.values() if isinstance(d, DaskonicError)):
        ways.report.add("failed", str(error))
    ways.report.differences["servers"] = max(numbers.values(), default=0.0)
    for server, d in numbers.items():
        if d > ways.tolerance:
            ways.report.add(
                "servers differ",
                f"{first.address} and {server.address} answer the same rows differently, by up to {d:.2g}: other weights "
                f"under the name {first.spec.name!r}, version {first.spec.version or 'not told'}, or reduced precision (FP16, "
                "TF32) on one of them; find out which is right, lock it (daskonic lock, daskonic.locks), or raise the tolerance",
            )


def _judge(scores: Scores, rows: Rows | GraphRows, tolerance: float, report: CheckReport) -> None:
    """What the scores and their differences mean."""
    for name, values in scores.items():
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if bad.any():
            report.add(
                "not finite",
                f"output {name!r} is not finite for {int(bad.sum())} of {len(values)} rows; are the inputs scaled as in the "
                "training, or does FP16 overflow?",
            )
    among = {w: d for w, d in report.differences.items() if "padding" not in w and d > tolerance}
    if "other neighbours" in among:
        report.add(
            "neighbours",
            f"the score of a row changes by {among['other neighbours']:.2g} with the other rows of its batch: is the model in "
            "training mode (batch normalisation), or does it sum over the batch? Export it anew after model.eval(), or "
            "send rows one by one: dk.Model(..., batch_size=1)",
        )
    elif among and isinstance(rows, GraphRows):
        report.add("neighbours", _blame_index(rows, max(among.values())))
    elif among:
        worst = max(among, key=lambda what: among[what])
        report.add(
            "neighbours",
            f"scores differ by up to {among[worst]:.2g} between {worst}: they depend on the number of rows in a batch, or on the "
            "place in it; if reduced precision (FP16, TF32) explains that much, raise the tolerance, else export the model anew",
        )


def _blame_index(rows: GraphRows, difference: float) -> str:
    """Which numbers of nodes may have been left as they are."""
    whole = [g.tensor.name for g in rows.inputs if g.tensor.dtype.kind in "iu" and not g.targets]
    index = f"is {' or '.join(whole)} an index, and missing in dk.Graph(index=...)? Or " if whole else ""
    return (
        f"the score of a graph changes by up to {difference:.2g} with the graphs before it in a request: {index}does the model "
        "sum over all nodes, instead of those with the same batch index? Or send graphs one by one: "
        "dk.Model(..., batch_size=1)"
    )
