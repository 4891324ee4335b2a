"""Where results go when every worker leaves and the next one is not there yet: to the scheduler's own machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import dask.config
from distributed import Scheduler, Worker
from distributed.core import Status
from distributed.scheduler import WorkerState

__all__ = ["Keeper"]

logger = logging.getLogger(__name__)


class Keeper(Worker):
    """A worker in the scheduler's process that computes nothing: it is paused from its first moment.

    Results that it holds go to disk when they are many. It lives until there is a worker to take them.
    """

    def __init__(self, scheduler: str, **kwargs: Any) -> None:
        # Its process is the user's own: what counts is what the keeper holds, and there is no more to be stopped.
        with dask.config.set(
            {"distributed.worker.memory.spill": False, "distributed.worker.memory.pause": False}
        ):
            super().__init__(scheduler, nthreads=1, dashboard=False, **kwargs)

    @property
    def status(self) -> Status:
        """As of any worker, but never running."""
        return Worker.status.fget(self)  # type: ignore[no-any-return]

    @status.setter
    def status(self, value: Status) -> None:
        Worker.status.fset(self, Status.paused if value == Status.running else value)

    async def take_from(self, leaving: Iterable[WorkerState], scheduler: Scheduler) -> None:
        """Move here what these workers have.

        Moved, not copied: Dask drops copies of its own accord, those of a paused worker first.
        """
        for worker in leaving:
            here = {task.key for task in worker.has_what}
            if not here:
                continue
            logger.info(
                "%d results of %s, which leaves, are kept here until there is another worker",
                len(here),
                worker.name,
            )
            failed = await scheduler.gather_on_worker(self.address, {key: [worker.address] for key in here})
            if worker.address in scheduler.workers:
                await scheduler.delete_worker_data(worker.address, list(here - failed), f"keep-{time.time()}")
