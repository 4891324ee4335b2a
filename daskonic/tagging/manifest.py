"""What an output folder holds, and whom it belongs to.

::

    OUTPUT/
      manifest.json       whose results these are; after the end also servers, versions, totals, partitions
      partitions.jsonl    one line for each finished partition
      scores/             one file for each partition
      jobs/               what a run with batch jobs keeps of them
      .lock               held while a run writes here

A worker renames a partition's file into place when it is whole; then the one process that drives the
run appends a line with its SHA-256 to ``partitions.jsonl``. One writer that only appends needs no
sidecar for each of thousands of partitions, and a crash can at most tear the last line. A file without
a line, or a line that its file does not match, is a partition that is computed again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from daskonic.errors import BatchSystemError, OutputError
from daskonic.tagging.scores import TEMPORARY, atomic, digest

__all__ = [
    "JOBS",
    "Output",
    "Record",
    "holder",
    "locked",
    "read_manifest",
    "records",
    "refuse_endless",
    "refuse_foreign",
]

logger = logging.getLogger(__name__)

LAYOUT = 1
JOBS = "jobs"
DIFFERENCES_NAMED = 4


@dataclass(frozen=True, slots=True)
class Record:
    """One finished partition.

    Attributes
    ----------
    index : int
        Place in the run.
    path : str
        Its file, relative to the output folder.
    source : str
        Its input file.
    start, stop : int
        Entries of the input.
    events, rows : int
        Events in it, and jets scored.
    nbytes : int
    sha256 : str
        Size and digest of the file.
    requests, retries, cut, sent_nbytes, useful_nbytes : int
        As in :class:`~daskonic.Report`.
    endpoints : dict of str to int
        Requests answered by each server.
    model_version, config_digest, fingerprint : str
        Who made the numbers; the fingerprint is that of the lock, where there is one.
    stages_s : dict of str to float
        Seconds in each step, reading (``events``) and writing (``write``) included.
    server_s : dict of str to float
        As in :class:`~daskonic.Report`.
    worker : str
        Address of the Dask worker.
    finished : str
        Time in UTC, ISO 8601.
    """

    index: int
    path: str
    source: str
    start: int
    stop: int
    events: int
    rows: int
    nbytes: int
    sha256: str
    requests: int = 0
    retries: int = 0
    cut: int = 0
    sent_nbytes: int = 0
    useful_nbytes: int = 0
    endpoints: dict[str, int] = field(default_factory=dict)
    model_version: str = ""
    config_digest: str = ""
    fingerprint: str = ""
    stages_s: dict[str, float] = field(default_factory=dict)
    server_s: dict[str, float] = field(default_factory=dict)
    worker: str = ""
    finished: str = ""


class Output:
    """An output folder, locked for one run.

    Parameters
    ----------
    path : Path
        Made if it is not there.
    identity : mapping
        What must be the same for two runs to share the folder; plain JSON values.

    Raises
    ------
    OutputError
        It cannot be written, another run is writing there, it holds something else, or it belongs
        to a run with another identity.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.scores = path / "scores"
        self._manifest: dict[str, Any] = {
            "layout": LAYOUT,
            "complete": False,
            "identity": dict(identity),
            "runs": [],
        }
        self._lock: IO[str] | None = None
        self._log: IO[str] | None = None

    def __enter__(self) -> Self:
        try:
            refuse_foreign(self.path)
            self.scores.mkdir(parents=True, exist_ok=True)
            self._lock = locked(self.path / ".lock")
            self._claim()
            self._log = _appended(self.path / "partitions.jsonl")
        except OSError as error:
            self.__exit__(None, None, None)
            raise OutputError(f"cannot write to {self.path}: {error.strerror or error}") from error
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._log, self._lock):  # the lock goes last, and with its file
            if file is not None:
                file.close()

    def finished(self, partitions: Mapping[int, tuple[str, int, int]]) -> dict[int, Record]:
        """Partitions that need not be computed again.

        Parameters
        ----------
        partitions : mapping of int to (str, int, int)
            By index: the file's relative path, and the entry range.

        Returns
        -------
        dict of int to Record
            Those with a line whose file is there in its size and with its digest.
        """
        found: dict[int, Record] = {}
        for record in records(self.path):
            if partitions.get(record.index) == (record.path, record.start, record.stop):
                found[record.index] = record
        return {index: record for index, record in sorted(found.items()) if self._matches(record)}

    def begin(self, run: Mapping[str, Any]) -> None:
        """Note in the manifest who starts now."""
        self._manifest["complete"] = False
        self._manifest["runs"].append(dict(run))
        self._write()

    def add(self, record: Record) -> None:
        """Note a finished partition, for good."""
        assert self._log is not None
        try:
            self._log.write(json.dumps(asdict(record)) + "\n")
            self._log.flush()  # outlives this process; after a power cut the partition is computed again
        except OSError as error:
            raise OutputError(f"cannot write {self._log.name}: {error.strerror}") from error

    def end(self, records: Iterable[Record], complete: bool, totals: Mapping[str, Any]) -> None:
        """Merge everything into the manifest."""
        self._manifest["complete"] = complete
        self._manifest["runs"][-1].update(totals)
        listed = sorted(records, key=lambda r: r.index)
        self._manifest["events"] = sum(r.events for r in listed)
        self._manifest["rows"] = sum(r.rows for r in listed)
        self._manifest["partitions"] = [asdict(r) for r in listed]
        self._write()

    def _claim(self) -> None:
        """The folder is ours, or was, or OutputError; what a killed run left half-written goes."""
        manifest = self.path / "manifest.json"
        if manifest.exists():
            there = read_manifest(manifest)
            differences = list(_differences(there["identity"], self._manifest["identity"]))
            if differences:
                more = f"; and {n} more" if (n := len(differences) - DIFFERENCES_NAMED) > 0 else ""
                raise OutputError(
                    f"{self.path} belongs to another run: {'; '.join(differences[:DIFFERENCES_NAMED])}{more}. "
                    "Choose another output folder, or repeat the command that it was made with"
                )
            self._manifest = there
        for folder in (self.path, self.scores):
            for left in folder.glob(f"{TEMPORARY}*"):
                logger.info("removing %s, left by a run that was killed", left)
                left.unlink(missing_ok=True)
        self._write()

    def _write(self) -> None:
        """Replace the manifest in one step."""
        with atomic(self.path / "manifest.json") as temporary:
            temporary.write_text(json.dumps(self._manifest, indent=1) + "\n", "utf-8")

    def _matches(self, record: Record) -> bool:
        """Whether a partition's file is what its line says."""
        path = self.path / record.path
        try:
            return path.stat().st_size == record.nbytes and digest(path) == record.sha256
        except OSError:
            return False


def refuse_foreign(path: Path) -> None:
    """OutputError for a path that is a file, or a folder with other things in it than a run's."""
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise OutputError(f"{path} is not a folder")
    others = sorted(p.name for p in path.iterdir() if p.name not in (".lock", JOBS, "scores"))
    if others and "manifest.json" not in others and not all(n.startswith(TEMPORARY) for n in others):
        raise OutputError(
            f"{path} holds other things ({', '.join(others[:3])}); choose a new or empty folder"
        )


def locked(path: Path) -> IO[str]:
    """The open lock file; the lock ends with the process, however it ends."""
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise OutputError(f"another run is writing to {path.parent} ({holder})") from None
    except OSError as error:  # a network file system without locks
        logger.warning("cannot lock %s (%s): make sure that no second run writes there", path, error.strerror)
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def holder(path: Path) -> str:
    """Who holds a lock, such as ``process 12 on login1``; empty if nobody does, or the file system has no locks."""
    try:
        with path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "unknown"
    except OSError:
        pass
    return ""


def records(path: Path) -> Iterator[Record]:
    """Partitions that an output folder's log has as finished, in the order in which they were."""
    try:
        lines = (path / "partitions.jsonl").read_text("utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        with suppress(ValueError, TypeError):  # a torn one
            yield Record(**json.loads(line))


def _appended(path: Path) -> IO[str]:
    """A log to append to, after the last whole line."""
    file = path.open("a+", encoding="utf-8")
    file.seek(0)
    text = file.read()
    if text and not text.endswith("\n"):
        file.write("\n")
        file.flush()
    return file


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest, or OutputError."""
    try:
        manifest = json.loads(path.read_text("utf-8"))
        if manifest["layout"] == LAYOUT and isinstance(manifest["identity"], dict):
            return dict(manifest)
    except (ValueError, TypeError, KeyError):
        pass
    raise OutputError(
        f"{path} is no manifest that this version of daskonic can read; choose another output folder"
    )


def refuse_endless(output: str | os.PathLike[str], has_workers: bool) -> None:
    """No third job for a driver that finishes nothing in the time that it has.

    Parameters
    ----------
    output : path
        The run's output folder.
    has_workers : bool
        Whether the workers are in the driver's own job; others may wait in the queue until its end.

    Raises
    ------
    BatchSystemError
        Two drivers in a row have finished no partition, or had not even begun.
    """
    manifest = Path(output).expanduser() / "manifest.json"
    runs = read_manifest(manifest)["runs"] if manifest.exists() else []
    has_begun = bool(runs) or not has_workers
    if has_begun and (len(runs) < 2 or any(run.get("partitions", 1) for run in runs[-2:])):
        return
    raise BatchSystemError(
        "the time of this job was over before one partition was finished, and so it would be in the next; give the job that "
        "drives more (daskonic submit --driver-option walltime=...), or use a smaller --chunk-size"
    )


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[str]:
    """What is not the same, in words."""
    for key in dict.fromkeys([*there, *now]):
        if key == "inputs":
            yield from _input_differences(there.get(key, []), now.get(key, []))
        elif there.get(key) != now.get(key):
            yield f"{key.replace('_', ' ')} is {_short(there.get(key))} there and {_short(now.get(key))} now"


def _input_differences(there: list[dict[str, Any]], now: list[dict[str, Any]]) -> Iterable[str]:
    """Files that are new, missing or changed."""
    before, after = ({i["path"]: i for i in listed} for listed in (there, now))
    for word, paths in (
        ("new", [p for p in after if p not in before]),
        ("missing", [p for p in before if p not in after]),
        ("changed", [p for p in after if p in before and after[p] != before[p]]),
    ):
        if paths:
            named = ", ".join(paths[:2]) + (", ..." if len(paths) > 2 else "")
            yield f"{len(paths)} input file{'s' if len(paths) > 1 else ''} {word} ({named})"


def _short(value: Any) -> str:
    """A value for a message; digests by their beginning."""
    text = json.dumps(value) if not isinstance(value, str) else value or "(none)"
    return text[:16] if len(text) == 64 and text.isalnum() else text
