"""A request under way over gRPC, and its answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import grpc

from daskonic.errors import DaskonicError, DeadlineError, ServerError
from daskonic.transport.status import translated

__all__ = ["CurableReply", "GrpcReply"]


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
    over : callable of grpc.Future or None
        Called once when nothing more will be sent, before the reply is done.
    address : str
    """

    def __init__(
        self,
        send: Callable[[], Any],
        cure: Callable[[Any], Callable[[], Any] | None],
        over: Callable[[Any], None],
        address: str,
    ) -> None:
        self._cure = cure
        self._over = over
        self._address = address
        self._last: Future[Any] = Future()  # gRPC's future that has the final say
        self._lock = threading.Lock()
        self._cancelled = False
        self._sent_again = False
        self._current = send()
        self._current.add_done_callback(self._arrived)

    def result(self) -> bytes:
        """The raw answer."""
        return GrpcReply(self._last.result(), self._address).result()

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
        self._last.add_done_callback(lambda _: callback(self))

    def _arrived(self, future: Any) -> None:
        """An attempt ended: send again, or be done."""
        try:
            if not self._send_again(future):
                self._over(future)
                self._last.set_result(future)
        except DaskonicError as error:  # the cure itself failed, and says why
            self._fail(future, error)
        except Exception as error:  # noqa: BLE001 - or whoever waits would wait for ever
            # Only the class: the text might quote what was sent.
            self._fail(future, ServerError(f"{self._address}: {type(error).__name__} while sending again"))

    def _fail(self, future: Any, error: DaskonicError) -> None:
        """Be done, with an error of our own."""
        self._over(future)
        self._last.set_exception(error)

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
