"""Where a call goes on when no server can serve: ONNX Runtime in this process, or a Triton that a node's workers share.

Both read the models of a repository on the worker's file system, made by :func:`daskonic.server.add_onnx`.
"""

from __future__ import annotations

import logging
import random
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from daskonic.config import Settings
from daskonic.errors import ModelNotFoundError
from daskonic.pool.endpoint import Endpoint
from daskonic.server import shared_server
from daskonic.tensors import ModelSpec, Request, Response
from daskonic.transport import Account, Transport
from daskonic.transport.grpc import GrpcTransport
from daskonic.transport.onnx import OnnxTransport

__all__ = ["InProcess", "fallback_endpoint", "tell_fallback"]

logger = logging.getLogger(__name__)

IN_PROCESS, LOCAL_SERVER = "in process", "local server"
"""Addresses in reports."""

PERMITS_IN_PROCESS = 2
"""One batch that runs on the one thread, and one ready."""


def fallback_endpoint(settings: Settings, rng: random.Random) -> Endpoint | None:
    """The endpoint for the time without servers, if the settings name one; nothing is started yet."""
    repository = settings.fallback_repository
    if settings.fallback == "inprocess":
        return Endpoint(IN_PROCESS, lambda _: InProcess(repository), PERMITS_IN_PROCESS, rng)
    if settings.fallback == "server":
        return Endpoint(LOCAL_SERVER, lambda _: _at_shared_server(settings), settings.window, rng)
    return None


def tell_fallback(endpoint: Endpoint, is_fallback: bool, settings: Settings) -> None:
    """Say that calls go on without servers, or that one is back."""
    if is_fallback:
        servers = ", ".join(settings.servers)
        logger.warning("no server answers; calls go on %s: %s", endpoint.address, servers)
    else:
        logger.warning("%s is asked again after calls went on without servers", endpoint.address)


def _at_shared_server(settings: Settings) -> Transport:
    """A connection to the node's own server, which the first worker that needs it starts; no secret is sent there."""
    return GrpcTransport(shared_server(settings.fallback_repository), shared_memory=settings.shared_memory)


class InProcess:
    """The models of a repository, run by ONNX Runtime on one thread each.

    Parameters
    ----------
    repository : path
        ``<repository>/<model>/<version>/model.onnx``.
    """

    def __init__(self, repository: str) -> None:
        self.address = IN_PROCESS
        self._repository = Path(repository)
        self._models: dict[tuple[str, str], OnnxTransport] = {}
        self._lock = threading.Lock()

    def model_spec(self, model: str, version: str, timeout_s: float) -> ModelSpec:
        """What the file says; without a version the highest."""
        version = version or self._highest(model)
        return self._model(model, version).model_spec(model, version, timeout_s)

    def account(self, model: str, version: str, timeout_s: float) -> Account | None:  # noqa: ARG002
        """None is kept."""
        return None

    def encode(self, request: Request) -> Request:
        """Nothing to do."""
        return request

    def submit(self, message: Request, timeout_s: float) -> Future[tuple[Request, list[Any]]]:
        """Run it on the model's thread."""
        return self._model(message.model, message.version).submit(message, timeout_s)

    def decode(self, answer: tuple[Request, list[Any]]) -> Response:
        """Outputs by name."""
        request, _ = answer
        return self._model(request.model, request.version).decode(answer)

    def close(self) -> None:
        """Stop the threads."""
        for model in self._models.values():
            model.close()

    def _model(self, model: str, version: str) -> OnnxTransport:
        """A model, loaded at first use."""
        with self._lock:
            if (model, version) not in self._models:
                path = self._repository / model / version / "model.onnx"
                if not path.is_file():
                    raise ModelNotFoundError(self._missing(model, version))
                self._models[model, version] = OnnxTransport(path)
            return self._models[model, version]

    def _highest(self, model: str) -> str:
        """The newest version."""
        versions = [
            p.parent.name for p in (self._repository / model).glob("*/model.onnx") if p.parent.name.isdigit()
        ]
        if not versions:
            raise ModelNotFoundError(self._missing(model, ""))
        return max(versions, key=int)

    def _missing(self, model: str, version: str) -> str:
        """A sentence for a model that is not there, with those that are."""
        there = sorted({p.parents[1].name for p in self._repository.glob("*/*/model.onnx")})
        asked = f"model {model!r}" + (f" in version {version}" if version else "")
        return (
            f"the fallback repository {self._repository} has no {asked}; it has {', '.join(there) or 'none'}"
        )
