"""Which endpoint gets the next request: policy without I/O, locks or clock, so that a simulation runs this very code.

A worker uses a bounded part of the endpoints, another part than other workers do but always the same, so that ten thousand
workers do not open ten thousand connections to each server. Where one of them is away, the next in line takes its place.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from daskonic.errors import (
    DaskonicError,
    DeadlineError,
    ModelNotFoundError,
    NotReadyError,
    OverloadedError,
    UnavailableError,
)
from daskonic.pool.endpoint import Endpoint, ModelKey
from daskonic.pool.share import Share

__all__ = ["Balancer", "Permit"]

LATENCIES = 64
"""Latest answers of each kind that tell how long one may take."""
ENOUGH = 16
"""Answers before a straggler can be told from a slow model."""
STRAGGLER = 2.0
"""Times the slowest twentieth of the latest answers: then a request is sent a second time."""
PROBE_EVERY = 10
"""Requests between two that find out whether an endpoint is back, where others are well: no storm at a dead server."""
EXTRA = 0.03
"""Second requests, as a part of all."""


@dataclass(slots=True, eq=False)
class Permit:
    """A place in an endpoint's window.

    Attributes
    ----------
    endpoint : Endpoint
    key : (str, str)
        The model.
    kind : hashable
        Requests of one kind take the same time on an idle server.
    full : bool
        Whether this was the last place.
    sent_at : float
        When the request went on the wire.
    """

    endpoint: Endpoint
    key: ModelKey
    kind: Hashable
    full: bool
    sent_at: float


class Balancer:
    """Choice among the endpoints of one pool, and what their answers teach.

    Parameters
    ----------
    endpoints : sequence of Endpoint
    most : int
        Endpoints in use at one time.
    rng : random.Random
        Seeded by what makes this worker different from the others.
    fallback : Endpoint, optional
        Used while every other one is away.
    share : Share, optional
        What this worker may use of what a site allows a whole cluster.

    Attributes
    ----------
    second_total : int
        Requests sent beside one that took long.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        most: int,
        rng: random.Random,
        fallback: Endpoint | None = None,
        share: Share | None = None,
    ) -> None:
        self._known: list[Endpoint] = []
        self._line: list[Endpoint] = []
        self._most = most
        self._rng = rng
        self._fallback = fallback
        self._share = share
        self._latencies: dict[Hashable, deque[float]] = {}
        self._keys: set[ModelKey] = set()
        self._sent = 0
        self._probe_again = 0
        self.second_total = 0
        self.change(endpoints)

    def change(self, endpoints: Sequence[Endpoint]) -> None:
        """Others from now on. Those that left get no more requests; a new one takes a place in the line by chance.

        So a worker's part of them changes as little as it can, and those of all workers together stay even.
        """
        self._known += [e for e in endpoints if e not in self._known]
        self._line = [e for e in self._line if e in endpoints]
        for endpoint in endpoints:
            if endpoint not in self._line:
                endpoint.forget_models()  # another server may be there by now
                if self._line:
                    endpoint.window.begin_at(statistics.fmean(e.window.limit for e in self._line))
                self._line.insert(self._rng.randrange(len(self._line) + 1), endpoint)

    @property
    def line(self) -> Sequence[Endpoint]:
        """Endpoints that may be asked, in this worker's order."""
        return self._line

    def active(self, now: float, key: ModelKey | None = None) -> list[Endpoint]:
        """The endpoints in use, for a model: the first in this worker's line that are not away and may have it.

        If there is none, the fallback, or the first ones.
        """
        there = [e for e in self._line if not e.breaker.is_away(now)]
        able = [e for e in there if key is None or e.has(key, now)]
        if not able and self._fallback is not None:
            return [self._fallback]
        return (able or there or self._line)[: self._most]

    def idle(self, now: float) -> list[Endpoint]:
        """Endpoints out of use: they stood in for others, or others stand in for them, or they have left.

        Their connections are closed, or a worker would have more than its part.
        """
        unused = [e for e in self._known if e.in_flight == 0]
        if not unused:
            return []
        active = [e for key in self._keys or (None,) for e in self.active(now, key)]
        return [e for e in unused if e not in active]

    def room(self, now: float) -> int:
        """Requests that may be in flight at all endpoints together."""
        room = sum(e.window.permits for e in self.active(now))
        return room if self._share is None else int(min(room, max(self._share.requests, 1)))

    def pick(
        self, key: ModelKey, kind: Hashable, now: float, avoid: Endpoint | None = None, nbytes: int = 0
    ) -> Permit | None:
        """A place at the endpoint with the largest free part of its window; another than ``avoid`` if one can."""
        self._keys.add(key)
        here = [e for e in self.active(now, key) if e.has(key, now)]
        well = [e for e in here if not e.breaker.openings]
        if well and self._sent < self._probe_again:
            here = well
        able = [e for e in here if _is_free(e, now)]
        able = [e for e in able if e is not avoid] or able
        if not able or not self._may_go(nbytes, now):
            return None
        endpoint = min(
            able, key=lambda e: (not e.breaker.openings, e.in_flight / e.window.limit, self._rng.random())
        )
        if endpoint.breaker.openings:
            self._probe_again = self._sent + PROBE_EVERY
        return self._take(endpoint, key, kind, now)

    def pick_second(
        self, key: ModelKey, kind: Hashable, now: float, first: Endpoint, nbytes: int = 0
    ) -> Permit | None:
        """A place for the second request of a straggler, where that costs nobody anything.

        Only at another endpoint with more than half of its window free: where queues are long, all are slow, and
        requests sent twice make them longer. And only for a small part of all requests.
        """
        if self.second_total >= EXTRA * self._sent:
            return None
        able = [
            e
            for e in self.active(now, key)
            if e is not first and e.has(key, now) and _is_free(e, now) and e.in_flight < e.window.permits / 2
        ]
        if not able or not self._may_go(nbytes, now):
            return None
        self.second_total += 1
        return self._take(min(able, key=lambda e: e.in_flight / e.window.limit), key, kind, now)

    def straggles_after_s(self, kind: Hashable) -> float:
        """How long an answer may take before it is a straggler; infinite while that is not known."""
        latest = self._latencies.get(kind, ())
        if len(latest) < ENOUGH:
            return math.inf
        return STRAGGLER * sorted(latest)[int(0.95 * len(latest))]

    def quickest_s(self, kind: Hashable) -> float:
        """The shortest of the latest answers of a kind; 0 while there is none."""
        return min(self._latencies.get(kind, ()), default=0.0)

    def next_change(self, now: float) -> float:
        """When a rest or a pause ends, or a model is asked for again, so that there may be a place without an answer; infinite if none does."""
        times = [t for e in self._line for t in (e.breaker.rests_until, e.not_before) if t > now]
        times += [e.next_model(now) for e in self._line]
        if self._share is not None:
            times.append(self._share.next_change(now))
        return min(times, default=math.inf)

    def ended(
        self, permit: Permit, now: float, error: DaskonicError | None, *, given_up: bool = False
    ) -> None:
        """An attempt ended: its place is free, and the endpoint is known better.

        Parameters
        ----------
        error : DaskonicError or None
        given_up : bool
            We cancelled it ourselves: tells nothing.
        """
        endpoint = permit.endpoint
        endpoint.in_flight -= 1
        if self._share is not None:
            self._share.ended()
        if given_up:
            return
        latency_s = now - permit.sent_at
        if error is None:
            endpoint.breaker.succeeded(now, permit.sent_at)
            endpoint.gained(permit.key)
            endpoint.window.answered(now, latency_s, permit.kind, full=permit.full)
            self._latencies.setdefault(permit.kind, deque(maxlen=LATENCIES)).append(latency_s)
        elif isinstance(error, OverloadedError):
            endpoint.rejections_total += 1
            endpoint.breaker.succeeded(now, permit.sent_at)  # it answers, only not with what was wanted
            endpoint.window.rejected(now)
        elif isinstance(error, ModelNotFoundError | NotReadyError):
            endpoint.failures_total += 1
            endpoint.breaker.succeeded(now, permit.sent_at)  # it answers
            endpoint.lost(permit.key, now, is_missing=isinstance(error, ModelNotFoundError))
        elif isinstance(error, UnavailableError | DeadlineError):
            endpoint.failures_total += 1
            if endpoint.breaker.failed(now):
                endpoint.window.lost()
                endpoint.forget_models()
        else:  # permanent: the request's fault or the model's, not the endpoint's
            endpoint.failures_total += 1
            endpoint.breaker.succeeded(now, permit.sent_at)
        pause_s = endpoint.window.pause_s(rejected=isinstance(error, OverloadedError))
        endpoint.not_before = max(endpoint.not_before, now + pause_s)

    def _may_go(self, nbytes: int, now: float) -> bool:
        """Whether the cluster's limits, if there are any, let one more request go."""
        return self._share is None or self._share.take(nbytes, now)

    def _take(self, endpoint: Endpoint, key: ModelKey, kind: Hashable, now: float) -> Permit:
        """One place less."""
        endpoint.in_flight += 1
        endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.in_flight)
        endpoint.requests_total += 1
        self._sent += 1
        return Permit(endpoint, key, kind, endpoint.in_flight >= endpoint.window.permits, now)


def _is_free(endpoint: Endpoint, now: float) -> bool:
    """Whether one more request may go to an endpoint now."""
    return (
        now >= endpoint.not_before
        and endpoint.in_flight < endpoint.window.permits
        and endpoint.breaker.lets_pass(now, endpoint.in_flight)
    )
