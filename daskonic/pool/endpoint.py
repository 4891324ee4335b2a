"""The state of one endpoint; its pool's lock guards it."""

from __future__ import annotations

import logging
import math
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from daskonic.errors import DaskonicError, ServerError
from daskonic.pool.breaker import Breaker, full_jitter
from daskonic.pool.stats import EndpointStats
from daskonic.pool.window import Window
from daskonic.tensors import ModelSpec
from daskonic.transport import Account, Transport

__all__ = ["Endpoint", "ModelKey", "tell_health"]

logger = logging.getLogger(__name__)

ModelKey = tuple[str, str]
"""Name and version as the user asked for them."""
ASK_AGAIN_S = 10.0
"""How long a model that an endpoint does not have is not asked for: it may get it."""


@dataclass(slots=True)
class _Absence:
    """A model that an endpoint cannot serve: how often in a row, until when it is left alone, and if it is not there at all."""

    failures: int = 0
    until: float = 0.0
    is_missing: bool = False


class Endpoint:
    """An address, its connection, and what is known of it.

    Attributes
    ----------
    specs : dict
        What it says of each model that it has.
    accounts : dict
        What it last told of each model that it did; None where it tells nothing.
    account_due : dict
        When it is asked for each again.
    answered : dict
        Answers to us since the last account.
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
        self._rng = rng
        self._transport: Transport | None = None
        self._opening = threading.Lock()
        self._over = False
        self.window = Window(window, rng)
        self.breaker = Breaker(rng)
        self.in_flight = self.most_in_flight = 0
        self.not_before = 0.0
        self.requests_total = 0
        self.failures_total = 0
        self.rejections_total = 0
        self.specs: dict[ModelKey, ModelSpec] = {}
        self._absences: dict[ModelKey, _Absence] = {}
        self.accounts: dict[ModelKey, Account | None] = {}
        self.account_due: dict[ModelKey, float] = {}
        self.answered: Counter[ModelKey] = Counter()
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

    def has(self, key: ModelKey, now: float) -> bool:
        """Whether the model may be here: known to be, or not asked yet, or not for a while."""
        absence = self._absences.get(key)
        return absence is None or now >= absence.until

    def is_without(self, key: ModelKey, now: float) -> bool:
        """Whether it said lately that it has no such model."""
        return not self.has(key, now) and self._absences[key].is_missing

    def gained(self, key: ModelKey) -> None:
        """The model answered."""
        self._absences.pop(key, None)

    def lost(self, key: ModelKey, now: float, *, is_missing: bool) -> None:
        """The model did not answer, though the endpoint did: the others here may be well."""
        self.specs.pop(key, None)  # what comes back in its place may be another one
        absence = self._absences.setdefault(key, _Absence())
        if now < absence.until and absence.is_missing >= is_missing:
            return  # under way before that was known
        absence.failures += 1
        absence.is_missing = is_missing
        wait_s = (
            ASK_AGAIN_S * self._rng.uniform(0.5, 1.0)
            if is_missing
            else full_jitter(absence.failures, self._rng)
        )
        absence.until = now + wait_s

    def heard(self, key: ModelKey, account: Account | None, answered: int) -> None:
        """Its own account of a model, and how many answers it gave us since the last one; the first has nothing to compare."""
        known = self.accounts.get(key)
        self.accounts[key] = account
        if account is None or known is None:
            return
        # Answers of the last moment may not be counted yet: no more than were in flight at a time.
        uncounted, self.most_in_flight = self.most_in_flight, self.in_flight
        if account.requests < known.requests + max(0, answered - uncounted):
            self.specs.pop(key, None)  # counted from 0 again: loaded anew, perhaps with other weights
        elif account.requests > known.requests:
            n = account.requests - known.requests
            told_s = (account.queue_s - known.queue_s) / n, (account.compute_s - known.compute_s) / n
            self.told_s[key] = told_s
            self.window.told(*told_s)

    def forget_models(self) -> None:
        """It went away: what comes back in its place may be another server."""
        self.specs.clear()
        self._absences.clear()

    def next_model(self, now: float) -> float:
        """When one of the models that it cannot serve is asked for again; infinite if none is."""
        return min((a.until for a in self._absences.values() if a.until > now), default=math.inf)

    def state(self, key: ModelKey, now: float) -> str:
        """In words, why it may take no request for a model."""
        if self.breaker.is_away(now):
            return "does not answer"
        if not self.has(key, now):
            return f"does not serve {key[0]!r}"
        return f"has {self.in_flight} requests in flight"

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

    def detach(self) -> Transport | None:
        """Give up the connection, for the caller to close; another one is made when it is needed."""
        with self._opening:
            transport, self._transport = self._transport, None
        return transport

    def close(self) -> None:
        """Drop the connection, and never make another one."""
        with self._opening:
            self._over = True
        transport = self.detach()
        if transport is not None:
            transport.close()


def tell_health(endpoint: Endpoint, openings: int, error: DaskonicError | None) -> None:
    """One line when an endpoint goes away, and one when it is back, however many requests notice it."""
    if endpoint.breaker.openings and not openings:
        logger.warning("%s is away, its requests go elsewhere or wait: %s", endpoint.address, error)
    elif openings and not endpoint.breaker.openings:
        logger.warning("%s is back", endpoint.address)
