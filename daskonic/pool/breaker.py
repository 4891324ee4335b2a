"""Whether an endpoint is worth a request: a circuit breaker on its latest outcomes."""

from __future__ import annotations

import math
import random
from collections import deque

__all__ = ["Breaker", "full_jitter"]

BACKOFF_FIRST_S = 0.1
BACKOFF_LONGEST_S = 5.0
LATEST = 10
"""Outcomes that count."""
MEMORY_S = 30.0
"""Older outcomes do not count."""
FAILING = 0.5
"""Part of failures from which an endpoint rests: one reset connection among good answers is not an outage."""


def full_jitter(failures: int, rng: random.Random | None = None) -> float:
    """Seconds to wait after so many failures in a row: exponential, spread so that nobody moves in step."""
    longest = min(BACKOFF_LONGEST_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 10))
    return (rng or random).uniform(0.5, 1.0) * longest


class Breaker:
    """Closed: requests go. Open: none until a rest is over. Then half open: one goes, and decides.

    Attributes
    ----------
    openings : int
        Times it opened since the last answer; 0 when closed.
    rests_until : float
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=LATEST)
        self._opened_at = 0.0
        self.openings = 0
        self.rests_until = 0.0

    def lets_pass(self, now: float, in_flight: int) -> bool:
        """Whether one more request may go."""
        return now >= self.rests_until and (self.openings == 0 or in_flight == 0)

    def is_away(self, now: float) -> bool:
        """Whether the endpoint rests."""
        return now < self.rests_until

    def succeeded(self, now: float, sent_at: float = math.inf) -> None:
        """An answer came, of whatever kind: the endpoint is there, or was when that request was sent and ends what it has."""
        if self.openings and sent_at < self._opened_at:
            return
        if self.openings:
            self._outcomes.clear()
        self._outcomes.append((now, True))
        self.openings = 0
        self.rests_until = 0.0

    def failed(self, now: float) -> bool:
        """No answer came; whether that opened it."""
        self._outcomes.append((now, False))
        if self.is_away(now):  # requests that were under way when it opened tell nothing new
            return False
        latest = [ok for when, ok in self._outcomes if now - when <= MEMORY_S]
        if self.openings == 0 and latest.count(False) < FAILING * len(latest):
            return False
        self.openings += 1
        self._opened_at = now
        self.rests_until = now + full_jitter(self.openings, self._rng)
        return True
