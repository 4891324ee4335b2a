"""How many servers a fleet shall have: policy without I/O or clock.

A server is added when requests have waited long in the queues for some time, and given back when they hardly waited for much
longer than that. In between nothing happens: a load that one server takes with short queues never makes a second one come and go.
Only when all servers that were asked for are there does the load that they tell count, or a batch system
that takes minutes would be asked for more and more.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Load", "Meter", "Scaling", "choose_models", "spare"]

LONG = 0.5
"""Part of the computing time that requests may wait on average: a server that is busy for half of the time, with one request
after the other."""
SHORT = 0.1
"""Part of the longest time: then two servers are at most a third busy together, and one has room."""
GROWTH = 2.0
"""Most that one step may do."""


@dataclass(frozen=True, slots=True)
class Load:
    """What servers and clients told of the last moments.

    Attributes
    ----------
    ready : int
        Servers that take requests.
    requests : int
        Answered by them all.
    queue_s, compute_s : float
        Means over these requests.
    demand : bool
        Whether somebody waits for a first server.
    """

    ready: int = 0
    requests: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    demand: bool = False


class Scaling:
    """Servers wanted, between a minimum and a maximum.

    Parameters
    ----------
    minimum, maximum : int
    least : int
        Fewest that are of any use: less do not hold all models.
    longest_queue_s : float, optional
        Requests may wait so long on average; default is half as long as they are computed.
    settle_s : float
        How long queues must be long.
    idle_s : float
        How long queues must be short for one server less, and nobody may ask for anything for all to go.
    now : float

    Attributes
    ----------
    wanted : int
    """

    def __init__(
        self,
        minimum: int,
        maximum: int,
        *,
        now: float,
        least: int = 1,
        longest_queue_s: float | None = None,
        settle_s: float = 10.0,
        idle_s: float = 300.0,
    ) -> None:
        self._minimum, self._maximum, self._least = minimum, maximum, least
        self._longest_queue_s = longest_queue_s
        self._settle_s, self._idle_s = settle_s, idle_s
        self._used_at = now
        self._long_since = self._short_since = math.inf
        self.wanted = minimum

    def look(self, now: float, load: Load) -> int:
        """The number of servers from now on."""
        if load.demand or load.requests:
            self._used_at = now
        if load.demand and self.wanted < self._least:
            self._become(self._least)
        elif now - self._used_at >= self._idle_s:
            self._become(self._minimum)
        elif self.wanted:
            self._follow(now, load)
        return self.wanted

    def _follow(self, now: float, load: Load) -> None:
        """One step up or down if queues were long or short for long enough."""
        ratio = self._queue(load)
        settled = load.ready >= self.wanted
        self._long_since = min(self._long_since, now) if settled and ratio > 1 else math.inf
        self._short_since = min(self._short_since, now) if settled and ratio < SHORT else math.inf
        if now - self._long_since >= self._settle_s:
            self._become(math.ceil(self.wanted * min(ratio, GROWTH)))
        elif now - self._short_since >= self._idle_s:
            self._become(max(self.wanted - 1, self._least))

    def _queue(self, load: Load) -> float:
        """Queue time over the longest that is wanted."""
        longest_s = LONG * load.compute_s if self._longest_queue_s is None else self._longest_queue_s
        return load.queue_s / longest_s if load.requests and longest_s > 0 else 0.0

    def _become(self, wanted: int) -> None:
        """Another number; what was seen until now does not count for the next step."""
        self.wanted = min(max(wanted, self._minimum), self._maximum)
        self._long_since = self._short_since = math.inf


class Meter:
    """Means over the last seconds, from sums that servers keep since they started.

    Parameters
    ----------
    span_s : float
    """

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._told: dict[str, deque[tuple[float, int, float, float]]] = {}

    def load(self, now: float, sums: Mapping[str, tuple[int, float, float]], *, demand: bool) -> Load:
        """The load, from requests, queue time and computing time of each server that takes requests, as told just now."""
        self._told = {key: self._told.get(key, deque()) for key in sums}
        requests, queue_s, compute_s = 0, 0.0, 0.0
        for key, latest in sums.items():
            told = self._told[key]
            if told and latest[0] < told[-1][1]:  # the job was started again
                told.clear()
            told.append((now, *latest))
            while len(told) > 2 and told[1][0] <= now - self._span_s:
                told.popleft()
            requests += latest[0] - told[0][1]
            queue_s += latest[1] - told[0][2]
            compute_s += latest[2] - told[0][3]
        n = max(requests, 1)
        return Load(len(sums), requests, queue_s / n, compute_s / n, demand)


def choose_models(models: Sequence[str], there: Iterable[Sequence[str]], most: int) -> tuple[str, ...]:
    """Models for one more server: those that the fewest others have.

    Parameters
    ----------
    models : sequence of str
        All of the fleet.
    there : iterable of sequence of str
        Of each other server.
    most : int
        Models of a server.
    """
    copies = Counter(name for each in there for name in each)
    return tuple(sorted(sorted(models, key=lambda name: copies[name])[:most]))


def spare(servers: Mapping[str, Sequence[str]], order: Sequence[str]) -> str | None:
    """The first server, in an order, whose models others have too; None if each has one that no other has.

    Parameters
    ----------
    servers : mapping of str to sequence of str
        Models of each server.
    order : sequence of str
        Keys, those that are missed least before the others.
    """
    copies = Counter(name for models in servers.values() for name in models)
    return next((key for key in order if all(copies[name] > 1 for name in servers[key])), None)
