"""What an ONNX file says of its inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from daskonic.errors import ConfigError, InputError
from daskonic.server.entry import Tensor

if TYPE_CHECKING:
    import onnx

__all__ = ["external_files", "load_graph", "read_dims", "read_tensors"]

# ONNX TensorProto.DataType → Triton; strings are missing since the backend cannot pass them on NumPy 2,
# and bfloat16 since NumPy has no such type.
TYPES = {
    "FLOAT": "FP32", "DOUBLE": "FP64", "FLOAT16": "FP16", "BOOL": "BOOL",
    "INT8": "INT8", "INT16": "INT16", "INT32": "INT32", "INT64": "INT64",
    "UINT8": "UINT8", "UINT16": "UINT16", "UINT32": "UINT32", "UINT64": "UINT64",
}  # fmt: skip


def read_dims(path: Path) -> dict[str, tuple[int, ...]]:
    """Dimensions of the inputs and outputs of an ONNX file, the batch included; -1 is open.

    Raises
    ------
    InputError
        The file is no ONNX model, or has tensors that cannot be served.
    """
    return {
        tensor.name: tensor.dims for tensors in read_tensors(path, load_graph(path)) for tensor in tensors
    }


def load_graph(path: Path) -> onnx.GraphProto:
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


def read_tensors(path: Path, graph: onnx.GraphProto) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of an ONNX file."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if not inputs:
        raise InputError(f"{path} has no input")
    return [_tensor(path, v) for v in inputs], [_tensor(path, v) for v in graph.output]


def _tensor(path: Path, value: onnx.ValueInfoProto) -> Tensor:
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
    return Tensor(value.name, TYPES[onnx_type], dims)


def external_files(path: Path, graph: onnx.GraphProto) -> list[str]:
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
