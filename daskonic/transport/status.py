"""From gRPC status and text to errors that say what to do.

The code alone misleads: a real Triton says ``UNAVAILABLE`` for a full queue and for a missing
token, and ``NOT_FOUND`` while it shuts down. The texts below were read off tritonserver 2.51.0
(release 24.10).
"""

from __future__ import annotations

from typing import Any, Literal

import grpc

from daskonic.errors import (
    DaskonicError,
    DeadlineError,
    InferenceError,
    ModelNotFoundError,
    NotReadyError,
    OverloadedError,
    ServerError,
    UnavailableError,
)

__all__ = [
    "GrpcStatus",
    "error_from_status",
    "is_about_credentials",
    "is_too_small_region",
    "is_unknown_region",
    "translated",
    "trouble",
    "was_not_run",
]

Trouble = Literal["tls", "token", "not ready", "gate", "connection", "other"]

OVERLOAD = ("exceeds maximum queue size", "request timeout expired")
NOT_READY = ("has no available versions", "is not at ready state")
EXITING = "server exiting"
BROKEN_INSTANCE = ("stub process", "is not healthy")
OTHER_PROTOCOL = ("trying to connect an http1.x server", "unexpected http", "failed parsing http/2")
TOO_LARGE = ("larger than max",)
RESTRICTED = ("this protocol is restricted",)
TOO_SMALL_REGION = ("shared memory size specified with the request",)
UNKNOWN_REGION = ("unable to find shared memory region",)
TLS = (
    (
        "wrong_version_number",
        "TLS was asked for and the server speaks plain text (grpc://HOST:PORT, or daskonic.credentials.tls: false)",
    ),
    (
        "certificate_verify_failed",
        "the server's certificate is out of date, or not signed by who daskonic.credentials.ca-file says",
    ),
    ("hostname verification check failed", "the server's certificate is for another name than this address"),
    (
        "failed to create security handshaker",
        "daskonic.credentials.certificate-file and key-file are not usable, or do not belong together",
    ),
    ("handshake failed", "no agreement on TLS with the server"),
)
CLOSED_PLAIN = (
    "the server closes every new connection: not a gRPC port (Triton's HTTP port is usually 8000, gRPC 8001), or one "
    "that speaks TLS (then write grpcs://HOST:PORT)"
)
CLOSED_TLS = (
    "the server closes every new TLS connection; one does so that asks for a client certificate and gets none it "
    "knows (daskonic.credentials.certificate-file and key-file)"
)


def error_from_status(code: grpc.StatusCode, text: str, address: str) -> DaskonicError:
    """The error that a gRPC status stands for.

    Parameters
    ----------
    code : grpc.StatusCode
    text : str
        The server's own words, kept in the message.
    address : str
        Whom we asked, and with ``grpcs://`` in front if by TLS.
    """
    kind, explanation = _classify(code, text.lower(), tls=address.startswith("grpcs://"))
    return kind(f"{address}: {explanation}: {text}" if text else f"{address}: {explanation}")


class GrpcStatus(Exception):
    """What a gRPC error said, without its locks.

    Dask sends an error with its causes, and one cause that cannot be pickled costs it its class.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


def translated(error: grpc.RpcError, address: str) -> DaskonicError:
    """The error to raise, outside of the ``except`` block, or the gRPC error would be its context."""
    failure = error_from_status(error.code(), error.details() or "", address)
    failure.__cause__ = GrpcStatus(error.code().name, error.details() or "")
    return failure


def is_about_credentials(error: Any) -> bool:
    """Whether a gRPC error or failed future says that a token or header is missing or not valid."""
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        return True
    return any(words in (error.details() or "").lower() for words in RESTRICTED)


def trouble(error: DaskonicError) -> Trouble:
    """What stands between us and a server, by an error that :func:`translated` made of its answer."""
    if not isinstance(error.__cause__, GrpcStatus):
        return "other"
    code, text = error.__cause__.code, error.__cause__.text.lower()
    if any(words in text for words in RESTRICTED) or code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return "token"
    if any(words in text for words, _ in TLS) or CLOSED_TLS in str(error):
        return "tls"
    if any(words in text for words in (*NOT_READY, EXITING)) or all(
        words in text for words in BROKEN_INSTANCE
    ):
        return "not ready"
    if code == "CANCELLED":  # not by us: the gate of a site that is full
        return "gate"
    if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED") and not any(words in text for words in OVERLOAD):
        return "connection"
    return "other"


def is_unknown_region(error: Any) -> bool:
    """Whether the server does not know our shared memory, as after a restart."""
    return any(words in (error.details() or "").lower() for words in UNKNOWN_REGION)


def is_too_small_region(error: Any) -> bool:
    """Whether an output is larger than the model's description says."""
    return any(words in (error.details() or "").lower() for words in TOO_SMALL_REGION)


def was_not_run(error: Any) -> bool:
    """Whether the server certainly refused a request before it read the inputs' numbers."""
    text = (error.details() or "").lower()
    return error.code() is grpc.StatusCode.INVALID_ARGUMENT or OVERLOAD[0] in text


def _classify(code: grpc.StatusCode, text: str, *, tls: bool) -> tuple[type[DaskonicError], str]:
    """Error class, and in words what happened."""
    status = grpc.StatusCode
    if any(words in text for words in OVERLOAD):
        return OverloadedError, "the server's queue is full"
    if any(words in text for words in NOT_READY):
        return NotReadyError, "the model is being loaded, unloaded or replaced, or the server is stopping"
    if EXITING in text:
        return UnavailableError, "the server is stopping"
    if all(words in text for words in BROKEN_INSTANCE):
        return NotReadyError, "the model's process on the server has died"
    if any(words in text for words in OTHER_PROTOCOL):
        return ServerError, "this port does not speak gRPC (Triton's HTTP port is usually 8000, gRPC 8001)"
    if any(words in text for words in TOO_LARGE):
        return InferenceError, "the message is larger than the server takes; set daskonic.batch-bytes lower"
    if any(words in text for words in UNKNOWN_REGION):
        return UnavailableError, "the server does not know the shared memory of this process"
    if any(words in text for words in RESTRICTED):
        return ServerError, "the server wants a header with this call (daskonic.credentials.header)"
    for words, explanation in TLS:
        if words in text:
            return ServerError, explanation
    if "failed to connect" in text and "socket closed" in text:
        return UnavailableError, CLOSED_TLS if tls else CLOSED_PLAIN
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
