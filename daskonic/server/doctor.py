"""What is wrong with the entries of a model repository, and what to do about it.

Each rule is a function that tells what it finds in an entry; :data:`RULES` lists them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from daskonic.errors import InputError
from daskonic.server.entry import read_config
from daskonic.server.onnx_file import read_dims

__all__ = ["RULES", "Entry", "Finding", "examine"]

MOST_ROWS = 65_536
"""A larger batch is a wish, not a measurement: no request is that long."""
MESSAGE_NBYTES = 2**31 - 1  # gRPC's limit
NATIVE = ("onnxruntime", "tensorrt", "pytorch", "tensorflow")
PLATFORMS = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
    "ensemble": "ensemble",
}
THREADS = {
    "onnxruntime": ("intra_op_thread_count",),
    "pytorch": ("INTRA_OP_THREAD_COUNT",),
    "tensorflow": ("TF_NUM_INTRA_THREADS",),
    "python": ("threads",),
}
"""Parameters that bound the threads of an instance."""
ITEMSIZES = {"TYPE_BOOL": 1, "TYPE_BF16": 2, "TYPE_FP16": 2, "TYPE_FP32": 4, "TYPE_FP64": 8}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Attributes
    ----------
    model : str
    rule : str
        Name in :data:`RULES`.
    what : str
        What there is, and what comes of it.
    remedy : str
        What to do.
    """

    model: str
    rule: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Entry:
    """A model's folder.

    Attributes
    ----------
    folder : Path
    config : inference.ModelConfig
        Of ``config.pbtxt``.
    cores : int
        Of the machine that will serve it.
    """

    folder: Path
    config: Any
    cores: int

    @property
    def backend(self) -> str:
        """What runs the model, also where the old word platform tells it."""
        return str(self.config.backend or PLATFORMS.get(self.config.platform, self.config.platform))

    @property
    def versions(self) -> list[int]:
        """Numbers of the version folders."""
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and p.is_dir())

    @cached_property
    def file_dims(self) -> dict[str, tuple[int, ...]]:
        """Dimensions that the newest ONNX file has for each tensor; empty where none can be read."""
        for version in reversed(self.versions):
            path = self.folder / str(version) / "model.onnx"
            if path.is_file():
                with contextlib.suppress(InputError):  # strings, say, which only the native backend takes
                    return read_dims(path)
        return {}

    def finding(self, rule: str, what: str, remedy: str) -> Finding:
        """One of this model."""
        return Finding(self.folder.name, rule, what, remedy)


Rule = Callable[[Entry], Iterator[Finding]]


def examine(repository: str | os.PathLike[str], *, cores: int | None = None) -> list[Finding]:
    """Look at every entry of a repository.

    Parameters
    ----------
    repository : path
        A folder with one folder a model.
    cores : int, optional
        Of the machine that will serve it; default is this one's.

    Returns
    -------
    list of Finding
        Model by model; empty if nothing is wrong.

    Raises
    ------
    InputError
        It is no folder, or has no model.
    """
    repository = Path(repository)
    if not repository.is_dir():
        raise InputError(f"the model repository {repository} is no folder")
    folders = sorted(p for p in repository.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise InputError(f"the model repository {repository} has no model")
    n_cores = cores or os.cpu_count() or 1
    return [finding for folder in folders for finding in _examine(folder, n_cores)]


def _examine(folder: Path, cores: int) -> Iterator[Finding]:
    """One entry: whether it can be read, then rule by rule."""
    try:
        config = read_config(folder / "config.pbtxt")
    except InputError as error:
        yield Finding(
            folder.name, "config", str(error),
            "write one by daskonic models add; a server may guess it, differently in each release",
        )  # fmt: skip
        return
    entry = Entry(folder, config, cores)
    for rule in RULES.values():
        yield from rule(entry)


def _layout(entry: Entry) -> Iterator[Finding]:
    """Names and folders."""
    if entry.config.name not in ("", entry.folder.name):
        yield entry.finding(
            "layout", f"its name is {entry.config.name!r}, its folder's {entry.folder.name!r}: it is not loaded",
            f'name: "{entry.folder.name}"',
        )  # fmt: skip
    if not entry.versions:
        yield entry.finding(
            "layout", "it has no version", "put the model into a folder with a number, such as 1/"
        )


def _batch_dimension(entry: Entry) -> Iterator[Finding]:
    """The batch dimension in the dimensions of a tensor as well, or not in the file."""
    most = entry.config.max_batch_size
    if entry.backend == "ensemble":
        return
    for tensor in (*entry.config.input, *entry.config.output):
        told = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else tuple(tensor.dims)
        real = entry.file_dims.get(tensor.name)
        if most > 0 and (len(told) == len(real) if real is not None else _all_open(entry)):
            yield entry.finding(
                "batch-dimension",
                f"max_batch_size is {most}, so Triton puts the batch before the dims {list(told)} of {tensor.name!r}"
                + (
                    f"; the file has {list(real)}, the batch included"
                    if real is not None
                    else ", the batch already"
                ),
                f"dims: {list(told[1:])} (without the batch), or max_batch_size: 0 if there is none",
            )
            return
        if most == 0 and real is not None and _could_batch(entry):
            yield entry.finding(
                "batch-dimension",
                f"max_batch_size is 0, though the first dimension of every tensor in the file is open, as of "
                f"{tensor.name!r} {list(real)}: requests are never joined",
                "max_batch_size: 1024 and dims without the first one",
            )
            return


def _all_open(entry: Entry) -> bool:
    """Whether all dims begin with -1, as if the batch were among them; one alone may be the length of a row."""
    tensors = (*entry.config.input, *entry.config.output)
    return bool(tensors) and all(len(t.dims) > 1 and t.dims[0] == -1 for t in tensors)


def _could_batch(entry: Entry) -> bool:
    """Whether all tensors of the file begin with an open dimension; of several inputs it need not be the same."""
    return len(entry.config.input) == 1 and all(dims[:1] == (-1,) for dims in entry.file_dims.values())


def _ragged(entry: Entry) -> Iterator[Finding]:
    """Ragged batches where nobody makes them."""
    ragged = [t.name for t in entry.config.input if t.allow_ragged_batch]
    if not ragged:
        return
    if entry.backend == "ensemble":
        yield entry.finding(
            "ragged", f"allow_ragged_batch of {', '.join(ragged)}: an ensemble ignores it, and joins no requests of "
            "different shapes",
            "say it in the entries of the steps",
        )  # fmt: skip
    elif entry.backend in NATIVE and not entry.config.batch_input:
        yield entry.finding(
            "ragged", f"allow_ragged_batch of {', '.join(ragged)} without batch_input: the model gets the rows of all "
            "requests behind each other, and cannot tell them apart",
            "declare a batch_input such as BATCH_ACCUMULATED_ELEMENT_COUNT that the model takes, or leave the flag out",
        )  # fmt: skip


def _batch_size(entry: Entry) -> Iterator[Finding]:
    """A maximum that no request can have."""
    most = entry.config.max_batch_size
    row_nbytes = sum(_nbytes(tensor) for tensor in entry.config.input)
    if most > MOST_ROWS or most * row_nbytes > MESSAGE_NBYTES:
        fits = min(MOST_ROWS, MESSAGE_NBYTES // max(row_nbytes, 1))
        yield entry.finding(
            "batch-size", f"max_batch_size is {most:,}, a request of {most * row_nbytes / 1e9:.3g} GB or more: gRPC "
            "carries 2 GB, and a server that takes such batches runs out of memory",
            f"max_batch_size: what a scan finds best, at most {fits:,}",
        )  # fmt: skip


def _nbytes(tensor: Any) -> int:
    """Bytes of one row; an open dimension counts as 1."""
    from tritonclient.grpc import model_config_pb2

    name = model_config_pb2.DataType.Name(tensor.data_type)
    bits = "".join(filter(str.isdigit, name))
    itemsize = ITEMSIZES.get(name, int(bits) // 8 if bits else 1)
    return itemsize * int(np.prod([max(1, d) for d in tensor.dims], dtype=np.int64))


def _queue(entry: Entry) -> Iterator[Finding]:
    """A queue without an end."""
    if entry.config.max_batch_size == 0 or entry.backend == "ensemble":
        return
    if not entry.config.HasField("dynamic_batching") and not entry.config.HasField("sequence_batching"):
        yield entry.finding(
            "queue", "without dynamic_batching, requests of different clients are never joined", "dynamic_batching { }"
        )  # fmt: skip
    elif (
        entry.backend in NATIVE  # those of production, whose clients are not all daskonic's
        and entry.config.HasField("dynamic_batching")
        and not entry.config.dynamic_batching.default_queue_policy.max_queue_size
    ):
        yield entry.finding(
            "queue", "any number of requests may wait, in the server's memory, until their clients have given up",
            "default_queue_policy { max_queue_size: 512 } in dynamic_batching; measure it, as Triton 2.51 then holds "
            "requests back for up to half a second",
        )  # fmt: skip


def _threads(entry: Entry) -> Iterator[Finding]:
    """More threads than cores."""
    groups = [g for g in entry.config.instance_group if not _on_gpu(g)]
    if entry.backend not in THREADS or (entry.config.instance_group and not groups):
        return
    instances = sum(max(1, g.count) for g in groups) or 1
    (parameter,) = THREADS[entry.backend]
    told = entry.config.parameters[parameter].string_value if parameter in entry.config.parameters else ""
    if not told and entry.backend == "python":
        return  # it may have no threads at all
    each = int(told) if told.isdigit() and int(told) else entry.cores
    if instances * each > max(entry.cores, instances):
        yield entry.finding(
            "threads",
            f"{instances} instances of {each} threads ({parameter}{'' if told else ' is not set: one a core'}) share "
            f"{entry.cores} cores, and wait for each other",
            f'parameters {{ key: "{parameter}" value {{ string_value: "{max(1, entry.cores // instances)}" }} }}',
        )


def _on_gpu(group: Any) -> bool:
    """Whether instances are on a GPU, or where Triton finds one."""
    return bool(group.kind == group.KIND_GPU or (group.kind == group.KIND_AUTO and group.gpus))


def _warm_up(entry: Entry) -> Iterator[Finding]:
    """First requests that pay for the start."""
    if entry.backend in NATIVE and not entry.config.model_warmup:
        yield entry.finding(
            "warm-up", f"{entry.backend} prepares itself at the first requests, which take seconds, after every start and "
            "for every instance",
            "model_warmup with one request of a usual shape",
        )  # fmt: skip


def _versions(entry: Entry) -> Iterator[Finding]:
    """Versions that go away when another one comes."""
    if not entry.config.HasField("version_policy") or entry.config.version_policy.HasField("latest"):
        newest = max(1, entry.config.version_policy.latest.num_versions)
        if len(entry.versions) > newest:
            gone = ", ".join(map(str, entry.versions[:-newest]))
            yield entry.finding(
                "versions", f"only the latest {newest} of {len(entry.versions)} versions are served: a run that began with "
                f"{gone} fails",
                "version_policy { all {} }, or { specific { versions: [ ... ] } }",
            )  # fmt: skip


RULES: dict[str, Rule] = {
    "layout": _layout,
    "batch-dimension": _batch_dimension,
    "ragged": _ragged,
    "batch-size": _batch_size,
    "queue": _queue,
    "threads": _threads,
    "warm-up": _warm_up,
    "versions": _versions,
}
"""All rules by their names; ``config``, an entry that cannot be read, comes before them."""
