"""A Dask worker that leaves in order before its batch job is ended.

Dask's own ``--lifetime`` drops tasks that run, and results for which no other worker is there at that moment: with
jobs shorter than the computation that end together, each generation of workers repeats the work of the last one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import signal
import time
from contextlib import suppress
from typing import Any

from distributed import Nanny, Worker
from distributed.comm.core import CommClosedError
from distributed.core import Status
from distributed.worker_state_machine import (
    ExecuteFailureEvent,
    FreeKeysEvent,
    RescheduleEvent,
    StateMachineEvent,
)

from daskonic.ending import job_end_s, job_margin_s

__all__ = ["LEAVES", "JobWorker", "dask_setup"]

logger = logging.getLogger(__name__)

LEAVES = "daskonic-leaves"
"""Key of what a worker tells the scheduler about itself: when it will leave (seconds since 1970), or None."""

WARNED_S = 20.0
"""How long a worker has, or takes, after SIGTERM; SLURM gives 30 s where its administrators do not say otherwise."""

CLOSING_S = 1.0
POLL_S = 0.2
ENDED = (Status.closing, Status.closed, Status.failed)


class JobWorker(Worker):
    """Before its job ends, or when it is told to end: no new task, finish what runs, hand results to others.

    Tasks that wait go to other workers at once. Results are moved as soon as another worker is there to take them;
    what fails meanwhile, is not moved or does not finish in time is computed again elsewhere.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._end_s = job_end_s()
        left_s = self._end_s - time.time()
        if left_s < math.inf:
            # Not all at the same moment, so that those that leave first find others.
            kwargs["lifetime"] = max(left_s - job_margin_s() * random.uniform(1.0, 1.5), 0.1)
        super().__init__(*args, **kwargs)

    async def start_unsafe(self) -> JobWorker:
        """Start, and listen to SIGTERM, by which batch systems announce the end of a job."""
        await super().start_unsafe()
        loop = asyncio.get_running_loop()
        with suppress(ValueError, RuntimeError):  # in a thread: somebody else's process
            loop.add_signal_handler(signal.SIGTERM, lambda: loop.create_task(self._warned()))
        return self

    async def get_startup_information(self) -> dict[str, Any]:
        """What the cluster shall know: when this worker will leave."""
        leaves_s = None if self.lifetime is None else time.time() + self.lifetime
        return dict(await super().get_startup_information()) | {LEAVES: leaves_s}

    async def execute(self, key: Any, *, stimulus_id: str) -> StateMachineEvent:
        """Run a task; one that fails while the job ends, for want of time most likely, is another worker's."""
        done = await super().execute(key, stimulus_id=stimulus_id)
        if isinstance(done, ExecuteFailureEvent) and self.status == Status.closing_gracefully:
            logger.info(
                "task %s failed in a job that ends, and is tried elsewhere: %s", key, done.exception_text
            )
            return RescheduleEvent(key=key, stimulus_id=f"job-ends-{time.time()}")
        return done

    async def _warned(self) -> None:
        """The batch system ends the job: a user cancelled it, or others go first."""
        self._end_s = min(self._end_s, time.time() + WARNED_S)
        await self.close_gracefully(restart=False, reason="job-ends")

    async def close_gracefully(
        self, restart: bool | None = None, reason: str = "worker-close-gracefully"
    ) -> None:
        """Leave in order, at the latest when the job ends."""
        if self.status in (*ENDED, Status.closing_gracefully):
            return
        logger.info("worker %s leaves: %s", self.name, reason)
        self.status = Status.closing_gracefully
        self._hand_back()
        with suppress(OSError, CommClosedError):  # no scheduler, nothing to hand over
            while time.time() < self._end_s - CLOSING_S and self.status not in ENDED:
                busy = self._is_busy()
                await asyncio.sleep(POLL_S)  # the scheduler hears of finished tasks a moment later
                if await self._handed_over() and not busy:
                    break
            # Told to the scheduler, the end of this worker is not held against tasks that still run.
            await self.scheduler.retire_workers(workers=[self.address], close_workers=False, remove=True)
        await self.close(nanny=not (self.lifetime_restart if restart is None else restart), reason=reason)

    def _is_busy(self) -> bool:
        """Whether a task runs, also one that lent its thread to another."""
        return bool(self.state.executing or self.state.long_running)

    def _hand_back(self) -> None:
        """Tasks that have not begun are other workers'."""
        stimulus = f"hand-back-{time.time()}"
        waiting = [t.key for t in self.state.tasks.values() if t.state in ("ready", "constrained", "waiting")]
        self.handle_stimulus(FreeKeysEvent(keys=waiting, stimulus_id=stimulus))
        for key in waiting:
            self.batched_send({"op": "reschedule", "key": key, "stimulus_id": stimulus})

    async def _handed_over(self) -> bool:
        """Move results to other workers; where there is none, the cluster fetches them. False until that is done."""
        if not self.data:
            return True
        if not set(await self.scheduler.ncores_running()) - {self.address}:
            return False
        return bool(
            await self.scheduler.retire_workers(workers=[self.address], close_workers=False, remove=False)
        )


_nannies: list[Nanny] = []


def dask_setup(nanny: Nanny) -> None:
    """In the nanny's process, to which a batch system may speak alone: hand SIGTERM on, and start no worker again."""
    _nannies.append(nanny)

    def hand_on(*_: Any) -> None:
        for each in _nannies:
            each.close_gracefully("job-ends")
            if each.pid:
                os.kill(each.pid, signal.SIGTERM)
        if not any(each.pid for each in _nannies):  # nothing to wait for
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, hand_on)
