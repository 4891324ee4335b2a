"""Columns of one file, whatever its format: a TTree, an RNTuple or Parquet under the same flat names.

NanoAOD writes ``FatJet_pt``; an RNTuple or a Parquet file may hold a collection of records instead,
``FatJet`` with a field ``pt``. Both are ``FatJet_pt`` here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from daskonic.errors import InputError

__all__ = ["Columns", "Identity", "ParquetColumns", "RootColumns", "cause_of", "opened"]

IDLE_FILES = 16
"""Opened files a process keeps: a tree of 1500 branches takes 0.3 s of Python to open."""

LIST_LEVELS = {("list", "element"), ("list", "item"), ("bag", "array_element"), ("list", "array")}
"""What Parquet writers put between a list column and its items."""


class Columns(Protocol):
    """An open file.

    Attributes
    ----------
    kind : str
        ``"ttree"``, ``"rntuple"`` or ``"parquet"``.
    tree : str
        Name of the tree; empty for Parquet.
    uuid : str
        Identity of the content, the same for a copy; empty if the file has none.
    entries : int
    names : collection of str
        Flat names of the columns.
    """

    kind: str
    tree: str
    uuid: str
    entries: int
    names: Mapping[str, str]

    def read(self, names: Iterable[str], start: int, stop: int) -> dict[str, Any]:
        """Columns of an entry range, as awkward arrays of ``stop - start`` entries."""


class Identity(Hashable, Protocol):
    """Which file, and which content; a :class:`~daskonic.tagging.sources.Source` is one."""

    @property
    def path(self) -> str:
        """Path or URL."""

    @property
    def kind(self) -> str:
        """As in :class:`Columns`."""

    @property
    def tree(self) -> str:
        """As in :class:`Columns`."""

    @property
    def uuid(self) -> str:
        """As in :class:`Columns`."""

    @property
    def entries(self) -> int:
        """As in :class:`Columns`."""


class RootColumns:
    """A TTree or RNTuple, read by uproot."""

    def __init__(self, url: str, tree: str = "") -> None:
        import uproot

        file = uproot.open({url: None}, array_cache=None)  # each entry range is read once
        self.tree = _tree_name(file.classnames(), tree)
        self._tree: Any = file[self.tree]
        self.kind = "rntuple" if "RNTuple" in type(self._tree).__name__ else "ttree"
        self.uuid = _identity(str(file.file.uuid))
        self.entries = int(self._tree.num_entries)
        self.names: Mapping[str, str] = {name.replace(".", "_"): name for name in self._tree.keys()}  # noqa: SIM118

    def read(self, names: Iterable[str], start: int, stop: int) -> dict[str, Any]:
        """Columns of an entry range."""
        paths = {name: self.names[name] for name in names}
        if not paths:
            return {}
        arrays = self._tree.arrays(filter_name=list(paths.values()), entry_start=start, entry_stop=stop)
        return {name: _follow(arrays, path.split(".")) for name, path in paths.items()}


class ParquetColumns:
    """A Parquet file, read by pyarrow."""

    kind = "parquet"
    tree = ""

    def __init__(self, url: str) -> None:
        import fsspec
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(fsspec.open(url, "rb").open())
        self.uuid = _footer_digest(url)
        self.entries = self._file.metadata.num_rows
        self._leaves: dict[str, list[str]] = {}
        for index in range(len(self._file.schema)):
            path = self._file.schema.column(index).path
            self._leaves.setdefault(_without_list_levels(path), []).append(path)
        self.names: Mapping[str, str] = {path.replace(".", "_"): path for path in self._leaves}

    def read(self, names: Iterable[str], start: int, stop: int) -> dict[str, Any]:
        """Columns of an entry range; only the row groups it touches are decoded."""
        import awkward as ak

        paths = {name: self.names[name] for name in names}
        if not paths:
            return {}
        leaves = [leaf for path in paths.values() for leaf in self._leaves[path]]
        groups, first = self._row_groups(start, stop)
        table = self._file.read_row_groups(groups, columns=leaves, use_threads=False)
        arrays = ak.from_arrow(table.slice(start - first, stop - start).combine_chunks())
        return {name: _follow(arrays, path.split(".")) for name, path in paths.items()}

    def _row_groups(self, start: int, stop: int) -> tuple[list[int], int]:
        """Row groups that overlap a range, and the first row of the first of them."""
        groups: list[int] = []
        first, row = start, 0
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if row < stop and row + rows > start:
                first = first if groups else row
                groups.append(group)
            row += rows
        return groups, first


class _IdleFiles:
    """Files that this process has open and that no thread uses just now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[Identity, int], Columns] = OrderedDict()

    def take(self, identity: Identity) -> Columns | None:
        """An open file, for this thread alone until it is given back."""
        with self._lock:
            for key in self._files:
                if key[0] == identity:
                    return self._files.pop(key)
        return None

    def give_back(self, identity: Identity, columns: Columns) -> None:
        """Keep for the next partition; the file least recently used goes."""
        with self._lock:
            self._files[identity, id(columns)] = columns
            if len(self._files) > IDLE_FILES:
                self._files.popitem(last=False)


_idle = _IdleFiles()


@contextmanager
def opened(identity: Identity) -> Iterator[Columns]:
    """A file, opened now or still open in this process.

    Raises
    ------
    InputError
        The file is not the one that ``identity`` describes: it was replaced under the run.
    """
    columns = _idle.take(identity)
    if columns is None:
        columns = (
            ParquetColumns(identity.path)
            if identity.kind == "parquet"
            else RootColumns(identity.path, identity.tree)
        )
        if (columns.uuid, columns.entries) != (identity.uuid, identity.entries):
            raise InputError("was replaced since the run began")
    yield columns
    _idle.give_back(identity, columns)  # not after an error: nobody knows the file's state then


def cause_of(error: BaseException) -> str:
    """First line of an error, for a message about a file."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if len(lines) > 1 and text.endswith(","):  # uproot breaks its sentences
        text = f"{text} {lines[1]}"
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def _tree_name(classnames: Mapping[str, str], wanted: str) -> str:
    """The tree that was asked for, else Events, else the only one."""
    trees = {
        key.split(";")[0]: None for key, kind in classnames.items() if kind in ("TTree", "ROOT::RNTuple")
    }
    if wanted in trees:
        return wanted
    if not wanted and ("Events" in trees or len(trees) == 1):
        return "Events" if "Events" in trees else next(iter(trees))
    there = f"it has {', '.join(trees)}" if trees else "it has no TTree or RNTuple"
    if not wanted and trees:
        raise InputError(
            f"it has no tree Events and several others; choose one of {', '.join(trees)} with --tree"
        )
    raise InputError(f"no tree {wanted or 'Events'}; {there}")


def _identity(uuid: str) -> str:
    """A UUID, or nothing for the null one that some writers leave."""
    return uuid if uuid.strip("0-") else ""


def _footer_digest(url: str) -> str:
    """SHA-256 of a Parquet footer: schema, sizes, offsets and statistics of the columns."""
    import hashlib

    import fsspec

    with fsspec.open(url, "rb") as file:
        nbytes = file.seek(0, 2)
        file.seek(nbytes - 8)
        length = int.from_bytes(file.read(4), "little")
        file.seek(nbytes - 8 - length)
        return hashlib.sha256(file.read(length)).hexdigest()[:32]


def _without_list_levels(path: str) -> str:
    """``FatJet.list.element.pt`` is the field ``FatJet.pt``."""
    parts, kept = path.split("."), []
    while parts:
        kept.append(parts.pop(0))
        while tuple(parts[:2]) in LIST_LEVELS:
            del parts[:2]
    return ".".join(kept)


def _follow(arrays: Any, path: list[str]) -> Any:
    """A column, or a field of a column of records."""
    for name in path:
        arrays = arrays[name]
    return arrays
