"""From gRPC status and text to errors that say what to do.

The code alone misleads: a real Triton says ``UNAVAILABLE`` for a full queue and for a missing
token, and ``NOT_FOUND`` while it shuts down. The texts below were read off tritonserver 2.51.0
(release 24.10).
"""

from __future__ import annotations

import grpc

from daskonic.errors import (
    DaskonicError,
    DeadlineError,
    InferenceError,
    ModelNotFoundError,
    OverloadedError,
    ServerError,
    UnavailableError,
)

__all__ = ["GrpcStatus", "error_from_status", "translated"]

OVERLOAD = ("exceeds maximum queue size", "request timeout expired")
DRAINING = ("has no available versions", "server exiting")
BROKEN_INSTANCE = ("stub process", "is not healthy")
OTHER_PROTOCOL = ("trying to connect an http1.x server", "unexpected http", "failed parsing http/2")
TOO_LARGE = ("larger than max",)


def error_from_status(code: grpc.StatusCode, text: str, address: str) -> DaskonicError:
    """The error that a gRPC status stands for.

    Parameters
    ----------
    code : grpc.StatusCode
    text : str
        The server's own words, kept in the message.
    address : str
        Whom we asked.
    """
    kind, explanation = _classify(code, text.lower())
    return kind(f"{address}: {explanation}: {text}" if text else f"{address}: {explanation}")


class GrpcStatus(Exception):
    """What a gRPC error said, without its locks.

    Dask sends an error with its causes, and one cause that cannot be pickled costs it its class.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code = code


def translated(error: grpc.RpcError, address: str) -> DaskonicError:
    """The error to raise, outside of the ``except`` block, or the gRPC error would be its context."""
    failure = error_from_status(error.code(), error.details() or "", address)
    failure.__cause__ = GrpcStatus(error.code().name, error.details() or "")
    return failure


def _classify(code: grpc.StatusCode, text: str) -> tuple[type[DaskonicError], str]:
    """Error class, and in words what happened."""
    status = grpc.StatusCode
    if any(words in text for words in OVERLOAD):
        return OverloadedError, "the server's queue is full"
    if any(words in text for words in DRAINING):
        return UnavailableError, "the model is being unloaded or the server is stopping"
    if all(words in text for words in BROKEN_INSTANCE):
        return UnavailableError, "the model's process on the server has died"
    if any(words in text for words in OTHER_PROTOCOL):
        return ServerError, "this port does not speak gRPC (Triton's HTTP port is usually 8000, gRPC 8001)"
    if any(words in text for words in TOO_LARGE):
        return InferenceError, "the message is larger than the server takes; set daskonic.batch-bytes lower"
    if "this protocol is restricted" in text:
        return ServerError, "the server wants a token for this call"
    if "handshake" in text or "wrong version number" in text or "wrong_version_number" in text:
        return ServerError, "one side speaks TLS and the other plain text"
    return {
        status.UNAVAILABLE: (UnavailableError, "no connection"),
        status.NOT_FOUND: (ModelNotFoundError, "no such model"),
        status.DEADLINE_EXCEEDED: (DeadlineError, "no answer in time"),
        status.RESOURCE_EXHAUSTED: (OverloadedError, "the server has no resources left"),
        status.ABORTED: (UnavailableError, "the server gave the request up"),
        status.UNIMPLEMENTED: (ServerError, "the server does not know this call; not a KServe v2 server?"),
        status.INVALID_ARGUMENT: (InferenceError, "the server refuses the request"),
        status.UNAUTHENTICATED: (ServerError, "the server wants valid credentials"),
        status.PERMISSION_DENIED: (ServerError, "the server denies access"),
        status.INTERNAL: (InferenceError, "the model failed"),
    }.get(code, (ServerError, code.name))
