"""The pool of a worker: installed by a plugin, found by a model.

``setup()`` runs on the worker's event loop and a failing one would let late workers join with
half a plugin, so it only builds the pool; connections are made at first use.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distributed import Reschedule, Worker, WorkerPlugin, get_worker, secede
from distributed.threadpoolexecutor import thread_state
from tornado.ioloop import PeriodicCallback

from daskonic import display, ledger
from daskonic.config import Settings, resolve
from daskonic.heap import give_back, keep_messages
from daskonic.pool import Claim, Pool, Share
from daskonic.report import OWN_SHARES
from daskonic.sharing import Shareholder

__all__ = ["LOAD", "InferencePlugin", "aside", "claim_of_task", "current_pool", "honoured", "pool_for"]

logger = logging.getLogger(__name__)

NAME = "daskonic"
LOAD = "daskonic-load"
"""Key of what a worker tells the scheduler with its heartbeat: what its time has gone into, see :meth:`InferencePlugin.load`."""

RUNNING = ("executing", "long-running")
LOOK_S, BUSY = 1.0, 0.05
"""How often a task that waits for its turn looks whether those that have one do anything, and the part of time that is something."""

GIVE_BACK_EVERY_S = 5.0
"""How long freed memory stays with a worker; what it needs again then costs page faults, 0.15 ms a MB."""


class InferencePlugin(WorkerPlugin):
    """Gives each Dask worker, early or late, its own pool of connections to the servers.

    Parameters
    ----------
    servers : iterable of str, optional
        Addresses ``host:port`` of gRPC ports; default is ``daskonic.servers`` in the Dask
        configuration.
    **settings
        Any other key of ``daskonic.yaml`` with underscores, such as ``window=4``.

    Attributes
    ----------
    settings : Settings
    cores : int or None
        What a worker has, where it has more threads than that, as in daskonic's own clusters: the others are for tasks
        that wait.

    Raises
    ------
    ConfigError
        An unknown setting, or a value that is not usable. Settings are resolved here, once, where
        the user is; workers do not see the user's configuration.

    Examples
    --------
    >>> client.register_plugin(dk.InferencePlugin(servers=["triton-a:8001"]))  # doctest: +SKIP
    """

    name = NAME

    def __init__(self, servers: Iterable[str] | str | None = None, **settings: Any) -> None:
        self.settings = resolve(servers, **settings)
        self.cores: int | None = None
        self._forget()
        Pool(self.settings)  # no server named: say so here, not in a task

    def __repr__(self) -> str:
        return f"InferencePlugin(servers={list(self.settings.servers)})"

    def _repr_html_(self) -> str:
        settings = self.settings
        facts = {
            "servers": ", ".join(settings.servers),
            "used by a worker": f"{min(settings.endpoints_per_worker, len(settings.servers))} of {len(settings.servers)}",
            "requests in flight": "found from the answers"
            if settings.window is None
            else f"{settings.window} a server",
            "timeout": f"{settings.timeout_s:g} s",
            "without servers": {
                "inprocess": "ONNX Runtime in the worker",
                "server": "a Triton on the node",
            }.get(settings.fallback, "an error"),
            "proves who we are": "by token or header" if settings.credentials.has_secrets else "",
        }
        return display.card("InferencePlugin", "on every worker, late ones too", display.table(facts.items()))

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "cores": self.cores}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.settings, self.cores = state["settings"], state["cores"]
        self._forget()

    def _forget(self) -> None:
        """Nothing is there yet that belongs to one worker."""
        self._pool: Pool | None = None
        self._share: Share | None = None
        self._shareholder: Shareholder | None = None
        self._claims: dict[Hashable, weakref.WeakSet[Claim]] = {}
        self._claims_lock = threading.Lock()
        self._spare_threads = 0
        self._aside = 0
        self._in_place: set[int] = set()

    def setup(self, worker: Worker) -> None:
        """Build the pool, without connecting."""
        _mind_memory(worker)
        if self.cores is not None:
            self._spare_threads = max(worker.state.nthreads - self.cores, 0)
        limits = self.settings.limits
        if limits:
            self._share = Share(*(0 if math.isfinite(limit) else limit for limit in limits))
            self._shareholder = Shareholder(worker, limits, self._share)
        self._pool = Pool(self.settings, share=self._share)
        worker.metrics[LOAD] = self.load
        ledger.spare(self._spare_threads)
        logger.info("worker %s infers at %s", worker.address, ", ".join(self.settings.servers))

    async def teardown(self, worker: Worker) -> None:  # noqa: ARG002
        """Close the pool, off the event loop, and give its share back."""
        if self._pool is not None:
            await asyncio.to_thread(self._pool.close)
            self._pool = None
        if self._shareholder is not None:
            await self._shareholder.leave()

    def load(self, worker: Worker) -> dict[str, float]:
        """What this process has done so far.

        Returns
        -------
        dict of str to float
            ``at_s``: the worker's clock; ``rows`` with scores; ``cores``, or threads where that is not known, and seconds
            for which these were ``held_s``: had nothing to do, as tasks waited for servers; seconds of calls:
            ``waits_s`` for servers, of which ``queued_s`` because servers had others to serve.
        """
        report = ledger.total()
        spent_s = report.spent_s()
        # A window that the user has set lets requests wait at servers that are idle, too.
        full_s = 0.0 if self.settings.window else spent_s.get("full servers", 0.0)
        return {
            "at_s": time.monotonic(),
            "rows": report.joined,
            "cores": worker.state.nthreads - self._spare_threads,
            "held_s": ledger.held_s(),
            "waits_s": sum(seconds for share, seconds in spent_s.items() if share not in OWN_SHARES),
            "queued_s": full_s + spent_s.get("server queue", 0.0),
        }

    def pool(self) -> Pool | None:
        """The worker's pool; None before setup and after teardown."""
        return self._pool

    @property
    def share(self) -> Share | None:
        """What this worker may use of the cluster's limits; None where there are none."""
        return self._share

    def claim(self, key: Hashable) -> Claim:
        """A claim on calls, given up when Dask cancels the task with this key."""
        claim = Claim(key)
        with self._claims_lock:
            self._claims.setdefault(key, weakref.WeakSet()).add(claim)
        return claim

    def step_aside(self) -> bool:
        """Whether a task that begins to wait leaves its thread to others; otherwise it waits in place."""
        with self._claims_lock:
            is_wanted = len(self._in_place) >= self._spare_threads
            leaves = is_wanted and self._spare_threads + self._aside < self.settings.partitions_held
            if leaves:
                self._aside += 1
            else:
                self._in_place.add(threading.get_native_id())
            return leaves

    def step_back(self) -> None:
        """Its wait is over, wherever that was."""
        with self._claims_lock:
            if (thread := threading.get_native_id()) in self._in_place:
                self._in_place.remove(thread)
            else:
                self._aside -= 1

    def waiting_threads(self) -> set[int]:
        """Threads that wait for servers: they have nothing to do now, but will."""
        return self._in_place | (set() if self._pool is None else self._pool.waiting_threads())

    def transition(self, key: Hashable, start: str, finish: str, **_: Any) -> None:
        """A task that runs is cancelled: by its user, or because the client is gone. Dask lets it run; its requests end."""
        if start not in RUNNING or finish in RUNNING:
            return
        with self._claims_lock:
            claims = self._claims.pop(key, ())
            held = list(claims) if finish == "released" else []
        for claim in held:
            claim.give_up()


def _here() -> InferencePlugin | None:
    """The plugin of the Dask worker this runs on."""
    try:
        plugin = get_worker().plugins.get(NAME)
    except ValueError:  # not in a task
        return None
    return plugin if isinstance(plugin, InferencePlugin) else None


@contextmanager
def aside() -> Iterator[None]:
    """While this task waits for a server, the worker's thread is another task's.

    Code of tasks still runs on as many threads at a time as the worker has: when the wait is over, this one waits for
    its turn. So a worker of one thread, chosen perhaps for code that is not thread-safe, is busy too. Tasks held in
    memory that way are bounded by ``partitions_held``; a task beyond that waits on its thread. So does one whose
    thread is not needed, because the worker has more of them than cores: handing it on costs about a millisecond.
    """
    plugin = _here()
    if plugin is None or not getattr(thread_state, "proceed", False):
        with ledger.waiting():
            yield
        return
    try:
        if not plugin.step_aside():
            with ledger.waiting():
                yield
            return
        secede()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            _take_turn(plugin)
    finally:
        plugin.step_back()


def _take_turn(plugin: InferencePlugin) -> None:
    """Dask's ``rejoin()``, first come, first served, and with an end where the task that has the thread waits for this one.

    Two tasks may share a lock, and this one hold it; then both have to run.
    """
    executor, turn = thread_state.executor, threading.Event()
    place = (threading.current_thread(), turn)
    with executor._rejoin_lock:
        executor._rejoin_list.insert(0, place)  # it is taken from the other end
    executor.submit(lambda: None)  # wakes a thread that has nothing to do
    used_s = _used_s(executor)
    while not turn.wait(LOOK_S):
        before, used_s = used_s, _used_s(executor)
        if _is_stuck(before, used_s) and not plugin.waiting_threads() & used_s.keys():
            with executor._rejoin_lock:
                if place in executor._rejoin_list:
                    executor._rejoin_list.remove(place)
                    logger.info("a task goes on beside others, which wait, perhaps for a lock that it holds")
                    return
    thread_state.proceed = True


def _used_s(executor: Any) -> dict[int, float]:
    """Seconds for which each thread that has a turn ran, or was ready to."""
    used_s = {}
    for thread in list(executor._threads):
        with suppress(OSError):  # just ended
            ran_ns, ready_ns, _ = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()
            used_s[thread.native_id] = (int(ran_ns) + int(ready_ns)) / 1e9
    return used_s


def _is_stuck(before: dict[int, float], now: dict[int, float]) -> bool:
    """Whether the same threads have the turns as before, and none of them did anything."""
    return before.keys() == now.keys() and all(now[t] - before[t] < BUSY * LOOK_S for t in now)


def claim_of_task() -> Claim | None:
    """A claim that ends with the Dask task this runs in; None outside of one."""
    plugin = _here()
    if plugin is None:
        return None
    worker = get_worker()
    key: Any = worker.get_current_task()
    claim = plugin.claim(key)
    # Cancelled before there was a claim: Dask changes the state first and tells the plugin then, so looking at the state
    # once the claim is there misses nothing.
    task = worker.state.tasks.get(key)
    if task is not None and task.state == "cancelled":
        claim.give_up()
    return claim


@contextmanager
def honoured(claim: Claim | None) -> Iterator[None]:
    """Calls of this task, which may be cancelled meanwhile.

    Then there is no right result, and Dask is told so: should somebody have asked for the task again since, it runs
    again. Otherwise Dask drops it.
    """
    try:
        yield
    finally:
        if (
            claim is not None
            and claim.is_given_up
            and claim.owner is not None  # else there is no task, and the user has interrupted it
            and claim.owner == get_worker().get_current_task()
        ):
            raise Reschedule


def current_pool() -> Pool:
    """The pool of the Dask worker this runs on, else one for this process from the configuration.

    Raises
    ------
    ConfigError
        Neither a plugin nor the configuration names a server.
    """
    plugin = _here()
    pool = None if plugin is None else plugin.pool()
    return pool if pool is not None else pool_for(resolve())


_process_pools: dict[tuple[int, Settings, Share | None], Pool] = {}
_process_pools_lock = threading.Lock()


def _new_lock() -> None:
    """In a forked child: a thread of the parent may have held the lock, and nobody there would give it back."""
    global _process_pools_lock
    _process_pools_lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


def pool_for(settings: Settings) -> Pool:
    """The process-wide pool with these settings; never one inherited by fork. On a worker it keeps to the worker's share."""
    plugin = _here()
    share = None if plugin is None else plugin.share
    key = (os.getpid(), settings, share)
    with _process_pools_lock:
        if key not in _process_pools or _process_pools[key].is_closed:
            _mind_memory()
            _process_pools[key] = Pool(settings, share=share)
        return _process_pools[key]


def _mind_memory(worker: Worker | None = None) -> None:
    """Keep freed memory for the next messages, on a worker for some seconds.

    Parameters
    ----------
    worker : distributed.Worker, optional
        While it is set up; else that of this task, if there is one.
    """
    keep_messages()
    if worker is not None:
        _give_back_now_and_then(worker)
        return
    with suppress(ValueError):  # not in a task
        worker = get_worker()
        worker.loop.add_callback(_give_back_now_and_then, worker)


def _give_back_now_and_then(worker: Worker) -> None:
    """For as long as a worker lives; on its event loop."""
    if NAME not in worker.periodic_callbacks:
        again = PeriodicCallback(functools.partial(asyncio.to_thread, give_back), 1e3 * GIVE_BACK_EVERY_S)
        worker.periodic_callbacks[NAME] = again
        again.start()
