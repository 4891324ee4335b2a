"""One entry of a model repository: its configuration, and how it gets to where servers look for it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from daskonic.errors import ConfigError, InputError, OutputError, SpecError

__all__ = [
    "Serving",
    "Settings",
    "Tensor",
    "check_name",
    "read_config",
    "rows",
    "write_config",
    "write_entry",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
TENSOR = re.compile(r"(?P<type>[A-Za-z0-9]*)\[(?P<dims>[-\d,\s]*)\]")
BACKENDS = {
    "python": ("cpu",),
    "onnxruntime": ("cpu", "gpu"),
    "pytorch": ("cpu", "gpu"),
    "tensorrt": ("gpu",),
}
"""Triton's backends, and where each can work; the Python backend's models here are made for a CPU."""
THREADS = {
    "python": "threads",
    "onnxruntime": "intra_op_thread_count",
    "pytorch": "INTRA_OP_THREAD_COUNT",  # of the whole server: the first model that says it decides
}
"""Parameters that bound the threads of an instance."""
TYPES = (
    "BOOL", "FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
)  # fmt: skip


class Settings(TypedDict, total=False):
    """Keywords of :class:`Serving`, as every ``add_*`` takes them."""

    max_batch_size: int
    preferred_batch_sizes: Sequence[int]
    instances: int
    threads: int
    queue_delay_us: int
    queue_size: int | None
    queue_timeout_us: int | None
    versions: Literal["all"] | int | Sequence[int]
    backend: str
    device: Literal["cpu", "gpu"]
    tensorrt: Literal["FP32", "FP16"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How a model is served.

    Attributes
    ----------
    max_batch_size : int
        Most rows in one request, and in one execution. 0: the model has no batch dimension, requests
        are never joined, and shapes are served as they stand.
    preferred_batch_sizes : sequence of int
        Rows of joined requests that are executed at once, without the delay; what a scan finds best.
    instances : int
        Copies of the model that work side by side; on GPUs, of each of them.
    threads : int
        Of one copy, where it works on a CPU.
    queue_delay_us : int
        How long a request may wait for others to share its execution, in microseconds.
    queue_size : int or None
        Most requests that wait; more are rejected. For servers whose clients do not limit themselves, as daskonic's
        do: with any limit, Triton 2.51 holds requests back for up to half a second at a time (calls of 0.2 s took
        0.7 to 5 s). Without a batch dimension there is no such limit in Triton.
    queue_timeout_us : int or None
        Longest wait; later requests are rejected.
    versions : "all", int or sequence of int
        Which are served: all, the latest so many, or these.
    backend : {"python", "onnxruntime", "pytorch", "tensorrt"}
        Triton's Python backend, which every Triton has, daskonic's own too; or a native one, for servers in
        production.
    device : {"cpu", "gpu"}
        Where the copies work.
    tensorrt : {"FP32", "FP16"} or None
        On GPUs, ONNX Runtime hands to TensorRT what it can, in this precision. An engine is built at the first request
        of each shape, which takes minutes: its cache is on.
    """

    max_batch_size: int = 1024
    preferred_batch_sizes: Sequence[int] = ()
    instances: int = 1
    threads: int = 1
    queue_delay_us: int = 500
    queue_size: int | None = None
    queue_timeout_us: int | None = None
    versions: Literal["all"] | int | Sequence[int] = "all"
    backend: str = "python"
    device: Literal["cpu", "gpu"] = "cpu"
    tensorrt: Literal["FP32", "FP16"] | None = None

    def __post_init__(self) -> None:
        for what, value, least in (
            ("max_batch_size", self.max_batch_size, 0),
            ("instances", self.instances, 1),
            ("threads", self.threads, 1),
            ("queue_delay_us", self.queue_delay_us, 0),
            ("queue_size", self.queue_size, 1),
            ("queue_timeout_us", self.queue_timeout_us, 1),
            ("versions", self.versions if isinstance(self.versions, int) else None, 1),
        ):
            if value is not None and value < least:
                raise ConfigError(f"{what} is {value}; at least {least} is needed")
        wrong = [n for n in self.preferred_batch_sizes if not 1 <= n <= self.max_batch_size]
        if wrong:
            raise ConfigError(
                f"preferred_batch_sizes has {wrong[0]}; sizes of 1 to max_batch_size={self.max_batch_size} can be preferred"
            )
        if not isinstance(self.versions, int) and not self.versions:
            raise ConfigError("versions is empty; say 'all', how many of the latest, or their numbers")
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend is {self.backend!r}; there are {', '.join(BACKENDS)}")
        if self.device not in BACKENDS[self.backend]:
            raise ConfigError(
                f"device is {self.device!r}; the backend {self.backend!r} has {', '.join(BACKENDS[self.backend])}"
            )
        if self.tensorrt is not None and (self.backend, self.device) != ("onnxruntime", "gpu"):
            raise ConfigError(f"tensorrt={self.tensorrt!r} needs backend='onnxruntime' and device='gpu'")

    def config(self, name: str) -> Any:
        """A ``ModelConfig`` of Triton's without tensors."""
        from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelQueuePolicy

        config = ModelConfig(name=name, backend=self.backend, max_batch_size=self.max_batch_size)
        if isinstance(self.versions, int):
            config.version_policy.latest.num_versions = self.versions
        elif self.versions == "all":
            config.version_policy.all.SetInParent()
        else:
            config.version_policy.specific.versions.extend(int(v) for v in self.versions)
        config.instance_group.add(count=self.instances, kind=f"KIND_{self.device.upper()}")
        if self.max_batch_size:
            batching = config.dynamic_batching
            batching.max_queue_delay_microseconds = self.queue_delay_us
            batching.preferred_batch_size.extend(self.preferred_batch_sizes)
            if self.queue_size is not None:
                batching.default_queue_policy.max_queue_size = self.queue_size
            if self.queue_timeout_us is not None:
                batching.default_queue_policy.default_timeout_microseconds = self.queue_timeout_us
                batching.default_queue_policy.timeout_action = ModelQueuePolicy.REJECT
        if self.backend in THREADS:
            config.parameters[THREADS[self.backend]].string_value = str(self.threads)
        if self.tensorrt is not None:
            accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(
                name="tensorrt"
            )
            accelerator.parameters["precision_mode"] = self.tensorrt
            accelerator.parameters["trt_engine_cache_enable"] = "1"
        return config


@dataclass(frozen=True, slots=True)
class Tensor:
    """Name, Triton's data type and dimensions of an input or output; -1 is open."""

    name: str
    data_type: str
    dims: tuple[int, ...]

    @classmethod
    def parse(cls, name: str, text: str, data_type: str = "") -> Tensor:
        """From words such as ``FP32[16]``: the type, unless known, and the dimensions of a row.

        Raises
        ------
        ConfigError
            It is something else.
        """
        found = TENSOR.fullmatch(text.strip())
        parts = [part.strip() for part in found["dims"].split(",")] if found else []
        told = (found["type"].upper() if found else "") or data_type
        if found is None or told not in TYPES or not (parts == [""] or all(map(_is_dim, parts))):
            raise ConfigError(
                f"{name!r} is to be {text!r}; it takes a type and the dimensions of a row, -1 being any, as in FP32[2,-1]. "
                f"Types are {', '.join(TYPES)}"
            )
        return cls(name, told, tuple(int(part) for part in parts if part))

    def fill(self, message: Any, *, ragged: bool = False) -> None:
        """Write it into an input or output of a ``ModelConfig``."""
        from tritonclient.grpc.model_config_pb2 import DataType

        message.name = self.name
        message.data_type = DataType.Value(f"TYPE_{self.data_type}")
        message.dims.extend(self.dims or (1,))
        if not self.dims:  # Triton wants a dimension; the model gets its scalars per row all the same
            message.reshape.SetInParent()
        if ragged and -1 in self.dims:
            message.allow_ragged_batch = True


def _is_dim(text: str) -> bool:
    """Whether it is a dimension: a number, or -1."""
    return text == "-1" or (text.isdigit() and int(text) > 0)


def check_name(name: str, version: int) -> None:
    """ConfigError unless a model can be called so."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"model name {name!r}: letters, digits and any of _ . + - are allowed, a letter or digit first"
        )
    if version < 1:
        raise ConfigError(f"version is {version}; at least 1 is needed")


def rows(path: object, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of a file without their batch dimension; SpecError if one has none."""
    for tensor in tensors:
        if tensor.dims[:1] != (-1,):
            what = f"is fixed to {tensor.dims[0]}" if tensor.dims else "does not exist"
            raise SpecError(
                f"{path}: the first dimension of {tensor.name} {what}, so it cannot be the batch. Export the model "
                "with an open (dynamic) first dimension, or serve it with max_batch_size=0, without batches"
            )
    return [replace(t, dims=t.dims[1:]) for t in tensors]


def read_config(path: Path) -> Any:
    """The ``ModelConfig`` in a ``config.pbtxt``.

    Raises
    ------
    InputError
        It cannot be read.
    """
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    try:
        return text_format.Parse(path.read_text(), ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def write_config(path: Path, config: Any) -> None:
    """Write a ``config.pbtxt`` aside and rename it."""
    from google.protobuf import text_format

    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text_format.MessageToString(config, use_short_repeated_primitives=True))
    os.replace(aside, path)


def write_entry(
    repository: str | os.PathLike[str],
    name: str,
    version: int,
    serving: Serving,
    tensors: tuple[Sequence[Tensor], Sequence[Tensor]],
    put: Callable[[Path], object],
    *,
    labels: Sequence[str] | None = None,
    warm_up: Mapping[str, Sequence[int]] | None = None,
    parameters: Mapping[str, str] | None = None,
) -> Path:
    """Write one version of a model into a repository.

    Files are written aside and renamed, so a server that reads the repository meanwhile never sees half of
    a model.

    Parameters
    ----------
    tensors : (inputs, outputs)
        Of a row, unless the model has no batch dimension.
    put : callable of Path
        Writes the model's files into the folder of the version.
    parameters : mapping of str to str, optional
        For the backend.
    """
    inputs, outputs = tensors
    if labels is not None and len(outputs) != 1:
        raise SpecError(f"labels name the classes of one output; {name!r} has {len(outputs)} of them")
    config = serving.config(name)
    for tensor in inputs:
        # Requests of different lengths may come in one execution of our own model, which sorts them by shape.
        tensor.fill(config.input.add(), ragged=serving.backend == "python" and serving.max_batch_size > 0)
    for tensor in outputs:
        tensor.fill(config.output.add())
    if labels is not None:
        config.output[0].label_filename = "labels.txt"
    for key, value in (parameters or {}).items():
        config.parameters[key].string_value = value
    _warm_up(config, inputs, serving, warm_up)
    try:
        with _staging(Path(repository), name) as staging:
            write_config(staging / "config.pbtxt", config)
            if labels is not None:
                (staging / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
            folder = staging / str(version)
            folder.mkdir()
            put(folder)
            return _publish(staging, Path(repository) / name, version, config)
    except OSError as error:
        raise OutputError(f"the model {name!r} cannot be written into {repository}: {error}") from error


def _warm_up(
    config: Any, inputs: Sequence[Tensor], serving: Serving, given: Mapping[str, Sequence[int]] | None
) -> None:
    """A request of zeros for each size that is preferred; none if no shape is known."""
    if given is None and (serving.backend == "python" or any(-1 in t.dims for t in inputs)):
        return
    shapes = {t.name: tuple((given or {}).get(t.name, t.dims)) for t in inputs}
    unknown = sorted(set(given or {}) - set(shapes))
    if unknown:
        raise ConfigError(f"warm_up names {', '.join(unknown)}; {config.name!r} takes {', '.join(shapes)}")
    sizes = sorted({1, *serving.preferred_batch_sizes}) if serving.max_batch_size else [0]
    for size in sizes:
        warm_up = config.model_warmup.add(name=f"zeros_{size}", batch_size=size)
        for tensor, message in zip(inputs, config.input, strict=True):
            shape = shapes[tensor.name]
            if len(shape) != len(tensor.dims) or not all(
                n > 0 and d in (-1, n) for n, d in zip(shape, tensor.dims, strict=True)
            ):
                raise ConfigError(
                    f"warm_up gives input {tensor.name!r} of {config.name!r} rows of shape {list(shape)}; the model "
                    f"takes {list(tensor.dims)}, -1 being any"
                )
            zeros = warm_up.inputs[tensor.name]
            zeros.data_type, zeros.zero_data = message.data_type, True
            zeros.dims.extend(shape or (1,))


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


def _publish(staging: Path, model: Path, version: int, config: Any) -> Path:
    """Rename what was staged to where servers look for it."""
    if not model.exists():
        os.rename(staging, model)
        return model
    _refuse_other_tensors(model, version, config)
    place = model / str(version)
    if place.exists():
        os.rename(place, staging / "replaced")
    os.rename(staging / str(version), place)
    for file in ("labels.txt", "config.pbtxt"):
        if (staging / file).exists():
            os.replace(staging / file, model / file)
    return model


def _refuse_other_tensors(model: Path, version: int, config: Any) -> None:
    """SpecError if the model's other versions have other inputs or outputs: Triton has one list for all."""
    others = [p.name for p in model.iterdir() if p.name.isdigit() and p.name != str(version)]
    existing = read_config(model / "config.pbtxt") if others else config
    new, old = (_told(c) for c in (config, existing))
    if new != old:
        raise SpecError(
            f"version {version} of {model.name!r} has other inputs or outputs than its version "
            f"{', '.join(sorted(others))}; Triton wants them equal, so give it another name. New:\n{new}\nExisting:\n{old}"
        )


def _told(config: Any) -> str:
    """Inputs and outputs, a line each."""
    from google.protobuf import text_format

    return "\n".join(
        f"{kind} {{ {text_format.MessageToString(t, as_one_line=True, use_short_repeated_primitives=True).strip()} }}"
        for kind, tensors in (("input", config.input), ("output", config.output))
        for t in tensors
    )
