"""The pool: permits, choice of endpoint, retries. One per worker process and set of servers.

gRPC multiplexes, so requests are what is bounded: each endpoint has ``window`` permits, shared by
all tasks of the process. A permit is given back by the transport's own thread at the moment an
attempt ends, never by the thread that consumes the answer; a thread that waits for a permit can
therefore not be what others wait for.
"""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from daskonic.config import Settings
from daskonic.errors import (
    ConfigError,
    DaskonicError,
    DeadlineError,
    ModelNotFoundError,
    ServerError,
)
from daskonic.pool.call import Call
from daskonic.pool.check import refuse_disagreement
from daskonic.pool.endpoint import Endpoint, ModelKey
from daskonic.pool.stats import PoolStats
from daskonic.tensors import ModelSpec, Request
from daskonic.transport import Transport
from daskonic.transport.grpc import GrpcTransport

__all__ = ["Pool"]

logger = logging.getLogger(__name__)

RETRY_PAUSE_S = 0.2


class Pool:
    """Connections to some servers, and the permits to use them.

    Parameters
    ----------
    settings : Settings
    connect : callable, optional
        Makes the transport of an address; gRPC by default.

    Raises
    ------
    ConfigError
        No server is named.
    """

    def __init__(self, settings: Settings, connect: Callable[[str], Transport] | None = None) -> None:
        if not settings.servers:
            raise ConfigError(
                "no server is named: set daskonic.servers in the Dask configuration, "
                "register dk.InferencePlugin(servers=[...]), or pass servers=[...] to the model"
            )
        self.settings = settings
        if connect is None:
            connect = functools.partial(
                GrpcTransport, credentials=settings.credentials, shared_memory=settings.shared_memory
            )
        self._endpoints = [Endpoint(address, connect) for address in settings.servers]
        self._condition = threading.Condition()
        self._contact = threading.Lock()
        self._specs: dict[ModelKey, ModelSpec] = {}
        self._retries_total = 0
        self._waiting = 0
        self._closed = False
        self._background: ThreadPoolExecutor | None = None

    def spec(self, model: str, version: str) -> ModelSpec:
        """What the servers say of a model; asked once per pool.

        Raises
        ------
        ModelNotFoundError
            No endpoint has it.
        UnavailableError
            No endpoint answers within ``connect_timeout_s``.
        ServerError
            Endpoints disagree on the model's inputs or outputs.
        """
        with self._contact:
            if (model, version) not in self._specs:
                self._specs[model, version] = self._first_contact(model, version)
            return self._specs[model, version]

    def submit(self, request: Request, spec: ModelSpec, key: ModelKey) -> Call:
        """Send a request as soon as there is a permit, and return while it is under way."""
        call = Call(self, request, spec, key, time.monotonic() + self.settings.timeout_s)
        call.send()
        return call

    def background(self) -> ThreadPoolExecutor:
        """Threads that drive submitted calls."""
        with self._condition:
            self._refuse_closed()
            if self._background is None:
                self._background = ThreadPoolExecutor(thread_name_prefix="daskonic-submit")
            return self._background

    def stats(self) -> PoolStats:
        """Counters and gauges."""
        with self._condition:
            now = time.monotonic()
            return PoolStats(tuple(e.stats(now) for e in self._endpoints), self._retries_total, self._waiting)

    def close(self) -> None:
        """Close every connection; whoever waits gets an error."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self._background is not None:
            self._background.shutdown(wait=False, cancel_futures=True)
        for endpoint in self._endpoints:
            endpoint.close()

    # -- first contact ---------------------------------------------------------------------------

    def _first_contact(self, model: str, version: str) -> ModelSpec:
        """Ask every endpoint for the model until one answers."""
        deadline = time.monotonic() + self.settings.connect_timeout_s
        while True:
            errors = [
                self.ask(e, model, version, max(deadline - time.monotonic(), 0.1)) for e in self._endpoints
            ]
            specs = [e.specs[model, version] for e in self._endpoints if (model, version) in e.specs]
            found = [s for s in specs if s is not None]
            if found:
                refuse_disagreement(found, [e.address for e in self._endpoints])
                return found[0]
            failures = [e for e in errors if e is not None]
            self._refuse_closed()
            if not any(e.retryable for e in failures) or time.monotonic() >= deadline:
                raise _worst(failures)
            time.sleep(RETRY_PAUSE_S)

    def ask(self, endpoint: Endpoint, model: str, version: str, timeout_s: float) -> DaskonicError | None:
        """Let an endpoint describe the model; what went wrong is returned."""
        try:
            endpoint.specs[model, version] = endpoint.transport().model_spec(model, version, timeout_s)
        except ModelNotFoundError as error:
            endpoint.specs[model, version] = None
            return error
        except DaskonicError as error:
            logger.warning("%s does not describe model %s: %s", endpoint.address, model, error)
            with self._condition:
                endpoint.failed(time.monotonic(), rest=True)
            return error
        return None

    # -- permits ---------------------------------------------------------------------------------

    def acquire(self, key: ModelKey, deadline: float, avoid: Endpoint | None) -> Endpoint:
        """A permit at the least loaded endpoint that is well, waiting for one until the deadline."""
        with self._condition:
            self._waiting += 1
            try:
                while True:
                    self._refuse_closed()
                    now = time.monotonic()
                    endpoint = self._choose(key, now, avoid)
                    if endpoint is not None:
                        endpoint.in_flight += 1
                        endpoint.requests_total += 1
                        return endpoint
                    if now >= deadline:
                        raise DeadlineError(self._no_permit(now))
                    rests = [e.resting_until for e in self._endpoints if e.resting_until > now]
                    self._condition.wait(min([deadline, *rests]) - now)
            finally:
                self._waiting -= 1

    def _choose(self, key: ModelKey, now: float, avoid: Endpoint | None) -> Endpoint | None:
        """Least requests in flight; ties at random, and not the one that just failed if another can."""
        able = [e for e in self._endpoints if e.may_serve(key, now, self.settings.window)]
        able = [e for e in able if e is not avoid] or able
        return min(able, key=lambda e: (e.in_flight, random.random()), default=None)

    def release(self, endpoint: Endpoint, error: DaskonicError | None) -> None:
        """An attempt ended: its permit is free, and the endpoint's health is known better."""
        with self._condition:
            endpoint.in_flight -= 1
            if error is None:
                endpoint.succeeded()
            else:
                endpoint.failed(time.monotonic(), rest=error.retryable or isinstance(error, DeadlineError))
            self._condition.notify()

    def _no_permit(self, now: float) -> str:
        """Why no permit could be had."""
        states = ", ".join(
            f"{e.address} "
            + ("does not answer" if e.resting_until > now else f"has {e.in_flight} requests in flight")
            for e in self._endpoints
        )
        return f"no server could take the request within {self.settings.timeout_s:g} s: {states}"

    def count_retry(self) -> None:
        """One more attempt of the same request."""
        with self._condition:
            self._retries_total += 1

    def _refuse_closed(self) -> None:
        """ServerError once the pool is closed."""
        if self._closed:
            raise ServerError("the pool of connections is closed (worker or plugin shut down)")


def _worst(errors: list[DaskonicError]) -> DaskonicError:
    """One error for several endpoints: a permanent one explains more than one that may pass."""
    first = min(errors, key=lambda e: e.retryable)
    if len(errors) == 1:
        return first
    return type(first)("; ".join(str(e) for e in errors))
