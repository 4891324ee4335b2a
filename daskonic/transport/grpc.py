"""KServe v2 over gRPC, as Triton speaks it.

The request is packed by hand around one copy of the tensors: the header by protobuf, the raw
inputs appended as field 7 of ``ModelInferRequest`` [1]_. Through ``tritonclient`` the same bytes
cost three copies.

References
----------
.. [1] KServe Open Inference Protocol v2, ``ModelInferRequest.raw_input_contents``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from daskonic.errors import DeadlineError, ModelNotFoundError, ResponseError, ServerError, SpecError
from daskonic.tensors import Array, ModelSpec, Request, Response, TensorSpec
from daskonic.transport.status import GrpcStatus, translated

__all__ = ["GrpcTransport"]

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
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Channels with equal options share one connection unless told not to.
    ("grpc.use_local_subchannel_pool", 1),
    # A server that restarts is back within seconds; gRPC's own back-off grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]
RAW_INPUT = b"\x3a"  # field 7, length-delimited


class GrpcTransport:
    """One connection to one server.

    Parameters
    ----------
    address : str
        ``host:port`` of the gRPC port.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, options=OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        # Bytes in, bytes out: packing and parsing happen on the caller's thread, not on gRPC's.
        self._infer = self._channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def model_spec(self, model: str, version: str, timeout_s: float) -> ModelSpec:
        """Metadata and configuration of a model, in one :class:`ModelSpec`."""
        try:
            metadata = self._call(
                "ModelMetadata", pb.ModelMetadataRequest(name=model, version=version), timeout_s
            )
        except ModelNotFoundError as error:
            raise ModelNotFoundError(self._what_exists(model, version, timeout_s)) from error
        config = self._config(model, version, timeout_s)
        max_batch_size = config.max_batch_size if config is not None else 0
        described = config if config is not None else metadata
        return ModelSpec(
            name=model,
            version=version or max(metadata.versions, key=_version_order, default=""),
            inputs=tuple(_tensor_spec(t, batched=max_batch_size > 0) for t in metadata.inputs),
            outputs=tuple(_tensor_spec(t, batched=max_batch_size > 0) for t in metadata.outputs),
            max_batch_size=max_batch_size,
            config_digest=hashlib.sha256(described.SerializeToString(deterministic=True)).hexdigest(),
            platform=metadata.platform,
        )

    def encode(self, request: Request) -> bytes:
        """The wire message: one copy of each tensor."""
        header = pb.ModelInferRequest(model_name=request.model, model_version=request.version)
        for name, array in request.inputs.items():
            header.inputs.add(name=name, datatype=KSERVE_NAMES[array.dtype], shape=array.shape)
        for name in request.outputs:
            header.outputs.add(name=name)
        parts: list[Any] = [header.SerializeToString()]
        for array in request.inputs.values():
            parts += (RAW_INPUT, _varint(array.nbytes), array.data.cast("B") if array.size else b"")
        return b"".join(parts)

    def submit(self, message: bytes, timeout_s: float) -> GrpcReply:
        """Send it; ``timeout_s`` is also the server's to see, which drops late requests unrun."""
        return GrpcReply(self._infer.future(message, timeout=timeout_s), self.address)

    def decode(self, answer: bytes) -> Response:
        """Outputs as read-only views of the answer."""
        try:
            message = pb.ModelInferResponse.FromString(answer)
        except DecodeError as error:
            raise ResponseError(f"{self.address}: the answer is not a ModelInferResponse") from error
        return Response(version=message.model_version, outputs=dict(_outputs(message, self.address)))

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _config(self, model: str, version: str, timeout_s: float) -> Any:
        """The model's configuration, or None where the server has no such call."""
        try:
            return self._call(
                "ModelConfig", pb.ModelConfigRequest(name=model, version=version), timeout_s
            ).config
        except ServerError as error:
            if isinstance(error.__cause__, GrpcStatus) and error.__cause__.code == "UNIMPLEMENTED":
                return None
            raise

    def _what_exists(self, model: str, version: str, timeout_s: float) -> str:
        """A sentence for a model that is not there, with those that are."""
        asked = f"{self.address} has no model {model!r}" + (f" in version {version!r}" if version else "")
        try:
            index = self._call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True), timeout_s)
        except ServerError:
            return asked
        there = sorted({f"{m.name} (version {m.version})" for m in index.models})
        return f"{asked}; it has {', '.join(there) if there else 'no model at all'}"

    def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        """One short call with its errors translated."""
        try:
            return getattr(self._stub, method)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            failure = translated(error, self.address)
        raise failure


class GrpcReply:
    """A gRPC future whose errors are daskonic's."""

    __slots__ = ("_address", "_future")

    def __init__(self, future: Any, address: str) -> None:
        self._future = future
        self._address = address

    def result(self) -> bytes:
        """The raw answer."""
        try:
            return self._future.result()  # type: ignore[no-any-return]
        except grpc.RpcError as error:
            failure = translated(error, self._address)
        except grpc.FutureCancelledError as error:
            raise DeadlineError(f"{self._address}: the request was cancelled") from error
        raise failure

    def done(self) -> bool:
        """Whether it is over."""
        return bool(self._future.done())

    def cancel(self) -> bool:
        """Cancel on both sides."""
        return bool(self._future.cancel())

    def add_done_callback(self, callback: Callable[[GrpcReply], None]) -> None:
        """Call back on gRPC's thread."""
        self._future.add_done_callback(lambda _: callback(self))


def _tensor_spec(tensor: Any, *, batched: bool) -> TensorSpec:
    """A tensor of the metadata, its batch dimension taken off."""
    if tensor.datatype not in DTYPES:
        raise SpecError(f"tensor {tensor.name!r} is {tensor.datatype}; daskonic carries {', '.join(DTYPES)}")
    shape = tuple(int(d) for d in tensor.shape)
    return TensorSpec(tensor.name, DTYPES[tensor.datatype], shape[1:] if batched else shape)


def _outputs(message: Any, address: str) -> Iterator[tuple[str, Array]]:
    """Name and array of each output, raw or typed."""
    raw = message.raw_output_contents
    for i, tensor in enumerate(message.outputs):
        dtype, shape = DTYPES.get(tensor.datatype), tuple(tensor.shape)
        if dtype is None:
            raise ResponseError(
                f"{address}: output {tensor.name!r} is {tensor.datatype}, which daskonic does not carry"
            )
        if raw:
            values = np.frombuffer(raw[i], dtype)
        else:
            values = np.array(
                getattr(tensor.contents, TYPED_CONTENTS.get(tensor.datatype, "bytes_contents")), dtype
            )
        if values.size != np.prod(shape, dtype=np.int64):
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


def _version_order(version: str) -> tuple[int, str]:
    """Order versions as numbers where they are."""
    return (int(version), "") if version.isdecimal() else (-1, version)
