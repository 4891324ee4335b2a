"""One request, from its first attempt to its answer."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from daskonic.ending import job_end_s, job_margin_s
from daskonic.errors import (
    DaskonicError,
    DeadlineError,
    ModelNotFoundError,
    OverloadedError,
    ServerError,
)
from daskonic.pool.balancer import Permit
from daskonic.pool.breaker import full_jitter
from daskonic.pool.check import check_response, is_of_another_version, refuse_disagreement
from daskonic.pool.endpoint import Endpoint, ModelKey
from daskonic.tensors import ModelSpec, Request, Response
from daskonic.transport import Reply, Transport

if TYPE_CHECKING:
    from daskonic.pool.pool import Pool

__all__ = ["Call", "job_left_s"]

logger = logging.getLogger(__name__)
request_logger = logging.getLogger("daskonic.requests")

JOB_MARGIN_S = 30.0
SLOWER_ATTEMPTS = 4
"""Failed attempts after which the pause before the next one grows no more."""


class Call:
    """One request and its attempts.

    There is one attempt at a time, but for a straggler: then a second one runs beside it at another endpoint, and the
    first answer wins. Inference has no side effects, so a request may be run twice.

    Attributes
    ----------
    attempts : int
    waited_s : float
        Time without a permit, over all attempts.
    encoded_s : float
        Time to make the messages, over all attempts.
    address : str
        Endpoint of the last attempt, and in the end of the one that answered.
    server_s : (float, float, float) or None
        Mean times of such requests in that server's queue and computing, by its own account, and what is left of the
        time between sending this one and its answer: the network.
    """

    def __init__(self, pool: Pool, request: Request, spec: ModelSpec, key: ModelKey, deadline: float) -> None:
        self._pool = pool
        self._request = request
        self._spec = spec
        self._key = key
        self._deadline = deadline
        self._nbytes = sum(array.nbytes for array in request.inputs.values())
        self._kind = (key, (2 * self._nbytes).bit_length())
        self._running: list[_Attempt] = []
        self._reason = ""
        self._cancelled = False
        self._ended = threading.Event()
        self.attempts = 0
        self.waited_s = 0.0
        self.encoded_s = 0.0
        self.address = ""
        self.server_s: tuple[float, float, float] | None = None

    def send(self, avoid: Endpoint | None = None) -> None:
        """Get a permit and put one attempt on the wire."""
        begin = time.monotonic()
        try:
            permit = self._pool.acquire(
                self._key, self._kind, self._deadline, avoid, self.refuse_cancelled, self._nbytes
            )
        except DeadlineError as error:
            if not self._reason:
                raise
            raise DeadlineError(f"{error}; before that: {self._reason}") from error
        self.waited_s += time.monotonic() - begin
        self._start(permit)

    def done(self) -> bool:
        """Whether :meth:`infer` would not wait for this attempt."""
        return any(attempt.ended_at for attempt in self._running)

    def ends_within(self, seconds: float) -> bool:
        """Whether this attempt ends soon: not waiting for it where the quickest of its kind takes longer."""
        if self.done():
            return True
        return self._pool.quickest_s(self._kind) <= seconds and self._ended.wait(seconds) and self.done()

    def cancel(self) -> None:
        """Give up, from any thread; the answer is no longer wanted."""
        self._cancelled = True
        for attempt in list(self._running):
            attempt.give_up()
        self._pool.wake()

    def refuse_cancelled(self) -> None:
        """ServerError once the answer is no longer wanted."""
        if self._cancelled:
            raise ServerError("the request was cancelled: nobody wants its answer any more")

    def infer(self) -> Any:
        """Wait for the raw answer, trying again elsewhere or later while that makes sense."""
        while True:
            attempt = self._first_ended()
            if attempt.error is None:
                for other in self._running:
                    if other is not attempt:
                        other.give_up()
                self._running = [attempt]
                self.address = attempt.permit.endpoint.address
                return attempt.answer
            self._running.remove(attempt)
            if not self._running:
                self._prepare_retry(attempt.error, attempt.permit)
                self.send(avoid=attempt.permit.endpoint)

    def decode(self, answer: Any) -> Response:
        """The outputs of the answer, checked against what the model promised."""
        (attempt,) = self._running
        assert attempt.transport is not None
        response = attempt.transport.decode(answer)
        if is_of_another_version(response, self._spec) and self._pool.lost(attempt.permit):
            self._running.clear()
            self.send(avoid=attempt.permit.endpoint)
            return self.decode(self.infer())
        check_response(response, self._request, self._spec, self.address)
        told_s = self._pool.ask_account(attempt.permit.endpoint, self._key)
        if told_s is not None:
            self.server_s = *told_s, attempt.ended_at - attempt.permit.sent_at - sum(told_s)
        return response

    def _start(self, permit: Permit) -> None:
        """One attempt at the endpoint of a permit, which is given back when it ends, however it ends."""
        endpoint = permit.endpoint
        self.attempts += 1
        self.address = endpoint.address
        reply: Reply
        transport = None
        try:
            self._verify(endpoint)
            begin = time.monotonic()
            transport = (
                endpoint.transport()
            )  # one for the whole attempt: the endpoint may get another meanwhile
            message = transport.encode(self._request)
            permit.sent_at = time.monotonic()
            self.encoded_s += permit.sent_at - begin
            left_s = max(self._deadline - permit.sent_at, 0.001)
            reply = transport.submit(message, min(self._pool.settings.attempt_timeout_s, left_s))
        except DaskonicError as error:
            reply = _Failed(error)
        except BaseException:
            self._pool.release(permit, None, given_up=True)
            raise
        attempt = _Attempt(permit, reply, transport)
        self._running.append(attempt)
        if self._cancelled:  # meanwhile
            attempt.give_up()
        reply.add_done_callback(lambda reply: self._end(attempt, reply))
        request_logger.debug(
            "submit %s rows to %s, attempt %s", self._request.rows, self.address, self.attempts
        )

    def _end(self, attempt: _Attempt, reply: Reply) -> None:
        """On the transport's thread: free the permit, wake who waits."""
        ended_at = time.monotonic()
        attempt.answer, attempt.error = _outcome(reply)
        try:
            self._pool.release(attempt.permit, attempt.error, given_up=attempt.given_up)
        finally:
            attempt.ended_at = ended_at
            self._ended.set()

    def _first_ended(self) -> _Attempt:
        """Wait for an attempt to end; a second one is started when the first takes long."""
        limit_s = math.inf if len(self._running) > 1 else None
        while True:
            self._ended.clear()
            for attempt in self._running:
                if attempt.ended_at:
                    return attempt
            if limit_s is None:
                limit_s = self._pool.straggles_after_s(self._kind)
            patience_s = self._running[0].permit.sent_at + limit_s - time.monotonic()
            if not self._ended.wait(min(max(patience_s, 0.0), threading.TIMEOUT_MAX)):
                limit_s = math.inf  # asked once
                first = self._running[0].permit.endpoint
                permit = self._pool.acquire_second(self._key, self._kind, first, self._nbytes)
                if permit is not None:
                    logger.debug(
                        "a second request of %s rows goes to %s", self._request.rows, permit.endpoint.address
                    )
                    self._start(permit)

    def _prepare_retry(self, error: DaskonicError, permit: Permit) -> None:
        """Count another attempt, or raise ``error`` if there must be none.

        An endpoint that is away or full rests, and a permit elsewhere is free at once, so there is hardly a wait
        here. But one may be well for all other requests and not rest; this one then comes back ever more slowly.
        """
        self.refuse_cancelled()
        left_s = self._deadline - time.monotonic()
        may_pass = error.retryable or isinstance(error, DeadlineError)
        if isinstance(error, ModelNotFoundError):
            may_pass = self._pool.is_elsewhere(self._key, permit.endpoint)
        if not may_pass:
            raise error
        if left_s <= 0:
            tried = f"after {self.attempts} attempts in {self._pool.settings.timeout_s:g} s"
            before = f"; before that: {self._reason}" if self._reason else ""
            raise type(error)(f"{error} ({tried}){before}") from error
        if not isinstance(error, DeadlineError):  # which tells nothing new at the deadline
            self._reason = str(error)
        request_logger.debug("attempt %s failed, trying again: %s", self.attempts, error)
        self._pool.count_retry()
        if self.attempts > 1 and not isinstance(error, OverloadedError):
            next_s = permit.sent_at + full_jitter(min(self.attempts, SLOWER_ATTEMPTS)) - time.monotonic()
            time.sleep(min(max(next_s, 0.0), left_s))

    def _verify(self, endpoint: Endpoint) -> None:
        """An endpoint must offer the same model as the others, and as before it was away, before it is used."""
        settings = self._pool.settings
        left_s = max(self._deadline - time.monotonic(), 0.001)
        if self._key not in endpoint.specs:
            self._describe(endpoint, min(settings.connect_timeout_s, settings.attempt_timeout_s, left_s))
        timeout_s = min(settings.attempt_timeout_s, left_s)
        self._pool.samples.compare(endpoint, self._key, self._request, self._spec, timeout_s)

    def _describe(self, endpoint: Endpoint, timeout_s: float) -> None:
        """Ask it what it has; an error if that is another model."""
        error = self._pool.ask(endpoint, self._key, self._spec.version or self._key[1], timeout_s)
        if error is not None:
            raise error
        spec = endpoint.specs.get(self._key)
        if spec is not None:  # else it went away again
            if self._spec.max_batch_size and not spec.max_batch_size:  # as the user declared it
                spec = spec.with_batch_dimension(self._spec.max_batch_size)
            try:
                refuse_disagreement([self._spec, spec], [endpoint.address])
            except ServerError:
                del endpoint.specs[self._key]  # nor may the next request go there
                raise


class _Attempt:
    """A request on its way to one endpoint, and what came of it."""

    __slots__ = ("answer", "ended_at", "error", "given_up", "permit", "reply", "transport")

    def __init__(self, permit: Permit, reply: Reply, transport: Transport | None) -> None:
        self.permit = permit
        self.reply = reply
        self.transport = transport
        self.ended_at = 0.0
        self.given_up = False
        self.answer: Any = None
        self.error: DaskonicError | None = None

    def give_up(self) -> None:
        """Cancel; that it fails then tells nothing of the endpoint."""
        self.given_up = True
        self.reply.cancel()


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


def _outcome(reply: Reply) -> tuple[Any, DaskonicError | None]:
    """Answer and error of a finished reply, of which it has one."""
    try:
        return reply.result(), None
    except DaskonicError as error:
        return None, error
    except Exception as error:  # noqa: BLE001 - a transport's own defect must not lose the permit
        return None, ServerError(repr(error))


def job_left_s() -> float:
    """Time until the batch system ends this worker, less what a task needs to end in order; infinite if nobody says."""
    end_s = job_end_s()
    if math.isinf(end_s):
        return math.inf
    reserve_s = min(JOB_MARGIN_S, job_margin_s() / 2)  # short jobs have short margins
    return max(end_s - time.time() - reserve_s, 0.0)
