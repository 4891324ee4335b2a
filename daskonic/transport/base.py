"""What the pool asks of a protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from daskonic.tensors import ModelSpec, Request, Response

__all__ = ["Account", "Listed", "Reply", "Transport"]


@dataclass(frozen=True, slots=True)
class Account:
    """What a server did for all its clients.

    Attributes
    ----------
    requests : int
    queue_s, compute_s : float
        Sums over the requests.
    """

    requests: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Listed:
    """One version of a model in a server's repository.

    Attributes
    ----------
    name, version : str
        No version where nothing of the model was ever loaded.
    state, reason : str
        ``READY``, ``LOADING``, ``UNAVAILABLE``, or nothing; and why it is so, in the server's words.
    """

    name: str
    version: str
    state: str
    reason: str

    @property
    def is_ready(self) -> bool:
        """Whether it answers requests."""
        return self.state == "READY"


class Reply(Protocol):
    """A message under way, and later its answer."""

    def result(self) -> Any:
        """Wait for the raw answer; raises a :class:`~daskonic.errors.DaskonicError` if it failed."""

    def done(self) -> bool:
        """Whether the answer, or the failure, is there."""

    def cancel(self) -> bool:
        """Give the request up, on the server too where the protocol can."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call ``callback(reply)`` once, when done, on a thread that must not be blocked."""


class Transport(Protocol):
    """One endpoint in one protocol. Safe to use from several threads.

    Every error leaves as a :class:`~daskonic.errors.DaskonicError`. Nothing is tried twice here but what
    the pool could not know better: a token that has just been renewed, shared memory that a server forgot.
    """

    address: str

    def model_spec(self, model: str, version: str, timeout_s: float) -> ModelSpec:
        """What the endpoint says of a model; version ``""`` means the one it prefers."""

    def account(self, model: str, version: str, timeout_s: float) -> Account | None:
        """The endpoint's own account of a model since it was loaded; None where it keeps none."""

    def encode(self, request: Request) -> Any:
        """The message of one batch, for this endpoint; the arrays stay as they are until it is answered."""

    def submit(self, message: Any, timeout_s: float) -> Reply:
        """Send a message, once; returns at once."""

    def decode(self, answer: Any) -> Response:
        """The outputs in a raw answer: views that stay valid, and unchanged, while somebody holds them."""

    def close(self) -> None:
        """Drop the connection; requests under way fail."""
