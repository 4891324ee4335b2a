"""The main job: files in, scores out, resumable.

::

    scan → partitions → (finished before?) → worker: read → model → write → record → manifest
"""

from __future__ import annotations

import copy
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import CancelledError, Client, KilledWorker, as_completed
from distributed.comm.core import CommClosedError

from daskonic.deploy import local_cluster
from daskonic.errors import BatchSystemError, ConfigError, DaskonicError, InputError, ServerError
from daskonic.model import Model
from daskonic.report import Report
from daskonic.tagging.manifest import Output, Record
from daskonic.tagging.scores import FORMATS, score_names
from daskonic.tagging.sources import Partition, Source, partitions, scan
from daskonic.tagging.summary import Progress, Summary
from daskonic.tagging.task import Job, check_columns, describe, partition_path, tag_partition, try_features

if TYPE_CHECKING:
    from daskonic.tensors import ModelSpec

__all__ = ["CHUNK_SIZE", "tag"]

logger = logging.getLogger(__name__)

CHUNK_SIZE = 5_000
"""Events in memory at one time, per task: with 1900 candidates in an event as in boosted PFNano, 0.4 GB."""

TASKS_PER_THREAD = 3
"""Tasks that a worker thread has or awaits: enough to be never idle, and few futures for any number of partitions."""

LATEST = 20
"""Partitions that progress tells where their time went."""

PACKAGES = ("daskonic", "dask", "distributed", "numpy", "awkward", "uproot", "pyarrow", "tritonclient")


def tag(
    files: Iterable[str | os.PathLike[str]],
    model: Model,
    output: str | os.PathLike[str],
    *,
    jets: str = "FatJet",
    client: Client | None = None,
    chunk_size: int = CHUNK_SIZE,
    fmt: str = "parquet",
    tree: str = "",
    progress: Callable[[Progress], object] | None = None,
) -> Summary:
    """Score the jets of files, and continue where an earlier run was interrupted.

    Parameters
    ----------
    files : iterable of str or path
        ROOT (TTree or RNTuple) or Parquet; paths, globs, URLs.
    model : Model
        With features that say which fields they need. Those of a function need all fields, and
        whether it is still the same function cannot be checked when a run is continued.
    output : path
        Folder that the workers see too. An earlier run of the same job there is continued.
    jets : str
        Collection to score.
    client : distributed.Client, optional
        Its workers need the :class:`~daskonic.InferencePlugin`, or the model its own servers.
        Default is the current client, else a local cluster for the time of this call.
    chunk_size : int
        Most events in memory of one task, and in one Parquet file.
    fmt : {"parquet", "root"}
        One Parquet file for each partition, or one friend tree for each input file.
    tree : str, optional
        Name of the tree; default is ``Events``, else the only one.
    progress : callable, optional
        Called after each partition.

    Returns
    -------
    Summary

    Raises
    ------
    InputError
        Files that cannot be read. Where only some partitions cannot, all others are done first.
    SpecError
        The features do not fit the model; nothing was sent.
    OutputError
        The folder cannot be written, or belongs to another job.
    ServerError
        No server answered in time, or the model failed. What is done stays done.
    """
    if fmt not in FORMATS:
        raise ConfigError(f"no format {fmt!r}; there are {', '.join(FORMATS)}")
    begin = time.perf_counter()
    with _client(client) as cluster:
        job = _job(model, cluster, output, jets, fmt, chunk_size)
        sources = scan(files, tree=tree, check=partial(check_columns, job=job), client=cluster)
        todo = partitions(
            sources, chunk_size if fmt == "parquet" else max(1, *(s.entries for s in sources), 1)
        )
        cluster.submit(try_features, job, sources[0], pure=False).result()
        with Output(Path(job.output), _identity(job, sources)) as folder:
            before = folder.finished({p.index: (partition_path(p, fmt), p.start, p.stop) for p in todo})
            folder.begin(_run_facts(todo))
            run = _Run(job, folder, todo, before, progress)
            try:
                run.compute(cluster)
            except (BatchSystemError, ServerError) as error:
                raise type(error)(f"{error} ({run.account()})") from error
            finally:
                folder.end(run.records.values(), run.complete, run.facts(time.perf_counter() - begin))
            run.refuse_failed()
            return run.summary(len(sources), time.perf_counter() - begin)


class _Run:
    """Partitions on their way through the workers."""

    def __init__(
        self,
        job: Job,
        folder: Output,
        todo: list[Partition],
        before: dict[int, Record],
        progress: Callable[[Progress], object] | None,
    ) -> None:
        self.job, self.folder, self.todo = job, folder, todo
        self.records = dict(before)
        self.fresh: list[Record] = []
        self._failed: list[InputError] = []
        self._progress = progress
        self._total = sum(p.stop - p.start for p in todo)
        self._events = sum(r.events for r in before.values())
        self._rows = 0

    @property
    def complete(self) -> bool:
        """Whether every partition is done."""
        return len(self.records) == len(self.todo)

    def compute(self, client: Client) -> None:
        """Keep the workers busy until nothing is missing; stop at the first error that is not of one partition."""
        missing = iter([p for p in self.todo if p.index not in self.records])
        self._tell()
        running = as_completed(raise_errors=False)  # type: ignore[no-untyped-call]
        futures: dict[Any, Partition] = {}
        try:
            self._top_up(client, missing, running, futures)
            for future in running:
                self._collect(future, futures.pop(future))
                self._top_up(client, missing, running, futures)
        finally:
            if futures:
                client.cancel(list(futures), force=True)  # type: ignore[no-untyped-call]

    def _top_up(
        self, client: Client, missing: Iterator[Partition], running: Any, futures: dict[Any, Partition]
    ) -> None:
        """Submit until each thread has a few tasks."""
        threads = sum(client.nthreads().values())  # type: ignore[no-untyped-call]
        room = TASKS_PER_THREAD * max(1, threads) - len(futures)
        for _, partition in zip(range(room), missing, strict=False):
            future = client.submit(tag_partition, self.job, partition, pure=False)
            futures[future] = partition
            running.add(future)

    def _collect(self, future: Any, partition: Partition) -> None:
        """One finished task."""
        try:
            record = future.result()
        except InputError as error:  # the other partitions may well be good
            logger.info("%s", error)
            self._failed.append(error)
            return
        except KilledWorker as error:
            raise DaskonicError(
                f"Dask workers died {error.allowed_failures + 1} times on {partition}, perhaps for lack of memory; "
                "use a smaller chunk size, or workers with more memory"
            ) from error
        except (CancelledError, CommClosedError) as error:
            raise DaskonicError(f"the Dask scheduler went away, or forgot {partition}") from error
        self.folder.add(record)
        self.records[record.index] = record
        self.fresh.append(record)
        self._events += record.events
        self._rows += record.rows
        self._tell()

    def account(self) -> str:
        """How far it got, for an error."""
        return f"{len(self.records)} of {len(self.todo)} partitions are done; run again to continue"

    def _tell(self) -> None:
        """Report progress."""
        if self._progress is not None:
            done, n = len(self.records), len(self.todo)
            self._progress(Progress(self._events, self._total, self._rows, done, n, self.report(LATEST)))

    def refuse_failed(self) -> None:
        """InputError for the partitions that could not be read."""
        if self._failed:
            named = "; ".join(str(e) for e in self._failed[:3])
            more = f"; and {len(self._failed) - 3} more" if len(self._failed) > 3 else ""
            done = f"{len(self.records)} of {len(self.todo)} partitions are done"
            raise InputError(f"{named}{more} ({done})")

    def report(self, latest: int = 0) -> Report:
        """Account of all tasks of this run, or of some that came last."""
        return Report.merge(
            Report(
                rows=r.rows,
                requests=r.requests,
                retries=r.retries,
                cut=r.cut,
                sent_nbytes=r.sent_nbytes,
                useful_nbytes=r.useful_nbytes,
                endpoints=_counter(r),
                model=self.job.model.name,
                model_version=r.model_version,
                config_digest=r.config_digest,
                fingerprint=r.fingerprint,
                stages_s=r.stages_s,
                server_s=r.server_s,
            )
            for r in self.fresh[-latest:]
        )

    def facts(self, seconds: float) -> dict[str, Any]:
        """What the manifest says of this run."""
        report = self.report()
        return {
            "finished": _now(),
            "seconds": round(seconds, 3),
            "partitions": len(self.fresh),
            "rows": report.rows,
            "requests": report.requests,
            "retries": report.retries,
            "cut": report.cut,
            "sent_nbytes": report.sent_nbytes,
            "useful_nbytes": report.useful_nbytes,
            "servers": dict(report.endpoints),
            "stages_s": {stage: round(s, 3) for stage, s in report.stages_s.items()},
        }

    def summary(self, n_files: int, seconds: float) -> Summary:
        """For the user."""
        records = sorted(self.records.values(), key=lambda r: r.index)
        return Summary(
            output=self.job.output,
            model=self.job.model.name,
            model_version=self.job.model.version,
            paths=tuple(str(Path(self.job.output) / r.path) for r in records),
            columns=tuple(self.job.names),
            files=n_files,
            events=sum(r.events for r in records),
            rows=sum(r.rows for r in records),
            partitions=len(records),
            computed=len(self.fresh),
            computed_rows=sum(r.rows for r in self.fresh),
            report=self.report(),
            seconds=seconds,
        )


@contextmanager
def _client(client: Client | None) -> Iterator[Client]:
    """The client given, the current one, or one of a cluster that lives as long as the run."""
    if client is None:
        try:
            client = Client.current()  # type: ignore[no-untyped-call]
        except ValueError:
            client = None
    if client is not None:
        if client.cluster is None and not client.nthreads():  # type: ignore[no-untyped-call]
            logger.warning("the Dask scheduler has no workers yet; waiting for the first one")
        yield client
        return
    with local_cluster(os.cpu_count() or 1) as cluster, Client(cluster) as own:  # type: ignore[no-untyped-call]
        yield own


def _job(
    model: Model, client: Client, output: str | os.PathLike[str], jets: str, fmt: str, chunk_size: int
) -> Job:
    """What all tasks share; a worker asks for the model's description, since it has the way to the servers."""
    if "://" in os.fspath(output):
        raise ConfigError(
            f"output {os.fspath(output)!r} is a URL; a folder that the Dask workers see is needed"
        )
    spec: ModelSpec = client.submit(describe, model, pure=False).result()
    pinned = copy.copy(model)
    pinned.version = spec.version
    outputs = tuple(t for t in spec.outputs if model.outputs is None or t.name in model.outputs)
    names = score_names(jets, model.name, outputs, model.classes)
    return Job(pinned, spec, os.path.abspath(os.path.expanduser(output)), jets, names, fmt, chunk_size)


def _identity(job: Job, sources: list[Source]) -> dict[str, Any]:
    """What must not change between runs that share an output folder."""
    spec = job.spec
    return {
        "model": spec.name,
        "model_version": spec.version,
        "model_config": spec.config_digest,
        "model_fingerprint": spec.fingerprint,
        "features": job.model.features.digest,
        "jets": job.jets,
        "scores": list(job.names),
        "format": job.fmt,
        "chunk_size": job.chunk_size,
        "inputs": [
            {
                "path": s.path,
                "uuid": s.uuid,
                "nbytes": s.nbytes,
                "entries": s.entries,
                "kind": s.kind,
                "tree": s.tree,
            }
            for s in sources
        ],
    }


def _run_facts(todo: list[Partition]) -> dict[str, Any]:
    """Who starts, where, with what, and how much there is to do, that done before included."""
    return {
        "partitions_total": len(todo),
        "events_total": sum(p.stop - p.start for p in todo),
        "started": _now(),
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    """Installed versions of what touches the data."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _counter(record: Record) -> Any:
    """Requests by server, to be added up."""
    from collections import Counter

    return Counter(record.endpoints)
