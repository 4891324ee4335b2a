"""Dask's ``adapt()`` for workers that share servers: no more of them than the servers can serve.

Dask proposes workers by what tasks take. Tasks that wait for a full server take long, so it asks for ever more, and they
wait too. By the utilisation law [1]_ N workers that are held up for the part h of their time do the work of N (1 - h); once
the servers are full that is all there is, whatever N: the knee of the throughput curve [2]_. A worker more than that waits.

Held up is a core whose tasks all wait for servers, see :func:`daskonic.ledger.held_s`; that counts where requests wait in
queues. An idle server that takes long could serve more workers.

References
----------
.. [1] P. J. Denning, J. P. Buzen, The operational analysis of queueing network models, ACM Computing Surveys 10 (1978) 225.
.. [2] E. D. Lazowska et al., Quantitative System Performance, Prentice Hall 1984, chapter 5.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed import Adaptive, Worker
from distributed.core import Status
from distributed.protocol.pickle import dumps
from distributed.scheduler import Scheduler, WorkerState

from daskonic.plugin import LOAD

__all__ = ["Knee", "Load", "ServerAdaptive", "job_of"]

logger = logging.getLogger(__name__)

LOOK_S = 10.0
"""How long workers are looked at before their number changes; one that has been there for half of it counts."""
PATIENCE_S = 30.0
"""How long more workers wait for those that have been asked for and are not there yet."""
FIRST = 4
"""Workers to begin with; as many again come as long as the servers can serve them."""
LEAST_HELD, PART_HELD = 0.25, 0.01
"""Workers that may be held up while another one may come; and the part of each that is held up by chance."""
BACK = 0.53
"""Part of those that are held up which is too many: half of them, and from two on at least one."""
QUEUED = 1 / 3
"""Part of the wait for a full server that is spent in queues, at least: one that merges all that came during an execution
into the next takes requests after half of one, on average."""
MEMORY = 0.6
"""Part of the workers' memory that results may take; Dask asks for more workers then."""


@dataclass(frozen=True, slots=True)
class Load:
    """What some workers did for a while.

    Attributes
    ----------
    workers : int
    held : float
        How many of them the servers held up, on average.
    rows_per_s : float
        Rows that got their scores; if there are none, nothing is known of the servers.
    """

    workers: int
    held: float
    rows_per_s: float


class Accounts:
    """What workers have told since it was forgotten last; their clocks and sums begin anywhere."""

    def __init__(self) -> None:
        self._first: dict[str, Mapping[str, float]] = {}
        self._last: dict[str, Mapping[str, float]] = {}

    def add(self, worker: str, told: Mapping[str, float]) -> None:
        """Of one worker, see :meth:`daskonic.InferencePlugin.load`."""
        self._first.setdefault(worker, told)
        self._last[worker] = told

    def forget(self) -> None:
        """Begin anew."""
        self._first.clear()
        self._last.clear()

    def load(self, least_s: float) -> Load:
        """Of workers that have told for that long."""
        told = []
        for worker, last in self._last.items():
            since = {key: last[key] - self._first[worker][key] for key in last} | {"cores": last["cores"]}
            if since["at_s"] >= least_s:
                told.append(since)
        waits_s, queued_s = (sum(s[key] for s in told) for key in ("waits_s", "queued_s"))
        held = sum(s["held_s"] / s["at_s"] / s["cores"] for s in told)
        full = min(max(queued_s, 0.0) / (QUEUED * waits_s), 1.0) if waits_s > 0 else 0.0
        return Load(len(told), full * held, sum(s["rows"] / s["at_s"] for s in told))


class Knee:
    """How many workers there may be.

    The number doubles until servers are full. Then it goes half of the way back, again and again, as what is told is of a
    moment. When workers have not been held up twice in a row it rises again: by 1, 2, 4, and so on.

    Parameters
    ----------
    most : int
        Workers to begin with.

    Attributes
    ----------
    most : int
        Workers that there may be now.
    is_found : bool
        Whether more would wait for servers, as far as known.
    """

    def __init__(self, most: int) -> None:
        self.most = self._step = most
        self.is_found = False

    def see(self, load: Load, here: int, *, may_grow: bool) -> None:
        """Take what workers did into account.

        Parameters
        ----------
        load : Load
        here : int
            Workers that are there, those that are too young for ``load`` included.
        may_grow : bool
            Whether more are wanted, and those that were asked for are there.
        """
        held = load.held - PART_HELD * load.workers
        if load.rows_per_s and held > LEAST_HELD:
            self.is_found, self._step = True, 0
            self.most = max(min(self.most, here - int(BACK * held)), 1)
        elif may_grow and (load.rows_per_s or not self.is_found):
            self.most += self._step
            self.is_found = self.is_found and not self._step
            self._step = max(2 * self._step, 1)


class ServerAdaptive(Adaptive):
    """Dask's own proposal, but no more workers than the servers can serve.

    ``cluster.adapt()`` of daskonic's clusters uses it; ``cluster.adapt(Adaptive=distributed.Adaptive)`` does not. Workers that
    are too many finish what they have begun.

    Attributes
    ----------
    knee : Knee
    """

    look_s, first = LOOK_S, FIRST
    cluster: Any

    def __init__(self, cluster: Any, *args: Any, **kwargs: Any) -> None:
        self.knee: Knee | None = None
        self._accounts = Accounts()
        self._looked_at = self._changed_at = time.monotonic()
        self._leaving: set[Any] = set()
        self._is_limit = False
        if "group" in (cluster.new_spec or {}):
            kwargs.setdefault("worker_key", job_of)
        super().__init__(cluster, *args, **kwargs)

    async def target(self) -> int:
        """Workers that there shall be."""
        wanted = int(await super().target())
        await self._let_go()
        if self.knee is None:
            self.knee = Knee(max(self.first, self.minimum, len(self.plan)))
        if self._leaving:  # what they do yet is no measure
            self._forget()
        else:
            self._look(self.knee, wanted)
        return min(wanted, max(self.knee.most, self._least()))

    def _look(self, knee: Knee, wanted: int) -> None:
        """Let the workers' accounts decide, once in a while."""
        workers, now = self._running(), time.monotonic()
        for worker in workers:
            if LOAD in worker.metrics:
                self._accounts.add(worker.address, worker.metrics[LOAD])
        if now < self._looked_at + self.look_s:
            return
        load = self._accounts.load(self.look_s / 2)
        are_here = load.workers >= knee.most or now > self._changed_at + PATIENCE_S
        before = knee.most
        knee.see(load, len(workers), may_grow=wanted > before and are_here)
        if knee.most != before:
            self._changed_at = now
        self._forget()
        self._say(knee, load, wanted)

    def _forget(self) -> None:
        """Look anew from now on."""
        self._accounts.forget()
        self._looked_at = time.monotonic()

    def _say(self, knee: Knee, load: Load, wanted: int) -> None:
        """One line when the servers become the bottleneck, and one when they are no longer."""
        if not load.rows_per_s or self._is_limit == knee.is_found or wanted <= knee.most:
            return
        self._is_limit = knee.is_found
        if self._is_limit:
            logger.warning(
                "the servers are the bottleneck: %.0f rows/s with %d workers, of which %.1f wait; no more workers are started "
                "(Dask would have %d). More servers, or more instances of the model, would help",
                load.rows_per_s, load.workers, load.held, wanted,
            )  # fmt: skip
        else:
            logger.warning(
                "the servers are no longer the bottleneck: %.0f rows/s with %d workers; more are started",
                load.rows_per_s, load.workers,
            )  # fmt: skip

    # -- workers ---------------------------------------------------------------------------------

    @property
    def _scheduler(self) -> Scheduler:
        """It is in this process, and knows what workers tell."""
        scheduler: Scheduler = self.cluster.scheduler
        return scheduler

    def _running(self) -> list[WorkerState]:
        """Workers that take tasks."""
        return [w for w in self._scheduler.workers.values() if w.status == Status.running]

    def _least(self) -> int:
        """Workers that it takes to hold the results."""
        workers = self._running()
        limit = sum(w.memory_limit for w in workers)
        return math.ceil(len(workers) * sum(w.nbytes for w in workers) / (MEMORY * limit)) if limit else 0

    @property
    def plan(self) -> set[Any]:
        """Without those that leave."""
        return set(super().plan) - self._leaving

    @property
    def requested(self) -> set[Any]:
        """Without those that leave."""
        return set(super().requested) - self._leaving

    @property
    def observed(self) -> set[Any]:
        """Without those that leave."""
        return set(super().observed) - self._leaving

    async def scale_up(self, n: Any) -> None:
        """The cluster counts those that leave, too."""
        await super().scale_up(n + len(self.cluster.plan & self._leaving))

    async def workers_to_close(self, target: int) -> list[Any]:
        """Idle ones, as Dask says; where there are too many for the servers, the last to come, busy or not."""
        if self.knee is None or target < self.knee.most:
            return list(await super().workers_to_close(target))
        groups: dict[Any, list[WorkerState]] = {}
        for worker in self._running():
            groups.setdefault(self.worker_key(worker) if self.worker_key else worker.name, []).append(worker)
        surplus: list[Any] = []
        more = sum(map(len, groups.values())) - target
        for group in reversed(groups.values()):
            if len(surplus) + len(group) <= more:
                surplus += [worker.name for worker in group]
        return surplus

    async def scale_down(self, workers: Any) -> None:
        """Those that compute leave in order; others are closed."""
        names = set(workers) - self._leaving
        busy = [w for w in self._running() if w.name in names and w.processing]
        await super().scale_down(list(names - {w.name for w in busy}))
        if busy:
            logger.info("%d workers that are too many finish what they have begun", len(busy))
            self._leaving |= {w.name for w in busy}
            leave = {"op": "run", "function": dumps(_leave), "wait": False}
            await self._scheduler.broadcast(
                msg=leave, workers=[w.address for w in busy], on_error="return_pickle"
            )

    async def _let_go(self) -> None:
        """Workers that have left are no longer the cluster's."""
        gone = self._leaving - {w.name for w in self._scheduler.workers.values()}
        self._leaving -= gone
        if gone & self.cluster.plan:
            await self.cluster.scale_down(gone)


async def _leave(dask_worker: Worker) -> None:
    """On the worker: no new task, finish what runs, hand results to others."""
    await dask_worker.close_gracefully(restart=False, reason="servers-are-full")


def job_of(worker: WorkerState) -> str:
    """Several workers of a job come and go together."""
    return str(worker.name).rpartition("-")[0]
