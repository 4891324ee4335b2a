"""From what the user typed to partitions: files found, opened, identified and cut in entry ranges."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daskonic.errors import ConfigError, InputError
from daskonic.tagging.columns import Columns, ParquetColumns, RootColumns, cause_of

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Partition", "Source", "check_found", "expand", "partitions", "scan"]

logger = logging.getLogger(__name__)

FILES_NAMED = 10
"""Bad files that an error names; of the others it gives the number."""

SCAN_ALONE = 4
"""Up to this many files are scanned here, more by the workers."""

READERS = ("uproot", "pyarrow")
"""Packages without which files cannot be read, however good they are."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input file.

    Attributes
    ----------
    path : str
        Absolute path or URL.
    kind : str
        ``"ttree"``, ``"rntuple"`` or ``"parquet"``.
    tree : str
        Name of the tree; empty for Parquet.
    uuid : str
        Identity of the content: ROOT's UUID, or a digest of the Parquet footer.
    nbytes, entries : int
    """

    path: str
    kind: str
    tree: str
    uuid: str
    nbytes: int
    entries: int


@dataclass(frozen=True, slots=True)
class Partition:
    """An entry range of one file: one task, one output file.

    Attributes
    ----------
    index : int
        Place in the whole run.
    source : Source
    start, stop : int
        Entries, ``stop`` not included.
    """

    index: int
    source: Source
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.source.path} entries {self.start} to {self.stop}"


@dataclass(frozen=True, slots=True)
class _Bad:
    """A file that cannot be used, and why."""

    path: str
    cause: str


def scan(
    files: Iterable[str | os.PathLike[str]],
    *,
    tree: str = "",
    check: Callable[[Columns], object] | None = None,
    client: Client | None = None,
) -> list[Source]:
    """Find, open and identify every file.

    Parameters
    ----------
    files : iterable of str or path
        Paths, globs, URLs that fsspec knows.
    tree : str, optional
        Name of the tree; default is ``Events``, else the only tree of the file.
    check : callable, optional
        Called with each open file; an InputError makes the file a bad one. Must be picklable.
    client : distributed.Client, optional
        Where many files are scanned in parallel.

    Returns
    -------
    list of Source
        In the order of their names, so that the same files give the same partitions.

    Raises
    ------
    InputError
        All files that are missing, unreadable, truncated or there twice, each with its cause.
    ModuleNotFoundError
        The package that reads such files is not installed.
    """
    found = expand(files)
    urls = [path for path in found if isinstance(path, str)]
    if client is not None and len(urls) > SCAN_ALONE:
        futures = client.map(_scan_one, urls, tree=tree, check=check, pure=False)
        scanned = client.gather(futures)  # type: ignore[no-untyped-call]
    else:
        scanned = [_scan_one(url, tree=tree, check=check) for url in urls]
    bad = [b for b in (*found, *scanned) if isinstance(b, _Bad)]
    sources = sorted((s for s in scanned if isinstance(s, Source)), key=lambda s: s.path)
    bad += _duplicates(sources)
    if bad:
        raise InputError(_account(bad, len(found)))
    if not sources:
        raise InputError("no input files are named")
    return sources


def check_found(files: Iterable[str | os.PathLike[str]]) -> None:
    """InputError for names that match nothing; opens no file."""
    found = expand(files)
    bad = [b for b in found if isinstance(b, _Bad)]
    if bad:
        raise InputError(_account(bad, len(found)))


def partitions(sources: Iterable[Source], chunk_size: int) -> list[Partition]:
    """Cut files in entry ranges of at most ``chunk_size``; a file without entries is one empty range."""
    if chunk_size < 1:
        raise ConfigError(f"chunk size is {chunk_size}; at least 1 entry is needed")
    ranges = ((s, start, stop) for s in sources for start, stop in _ranges(s.entries, chunk_size))
    return [Partition(index, *one) for index, one in enumerate(ranges)]


def expand(files: Iterable[str | os.PathLike[str]]) -> list[str | _Bad]:
    """Absolute paths and URLs for paths, globs and URLs; what cannot be found is a bad file."""
    return [
        found for file in files for found in (_expand_url if "://" in str(file) else _expand_path)(str(file))
    ]


def _ranges(entries: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    """Equal ranges, so that the last one is not tiny."""
    n = max(1, -(-entries // chunk_size))
    for i in range(n):
        yield entries * i // n, entries * (i + 1) // n


def _expand_path(file: str) -> list[str | _Bad]:
    """One local path or glob."""
    path = os.path.abspath(os.path.expanduser(file))
    if os.path.isdir(path):
        return [_Bad(file, f"is a directory; name its files, such as {os.path.join(file, '*.root')}")]
    if os.path.exists(path):
        return [path]
    if glob.has_magic(path):
        matches = sorted(p for p in glob.glob(path, recursive=True) if os.path.isfile(p))
        return list(matches) or [_Bad(file, "no file matches")]
    return [_Bad(file, "no such file")]


def _expand_url(url: str) -> list[str | _Bad]:
    """One URL, with ``*`` for several; ``?`` is a query in some of them."""
    import fsspec

    if "*" not in url:
        return [url]
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        matches = sorted(filesystem.unstrip_protocol(p) for p in filesystem.glob(path))
    except Exception as error:  # noqa: BLE001 - every file system raises its own
        return [_Bad(url, cause_of(error))]
    return list(matches) or [_Bad(url, "no file matches")]


def _scan_one(url: str, tree: str, check: Callable[[Columns], object] | None) -> Source | _Bad:
    """Open one file; what is wrong with it is an answer, not an error."""
    try:
        head, nbytes = _head(url)
        if nbytes == 0:
            return _Bad(url, "is empty (0 bytes)")
        if head[:4] not in (b"root", b"PAR1"):
            return _Bad(url, "is neither a ROOT nor a Parquet file")
        end = _root_end(head) if head[:4] == b"root" else nbytes
        if end > nbytes:
            return _Bad(url, f"is truncated ({nbytes} of {end} bytes)")
        columns: Columns = RootColumns(url, tree) if head[:4] == b"root" else ParquetColumns(url)
        if check is not None:
            check(columns)
    except FileNotFoundError:
        return _Bad(url, "no such file")
    except InputError as error:
        return _Bad(url, str(error))
    except Exception as error:  # corrupt bytes make uproot and pyarrow raise anything
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in READERS:
            raise  # not this file's fault
        logger.debug("cannot read %s", url, exc_info=True)
        return _Bad(url, f"cannot be read ({cause_of(error)})")
    return Source(url, columns.kind, columns.tree, columns.uuid, nbytes, columns.entries)


def _head(url: str) -> tuple[bytes, int]:
    """First bytes and size of a file."""
    import fsspec

    with fsspec.open(url, "rb") as file:
        head: bytes = file.read(64)
        return head, int(file.seek(0, 2))


def _root_end(head: bytes) -> int:
    """``fEND`` of a ROOT file's header: 4 bytes, or 8 in files that may pass 2 GB."""
    large = int.from_bytes(head[4:8], "big") >= 1_000_000
    return int.from_bytes(head[12 : 20 if large else 16], "big")


def _duplicates(sources: Iterable[Source]) -> list[_Bad]:
    """Files that are there twice: under two names, or as a copy."""
    bad, paths, uuids = [], dict[str, str](), dict[str, str]()
    for source in sources:
        real = source.path if "://" in source.path else os.path.realpath(source.path)
        if real in paths:
            bad.append(_Bad(source.path, f"is named twice (also as {paths[real]})"))
        elif source.entries and source.uuid in uuids:
            bad.append(_Bad(source.path, f"is a copy of {uuids[source.uuid]} (same identity {source.uuid})"))
        paths.setdefault(real, source.path)
        if source.uuid:
            uuids.setdefault(source.uuid, source.path)
    return bad


def _account(bad: list[_Bad], n_files: int) -> str:
    """One line for all bad files."""
    named = "; ".join(f"{b.path}: {b.cause}" for b in bad[:FILES_NAMED])
    more = f"; and {len(bad) - FILES_NAMED} more" if len(bad) > FILES_NAMED else ""
    many = f"{len(bad)} of {n_files} input files cannot be used: " if n_files > 1 else ""
    return f"{many}{named}{more}"
