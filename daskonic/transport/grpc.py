"""KServe v2 over gRPC, as Triton speaks it.

One channel per transport, with a connection of its own. What a request is made of is in
:mod:`~daskonic.transport.message`, shared memory in :mod:`~daskonic.transport.shm`, tokens and
certificates in :mod:`~daskonic.transport.credentials`.

Messages are not compressed. Measured with requests of 1 MB (float32 [128, 128, 16], grpcio 1.85.1,
Triton 2.51.0, 2 cores): gRPC's gzip costs 48, 25, 10 and 6.7 ms of CPU per MB where 0, 50, 77 and
90 % of the numbers are padding zeros, against 0.3 to 0.6 ms per MB for everything else that a client
does. Throughput fell to 0.02, 0.03, 0.07 and 0.12 of the uncompressed on one host and to 0.44 over
2 Gbit/s. It would win only below some hundred Mbit/s per busy core, and there not sending the zeros
(batches of rows of like length) wins more, and for nothing.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from daskonic.config import NO_CREDENTIALS, Credentials, host_of
from daskonic.errors import DaskonicError, ModelNotFoundError, ServerError, SpecError, UnavailableError
from daskonic.tensors import ANY, ModelSpec, Request, Response, TensorSpec
from daskonic.transport.base import Account, Listed
from daskonic.transport.credentials import metadata, open_channel
from daskonic.transport.message import DTYPES, KSERVE_NAMES, packed, unpacked
from daskonic.transport.reply import CurableReply, GrpcReply
from daskonic.transport.shm import Regions, SharedAnswer, SharedMessage
from daskonic.transport.status import (
    GrpcStatus,
    is_about_credentials,
    is_too_small_region,
    is_unknown_region,
    translated,
    was_not_run,
)

__all__ = ["CONTENT", "DTYPES", "KSERVE_NAMES", "OWNER", "SINCE", "GrpcTransport"]

OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Channels with equal options share one connection unless told not to.
    ("grpc.use_local_subchannel_pool", 1),
    # A server that restarts is back within seconds; gRPC's own back-off grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # In spite of its name this is how long one attempt to connect may take (gRPC: 20 s): room for a
    # lost SYN and a slow TLS handshake, and yet a host that swallows packets is given up soon.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # Triton takes offence at pings less than 5 minutes apart while it sends nothing, and at any
    # without a request under way ("too_many_pings", which kills running requests). Seldom as they
    # are, setting them makes gRPC set TCP_USER_TIMEOUT: a host that vanished is noticed 20 s after
    # it left bytes unacknowledged, not after the kernel's 15 minutes.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
]
OWNER, SINCE, CONTENT = "daskonic_owner", "daskonic_since", "daskonic_content"
"""Parameters in the configuration of a model that a run brought; the content is a digest of its entry."""
INFER = "/inference.GRPCInferenceService/ModelInfer"


class GrpcTransport:
    """One connection to one server.

    Parameters
    ----------
    address : str
        ``host:port`` of the gRPC port, or ``grpcs://host:port`` for TLS.
    credentials : Credentials
        Where certificates and tokens are found on this machine.
    shared_memory : {"auto", "never"}
        Whether large requests to a server on this host go through shared memory if it can.

    Raises
    ------
    ConfigError
        A certificate cannot be read, or a token would be sent in plain text.
    """

    def __init__(
        self, address: str, credentials: Credentials = NO_CREDENTIALS, shared_memory: str = "auto"
    ) -> None:
        self.address = address
        self._credentials = credentials
        self._has_secrets = credentials.has_secrets
        self._shared_memory = shared_memory
        self._row_nbytes: dict[tuple[str, str], dict[str, int]] = {}
        self._inherited: list[_Connection] = []
        self._connection = self._connected()

    def __repr__(self) -> str:
        return f"GrpcTransport({self.address!r})"

    def model_spec(self, model: str, version: str, timeout_s: float) -> ModelSpec:
        """Metadata and configuration of a model, in one :class:`ModelSpec`."""
        try:
            described = self._call(
                "ModelMetadata", pb.ModelMetadataRequest(name=model, version=version), timeout_s
            )
        except ModelNotFoundError as error:
            raise ModelNotFoundError(self._what_exists(model, version, timeout_s)) from error
        config = self._config(model, version, timeout_s)
        max_batch_size = config.max_batch_size if config is not None else 0
        digested = config if config is not None else described
        spec = ModelSpec(
            name=model,
            version=version or max(described.versions, key=_version_order, default=""),
            inputs=tuple(_tensor_spec(t, batched=max_batch_size > 0) for t in described.inputs),
            outputs=tuple(_tensor_spec(t, batched=max_batch_size > 0) for t in described.outputs),
            max_batch_size=max_batch_size,
            config_digest=_digest(digested),
            platform=described.platform,
        )
        if max_batch_size > 0:
            self._row_nbytes[spec.name, spec.version] = {
                t.name: t.dtype.itemsize * math.prod(t.shape) for t in spec.outputs if ANY not in t.shape
            }
        return spec

    def account(self, model: str, version: str, timeout_s: float) -> Account | None:
        """Triton's statistics of a model; other servers of the protocol need not have them."""
        try:
            answer = self._call(
                "ModelStatistics", pb.ModelStatisticsRequest(name=model, version=version), timeout_s
            )
        except ServerError as error:
            if isinstance(error.__cause__, GrpcStatus) and error.__cause__.code == "UNIMPLEMENTED":
                return None
            raise
        stats = [model.inference_stats for model in answer.model_stats]
        return Account(
            requests=sum(s.queue.count for s in stats),
            queue_s=sum(s.queue.ns for s in stats) / 1e9,
            compute_s=sum(s.compute_input.ns + s.compute_infer.ns + s.compute_output.ns for s in stats) / 1e9,
        )

    def encode(self, request: Request) -> bytes | SharedMessage:
        """One copy of each tensor: into the message, or into memory that the server shares."""
        regions = self._open().regions
        shared = None if regions is None else regions.message(request, self._output_nbytes(request))
        return packed(request) if shared is None else shared

    def submit(self, message: bytes | SharedMessage, timeout_s: float) -> GrpcReply | CurableReply:
        """Send it; ``timeout_s`` is also the server's to see, which drops late requests unrun."""
        deadline = time.monotonic() + timeout_s
        infer = self._open().infer

        def send(content: bytes) -> Any:
            left_s = max(deadline - time.monotonic(), 0.001)
            headers = metadata(self._credentials) if self._has_secrets else None
            try:
                return infer.future(content, timeout=left_s, metadata=headers)
            except ValueError:  # not quoted: gRPC's own text has the headers
                closed = UnavailableError(f"{self.address}: the connection is closed")
            raise closed

        if isinstance(message, SharedMessage):
            return CurableReply(
                functools.partial(send, message.content),
                lambda future: self._cure_shared(future, message, send),
                functools.partial(_over, message),
                message.answer,
                self.address,
            )
        if self._has_secrets:
            again = functools.partial(send, message)
            return CurableReply(
                again,
                lambda future: again if is_about_credentials(future) else None,
                _nothing,
                lambda content: content,
                self.address,
            )
        return GrpcReply(send(message), self.address)

    def decode(self, answer: bytes | SharedAnswer) -> Response:
        """Outputs as read-only views of the answer, valid for as long as somebody holds them."""
        if isinstance(answer, SharedAnswer):
            return unpacked(answer.content, self.address, answer.message.outputs())
        return unpacked(answer, self.address)

    def close(self) -> None:
        """Take our shared memory out of the server and close the channel."""
        connection = self._connection
        if connection.pid != os.getpid():
            return  # the parent's, which still uses it
        if connection.regions is not None:
            connection.regions.close()
        connection.channel.close()

    def _connected(self) -> _Connection:
        """A channel, not connected before it is used."""
        channel = open_channel(self.address, self._credentials, OPTIONS)
        return _Connection(
            pid=os.getpid(),
            channel=channel,
            stub=service_pb2_grpc.GRPCInferenceServiceStub(channel),
            # Bytes in, bytes out: packing and parsing happen on the caller's thread, not on gRPC's.
            infer=channel.unary_unary(INFER),
            regions=Regions(self.address, host_of(self.address), self._call)
            if self._shared_memory == "auto"
            else None,
        )

    def _open(self) -> _Connection:
        """The connection of this process: one inherited by fork would hang, and is left alone."""
        if self._connection.pid != os.getpid():
            self._inherited.append(self._connection)  # never collected: closing it could hang too
            self._connection = self._connected()
        return self._connection

    def _output_nbytes(self, request: Request) -> dict[str, int]:
        """Bytes of the outputs of a request, for those where the model's description tells."""
        known = self._row_nbytes.get((request.model, request.version), {})
        return {name: request.rows * known[name] for name in request.outputs if name in known}

    def _cure_shared(
        self, future: Any, message: SharedMessage, send: Callable[[bytes], Any]
    ) -> Callable[[], Any] | None:
        """How to repeat a request whose inputs are in shared memory, if that helps."""
        if is_unknown_region(future) or is_too_small_region(future):
            if is_unknown_region(future):
                message.forget()
            message.use_wire()
            return lambda: send(packed(message.request))
        if self._has_secrets and is_about_credentials(future):
            return lambda: send(message.content)
        return None

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

    def index(self, timeout_s: float) -> tuple[Listed, ...]:
        """Every version in the server's repository, whether it can be used or not."""
        answer = self._call("RepositoryIndex", pb.RepositoryIndexRequest(), timeout_s)
        return tuple(
            Listed(m.name, m.version, m.state.removeprefix("State."), m.reason) for m in answer.models
        )

    def load(self, model: str, config: str, files: Mapping[str, bytes], timeout_s: float) -> None:
        """Let the server load a model that it has not: its configuration as JSON, and its files by their paths."""
        request = pb.RepositoryModelLoadRequest(model_name=model)
        request.parameters["config"].string_param = config
        for path, content in files.items():
            request.parameters[f"file:{path}"].bytes_param = content
        self._call("RepositoryModelLoad", request, timeout_s)

    def unload(self, model: str, timeout_s: float) -> None:
        """Let the server forget a model; requests under way are answered."""
        self._call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=model), timeout_s)

    def configs(self, timeout_s: float) -> list[Any]:
        """Configurations of all models that are loaded, also of those that are in no repository."""
        told = self._call("ModelStatistics", pb.ModelStatisticsRequest(), timeout_s).model_stats
        found = [self._config(name, "", timeout_s) for name in sorted({model.name for model in told})]
        return [config for config in found if config is not None]

    def server(self, timeout_s: float) -> str:
        """Name and version of the server's software."""
        told = self._call("ServerMetadata", pb.ServerMetadataRequest(), timeout_s)
        return f"{told.name} {told.version}"

    def _what_exists(self, model: str, version: str, timeout_s: float) -> str:
        """A sentence for a model that is not there, with those that are."""
        asked = f"{self.address} has no model {model!r}" + (f" in version {version!r}" if version else "")
        try:
            there = sorted({f"{m.name} (version {m.version})" for m in self.index(timeout_s) if m.is_ready})
        except ServerError:
            return asked
        return f"{asked}; it has {', '.join(there) if there else 'no model at all'}"

    def _call(self, method: str, request: Any, timeout_s: float, *, again: bool = True) -> Any:
        """One short call with its errors translated; credentials that were refused are read again once."""
        call = getattr(self._open().stub, method)
        headers = metadata(self._credentials)
        try:
            return call(request, timeout=timeout_s, metadata=headers)
        except ValueError:  # not quoted: gRPC's own text has the headers
            again = False
            failure: DaskonicError = UnavailableError(f"{self.address}: the connection is closed")
        except grpc.RpcError as error:
            again = again and self._has_secrets and is_about_credentials(error)
            failure = translated(error, self.address)
        if again:
            return self._call(method, request, timeout_s, again=False)
        raise failure


@dataclass(frozen=True, slots=True, eq=False)
class _Connection:
    """What belongs to one process."""

    pid: int
    channel: Any
    stub: Any
    infer: Any
    regions: Regions | None


def _digest(message: Any) -> str:
    """SHA-256 of what a server told, but for who brought the model and when: the next run may bring the same."""
    told = type(message)()
    told.CopyFrom(message)
    for key in (OWNER, SINCE):
        if key in getattr(told, "parameters", ()):
            del told.parameters[key]
    return hashlib.sha256(told.SerializeToString(deterministic=True)).hexdigest()


def _nothing(future: Any) -> None:
    """Nothing is to be done when a request is over."""


def _over(message: SharedMessage, future: Any) -> None:
    """A request in shared memory is over: what becomes of the region."""
    answered = not future.cancelled() and future.code() is grpc.StatusCode.OK
    message.over(answered=answered, clean=answered or was_not_run(future))


def _tensor_spec(tensor: Any, *, batched: bool) -> TensorSpec:
    """A tensor of the metadata, its batch dimension taken off."""
    if tensor.datatype not in DTYPES:
        raise SpecError(f"tensor {tensor.name!r} is {tensor.datatype}; daskonic carries {', '.join(DTYPES)}")
    shape = tuple(int(d) for d in tensor.shape)
    return TensorSpec(tensor.name, DTYPES[tensor.datatype], shape[1:] if batched else shape)


def _version_order(version: str) -> tuple[int, str]:
    """Order versions as numbers where they are."""
    return (int(version), "") if version.isdecimal() else (-1, version)
