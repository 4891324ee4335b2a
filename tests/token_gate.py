"""A gate as sites put before their servers: it lets requests with the right bearer token pass to a real Triton."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import grpc


class Gate(grpc.GenericRpcHandler):
    """A gRPC server that asks for a token.

    Parameters
    ----------
    target : str
        Whom it passes requests on to.
    token : str, optional
        None lets everything pass, and counts it.
    credentials : grpc.ServerCredentials, optional
        For TLS.

    Attributes
    ----------
    token : str
        What is asked for; may be changed.
    full : bool
        Whether it tells nobody what the server has, as where a site is full.
    passed, refused : int
    when_refusing : callable, optional
        Called at each refusal.
    """

    def __init__(
        self, target: str, token: str | None = None, credentials: grpc.ServerCredentials | None = None
    ) -> None:
        self.token = token
        self.full = False
        self.passed = self.refused = 0
        self.methods: Counter[str] = Counter()
        self.when_refusing: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._channel = grpc.insecure_channel(target)
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[self], options=unlimited)
        if credentials is None:
            self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        else:
            self.address = f"grpcs://127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', credentials)}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()
        self._channel.close()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Every method alike."""
        shown = dict(details.invocation_metadata).get("authorization")

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            allowed = self.token is None or shown == f"Bearer {self.token}"
            with self._lock:
                self.methods[details.method.rpartition("/")[2]] += 1
                self.passed += allowed
                self.refused += not allowed
            if not allowed:
                if self.when_refusing is not None:
                    self.when_refusing()
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "Jwt is expired")
            if self.full and details.method.endswith("/RepositoryIndex"):
                context.abort(grpc.StatusCode.CANCELLED, "too many requests in the queues")
            try:
                return self._channel.unary_unary(details.method)(request, timeout=20)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.unary_unary_rpc_method_handler(handle)
