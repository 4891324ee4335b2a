"""Model repositories: ONNX files made into models that Triton serves."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from daskonic.errors import ConfigError, InputError, OutputError, SpecError

if TYPE_CHECKING:
    import onnx

__all__ = ["add_onnx", "read_dims"]

MODEL = Path(__file__).with_name("onnx_model.py")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
BACKENDS = {"python": ("cpu",), "onnxruntime": ("cpu", "gpu")}
"""Triton's backends that take ONNX files, and where each can work."""
TENSORS = "# tensors: the same in all versions\n"

# ONNX TensorProto.DataType → Triton; strings are missing since the backend cannot pass them on NumPy 2,
# and bfloat16 since NumPy has no such type.
TYPES = {
    "FLOAT": "FP32", "DOUBLE": "FP64", "FLOAT16": "FP16", "BOOL": "BOOL",
    "INT8": "INT8", "INT16": "INT16", "INT32": "INT32", "INT64": "INT64",
    "UINT8": "UINT8", "UINT16": "UINT16", "UINT32": "UINT32", "UINT64": "UINT64",
}  # fmt: skip


def add_onnx(
    repository: str | os.PathLike[str],
    name: str,
    onnx_path: str | os.PathLike[str],
    *,
    version: int = 1,
    max_batch_size: int = 1024,
    instances: int = 1,
    threads: int = 1,
    queue_delay_us: int = 500,
    queue_size: int | None = None,
    labels: Sequence[str] | None = None,
    backend: Literal["python", "onnxruntime"] = "python",
    device: Literal["cpu", "gpu"] = "cpu",
    warm_up: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Add an ONNX model to a model repository, or replace one of its versions.

    Files are written aside and renamed, so a server that reads the repository meanwhile never sees half of
    a model.

    Parameters
    ----------
    repository : path
        Made if it does not exist.
    name : str
        What clients will call the model.
    onnx_path : path
        The first dimension of every input and output is the batch and must be open.
    version : int
        1 or more; versions stand side by side, and clients that name none get the highest.
    max_batch_size : int
        Most rows in one request, and in one execution. 0: the model has no batch dimension, requests
        are never joined, and shapes are served as they stand.
    instances : int
        Copies of the model that work side by side.
    threads : int
        Threads of ONNX Runtime for one execution.
    queue_delay_us : int
        How long a request may wait for others to share its execution, in microseconds.
    queue_size : int, optional
        Most requests that wait; more are rejected. For servers whose clients do not limit themselves, as daskonic's
        do: with any limit, Triton 2.51 holds requests back for up to half a second at a time (calls of 0.2 s took
        0.7 to 5 s). Without a batch dimension there is no such limit in Triton.
    labels : sequence of str, optional
        Names of the classes, for a model of one output.
    backend : {"python", "onnxruntime"}
        Triton's Python backend, which every Triton has, daskonic's own too; or its backend for ONNX Runtime, for
        servers in production.
    device : {"cpu", "gpu"}
        Where the instances work; ``instances`` are those of each GPU.
    warm_up : mapping of str to sequence of int, optional
        Shape of one row for the inputs that leave dimensions open, and a request of zeros is computed before the model
        counts as ready. Without it, that is done with the backend for ONNX Runtime if no dimension is open.

    Returns
    -------
    Path
        Folder of the model.

    Raises
    ------
    InputError
        The file is no ONNX model, or has tensors that cannot be served.
    SpecError
        It has no batch dimension, or its tensors are not those of the versions that exist.
    OutputError
        The repository cannot be written.
    """
    serving = _Serving(max_batch_size, instances, threads, queue_delay_us, queue_size, backend, device)
    _check(name, version, serving)
    onnx_path = Path(onnx_path)
    graph = _load(onnx_path)
    inputs, outputs = _read_tensors(onnx_path, graph)
    if max_batch_size:
        inputs, outputs = _rows(onnx_path, inputs), _rows(onnx_path, outputs)
    if labels is not None and len(outputs) != 1:
        raise SpecError(f"labels name the classes of one output; {onnx_path} has {len(outputs)} of them")
    head = serving.head(name) + _warm_up(name, inputs, serving, warm_up)
    # Requests of different lengths may come in one execution of our own model, which sorts them by shape.
    tensors = TENSORS + _tensors("input", inputs, ragged=backend == "python")
    tensors += _tensors("output", outputs, labelled=labels is not None)
    try:
        with _staging(Path(repository), name) as staging:
            (staging / "config.pbtxt").write_text(head + tensors)
            if labels is not None:
                (staging / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
            folder = staging / str(version)
            folder.mkdir()
            if backend == "python":
                shutil.copyfile(MODEL, folder / "model.py")
            shutil.copyfile(onnx_path, folder / "model.onnx")
            for extra in _external_files(onnx_path, graph):
                shutil.copyfile(onnx_path.parent / extra, folder / extra)
            return _publish(staging, Path(repository) / name, version, tensors)
    except OSError as error:
        raise OutputError(f"the model {name!r} cannot be written into {repository}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Serving:
    """How a model is served."""

    max_batch_size: int
    instances: int
    threads: int
    queue_delay_us: int
    queue_size: int | None
    backend: str
    device: str

    def head(self, name: str) -> str:
        """config.pbtxt but for the tensors."""
        queue = f"default_queue_policy {{ max_queue_size: {self.queue_size} }} " if self.queue_size else ""
        batching = f"dynamic_batching {{ max_queue_delay_microseconds: {self.queue_delay_us} {queue}}}\n"
        threads = "threads" if self.backend == "python" else "intra_op_thread_count"
        return (
            f'name: "{name}"\n'
            f'backend: "{self.backend}"\n'
            f"max_batch_size: {self.max_batch_size}\n"
            "version_policy { all {} }\n"
            f"instance_group [ {{ count: {self.instances} kind: KIND_{self.device.upper()} }} ]\n"
            f"{batching if self.max_batch_size else ''}"
            f'parameters {{ key: "{threads}" value {{ string_value: "{self.threads}" }} }}\n'
        )


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Name, Triton's data type and dimensions of an input or output; -1 is open."""

    name: str
    data_type: str
    dims: tuple[int, ...]


def read_dims(path: Path) -> dict[str, tuple[int, ...]]:
    """Dimensions of the inputs and outputs of an ONNX file, the batch included; -1 is open.

    Raises
    ------
    InputError
        The file is no ONNX model, or has tensors that cannot be served.
    """
    return {tensor.name: tensor.dims for tensors in _read_tensors(path, _load(path)) for tensor in tensors}


def _check(name: str, version: int, serving: _Serving) -> None:
    """ConfigError for an argument out of range."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"model name {name!r}: letters, digits and any of _ . + - are allowed, a letter or digit first"
        )
    for what, value, least in (
        ("version", version, 1),
        ("max_batch_size", serving.max_batch_size, 0),
        ("instances", serving.instances, 1),
        ("threads", serving.threads, 1),
        ("queue_delay_us", serving.queue_delay_us, 0),
        ("queue_size", 1 if serving.queue_size is None else serving.queue_size, 1),
    ):
        if value < least:
            raise ConfigError(f"{what} is {value}; at least {least} is needed")
    if serving.backend not in BACKENDS:
        raise ConfigError(f"backend is {serving.backend!r}; there are {', '.join(BACKENDS)}")
    if serving.device not in BACKENDS[serving.backend]:
        raise ConfigError(
            f"device is {serving.device!r}; the backend {serving.backend!r} has {', '.join(BACKENDS[serving.backend])}"
        )


def _load(path: Path) -> onnx.GraphProto:
    """Read the graph of an ONNX file, without weights that lie in other files."""
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(
            f"{path} cannot be read without the package onnx: pip install 'daskonic[server]'"
        ) from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # protobuf's DecodeError, whose class depends on its implementation
        raise InputError(f"{path} is not an ONNX model: {error}") from error
    if not model.graph.output:
        raise InputError(f"{path} is not an ONNX model, or one without outputs")
    graph: onnx.GraphProto = model.graph
    return graph


def _read_tensors(path: Path, graph: onnx.GraphProto) -> tuple[list[_Tensor], list[_Tensor]]:
    """Inputs and outputs of an ONNX file."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if not inputs:
        raise InputError(f"{path} has no input")
    return [_tensor(path, v) for v in inputs], [_tensor(path, v) for v in graph.output]


def _tensor(path: Path, value: onnx.ValueInfoProto) -> _Tensor:
    """One input or output; InputError if it cannot be served."""
    import onnx

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise InputError(f"{path}: {value.name} is a {str(kind).removesuffix('_type')}, not a tensor")
    tensor = value.type.tensor_type
    onnx_type = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if onnx_type not in TYPES:
        raise InputError(f"{path}: {value.name} is of type {onnx_type}; served are {', '.join(TYPES)}")
    if not tensor.HasField("shape"):
        raise InputError(
            f"{path}: {value.name} has no shape, not even a number of dimensions; export it with one"
        )
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return _Tensor(value.name, TYPES[onnx_type], dims)


def _rows(path: Path, tensors: list[_Tensor]) -> list[_Tensor]:
    """The tensors without their batch dimension; SpecError if one has none."""
    for tensor in tensors:
        if tensor.dims[:1] != (-1,):
            what = f"is fixed to {tensor.dims[0]}" if tensor.dims else "does not exist"
            raise SpecError(
                f"{path}: the first dimension of {tensor.name} {what}, so it cannot be the batch. Export the model "
                "with an open (dynamic) first dimension, or serve it with max_batch_size=0, without batches"
            )
    return [_Tensor(t.name, t.data_type, t.dims[1:]) for t in tensors]


def _external_files(path: Path, graph: onnx.GraphProto) -> list[str]:
    """Names of files beside the ONNX file that hold its large weights."""
    locations = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location in sorted(locations):
        if Path(location).name != location or not (path.parent / location).is_file():
            raise InputError(f"{path} has weights in {location}, which is not a file beside it")
    return sorted(locations)


def _warm_up(
    name: str, inputs: Sequence[_Tensor], serving: _Serving, given: Mapping[str, Sequence[int]] | None
) -> str:
    """A request of zeros for config.pbtxt; none if no shape is known."""
    if given is None and (serving.backend == "python" or any(-1 in t.dims for t in inputs)):
        return ""
    shapes = {t.name: tuple((given or {}).get(t.name, t.dims)) for t in inputs}
    unknown = sorted(set(given or {}) - set(shapes))
    if unknown:
        raise ConfigError(f"warm_up names {', '.join(unknown)}; {name!r} takes {', '.join(shapes)}")
    made = []
    for tensor in inputs:
        shape = shapes[tensor.name]
        if len(shape) != len(tensor.dims) or not all(
            n > 0 and d in (-1, n) for n, d in zip(shape, tensor.dims, strict=True)
        ):
            raise ConfigError(
                f"warm_up gives input {tensor.name!r} of {name!r} rows of shape {list(shape)}; the model takes "
                f"{list(tensor.dims)}, -1 being any"
            )
        dims = ", ".join(map(str, shape or (1,)))
        made.append(
            f'inputs {{ key: "{_quoted(tensor.name)}" value '
            f"{{ data_type: TYPE_{tensor.data_type} dims: [ {dims} ] zero_data: true }} }}"
        )
    rows = 1 if serving.max_batch_size else 0
    return f'model_warmup [ {{ name: "zeros" batch_size: {rows} {" ".join(made)} }} ]\n'


def _quoted(name: str) -> str:
    """A name inside the quotes of config.pbtxt."""
    return name.replace("\\", "\\\\").replace('"', '\\"')


def _tensors(kind: str, tensors: list[_Tensor], *, ragged: bool = False, labelled: bool = False) -> str:
    """Inputs or outputs for config.pbtxt."""
    lines = []
    for tensor in tensors:
        dims = ", ".join(map(str, tensor.dims))
        # Triton wants a dimension; the model gets its scalars per row all the same.
        shape = f"dims: [ {dims} ]" if tensor.dims else "dims: [ 1 ] reshape { shape: [ ] }"
        flag = " allow_ragged_batch: true" if ragged and -1 in tensor.dims else ""
        label = ' label_filename: "labels.txt"' if labelled else ""
        lines.append(
            f'{kind} {{ name: "{_quoted(tensor.name)}" data_type: TYPE_{tensor.data_type} {shape}{flag}{label} }}\n'
        )
    return "".join(lines)


@contextmanager
def _staging(repository: Path, name: str) -> Iterator[Path]:
    """A hidden folder in the repository, where files can be renamed from; gone afterwards."""
    repository.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=repository))
    try:
        staging.chmod(0o755)  # mkdtemp's folders are the owner's alone
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, model: Path, version: int, tensors: str) -> Path:
    """Rename what was staged to where servers look for it."""
    if not model.exists():
        os.rename(staging, model)
        return model
    _refuse_other_tensors(model, version, tensors)
    place = model / str(version)
    if place.exists():
        os.rename(place, staging / "replaced")
    os.rename(staging / str(version), place)
    for file in ("labels.txt", "config.pbtxt"):
        if (staging / file).exists():
            os.replace(staging / file, model / file)
    return model


def _refuse_other_tensors(model: Path, version: int, tensors: str) -> None:
    """SpecError if the model's other versions have other inputs or outputs: Triton has one list for all."""
    others = [p.name for p in model.iterdir() if p.name.isdigit() and p.name != str(version)]
    _, mark, existing = (model / "config.pbtxt").read_text().partition(TENSORS)
    if others and mark + existing != tensors:
        raise SpecError(
            f"version {version} of {model.name!r} has other inputs or outputs than its version "
            f"{', '.join(sorted(others))}; Triton wants them equal, so give it another name. New:\n{tensors}Existing:\n"
            f"{existing}"
        )
