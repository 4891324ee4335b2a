"""The state of one endpoint; its pool's lock guards it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from daskonic.errors import ServerError
from daskonic.pool.breaker import Breaker
from daskonic.pool.stats import EndpointStats
from daskonic.pool.window import Window
from daskonic.tensors import ModelSpec
from daskonic.transport import Account, Transport

__all__ = ["Endpoint", "ModelKey"]

ModelKey = tuple[str, str]
"""Name and version as the user asked for them."""


class Endpoint:
    """An address, its connection, and what is known of it.

    Attributes
    ----------
    specs : dict
        What it says of each model; None for a model that it does not have.
    accounts : dict
        What it last told of each model that it did; None where it tells nothing.
    account_due : dict
        When it is asked for each again.
    told_s : dict
        Mean seconds of a request in its queue and of computing, between its last two accounts.
    not_before : float
        When the next request may go, where the window is smaller than 1.
    """

    def __init__(
        self, address: str, connect: Callable[[str], Transport], window: int | None, rng: random.Random
    ) -> None:
        self.address = address
        self._connect = connect
        self._transport: Transport | None = None
        self._opening = threading.Lock()
        self._over = False
        self.window = Window(window, rng)
        self.breaker = Breaker(rng)
        self.in_flight = 0
        self.not_before = 0.0
        self.requests_total = 0
        self.failures_total = 0
        self.rejections_total = 0
        self.specs: dict[ModelKey, ModelSpec | None] = {}
        self.accounts: dict[ModelKey, Account | None] = {}
        self.account_due: dict[ModelKey, float] = {}
        self.told_s: dict[ModelKey, tuple[float, float]] = {}

    def transport(self) -> Transport:
        """The connection, made at first use; ServerError after the end."""
        with self._opening:  # two threads at once would make two, and one of them would never be closed
            if self._over:
                raise ServerError(f"{self.address}: the pool of connections is closed")
            if self._transport is None:
                self._transport = self._connect(self.address)
            return self._transport

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection."""
        return self._transport is not None

    def has(self, key: ModelKey) -> bool:
        """Whether the model may be here: known to be, or not asked yet."""
        return key not in self.specs or self.specs[key] is not None

    def stats(self, now: float) -> EndpointStats:
        """A copy of the counters."""
        return EndpointStats(
            address=self.address,
            requests_total=self.requests_total,
            failures_total=self.failures_total,
            rejections_total=self.rejections_total,
            in_flight=self.in_flight,
            window=self.window.limit,
            connected=self.is_connected,
            healthy=not self.breaker.is_away(now),
        )

    def detach(self, *, for_good: bool = False) -> Transport | None:
        """Give up the connection, for the caller to close; ``for_good``: and never make another one."""
        with self._opening:
            transport, self._transport = self._transport, None
            self._over = self._over or for_good
        return transport

    def close(self, *, for_good: bool = False) -> None:
        """Drop the connection; ``for_good``: and never make another one."""
        transport = self.detach(for_good=for_good)
        if transport is not None:
            transport.close()
