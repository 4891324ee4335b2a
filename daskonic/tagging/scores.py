"""Scores as flat named columns, and files of them that are whole or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from daskonic.errors import OutputError
from daskonic.tensors import ANY, TensorSpec

__all__ = [
    "FORMATS",
    "TEMPORARY",
    "FriendWriter",
    "atomic",
    "digest",
    "score_columns",
    "score_names",
    "write_parquet",
]

FORMATS = {"parquet": ".parquet", "root": ".root"}
TEMPORARY = ".daskonic-"
"""Names of files in the making begin so; readers of a folder of Parquet files pass over dots."""

CHUNK_NBYTES = 2**22


def score_names(
    jets: str, model: str, outputs: tuple[TensorSpec, ...], classes: tuple[str, ...] | None
) -> dict[str, tuple[str, int | None]]:
    """Names of the columns of scores, in NanoAOD's manner: ``FatJet_particlenet_top``.

    Parameters
    ----------
    jets, model : str
        Collection and name of the model.
    outputs : tuple of TensorSpec
        Outputs that the model is asked for.
    classes : tuple of str, optional
        Names for the last dimension of the one output.

    Returns
    -------
    dict of str to (str, int or None)
        For each column the class or output it comes from and, for a fixed vector, which of its numbers:
        a vector of three becomes three columns ``..._0`` to ``..._2``.

    Raises
    ------
    OutputError
        Two columns would have one name.
    """
    parts: list[tuple[str, str, int | None]] = []
    if classes is not None:
        parts = [(label, label, None) for label in classes]
    for output in () if classes is not None else outputs:
        if len(output.shape) != 1 or output.shape[0] == ANY:
            parts.append((output.name, output.name, None))
        elif output.shape == (1,):
            parts.append((output.name, output.name, 0))
        else:
            parts += [(f"{output.name}_{i}", output.name, i) for i in range(output.shape[0])]
    names = [re.sub(r"\W", "_", f"{jets}_{model}_{label}", flags=re.ASCII) for label, _, _ in parts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise OutputError(f"several scores would be named {', '.join(twice)}; give them different --classes")
    return {name: (source, item) for name, (_, source, item) in zip(names, parts, strict=True)}


def score_columns(scores: Any, names: Mapping[str, tuple[str, int | None]]) -> dict[str, Any]:
    """What a model returned, as columns.

    Parameters
    ----------
    scores : ak.Array, n_events * var * ...
        A record where the model has classes or several outputs.
    names : mapping
        From :func:`score_names`.

    Returns
    -------
    dict of str to ak.Array, n_events * var * number (or further dimensions)
    """
    columns = {}
    for name, (source, item) in names.items():
        values = scores[source] if source in scores.fields else scores
        columns[name] = values if item is None else values[..., item]
    return columns


def write_parquet(path: Path, columns: Mapping[str, Any]) -> str:
    """Write columns to one Parquet file, whole or not at all; the same columns give the same bytes.

    Parameters
    ----------
    path : Path
    columns : mapping of str to array, [n_events] or n_events * var

    Returns
    -------
    str
        SHA-256 of the file.

    Raises
    ------
    OutputError
        The disk is full, or the folder cannot be written.
    """
    import awkward as ak
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {n: _arrow(c) for n, c in columns.items()}
    fields = [
        pa.field(n, a.type, nullable="?" in str(ak.type(columns[n])) or a.null_count > 0)
        for n, a in arrays.items()
    ]
    table = pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(fields))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, store_schema=False, version="2.6")
    content = memoryview(sink.getvalue())
    with atomic(path) as temporary, temporary.open("xb") as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


class FriendWriter:
    """A friend tree: the same entries as the input, jets' scores in jagged branches with one counter.

    Parameters
    ----------
    path : Path
        Of the file in the making.
    tree, jets : str
        Names of the tree and of the collection.
    """

    def __init__(self, path: Path, tree: str, jets: str) -> None:
        import uproot

        self._file = uproot.recreate(path)
        self._tree: Any = None
        self._name, self._jets = tree, jets

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def extend(self, columns: Mapping[str, Any]) -> None:
        """Append the columns of an entry range.

        Raises
        ------
        OutputError
            Values that a TTree cannot hold: missing ones, or lists of lists.
        """
        import awkward as ak

        prefix = f"{self._jets}_"
        for name, column in columns.items():
            kind = str(ak.type(column))
            if "?" in kind or kind.count("*") > 2 or "option" in kind:
                raise OutputError(f"{name} ({kind}) does not fit a TTree; write it with --format parquet")
        jagged = {n.removeprefix(prefix): _plain(c) for n, c in columns.items() if n.startswith(prefix)}
        flat = {name: column for name, column in columns.items() if not name.startswith(prefix)}
        branches = {**flat, self._jets: ak.zip(jagged)}
        if self._tree is None:
            kinds = {name: ak.type(branch).content for name, branch in branches.items()}
            self._tree = self._file.mktree(self._name, kinds)
        self._tree.extend(branches)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder; at the end of the block it becomes ``path``, or is gone.

    Raises
    ------
    OutputError
        Whatever the operating system says against it.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno is None:
            raise
        raise OutputError(f"cannot write {path}: {_reason(error)}") from error


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: OSError) -> str:
    """The system's words, and what to do where that is known."""
    full = {
        errno.ENOSPC: "make room",
        errno.EDQUOT: "your quota is used up; make room",
        errno.EFBIG: "see ulimit -f",
    }
    advice = full.get(error.errno or 0)
    text = os.strerror(error.errno or 0)
    return f"{text} ({advice}, then run the same command again to continue)" if advice else text


def _sync(path: Path) -> None:
    """Have the system write to the disk what it still holds of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without fsync of folders
            raise
    finally:
        os.close(descriptor)


def _plain(column: Any) -> Any:
    """Half floats as floats, which ROOT knows."""
    import awkward as ak

    return ak.values_astype(column, "float32") if "float16" in str(ak.type(column)) else column


def _arrow(column: Any) -> Any:
    """A column in Arrow's types, without metadata of awkward's own."""
    import awkward as ak

    # A class is a stride of the score vector, and Arrow takes contiguous memory only.
    return ak.to_arrow(ak.to_packed(ak.Array(column)), list_to32=True, extensionarray=False)
