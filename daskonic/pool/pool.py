"""The pool: permits, choice of endpoint, retries. One per worker process and set of servers.

gRPC multiplexes, so requests are what is bounded: each endpoint has ``window`` permits, shared by
all tasks of the process. A permit is given back by the transport's own thread at the moment an
attempt ends, never by the thread that consumes the answer; a thread that waits for a permit can
therefore not be what others wait for.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from daskonic.config import Settings
from daskonic.errors import (
    ConfigError,
    DaskonicError,
    DeadlineError,
    ModelNotFoundError,
    ResponseError,
    ServerError,
    UnavailableError,
)
from daskonic.pool.endpoint import Endpoint, ModelKey, full_jitter
from daskonic.pool.stats import PoolStats
from daskonic.tensors import ModelSpec, Request, Response
from daskonic.transport import Reply, Transport
from daskonic.transport.grpc import GrpcTransport

__all__ = ["Call", "Pool"]

logger = logging.getLogger(__name__)
request_logger = logging.getLogger("daskonic.requests")

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

    def __init__(self, settings: Settings, connect: Callable[[str], Transport] = GrpcTransport) -> None:
        if not settings.servers:
            raise ConfigError(
                "no server is named: set daskonic.servers in the Dask configuration, "
                "register dk.InferencePlugin(servers=[...]), or pass servers=[...] to the model"
            )
        self.settings = settings
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

    def encode(self, request: Request) -> Any:
        """The message of a request; endpoints of one pool speak one protocol."""
        return self._endpoints[0].transport().encode(request)

    def submit(self, request: Request, message: Any, spec: ModelSpec, key: ModelKey) -> Call:
        """Send a request as soon as there is a permit, and return while it is under way."""
        call = Call(self, request, message, spec, key, time.monotonic() + self.settings.timeout_s)
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
            errors = [self._ask(e, model, version, max(deadline - time.monotonic(), 0.1)) for e in self._endpoints]
            specs = [e.specs[model, version] for e in self._endpoints if (model, version) in e.specs]
            found = [s for s in specs if s is not None]
            if found:
                _refuse_disagreement(found, self._endpoints)
                return found[0]
            failures = [e for e in errors if e is not None]
            self._refuse_closed()
            if not any(e.retryable for e in failures) or time.monotonic() >= deadline:
                raise _worst(failures)
            time.sleep(RETRY_PAUSE_S)

    def _ask(self, endpoint: Endpoint, model: str, version: str, timeout_s: float) -> DaskonicError | None:
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

    def _acquire(self, key: ModelKey, deadline: float, avoid: Endpoint | None) -> Endpoint:
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

    def _released(self, endpoint: Endpoint, error: DaskonicError | None) -> None:
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
            f"{e.address} " + ("does not answer" if e.resting_until > now else f"has {e.in_flight} requests in flight")
            for e in self._endpoints
        )
        return f"no server could take the request within {self.settings.timeout_s:g} s: {states}"

    def _count_retry(self) -> None:
        """One more attempt of the same request."""
        with self._condition:
            self._retries_total += 1

    def _refuse_closed(self) -> None:
        """ServerError once the pool is closed."""
        if self._closed:
            raise ServerError("the pool of connections is closed (worker or plugin shut down)")


class Call:
    """One request and its attempts.

    Attributes
    ----------
    attempts : int
    waited_s : float
        Time without a permit, over all attempts.
    address : str
        Endpoint of the last attempt.
    """

    def __init__(
        self, pool: Pool, request: Request, message: Any, spec: ModelSpec, key: ModelKey, deadline: float
    ) -> None:
        self._pool = pool
        self._request = request
        self._message = message
        self._spec = spec
        self._key = key
        self._deadline = deadline
        self._endpoint: Endpoint | None = None
        self._reply: Reply | None = None
        self.attempts = 0
        self.waited_s = 0.0
        self.address = ""

    def send(self) -> None:
        """Get a permit and put one attempt on the wire."""
        begin = time.monotonic()
        endpoint = self._pool._acquire(self._key, self._deadline, self._endpoint)
        self.waited_s += time.monotonic() - begin
        self.attempts += 1
        self._endpoint, self.address = endpoint, endpoint.address
        error: DaskonicError | None = None
        try:
            self._verify(endpoint)
            timeout_s = min(self._pool.settings.attempt_timeout_s, max(self._deadline - time.monotonic(), 0.001))
            self._reply = endpoint.transport().submit(self._message, timeout_s)
        except DaskonicError as caught:
            error = caught
            self._reply = _Failed(caught)
        except BaseException:
            self._pool._released(endpoint, None)
            raise
        if error is not None:
            self._pool._released(endpoint, error)
        else:
            self._reply.add_done_callback(lambda reply: self._pool._released(endpoint, _error_of(reply)))
        request_logger.debug("submit %s rows to %s, attempt %s", self._request.rows, self.address, self.attempts)

    def done(self) -> bool:
        """Whether :meth:`result` would not wait for this attempt."""
        return self._reply is not None and self._reply.done()

    def cancel(self) -> None:
        """Give up; the answer is no longer wanted."""
        if self._reply is not None:
            self._reply.cancel()

    def infer(self) -> Any:
        """Wait for the raw answer, trying again elsewhere or later while that makes sense."""
        while True:
            assert self._reply is not None
            try:
                return self._reply.result()
            except DaskonicError as error:
                self._prepare_retry(error)
            self.send()

    def decode(self, answer: Any) -> Response:
        """The outputs of the answer, checked against what the model promised."""
        assert self._endpoint is not None
        response = self._endpoint.transport().decode(answer)
        _check(response, self._request, self._spec, self.address)
        return response

    def _prepare_retry(self, error: DaskonicError) -> None:
        """Wait a little before another attempt, or raise ``error`` if there must be none."""
        left_s = self._deadline - time.monotonic()
        if not (error.retryable or isinstance(error, DeadlineError)):
            raise error
        if left_s <= 0:
            tried = f"after {self.attempts} attempts in {self._pool.settings.timeout_s:g} s"
            raise type(error)(f"{error} ({tried})") from error
        logger.warning("attempt %s of a request failed, trying again: %s", self.attempts, error)
        self._pool._count_retry()
        time.sleep(min(left_s, full_jitter(self.attempts)))

    def _verify(self, endpoint: Endpoint) -> None:
        """An endpoint that was away at first contact must offer the same model before it is used."""
        if self._key in endpoint.specs:
            return
        error = self._pool._ask(endpoint, *self._key, self._pool.settings.connect_timeout_s)
        if isinstance(error, ModelNotFoundError):
            raise UnavailableError(str(error)) from error  # others may have it: go there
        if error is not None:
            raise error
        spec = endpoint.specs[self._key]
        assert spec is not None
        _refuse_disagreement([self._spec, spec], [endpoint])


class _Failed:
    """A reply that failed before it was sent."""

    def __init__(self, error: DaskonicError) -> None:
        self._error = error

    def result(self) -> Any:
        """Raise."""
        raise self._error

    def done(self) -> bool:
        """Always."""
        return True

    def cancel(self) -> bool:
        """Nothing to cancel."""
        return False

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Done already."""
        callback(self)


def _error_of(reply: Reply) -> DaskonicError | None:
    """The error of a finished reply, if it has one."""
    try:
        reply.result()
    except DaskonicError as error:
        return error
    except Exception as error:  # a transport's own defect must not lose the permit
        return ServerError(repr(error))
    return None


def _worst(errors: list[DaskonicError]) -> DaskonicError:
    """One error for several endpoints: a permanent one explains more than one that may pass."""
    first = min(errors, key=lambda e: e.retryable)
    if len(errors) == 1:
        return first
    return type(first)("; ".join(str(e) for e in errors))


def _refuse_disagreement(specs: list[ModelSpec], endpoints: list[Endpoint]) -> None:
    """ServerError if endpoints offer different models under one name."""
    first = specs[0]
    for other in specs[1:]:
        if (first.version, first.inputs, first.outputs) != (other.version, other.inputs, other.outputs):
            where = ", ".join(e.address for e in endpoints)
            raise ServerError(
                f"servers disagree on model {first.name!r} ({where}): version {first.version} with "
                f"{_tensors(first)} against version {other.version} with {_tensors(other)}; "
                "name the version, or use servers of one kind"
            )


def _tensors(spec: ModelSpec) -> str:
    """Inputs and outputs in one line."""
    return f"{'; '.join(map(str, spec.inputs))} -> {'; '.join(map(str, spec.outputs))}"


def _check(response: Response, request: Request, spec: ModelSpec, address: str) -> None:
    """ResponseError unless version, names, dtypes and shapes are those of the model."""
    if spec.version and response.version and response.version != spec.version:
        raise ResponseError(
            f"{address}: version {response.version} of {spec.name!r} answered where version {spec.version} began; "
            "the model was replaced during the run"
        )
    for tensor in spec.outputs:
        if tensor.name not in request.outputs:
            continue
        array = response.outputs.get(tensor.name)
        if array is None:
            raise ResponseError(f"{address}: no output {tensor.name!r} in the answer, only {', '.join(response.outputs)}")
        batched = spec.max_batch_size > 0
        shape = array.shape[1:] if batched else array.shape
        if array.dtype != tensor.dtype or not tensor.accepts(shape) or (batched and len(array) != request.rows):
            raise ResponseError(
                f"{address}: output {tensor.name!r} came as {array.dtype.name}{list(array.shape)} for {request.rows} "
                f"rows; the model promises {tensor}"
            )
