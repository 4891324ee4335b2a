"""Messages of KServe v2: requests packed by hand around one copy of the tensors, answers as views.

The header is protobuf's, the raw inputs are appended as field 7 of ``ModelInferRequest`` [1]_.
Through ``tritonclient`` the same bytes cost three copies.

References
----------
.. [1] KServe Open Inference Protocol v2, ``ModelInferRequest.raw_input_contents``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from daskonic.errors import ResponseError
from daskonic.tensors import Array, Request, Response

__all__ = ["DTYPES", "KSERVE_NAMES", "header", "packed", "unpacked"]

Tensors = tuple[tuple[str, np.dtype[np.generic], tuple[int, ...]], ...]
"""Name, dtype and shape of each input, with the batch."""

DTYPES = {
    "BOOL": np.dtype(bool),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
KSERVE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
TYPED_CONTENTS = {
    "BOOL": "bool_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
}
RAW_INPUT = b"\x3a"  # field 7, length-delimited


def header(request: Request) -> Any:
    """Everything of a request but the numbers."""
    tensors = tuple((name, array.dtype, array.shape) for name, array in request.inputs.items())
    return _header(request.model, request.version, tensors, request.outputs)


def _header(model: str, version: str, tensors: Tensors, outputs: tuple[str, ...]) -> Any:
    """A message without numbers."""
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    for name, dtype, shape in tensors:
        message.inputs.add(name=name, datatype=KSERVE_NAMES[dtype], shape=shape)
    for name in outputs:
        message.outputs.add(name=name)
    return message


@functools.lru_cache(maxsize=256)
def _header_bytes(model: str, version: str, tensors: Tensors, outputs: tuple[str, ...]) -> bytes:
    """The same for each batch of one shape."""
    return bytes(_header(model, version, tensors, outputs).SerializeToString())


def packed(request: Request) -> bytes:
    """The whole message: one copy of each tensor."""
    tensors = tuple((name, array.dtype, array.shape) for name, array in request.inputs.items())
    parts: list[Any] = [_header_bytes(request.model, request.version, tensors, request.outputs)]
    for array in request.inputs.values():
        parts += (RAW_INPUT, _varint(array.nbytes), array.data.cast("B") if array.size else b"")
    return b"".join(parts)


def unpacked(answer: bytes, address: str, shared: Mapping[str, Array] = MappingProxyType({})) -> Response:
    """Outputs as read-only views of the answer, or of the memory that ``shared`` has for them."""
    try:
        message = pb.ModelInferResponse.FromString(answer)
    except DecodeError as error:
        raise ResponseError(f"{address}: the answer is not a ModelInferResponse") from error
    return Response(version=message.model_version, outputs=dict(_outputs(message, address, shared)))


def _outputs(message: Any, address: str, shared: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """Name and array of each output: raw, typed or in shared memory."""
    raw = message.raw_output_contents
    for i, tensor in enumerate(message.outputs):
        dtype, shape = DTYPES.get(tensor.datatype), tuple(tensor.shape)
        if dtype is None:
            raise ResponseError(
                f"{address}: output {tensor.name!r} is {tensor.datatype}, which daskonic does not carry"
            )
        if tensor.name in shared:
            nbytes = dtype.itemsize * int(math.prod(shape))
            values: Array = shared[tensor.name][:nbytes].view(dtype)
        elif raw:
            values = np.frombuffer(raw[i], dtype)
        else:
            values = np.array(
                getattr(tensor.contents, TYPED_CONTENTS.get(tensor.datatype, "bytes_contents")), dtype
            )
        if values.size != math.prod(shape):
            raise ResponseError(
                f"{address}: output {tensor.name!r} says shape {shape} but carries {values.size} numbers"
            )
        yield tensor.name, values.reshape(shape)


def _varint(number: int) -> bytes:
    """Protobuf's variable-length integer."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
