"""The pool: connections, permits, first contact. One per worker process and set of servers.

gRPC multiplexes, so requests are what is bounded: each endpoint has a window of permits, shared by
all tasks of the process. A permit is given back by the transport's own thread at the moment an
attempt ends, never by the thread that consumes the answer; a thread that waits for a permit can
therefore not be what others wait for. Who gets one is the policy of :mod:`daskonic.pool.balancer`.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import random
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from daskonic import ledger
from daskonic.config import Settings
from daskonic.errors import (
    ConfigError,
    DaskonicError,
    DeadlineError,
    ModelNotFoundError,
    NotReadyError,
    ServerError,
    UnavailableError,
)
from daskonic.pool.balancer import Balancer, Permit
from daskonic.pool.call import Call, job_left_s
from daskonic.pool.claim import Claim
from daskonic.pool.contact import described, first_contact, read_lock
from daskonic.pool.discovery import Discovery
from daskonic.pool.endpoint import Endpoint, ModelKey, tell_health
from daskonic.pool.fallback import fallback_endpoint, tell_fallback
from daskonic.pool.samples import Samples
from daskonic.pool.share import Share
from daskonic.pool.stats import PoolStats
from daskonic.tensors import ModelSpec, Request
from daskonic.transport import Account, Transport
from daskonic.transport.grpc import GrpcTransport

__all__ = ["Pool"]

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

ACCOUNT_EVERY_S, FIRST_ACCOUNTS_S = 10.0, 1.0


class Pool:
    """Connections to some servers, and the permits to use them.

    Parameters
    ----------
    settings : Settings
    connect : callable, optional
        Makes the transport of an address; gRPC by default.
    share : Share, optional
        What this worker may use of the cluster's limits; where the settings have limits and there is no cluster, all.

    Raises
    ------
    ConfigError
        No server is named.
    """

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[str], Transport] | None = None,
        share: Share | None = None,
    ) -> None:
        if not settings.servers:
            raise ConfigError(
                "no server is named: set daskonic.servers in the Dask configuration, "
                "register dk.InferencePlugin(servers=[...]), or pass servers=[...] to the model"
            )
        self.settings = settings
        if connect is None:
            connect = functools.partial(
                GrpcTransport, credentials=settings.credentials, shared_memory=settings.shared_memory
            )
        # Not the same part of the servers as other workers use, and after a restart not the same again: if one part
        # is worse, nobody is stuck with it.
        rng = random.Random(f"{platform.node()} {os.getpid()} {settings.servers}")
        self._endpoint = functools.partial(Endpoint, connect=connect, window=settings.window, rng=rng)
        self._endpoints: dict[str, Endpoint] = {}
        self._fallback = fallback_endpoint(settings, rng)
        self._locks = {lock.model: lock for lock in map(read_lock, settings.locks)}
        if share is None and settings.limits:
            share = Share(*settings.limits)
        self._share = share
        self._balancer = Balancer((), settings.endpoints_per_worker, rng, self._fallback, share)
        self._condition = threading.Condition()
        self._discovery = Discovery(settings.servers, self._change)
        if share is not None:
            share.subscribe(self.wake)
        self._contact = threading.Lock()
        self._specs: dict[ModelKey, ModelSpec] = {}
        self.samples = Samples(settings.tolerance)
        self._retries_total = 0
        self._waiting: set[int] = set()
        self._closed = self._on_fallback = False
        self._held = threading.BoundedSemaphore(settings.partitions_held)
        self._background: ThreadPoolExecutor | None = None

    def spec(self, model: str, version: str) -> ModelSpec:
        """What the servers say of a model; asked once per pool.

        Raises
        ------
        ModelNotFoundError
            No endpoint has it.
        UnavailableError
            No endpoint answers within ``connect_timeout_s``, or, where a fleet has none yet, within ``timeout_s``.
        ServerError
            Endpoints disagree on the model's inputs or outputs.
        """
        with self._contact:
            if (model, version) not in self._specs:
                self._discovery.start()
                self._specs[model, version] = first_contact(self, model, version)
            return self._specs[model, version]

    def submit(self, request: Request, spec: ModelSpec, key: ModelKey, claim: Claim | None = None) -> Call:
        """Send a request as soon as there is a permit, and return while it is under way."""
        call = Call(self, request, spec, key, time.monotonic() + min(self.settings.timeout_s, job_left_s()))
        if claim is not None:
            claim.add(call)
        call.send()
        return call

    def start(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Run a whole call in the background; waits while as many as ``partitions_held`` are under way.

        They go on without anybody collecting them, so waiting here always ends.
        """
        with self._condition:
            self._refuse_closed()
            if self._background is None:
                self._background = ThreadPoolExecutor(
                    self.settings.partitions_held, thread_name_prefix="daskonic-submit"
                )
        with ledger.waiting():
            self._held.acquire()
        try:
            future = self._background.submit(copy_context().run, ledger.beside, function, *arguments)
        except RuntimeError as error:
            self._held.release()
            raise ServerError("the pool of connections is closed (worker or plugin shut down)") from error
        future.add_done_callback(lambda _: self._held.release())
        return future

    def stats(self) -> PoolStats:
        """Counters and gauges."""
        with self._condition:
            now = time.monotonic()
            return PoolStats(
                endpoints=tuple(e.stats(now) for e in self.all_endpoints()),
                retries_total=self._retries_total,
                hedges_total=self._balancer.second_total,
                waiting=len(self._waiting),
            )

    def close(self) -> None:
        """Close every connection; whoever waits gets an error."""
        with self._condition:
            if self._share is not None and not self._closed:
                self._share.unsubscribe(self.wake)
            self._closed = True
            self._condition.notify_all()
        self._discovery.stop()
        if self._background is not None:
            self._background.shutdown(wait=False, cancel_futures=True)
        for endpoint in self.all_endpoints():
            endpoint.close()

    def all_endpoints(self) -> list[Endpoint]:
        """Every endpoint, the fallback last."""
        return [*self._endpoints.values(), *([self._fallback] if self._fallback is not None else [])]

    def _change(self, addresses: tuple[str, ...]) -> None:
        """These are the servers from now on; requests at others end there."""
        with self._condition:
            self._endpoints |= {a: self._endpoint(a) for a in addresses if a not in self._endpoints}
            self._balancer.change([self._endpoints[address] for address in addresses])
            idle = self._detach_idle()
            self._condition.notify_all()
        _close(idle)

    def _detach_idle(self) -> list[Transport]:
        """Connections out of use, to be closed; under the lock, or somebody gets a permit for one of them in between."""
        idle = [endpoint.detach() for endpoint in self._balancer.idle(time.monotonic())]
        return [connection for connection in idle if connection is not None]

    # -- first contact ---------------------------------------------------------------------------

    def candidates(self, key: ModelKey) -> list[Endpoint]:
        """Endpoints to be asked for a model, in the order of their addresses; none while a fleet has no server."""
        self._refuse_closed()
        self._want()
        with self._condition:
            return sorted(self._balancer.active(time.monotonic(), key), key=lambda e: e.address)

    @property
    def has_fleets(self) -> bool:
        """Whether servers come and go."""
        return bool(self._discovery)

    def promises(self, model: str) -> bool:
        """Whether a fleet has a model, though perhaps no server of it just now."""
        return self._discovery.promises(model)

    def ask(self, endpoint: Endpoint, key: ModelKey, version: str, timeout_s: float) -> DaskonicError | None:
        """Let an endpoint describe the model, in this version; what went wrong is returned."""
        try:
            lock, patience_s = self._locks.get(key[0]), self.settings.attempt_timeout_s
            endpoint.specs[key] = described(
                endpoint.transport(), key[0], version, lock, timeout_s, patience_s
            )
        except (ModelNotFoundError, NotReadyError) as error:
            with self._condition:
                endpoint.lost(key, time.monotonic(), is_missing=isinstance(error, ModelNotFoundError))
            return error
        except DaskonicError as error:
            with self._condition:
                openings = endpoint.breaker.openings
                endpoint.breaker.failed(time.monotonic())
            tell_health(endpoint, openings, error)
            return error
        if key not in endpoint.accounts:
            self._read_account(endpoint, key)
        return None

    # -- permits ---------------------------------------------------------------------------------

    def acquire(
        self,
        key: ModelKey,
        kind: Hashable,
        deadline: float,
        avoid: Endpoint | None,
        refuse: Callable[[], None],
        nbytes: int = 0,
    ) -> Permit:
        """A permit where the balancer says, waiting for one until the deadline, or until ``refuse`` raises."""
        with self._condition:
            while True:
                self._refuse_closed()
                refuse()
                self._want()
                now = time.monotonic()
                permit = self._balancer.pick(key, kind, now, avoid, nbytes)
                if permit is not None:
                    self._tell_fallback(permit.endpoint)
                    return permit
                if now >= deadline:
                    raise DeadlineError(self.no_server(key))
                thread = threading.get_native_id()
                self._waiting.add(thread)
                try:
                    with ledger.waiting():
                        self._condition.wait(min(deadline, self._balancer.next_change(now)) - now)
                finally:
                    self._waiting.discard(thread)

    def waiting_threads(self) -> set[int]:
        """Native numbers of the threads that wait for a permit."""
        with self._condition:
            return set(self._waiting)

    def wake(self) -> None:
        """Let threads that wait for a permit see whether they still want one."""
        with self._condition:
            self._condition.notify_all()

    def acquire_second(
        self, key: ModelKey, kind: Hashable, first: Endpoint, nbytes: int = 0
    ) -> Permit | None:
        """A permit for the second request of a straggler, if there is one to spare just now."""
        with self._condition:
            if self._closed:
                return None
            return self._balancer.pick_second(key, kind, time.monotonic(), first, nbytes)

    def straggles_after_s(self, kind: Hashable) -> float:
        """How long an answer may take before a second request is worth a thought."""
        with self._condition:
            return self._balancer.straggles_after_s(kind)

    def quickest_s(self, kind: Hashable) -> float:
        """The shortest of the latest answers of a kind; 0 while there is none."""
        with self._condition:
            return self._balancer.quickest_s(kind)

    def release(self, permit: Permit, error: DaskonicError | None, *, given_up: bool = False) -> None:
        """An attempt ended: its permit is free, and the endpoint's health is known better."""
        with self._condition:
            now, openings = time.monotonic(), permit.endpoint.breaker.openings
            self._balancer.ended(permit, now, error, given_up=given_up)
            idle = self._detach_idle()
            self._condition.notify_all()
        tell_health(permit.endpoint, openings, error)
        if self._share is not None:
            self._share.wake(but=self.wake)
        if permit.endpoint is self._fallback and isinstance(error, UnavailableError):
            # the process that had the node's server has ended: find it anew
            transport = permit.endpoint.detach()
            idle += [] if transport is None else [transport]
        if idle:  # closing may ask a server that hangs, and this is the transport's thread
            threading.Thread(target=_close, args=(idle,), name="daskonic-close", daemon=True).start()

    def _tell_fallback(self, endpoint: Endpoint) -> None:
        """Say when calls go on without servers, and when they are back."""
        if (endpoint is self._fallback) != self._on_fallback:
            self._on_fallback = not self._on_fallback
            tell_fallback(endpoint, self._on_fallback, self.settings)

    def ask_account(self, endpoint: Endpoint, key: ModelKey) -> tuple[float, float] | None:
        """Mean time in the queue and of computing by the server's own account, which is asked for now and then."""
        now = time.monotonic()
        with self._condition:
            endpoint.answered[key] += 1
            if endpoint.accounts.get(key, Account()) is None or now < endpoint.account_due.get(key, 0.0):
                return endpoint.told_s.get(key)
            often = ACCOUNT_EVERY_S if key in endpoint.told_s else FIRST_ACCOUNTS_S
            endpoint.account_due[key] = now + often * random.uniform(0.5, 1.5)
            answered = endpoint.answered.pop(key)  # before the server counts, so that it cannot have fewer
        self._read_account(endpoint, key, answered)
        return endpoint.told_s.get(key)

    def _read_account(self, endpoint: Endpoint, key: ModelKey, answered: int = 0) -> None:
        """Ask the server what it did."""
        try:
            account = endpoint.transport().account(*key, timeout_s=1.0)
        except DaskonicError as error:
            logger.info("%s tells no statistics: %s", endpoint.address, error)
            return
        with self._condition:
            endpoint.heard(key, account, answered)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def room(self) -> int:
        """Requests that may be in flight together."""
        with self._condition:
            return self._balancer.room(time.monotonic())

    def no_server(self, key: ModelKey) -> str:
        """Why no permit could be had."""
        with self._condition:
            now = time.monotonic()
            states = [f"{e.address} {e.state(key, now)}" for e in self._balancer.active(now, key)]
        why = ", ".join(states) or self._discovery.without()
        limit = "" if self._share is None else f"; {self._share}"
        return f"no server could take the request within {self.settings.timeout_s:g} s: {why}{limit}"

    def lost(self, permit: Permit) -> bool:
        """Its endpoint has another version of the model by now; whether another endpoint may have the right one."""
        with self._condition:
            permit.endpoint.lost(permit.key, time.monotonic(), is_missing=True)
        return self.is_elsewhere(permit.key, permit.endpoint)

    def is_elsewhere(self, key: ModelKey, but: Endpoint | None = None) -> bool:
        """Whether some endpoint, or another than ``but``, may have the model, now or soon."""
        now = time.monotonic()
        with self._condition:
            here = any(e is not but and not e.is_without(key, now) for e in self._balancer.line)
        return here or self._discovery.promises(key[0])

    def count_retry(self) -> None:
        """One more attempt of the same request."""
        with self._condition:
            self._retries_total += 1

    def _want(self) -> None:
        """There is a request to be sent; fleets hear of it."""
        self._discovery.want(alone=not self._balancer.line and self._fallback is None)

    def _refuse_closed(self) -> None:
        """ServerError once the pool is closed."""
        if self._closed:
            raise ServerError("the pool of connections is closed (worker or plugin shut down)")


def _close(connections: list[Transport]) -> None:
    """Of endpoints that are out of use."""
    for transport in connections:
        transport.close()
