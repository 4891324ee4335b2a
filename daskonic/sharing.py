"""A site's limits for all workers of a cluster: the Dask scheduler divides them, each worker keeps to its share.

Workers tell the scheduler what they want, and it tells them what they have, over the streams that connect them anyway; no
request waits for that. The first worker with limits installs :class:`SharingPlugin` at the scheduler. It travels by
value, so that a scheduler without daskonic takes it too. Where a site has forbidden plugins at its scheduler, each
worker has an even share.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from typing import TYPE_CHECKING, Any

import cloudpickle
from distributed import SchedulerPlugin
from tornado.ioloop import PeriodicCallback

from daskonic.pool import budget
from daskonic.pool.budget import Budget

if TYPE_CHECKING:
    from distributed import Scheduler, Worker

    from daskonic.config import Limits
    from daskonic.pool.share import Share

__all__ = ["Shareholder", "SharingPlugin"]

logger = logging.getLogger(__name__)

WANTS, SHARE = "daskonic-wants", "daskonic-share"
"""Messages to and from the scheduler. An unknown one would close the worker: each goes only to who has said it knows it."""
EVERY_S = 0.1
WORKERS_PER_S = 1000
"""Reports that the scheduler gets in a second, where there are many workers."""
TURN = 20
"""Divisions for which a worker keeps what cannot be divided."""
REPEAT_S = 2.0
"""A report that says nothing new."""
EVEN_EVERY_S = 2.0
PARTS = 1000
"""What can be given of a bandwidth: thousandths."""


class SharingPlugin(SchedulerPlugin):
    """Divides limits among the workers that say what they want of them.

    It has no settings: workers tell which limit they mean, so that a new one holds at once.
    """

    name = "daskonic-sharing"

    async def start(self, scheduler: Scheduler) -> None:
        """Listen to workers."""
        self._scheduler = scheduler
        self._budgets: dict[str, Budget] = {}
        scheduler.stream_handlers[WANTS] = self.report
        self._divide = PeriodicCallback(self.divide, 1e3 * EVERY_S)
        self._divide.start()

    def report(self, worker: str, wants: dict[str, tuple[int, int, int, int]]) -> None:
        """What a worker wants of each limit; of those that it does not name it has nothing any more."""
        if worker not in self._scheduler.workers:
            return
        for name, (total, want, held, serial) in wants.items():
            self._budgets.setdefault(name, Budget(total)).report(worker, want, held, serial)
        for name, one in self._budgets.items():
            if name not in wants:
                one.leave(worker)

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:  # noqa: ARG002
        """Its share is free."""
        for one in self._budgets.values():
            one.leave(worker)

    def divide(self) -> None:
        """Tell workers whose share has changed."""
        every_s = max(EVERY_S, len(self._scheduler.workers) / WORKERS_PER_S)
        self._divide.callback_time = 1e3 * every_s
        for name, one in self._budgets.items():
            one.turn_s = TURN * every_s
            for worker, (share, serial) in one.divide(time.monotonic()).items():
                if worker in self._scheduler.stream_comms:
                    message = {
                        "op": SHARE,
                        "name": name,
                        "share": share,
                        "serial": serial,
                        "every_s": every_s,
                    }
                    self._scheduler.worker_send(worker, message)

    async def close(self) -> None:
        """The scheduler ends."""
        self._divide.stop()


class Shareholder:
    """One worker's side: reports what it wants, and sets its share. All of it runs on the worker's event loop.

    Parameters
    ----------
    worker : distributed.Worker
    limits : Limits
    share : Share
        Nothing at first: no request goes until the worker has been given something.
    """

    def __init__(self, worker: Worker, limits: Limits, share: Share) -> None:
        self._worker = worker
        self._limits = limits
        self._share = share
        self._serials: dict[str, int] = {}
        self._told: dict[str, tuple[int, int, int, int]] = {}
        self._told_at = -math.inf
        self._is_even = False
        worker.stream_handlers[SHARE] = self._given
        self._again = PeriodicCallback(self._report, 1e3 * EVERY_S)
        self._joining = asyncio.ensure_future(self._join())

    async def leave(self) -> None:
        """Give everything back."""
        self._again.stop()
        self._joining.cancel()
        await asyncio.gather(self._joining, return_exceptions=True)
        self._worker.stream_handlers[SHARE] = lambda **_: None  # one may be on its way
        if self._serials:
            self._worker.batched_send({"op": WANTS, "wants": {}})

    async def _join(self) -> None:
        """Have the plugin at the scheduler; without it, an even share for as long as this worker lives."""
        try:
            await self._worker.scheduler.register_scheduler_plugin(
                plugin=_by_value(SharingPlugin()), name=SharingPlugin.name, idempotent=True
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the limits must hold without the plugin
            logger.warning(
                "the Dask scheduler does not divide the limits of daskonic.cluster by need (%s); "
                "each worker gets an even share",
                error,
            )
            await self._divide_evenly()
        else:
            self._serials = dict.fromkeys(self._wants(), 0)
            self._again.start()

    def _wants(self) -> dict[str, tuple[int, int, int]]:
        """By limit: all of it, what this worker could use, and what it holds."""
        share, limits = self._share, self._limits
        requests, nbytes_per_s = share.wanted(time.monotonic())
        wants = {}
        if math.isfinite(limits.requests):
            held = max(share.in_flight, int(share.requests))
            wants[f"requests {limits.requests}"] = int(limits.requests), math.ceil(requests), held
        if math.isfinite(limits.nbytes_per_s):
            part = limits.nbytes_per_s / PARTS
            held = round(share.nbytes_per_s / part)
            wants[f"bytes {limits.nbytes_per_s}"] = PARTS, min(math.ceil(nbytes_per_s / part), PARTS), held
        return wants

    def _report(self) -> None:
        """Tell the scheduler what is wanted and held, if that is news."""
        wants = {name: (*want, self._serials[name]) for name, want in self._wants().items()}
        now = time.monotonic()
        if wants != self._told or now >= self._told_at + REPEAT_S:
            self._told, self._told_at = wants, now
            self._worker.batched_send({"op": WANTS, "wants": wants})

    def _given(self, name: str, share: int, serial: int, every_s: float) -> None:
        """The scheduler says what is ours from now on."""
        if name not in self._serials:
            return
        self._serials[name] = serial
        if name.startswith("requests"):
            self._share.set(time.monotonic(), requests=share)
        else:
            self._share.set(time.monotonic(), nbytes_per_s=share * self._limits.nbytes_per_s / PARTS)
        self._again.callback_time = 1e3 * every_s
        self._report()

    async def _divide_evenly(self) -> None:
        """As much for each worker as there are workers; a new one waits until the others must have noticed."""
        limits, first = self._limits, True
        while True:
            n = max(len(await self._worker.scheduler.ncores()), 1)
            if not first:
                each = limits.requests // n if math.isfinite(limits.requests) else math.inf
                if not each:
                    logger.warning("%d workers share %g requests in flight: none", n, limits.requests)
                self._share.set(time.monotonic(), requests=each, nbytes_per_s=limits.nbytes_per_s / n)
            await asyncio.sleep(2 * EVEN_EVERY_S if first else EVEN_EVERY_S)
            first = False


def _by_value(plugin: SharingPlugin) -> bytes:
    """Pickled with its code."""
    modules = sys.modules[__name__], budget
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        pickled: bytes = cloudpickle.dumps(plugin)
        return pickled
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
