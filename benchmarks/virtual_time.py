"""Workers and servers on virtual time, steered by the pool's own policy code.

Each worker runs :class:`daskonic.pool.balancer.Balancer`, the code that a real pool runs under its lock; network, servers and
clock are simulated. A worker's tasks compute on one core, then wait for one request. A server works on one request at a time
(or merges some of them), and may have a queue of limited length.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from daskonic.errors import DaskonicError, OverloadedError, UnavailableError
from daskonic.pool.balancer import Balancer, Permit
from daskonic.pool.budget import Budget
from daskonic.pool.endpoint import Endpoint
from daskonic.pool.share import Share

__all__ = ["LATE_S", "Result", "Setup", "Simulation"]

KEY = ("model", "1")
ASK_AGAIN_S = 10.0
LATE_S = 10.0
REPORT_S, REPORTS_PER_S, TURN = 0.1, 1000, 20
SPARE = 4
"""Endpoints behind those in use that a simulated worker knows; the real one knows all."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated.

    Attributes
    ----------
    workers, servers : int
    threads : int
        Tasks of a worker that may wait at one time.
    cpu_s : float
        Core time of a task before its request.
    service_s, item_s : float
        Time of an execution, and for each request merged into it.
    merge : int
        Most requests in one execution.
    queue : int
        Most requests that wait at a server.
    wire_s : float
        One way.
    connections : int
        Endpoints that a worker uses.
    window : int or None
        Pinned window.
    seconds : float
    vanish : float
        Part of the servers that is away in the middle third.
    cap : int
        Most requests in flight of all workers together; 0 for no limit.
    seed : int
    """

    workers: int = 1000
    servers: int = 10
    threads: int = 4
    cpu_s: float = 0.05
    service_s: float = 0.01
    item_s: float = 0.0
    merge: int = 1
    queue: int = 1_000_000
    wire_s: float = 0.0005
    connections: int = 4
    window: int | None = None
    seconds: float = 60.0
    vanish: float = 0.0
    cap: int = 0
    seed: int = 1


@dataclass(slots=True)
class Result:
    """What came of it, in the second half of each phase."""

    answered: list[int] = field(default_factory=list)
    """Answers by worker."""
    ended: int = 0
    """Requests that were answered, rejected or lost."""
    rejected: int = 0
    rejected_late: int = 0
    """After ten seconds."""
    in_flight: int = 0
    most_in_flight: int = 0
    in_flight_s: float = 0.0
    """Requests times seconds."""
    by_second: list[int] = field(default_factory=list)
    busy_s: float = 0.0
    queue_lengths: list[int] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)


class Simulation:
    """Events in the order of virtual time."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.now = 0.0
        self.rng = random.Random(setup.seed)
        self.result = Result(by_second=[0] * (math.ceil(setup.seconds) + 1))
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.servers = [Server(self) for _ in range(setup.servers)]
        self.workers = [Worker(self, i) for i in range(setup.workers)]

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._count), action))

    def run(self) -> Result:
        """Until the time is up."""
        setup = self.setup
        gone = self.servers[: round(setup.vanish * setup.servers)]
        for server in gone:
            self.after(setup.seconds / 3, server.vanish)
            self.after(2 * setup.seconds / 3, server.come_back)
        for worker in self.workers:
            worker.start()
        if setup.cap:
            self._budget = Budget(setup.cap)
            self._divide()
        while self._events and self._events[0][0] < setup.seconds:
            before = self.now
            self.now, _, action = heapq.heappop(self._events)
            if before > setup.seconds / 5:
                self.result.in_flight_s += self.result.in_flight * (self.now - before)
            action()
        self.result.answered = [w.answered for w in self.workers]
        return self.result

    def _divide(self) -> None:
        """What the scheduler does now and then, and what workers do with their shares, a little later."""
        for i, worker in enumerate(self.workers):
            self._budget.report(str(i), *worker.report())
        every_s = max(REPORT_S, self.setup.workers / REPORTS_PER_S)
        self._budget.turn_s = TURN * every_s
        for number, (requests, serial) in self._budget.divide(self.now).items():
            self.after(
                self.setup.wire_s, lambda n=number, r=requests, s=serial: self.workers[int(n)].given(r, s)
            )  # type: ignore[misc]
        self.after(every_s, self._divide)


class Server:
    """One accelerator behind a queue."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._queue: deque[tuple[float, Callable[[DaskonicError | None], None]]] = deque()
        self._running: list[Callable[[DaskonicError | None], None]] = []
        self._there = True
        self.told = (0, 0.0, 0.0)
        """What its statistics say: requests, seconds in the queue, seconds of computing, since it began."""

    def receive(self, answer: Callable[[DaskonicError | None], None]) -> None:
        """A request arrives."""
        setup = self._simulation.setup
        if not self._there:
            answer(UnavailableError("refused"))
        elif len(self._queue) >= setup.queue:
            self._simulation.result.rejected += 1
            self._simulation.result.rejected_late += self._simulation.now > LATE_S
            answer(OverloadedError("queue full"))
        else:
            self._queue.append((self._simulation.now, answer))
            self._next()

    def vanish(self) -> None:
        """Every request is lost."""
        self._there = False
        lost, self._running = [*self._running, *(a for _, a in self._queue)], []
        self._queue.clear()
        for answer in lost:
            answer(UnavailableError("gone"))

    def come_back(self) -> None:
        """As new."""
        self._there = True

    def _next(self) -> None:
        """Begin an execution if idle."""
        if self._running or not self._queue:
            return
        setup = self._simulation.setup
        taken = [self._queue.popleft() for _ in range(min(setup.merge, len(self._queue)))]
        self._running = [answer for _, answer in taken]
        seconds = setup.service_s + setup.item_s * len(taken)
        count, queue_s, compute_s = self.told
        waited_s = sum(self._simulation.now - since for since, _ in taken)
        self.told = (count + len(taken), queue_s + waited_s, compute_s + seconds * len(taken))
        self._simulation.result.busy_s += seconds
        self._simulation.result.queue_lengths.append(len(self._queue))
        running = self._running
        self._simulation.after(seconds, lambda: self._end(running))

    def _end(self, running: list[Callable[[DaskonicError | None], None]]) -> None:
        """Answer all; unless they were lost meanwhile."""
        if running is not self._running:
            return
        self._running = []
        for answer in running:
            answer(None)
        self._next()


class Worker:
    """One core, some threads, and the pool's policy."""

    def __init__(self, simulation: Simulation, number: int) -> None:
        setup = simulation.setup
        self._simulation = simulation
        rng = random.Random(f"{setup.seed}-{number}")
        servers = list(range(setup.servers))
        rng.shuffle(servers)
        self._servers = {str(i): simulation.servers[i] for i in servers[: setup.connections + SPARE]}
        endpoints = [Endpoint(address, _no_connection, setup.window, rng) for address in self._servers]
        self._share = Share(0) if setup.cap else None
        self._serial = 0
        self.balancer = Balancer(endpoints, setup.connections, rng, share=self._share)
        self._computing = False
        self._to_compute = setup.threads
        self._waiting: deque[int] = deque()
        """Attempts so far of each request that waits for a permit."""
        self._alarm = math.inf
        self.answered = 0
        self._rng = rng
        self._asked: dict[str, tuple[float, tuple[int, float, float]]] = {}

    def start(self) -> None:
        """Workers do not begin at the same moment."""
        self._simulation.after(self._rng.uniform(0, 2 * self._simulation.setup.cpu_s), self._compute)

    def report(self) -> tuple[int, int, int]:
        """Requests that it wants to have in flight, and holds."""
        assert self._share is not None
        wanted, _ = self._share.wanted(self._simulation.now)
        return math.ceil(wanted), max(self._share.in_flight, int(self._share.requests)), self._serial

    def given(self, requests: int, serial: int) -> None:
        """A share of the limit."""
        assert self._share is not None
        self._serial = serial
        self._share.set(self._simulation.now, requests=requests)
        self._send()

    def _compute(self) -> None:
        """The next task's part on the core."""
        if not self._computing and self._to_compute:
            self._computing = True
            self._to_compute -= 1
            self._simulation.after(self._simulation.setup.cpu_s * self._rng.uniform(0.8, 1.2), self._computed)

    def _computed(self) -> None:
        """A request is ready."""
        self._computing = False
        self._waiting.append(0)
        self._send()
        self._compute()

    def _send(self) -> None:
        """As many as there are places."""
        now = self._simulation.now
        while self._waiting:
            permit = self.balancer.pick(KEY, KEY, now)
            if permit is None:
                self._wake_up(self.balancer.next_change(now))
                return
            attempts = self._waiting.popleft()
            server = self._servers[permit.endpoint.address]
            result = self._simulation.result
            result.in_flight += 1
            result.most_in_flight = max(result.most_in_flight, result.in_flight)
            self._simulation.after(
                self._simulation.setup.wire_s,
                lambda s=server, p=permit, a=attempts: s.receive(self._reply(p, a)),  # type: ignore[misc]
            )

    def _wake_up(self, when: float) -> None:
        """Try again when a rest or a pause ends."""
        if when < self._alarm:
            self._alarm = when

            def ring() -> None:
                self._alarm = math.inf
                self._send()

            self._simulation.after(max(when - self._simulation.now, 1e-6), ring)

    def _reply(self, permit: Permit, attempts: int) -> Callable[[DaskonicError | None], None]:
        """What a server calls with the answer; it still has to travel."""
        wire_s = self._simulation.setup.wire_s
        return lambda error: self._simulation.after(wire_s, lambda: self._replied(permit, attempts, error))

    def _replied(self, permit: Permit, attempts: int, error: DaskonicError | None) -> None:
        """An answer, or a reason to try again."""
        now = self._simulation.now
        self._simulation.result.ended += 1
        self._simulation.result.in_flight -= 1
        self.balancer.ended(permit, now, error)
        if error is None:
            self.answered += 1
            self._ask(permit.endpoint, now)
            self._simulation.result.by_second[int(now)] += 1
            self._simulation.result.latencies_s.append(now - permit.sent_at)
            self._to_compute += 1
            self._compute()
        else:
            self._waiting.append(attempts + 1)
        self._send()

    def _ask(self, endpoint: Endpoint, now: float) -> None:
        """Now and then, the server's statistics, as the pool does."""
        when, before = self._asked.get(endpoint.address, (0.0, (0, 0.0, 0.0)))
        if now < when:
            return
        told = self._servers[endpoint.address].told
        self._asked[endpoint.address] = (now + ASK_AGAIN_S * self._rng.uniform(0.5, 1.5), told)
        count, queue_s, compute_s = (a - b for a, b in zip(told, before, strict=True))
        if count > 0:
            endpoint.window.told(queue_s / count, compute_s / count)


def _no_connection(address: str) -> Any:
    """Endpoints of a simulation are never connected."""
    raise AssertionError(address)
