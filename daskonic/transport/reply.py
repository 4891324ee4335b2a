"""A request under way over gRPC, and its answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import grpc

from daskonic.errors import DaskonicError, DeadlineError, ServerError
from daskonic.transport.status import translated

__all__ = ["CurableReply", "GrpcReply"]

logger = logging.getLogger(__name__)


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


class CurableReply:
    """A request that is sent a second time if the first failure is one that the transport can cure.

    Parameters
    ----------
    send : callable
        Sends, and returns gRPC's future.
    cure : callable of grpc.RpcError
        How to send again, or None where that would not help. Runs on gRPC's thread: must not wait.
    over : callable of grpc.Future
        Called once when nothing more will be sent, before the reply is done.
    finish : callable of bytes
        What the caller gets for the raw answer.
    address : str
    """

    def __init__(
        self,
        send: Callable[[], Any],
        cure: Callable[[Any], Callable[[], Any] | None],
        over: Callable[[Any], None],
        finish: Callable[[bytes], Any],
        address: str,
    ) -> None:
        self._cure = cure
        self._over = over
        self._finish = finish
        self._address = address
        self._callbacks: list[Callable[[CurableReply], None]] = []
        self._last: Future[Any] = Future()  # gRPC's future that has the final say
        self._lock = threading.Lock()
        self._cancelled = False
        self._sent_again = False
        self._current = send()
        self._current.add_done_callback(self._arrived)

    def result(self) -> Any:
        """The answer."""
        return self._finish(GrpcReply(self._last.result(), self._address).result())

    def done(self) -> bool:
        """Whether it is over."""
        return self._last.done()

    def cancel(self) -> bool:
        """Cancel on both sides, and do not send again."""
        with self._lock:
            self._cancelled = True
            current = self._current
        return bool(current.cancel())

    def add_done_callback(self, callback: Callable[[CurableReply], None]) -> None:
        """Call back on gRPC's thread."""
        with self._lock:
            if not self._last.done():
                self._callbacks.append(callback)
                return
        callback(self)

    def _arrived(self, future: Any) -> None:
        """An attempt ended: send again, or be done."""
        try:
            if not self._send_again(future):
                self._end(future, None)
        except DaskonicError as error:  # the cure itself failed, and says why
            self._end(future, error)
        except Exception as error:  # noqa: BLE001 - or whoever waits would wait for ever
            # Only the class: the text might quote what was sent.
            self._end(future, ServerError(f"{self._address}: {type(error).__name__} while sending again"))

    def _end(self, future: Any, error: DaskonicError | None) -> None:
        """Be done, with what gRPC's future has or an error of our own."""
        self._over(future)
        with self._lock:
            if error is None:
                self._last.set_result(future)
            else:
                self._last.set_exception(error)
            # Not kept, as a Future would: they lead back here, and shared memory would wait for the collector.
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                logger.exception("a callback of a reply of %s failed", self._address)

    def _send_again(self, future: Any) -> bool:
        """Whether a second attempt is under way now."""
        if self._sent_again or future.cancelled() or future.code() is grpc.StatusCode.OK:
            return False
        send = self._cure(future)
        if send is None:
            return False
        with self._lock:
            if self._cancelled:
                return False
            self._sent_again = True
            self._current = current = send()
        current.add_done_callback(self._arrived)
        return True
