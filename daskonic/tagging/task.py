"""What a Dask worker does with one partition: read, score, write one file, report."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from distributed import get_worker

from daskonic.errors import DaskonicError, InferenceError, InputError, OutputError, SpecError
from daskonic.model import Model
from daskonic.pool import confirm
from daskonic.report import Report
from daskonic.tagging.columns import Columns, cause_of, opened
from daskonic.tagging.events import Events, JetColumns, read_jets
from daskonic.tagging.manifest import Record
from daskonic.tagging.reading import needed_columns
from daskonic.tagging.scores import FORMATS, FriendWriter, atomic, digest, score_columns, write_parquet
from daskonic.tagging.sources import Partition, Source
from daskonic.tensors import ModelSpec

__all__ = ["Job", "check_columns", "describe", "partition_path", "tag_partition", "try_features"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Job:
    """What is the same for all partitions.

    Attributes
    ----------
    model : Model
        With its version pinned.
    spec : ModelSpec
    output : str
        The output folder, absolute.
    jets : str
        Collection that is scored.
    names : mapping
        Columns of scores, from :func:`~daskonic.tagging.scores.score_names`.
    fmt : {"parquet", "root"}
    chunk_size : int
        Most entries in memory at one time.
    """

    model: Model
    spec: ModelSpec
    output: str
    jets: str
    names: Mapping[str, tuple[str, int | None]]
    fmt: str
    chunk_size: int


def partition_path(partition: Partition, fmt: str) -> str:
    """Where a partition's scores go, relative to the output folder; in the order of the input."""
    stem = Path(partition.source.path.split("?")[0]).stem
    entries = f"-{partition.start}-{partition.stop}" if fmt == "parquet" else ""
    return f"scores/{partition.index:05d}-{stem}{entries}{FORMATS[fmt]}"


def check_columns(columns: Columns, job: Job) -> JetColumns:
    """The columns that the model's inputs need."""
    return needed_columns(columns, job.model.features, job.jets, job.spec)


def describe(model: Model) -> ModelSpec:
    """The model as this process sees it."""
    return _portable(model.spec)


def try_features(job: Job, source: Source) -> None:
    """Make the inputs of no jets.

    Raises
    ------
    SpecError
        The features do not fit the model; nothing was sent.
    """
    nothing = Partition(0, source, 0, 0)
    _portable(lambda: [job.model(events.jets) for events in _chunks(job, nothing, Report())])


def tag_partition(job: Job, partition: Partition) -> Record:
    """Score a partition and write its file.

    Returns
    -------
    Record
        The file is whole and in its place when this returns.

    Raises
    ------
    DaskonicError
        With the partition in its message, where the cause lies in its data.
    """
    path = Path(job.output) / partition_path(partition, job.fmt)
    if not path.parent.is_dir():
        raise OutputError(
            f"{path.parent} is not there for the Dask worker {_worker()}; use a shared file system"
        )
    write = _to_parquet if job.fmt == "parquet" else _to_root
    report, sha256 = _portable(lambda: write(job, partition, path), partition)
    _portable(lambda: confirm(job.model.pool(), (job.model.name, job.model.version), report.endpoints))
    return _record(job, partition, path, report, sha256)


def _portable(work: Callable[[], Result], partition: Partition | None = None) -> Result:
    """Call; an error says which partition's data it is about, and is one that Dask can take home."""
    try:
        return work()
    except (InputError, SpecError, InferenceError) as error:
        plain: DaskonicError = type(error)(f"{partition}: {error}" if partition else str(error))
    except DaskonicError as error:
        plain = type(error)(*error.args)
    # Dask pickles an error with its causes, and uproot's, which hold files, would cost it its class.
    raise plain


def _record(job: Job, partition: Partition, path: Path, report: Report, sha256: str) -> Record:
    """What the manifest keeps."""
    return Record(
        index=partition.index,
        path=partition_path(partition, job.fmt),
        source=partition.source.path,
        start=partition.start,
        stop=partition.stop,
        events=partition.stop - partition.start,
        rows=report.rows,
        nbytes=path.stat().st_size,
        sha256=sha256,
        requests=report.requests,
        retries=report.retries,
        cut=report.cut,
        sent_nbytes=report.sent_nbytes,
        useful_nbytes=report.useful_nbytes,
        endpoints=dict(report.endpoints),
        model_version=report.model_version,
        config_digest=report.config_digest,
        fingerprint=report.fingerprint,
        stages_s={stage: round(seconds, 6) for stage, seconds in report.stages_s.items()},
        server_s={name: round(seconds, 6) for name, seconds in report.server_s.items()},
        worker=_worker(),
        finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def _to_parquet(job: Job, partition: Partition, path: Path) -> tuple[Report, str]:
    """A partition of one chunk, and its Parquet file."""
    report = Report()
    (columns,) = _scored(job, partition, report)
    with report.stage("write"):
        return report, write_parquet(path, columns)


def _to_root(job: Job, partition: Partition, path: Path) -> tuple[Report, str]:
    """A whole file, chunk by chunk, and its friend tree."""
    report = Report()
    with (
        atomic(path) as temporary,
        FriendWriter(temporary, partition.source.tree or "Events", job.jets) as friend,
    ):
        for columns in _scored(job, partition, report):
            with report.stage("write"):
                friend.extend(columns)
    return report, digest(path)


def _scored(job: Job, partition: Partition, report: Report) -> Iterator[dict[str, Any]]:
    """Columns of the output, chunk by chunk; adds to the report."""
    for events in _chunks(job, partition, report):
        pending = job.model.submit(events.jets)
        scores = pending.result()
        _add(report, pending.report)
        yield events.identifiers | score_columns(scores, job.names)


def _chunks(job: Job, partition: Partition, report: Report) -> Iterator[Events]:
    """Events of a partition, at most ``chunk_size`` at a time; one empty chunk if it has none."""
    source = partition.source
    n = max(1, -(-(partition.stop - partition.start) // job.chunk_size))
    edges = [partition.start + (partition.stop - partition.start) * i // n for i in range(n + 1)]
    for start, stop in itertools.pairwise(edges):
        with report.stage("events"):
            try:
                with opened(source) as columns:
                    events = read_jets(columns, start, stop, check_columns(columns, job))
            except DaskonicError:
                raise
            except Exception as error:  # corrupt bytes make uproot and pyarrow raise anything
                raise InputError(f"cannot be read ({cause_of(error)})") from error
        yield events


def _add(total: Report, report: Report) -> None:
    """Add one call to the account of the partition."""
    merged = Report.merge([total, report])
    for name in Report.__slots__:
        setattr(total, name, getattr(merged, name))


def _worker() -> str:
    """Where this runs."""
    try:
        return str(get_worker().address)
    except ValueError:  # not in a task
        return f"process {os.getpid()}"
