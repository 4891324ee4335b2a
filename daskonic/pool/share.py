"""What one worker may use of what a site allows all workers of a cluster together.

A worker does not know the others: somebody tells it its share (:mod:`daskonic.sharing`), and here is written down what it
uses and what it could use. Without a limit there is no such object, and nothing is asked or counted.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

__all__ = ["Share"]

BURST_S = 0.02
"""Bytes not sent in that time may be sent later: a thread wakes up late."""
FORGET = 0.8
"""What is wanted falls no faster than this in one report: work comes in bursts."""
ROOM = 1.25
"""Bandwidth wanted, over what was used: or it could not grow without a wait."""


class Share:
    """A worker's share of the requests in flight and of the bandwidth of a cluster.

    It has a lock of its own, since several pools of a process may share it.

    Parameters
    ----------
    requests : float
        Requests that may be in flight; infinite for no limit.
    nbytes_per_s : float
        Bytes of requests that may be sent in a second; infinite for no limit.

    Attributes
    ----------
    requests, nbytes_per_s : float
        As told last.
    in_flight : int
    """

    def __init__(self, requests: float = math.inf, nbytes_per_s: float = math.inf) -> None:
        self._lock = threading.Lock()
        self._wakes: list[Callable[[], None]] = []
        self.requests, self.nbytes_per_s = requests, nbytes_per_s
        self.in_flight = 0
        self._debt_nbytes = 0.0
        """Sent, and not yet paid by time."""
        self._paid_at = self._asked_at = -math.inf
        self._most, self._sent_nbytes = 0, 0
        self._lacked_place, self._lacked_nbytes = False, 0
        self._wanted = (0.0, 0.0)

    def __str__(self) -> str:
        limits = [
            *([f"{self.requests:g} requests in flight"] if math.isfinite(self.requests) else []),
            *([f"{self.nbytes_per_s:.3g} bytes/s"] if math.isfinite(self.nbytes_per_s) else []),
        ]
        return f"of the cluster's limits (daskonic.cluster) this worker has {' and '.join(limits)}"

    def subscribe(self, wake: Callable[[], None]) -> None:
        """Call this when a request may go that could not before."""
        with self._lock:
            self._wakes.append(wake)

    def unsubscribe(self, wake: Callable[[], None]) -> None:
        """No longer."""
        with self._lock:
            self._wakes.remove(wake)

    def wake(self, but: Callable[[], None] | None = None) -> None:
        """Tell whoever waits; ``but`` one who knows. Not while a pool's lock is held, for it takes those of all."""
        with self._lock:
            wakes = [wake for wake in self._wakes if wake != but]
        for wake in wakes:
            wake()

    def set(self, now: float, *, requests: float | None = None, nbytes_per_s: float | None = None) -> None:
        """Another share."""
        with self._lock:
            self._pay(now)
            self.requests = self.requests if requests is None else requests
            self.nbytes_per_s = self.nbytes_per_s if nbytes_per_s is None else nbytes_per_s
        self.wake()

    def take(self, nbytes: int, now: float) -> bool:
        """Whether a request of that size may go; then it counts as sent."""
        with self._lock:
            self._pay(now)
            if self.in_flight >= self.requests:
                self._lacked_place = True
                return False
            if self._debt_nbytes > 0 or self.nbytes_per_s <= 0:
                self._lacked_nbytes = max(self._lacked_nbytes, nbytes)
                return False
            self.in_flight += 1
            self._most = max(self._most, self.in_flight)
            self._sent_nbytes += nbytes
            if math.isfinite(self.nbytes_per_s):
                self._debt_nbytes += nbytes
            return True

    def ended(self) -> None:
        """A request ended."""
        with self._lock:
            self.in_flight -= 1

    def next_change(self, now: float) -> float:
        """When the bandwidth lets another request go; infinite if only an answer or another share does."""
        with self._lock:
            self._pay(now)
            if self._debt_nbytes <= 0 or self.nbytes_per_s <= 0:
                return math.inf
            return now + self._debt_nbytes / self.nbytes_per_s

    def wanted(self, now: float) -> tuple[float, float]:
        """Requests in flight, and bytes a second, that could be used as things were since this was asked last."""
        with self._lock:
            used_per_s = self._sent_nbytes / max(now - self._asked_at, 1e-3)
            requests, nbytes_per_s = float(self._most), ROOM * used_per_s
            if self._lacked_place:
                requests = max(requests, 2 * self.requests, 1)
            if self._lacked_nbytes:
                nbytes_per_s = max(nbytes_per_s, 2 * self.nbytes_per_s, self._lacked_nbytes)
            wanted = max(requests, FORGET * self._wanted[0]), max(nbytes_per_s, FORGET * self._wanted[1])
            self._asked_at, self._wanted = now, wanted
            self._most, self._sent_nbytes = self.in_flight, 0
            self._lacked_place, self._lacked_nbytes = False, 0
            return wanted

    def _pay(self, now: float) -> None:
        """Time pays for bytes, at the present share."""
        if math.isfinite(self.nbytes_per_s) and self._debt_nbytes + self.nbytes_per_s * BURST_S > 0:
            paid = self.nbytes_per_s * min(now - self._paid_at, 3600.0)
            self._debt_nbytes = max(self._debt_nbytes - paid, -BURST_S * self.nbytes_per_s)
        self._paid_at = now
