"""One request, from its first attempt to its answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from daskonic.errors import DaskonicError, DeadlineError, ModelNotFoundError, ServerError, UnavailableError
from daskonic.pool.check import check_response, refuse_disagreement
from daskonic.pool.endpoint import Endpoint, ModelKey, full_jitter
from daskonic.tensors import ModelSpec, Request, Response
from daskonic.transport import Reply

if TYPE_CHECKING:
    from daskonic.pool.pool import Pool

__all__ = ["Call"]

logger = logging.getLogger(__name__)
request_logger = logging.getLogger("daskonic.requests")


class Call:
    """One request and its attempts.

    Attributes
    ----------
    attempts : int
    waited_s : float
        Time without a permit, over all attempts.
    encoded_s : float
        Time to make the messages, over all attempts.
    address : str
        Endpoint of the last attempt.
    """

    def __init__(self, pool: Pool, request: Request, spec: ModelSpec, key: ModelKey, deadline: float) -> None:
        self._pool = pool
        self._request = request
        self._spec = spec
        self._key = key
        self._deadline = deadline
        self._endpoint: Endpoint | None = None
        self._reply: Reply | None = None
        self.attempts = 0
        self.waited_s = 0.0
        self.encoded_s = 0.0
        self.address = ""

    def send(self) -> None:
        """Get a permit and put one attempt on the wire."""
        begin = time.monotonic()
        endpoint = self._pool.acquire(self._key, self._deadline, self._endpoint)
        self.waited_s += time.monotonic() - begin
        self.attempts += 1
        self._endpoint, self.address = endpoint, endpoint.address
        error: DaskonicError | None = None
        try:
            self._verify(endpoint)
            message = self._encode(endpoint)
            timeout_s = min(
                self._pool.settings.attempt_timeout_s, max(self._deadline - time.monotonic(), 0.001)
            )
            self._reply = endpoint.transport().submit(message, timeout_s)
        except DaskonicError as caught:
            error = caught
            self._reply = _Failed(caught)
        except BaseException:
            self._pool.release(endpoint, None)
            raise
        if error is not None:
            self._pool.release(endpoint, error)
        else:
            self._reply.add_done_callback(lambda reply: self._pool.release(endpoint, _error_of(reply)))
        request_logger.debug(
            "submit %s rows to %s, attempt %s", self._request.rows, self.address, self.attempts
        )

    def _encode(self, endpoint: Endpoint) -> Any:
        """The message for this endpoint: what is copied, and where to, depends on how it is reached."""
        begin = time.monotonic()
        message = endpoint.transport().encode(self._request)
        self.encoded_s += time.monotonic() - begin
        return message

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
        check_response(response, self._request, self._spec, self.address)
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
        self._pool.count_retry()
        time.sleep(min(left_s, full_jitter(self.attempts)))

    def _verify(self, endpoint: Endpoint) -> None:
        """An endpoint that was away at first contact must offer the same model before it is used."""
        if self._key in endpoint.specs:
            return
        error = self._pool.ask(endpoint, *self._key, self._pool.settings.connect_timeout_s)
        if isinstance(error, ModelNotFoundError):
            raise UnavailableError(str(error)) from error  # others may have it: go there
        if error is not None:
            raise error
        spec = endpoint.specs[self._key]
        assert spec is not None
        refuse_disagreement([self._spec, spec], [endpoint.address])


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
    except Exception as error:  # noqa: BLE001 - a transport's own defect must not lose the permit
        return ServerError(repr(error))
    return None
