"""How many requests one endpoint may have in flight: found from what its answers tell, without a coordinator.

Every worker steers alone, by the same signal: how much longer an answer takes than on an idle server. That
ratio grows with the server's queue, whoever filled it. What an idle server takes is the quickest answer seen, or less: who
joins a crowd never sees it idle, so the queue time that servers tell in their statistics is subtracted. Below the target the window grows by a fixed step per round
trip, above it shrinks in proportion to the excess: additive increase and multiplicative decrease, so that windows of
workers that share a server become equal [1]_. As in Swift [2]_, the target rises for small windows, and a window below 1
means pauses between requests, so that thousands of workers can share a server that takes ten requests at a time.

A server that merges requests into larger batches answers all of them after at most two executions, however many
they are, so its ratio stays below the target and the window grows until batches themselves take longer.

References
----------
.. [1] D. Chiu, R. Jain, Analysis of the increase and decrease algorithms for congestion avoidance in computer
   networks, Computer Networks and ISDN Systems 17 (1989) 1.
.. [2] G. Kumar et al., Swift: Delay is Simple and Effective for Congestion Control in the Datacenter, SIGCOMM 2020.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable

__all__ = ["Window"]

FIRST = 2.0
SMALLEST, LARGEST = 1 / 256, 64.0
TARGET, TARGET_HIGHEST = 2.5, 8.0
"""Times the answer of an idle server: one request running, one waiting, and half for the noise; more for a small window."""
TARGET_SMALL = 3.0
"""Over the square root of the window: who has less than others lets the queue grow longer, so that windows become equal."""
STEP = 1.0
"""Rise in a round trip."""
STEP_SMALL, PART_SMALL = 0.01, 0.1
"""Rise with an answer, where the window is below 1: the larger of the number and the part."""
IDLE = 1.2
"""Times the answer of an idle server: there is no queue at all, and a window below 1 may double."""
LEAST_LEFT = 0.5
"""Most that one round trip may take away."""
LEFT_AFTER_REJECTION = 0.7
NEAR_REJECTION, STEP_NEAR = 0.8, 0.002
"""Close to where the server last rejected, it is tried only every hundred answers or so: rejections cost both sides."""
DRIFT = 1.01
"""The idle server's time may rise again, this much with each account of the server."""
UNKNOWN_S = 0.05
"""Time of an idle server while no answer has come."""


class Window:
    """The window of one endpoint.

    Parameters
    ----------
    fixed : int or None
        Requests in flight where the user pins the window.
    rng : random.Random

    Attributes
    ----------
    limit : float
        Requests that may be in flight on average; below 1, the part of the time that one may be.
    permits : int
        Requests that may be in flight now, at least one: the limit, rounded up or down by chance so that its mean is met.
    """

    def __init__(self, fixed: int | None, rng: random.Random) -> None:
        self._fixed = fixed
        self._rng = rng
        self._idle_s: dict[Hashable, float] = {}
        self._latest: dict[Hashable, tuple[int, float]] = {}
        self._rejected_at = math.inf
        self._cut_at = -math.inf
        self._starting = True
        self.limit = float(fixed) if fixed else FIRST
        self.permits = int(self.limit)

    def answered(self, now: float, latency_s: float, kind: Hashable, *, full: bool) -> None:
        """An answer came.

        Parameters
        ----------
        now, latency_s : float
        kind : hashable
            Answers of one kind take the same time on an idle server: the model and the size.
        full : bool
            Whether the window was full when the request was sent; otherwise it held nothing back and is not raised.
        """
        if self._fixed is not None:
            return
        count, sum_s = self._latest.get(kind, (0, 0.0))
        self._latest[kind] = (count + 1, sum_s + latency_s)
        idle_s = self._idle_s[kind] = min(latency_s, self._idle_s.get(kind, math.inf))
        ratio = latency_s / max(idle_s, 1e-6)
        target = min(max(1 + TARGET_SMALL / math.sqrt(self.limit), TARGET), TARGET_HIGHEST)
        if ratio <= target:
            if full:
                self._raise(idle=ratio <= IDLE)
            return
        self._starting = False
        if now - self._cut_at >= latency_s:  # once per round trip: the answers that follow saw the same queue
            self._cut(now, max(1 - 0.5 * (ratio - target) / ratio, LEAST_LEFT))

    def begin_at(self, limit: float) -> None:
        """Before the first request: as much as servers of its kind take, whether they have much room or little."""
        if self._fixed is None:
            self._set(limit)

    def told(self, queue_s: float, compute_s: float) -> None:
        """A server's own account: mean times of the requests since the last one, whoever sent them."""
        for kind, (count, sum_s) in self._latest.items():
            without_queue_s = max(sum_s / count - queue_s, compute_s)
            self._idle_s[kind] = min(DRIFT * self._idle_s[kind], without_queue_s)
        self._latest.clear()

    def rejected(self, now: float) -> None:
        """The server's queue was full."""
        if self._fixed is None and now - self._cut_at >= self._typical_s():
            self._rejected_at = self.limit
            self._starting = False
            self._cut(now, LEFT_AFTER_REJECTION)

    def pause_s(self, *, rejected: bool = False) -> float:
        """How long to wait after an answer: for a window below 1, and for a place in a queue that was full.

        Jittered, or workers move in step.
        """
        share = 1 / self.limit - 1 if self.limit < 1 else 0.0
        return self._typical_s() * max(share, 0.5 * rejected) * self._rng.uniform(0.5, 1.5)

    def lost(self) -> None:
        """The server went away: whatever comes back in its place is approached anew."""
        if self._fixed is None:
            self._starting, self._rejected_at = True, math.inf
            self._set(min(self.limit, FIRST))

    def _typical_s(self) -> float:
        """Time of an answer at the target."""
        return TARGET * min(self._idle_s.values(), default=UNKNOWN_S)

    def _raise(self, *, idle: bool) -> None:
        """One answer's part of the step of a round trip; doubling while it starts."""
        if self.limit >= NEAR_REJECTION * self._rejected_at:
            step = STEP_NEAR * self.limit
        elif self._starting:
            step = 1.0
        elif self.limit >= 1:
            step = STEP / self.limit
        else:
            step = self.limit if idle else max(STEP_SMALL, PART_SMALL * self.limit)
        self._set(min(self.limit + step, LARGEST))

    def _cut(self, now: float, part: float) -> None:
        """Multiplicative decrease."""
        self._cut_at = now
        self._set(max(self.limit * part, SMALLEST))

    def _set(self, limit: float) -> None:
        """A new limit."""
        self.limit = limit
        near = limit >= NEAR_REJECTION * self._rejected_at
        self.permits = max(1, int(limit if near else limit + self._rng.random()))
