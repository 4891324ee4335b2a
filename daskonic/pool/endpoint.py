"""The state of one endpoint; its pool's lock guards it."""

from __future__ import annotations

import random
from collections.abc import Callable

from daskonic.pool.stats import EndpointStats
from daskonic.tensors import ModelSpec
from daskonic.transport import Transport

__all__ = ["Endpoint", "full_jitter"]

BACKOFF_FIRST_S = 0.1
BACKOFF_LONGEST_S = 5.0

ModelKey = tuple[str, str]
"""Name and version as the user asked for them."""


def full_jitter(failures: int) -> float:
    """Seconds to wait after so many failures in a row: exponential, anywhere below the bound."""
    return random.uniform(0.5, 1.0) * min(BACKOFF_LONGEST_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 10))


class Endpoint:
    """An address, its connection, and what is known of it."""

    def __init__(self, address: str, connect: Callable[[str], Transport]) -> None:
        self.address = address
        self._connect = connect
        self._transport: Transport | None = None
        self.in_flight = 0
        self.requests_total = 0
        self.failures_total = 0
        self.failures_in_a_row = 0
        self.resting_until = 0.0
        self.specs: dict[ModelKey, ModelSpec | None] = {}

    def transport(self) -> Transport:
        """The connection, made at first use."""
        if self._transport is None:
            self._transport = self._connect(self.address)
        return self._transport

    def may_serve(self, key: ModelKey, now: float, window: int) -> bool:
        """Whether a request for this model may be sent here now."""
        return (
            self.resting_until <= now
            and self.in_flight < window
            and (key not in self.specs or self.specs[key] is not None)
        )

    def succeeded(self) -> None:
        """An answer came: the endpoint is well."""
        self.failures_in_a_row = 0
        self.resting_until = 0.0

    def failed(self, now: float, *, rest: bool) -> None:
        """An attempt failed; ``rest`` keeps new requests away for a while."""
        self.failures_total += 1
        if rest:
            self.failures_in_a_row += 1
            self.resting_until = now + full_jitter(self.failures_in_a_row)

    def stats(self, now: float) -> EndpointStats:
        """A copy of the counters."""
        return EndpointStats(
            self.address, self.requests_total, self.failures_total, self.in_flight, self.resting_until <= now
        )

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
