"""What dask-jobqueue's clusters leave to their user: replace jobs that end, and say why none runs.

Twice a second the cluster looks at its workers, which costs nothing, as the scheduler is in this process. The batch
system is asked only when a worker is gone or missing::

    worker leaves soon (its job ends)      its job is replaced, so early that the next worker is there in time
    worker gone, job ended                 replaced
    worker gone, job runs                  said; if the worker is not back after a while the job is cancelled and replaced
    job ended without a worker             replaced, with pauses; at the third in a row the cluster gives up
    no worker, jobs wait                   the batch system's reason is logged
    all workers leave at one time          their results are kept here until there are others

Under ``adapt()`` an ended job is only struck off; whether there shall be another one is Dask's to say.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections import Counter, deque
from contextlib import suppress
from typing import Any

import dask.config
from dask.utils import parse_timedelta
from distributed.core import Status
from distributed.protocol.pickle import dumps
from distributed.scheduler import WorkerState
from tornado.ioloop import PeriodicCallback

from daskonic.deploy.adaptive import ServerAdaptive
from daskonic.deploy.job import BatchJob
from daskonic.deploy.jobqueue import JobQueueCluster
from daskonic.deploy.keeper import Keeper
from daskonic.deploy.state import JobState
from daskonic.deploy.worker import LEAVES
from daskonic.errors import BatchSystemError

__all__ = ["JobCluster"]

logger = logging.getLogger(__name__)

LOOK_S = 0.5
SOON_S, ASK_S, YOUNG_S = 2.0, 10.0, 20.0
"""Between questions to the batch system: where a worker is gone or a job is young, and where jobs just wait.
Administrators dislike more."""

LONGEST_LEAD_S = 60.0
RECENT = 8
SILENT_S = 30.0
REPEAT_S = 600.0
MOST_FAILURES = 3
PAUSE_S = 2.0


class JobCluster(JobQueueCluster):
    """Dask workers in batch jobs, as many as asked for, until the cluster is closed.

    Attributes
    ----------
    trouble : BatchSystemError or None
        Why the cluster gave up. Tasks then fail with it, until ``scale()`` or ``adapt()`` is called again.
    """

    job_cls: type[BatchJob]
    scheduler: Any  # in this process
    workers: dict[str, BatchJob]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.trouble: BatchSystemError | None = None
        self._failures = 0
        self._not_before = 0.0
        self._joined: set[str] = set()
        self._lost: dict[str, float] = {}
        self._leaving: dict[str, BatchJob] = {}
        self._asked = 0.0
        self._alone_since = time.monotonic()
        self._said: tuple[str, float] = ("", 0.0)
        self._start_s: deque[float] = deque(maxlen=RECENT)
        self._keeper: Keeper | None = None
        self._looking: list[PeriodicCallback] = []
        super().__init__(*args, **kwargs)

    def scale(self, *args: Any, **kwargs: Any) -> Any:
        """Ask for a number of workers or jobs; jobs that end are replaced.

        Raises
        ------
        BatchSystemError
            The batch system refuses such jobs.
        """
        called_by_user = not self.asynchronous
        if called_by_user:
            self._try_again()
        scaled = super().scale(*args, **kwargs)
        if called_by_user:
            self.sync(self._correct_state)
            if self.trouble is not None:
                raise self.trouble
        return scaled

    def adapt(self, *args: Any, **kwargs: Any) -> Any:
        """Let Dask decide how many workers there shall be; no more than the servers can serve."""
        self._try_again()
        kwargs.setdefault("Adaptive", ServerAdaptive)
        return super().adapt(*args, **kwargs)

    def new_worker_spec(self) -> dict[str, Any]:
        """Another name each time: a worker that leaves still has its own."""
        self._i += 1
        return dict(super().new_worker_spec())

    async def _start(self) -> None:
        await super()._start()
        if not self._looking:
            self._looking = [
                PeriodicCallback(look, LOOK_S * 1000) for look in (self._look, self._keep_results)
            ]
            for looking in self._looking:
                looking.start()

    async def _close(self) -> None:
        for looking in self._looking:
            looking.stop()
        await asyncio.gather(*(job.close() for job in self._leaving.values()))
        self._leaving.clear()
        if self._keeper is not None:
            await self._keeper.close()
        await super()._close()
        for name, file in vars(self).items():
            if name.startswith("_job_") and hasattr(file, "close"):
                file.close()  # certificates, which dask-jobqueue leaves to the garbage collector

    async def _correct_state_internal(self) -> None:
        """Submit and cancel as planned; jobs that were refused are tried again later."""
        if time.monotonic() < self._not_before and self.status == Status.running:
            self._correct_state_waiting = None
            return
        try:
            await super()._correct_state_internal()
        except BatchSystemError as refusal:
            accepted = any(job.job_id for job in self.workers.values()) or bool(self._start_s)
            for name in [name for name, job in self.workers.items() if not job.job_id]:
                del self.workers[name]
            self._failed(refusal, fatal=not accepted)

    async def _look(self) -> None:
        """Compare workers, jobs and plan."""
        if self.status != Status.running:
            return
        try:
            gone, missing = self._compare()
            young = any(time.time() < job.submitted_s + YOUNG_S for job in missing.values())
            if time.monotonic() > self._asked + (SOON_S if gone or young else ASK_S) and (gone or missing):
                self._asked = time.monotonic()
                states = await self.job_cls.states([*gone.values(), *missing.values()])
                self._strike_off(gone, missing, states)
                self._explain(missing, states)
            if self.trouble is not None:
                self._fail_tasks(self.trouble)
            elif self.worker_spec.keys() - self.workers.keys():
                await self._correct_state()
        except BatchSystemError as error:
            self._say(str(error))
        except Exception:
            logger.exception("looking after the jobs of %s", self.name)

    def _compare(self) -> tuple[dict[str, BatchJob], dict[str, BatchJob]]:
        """Jobs that had a worker and have none, and those that have had none yet; starts no new one for the former."""
        here: dict[str, list[WorkerState]] = {}
        for worker in self.scheduler.workers.values():
            here.setdefault(self._job_of(str(worker.name)), []).append(worker)
        if here:
            self._alone_since = time.monotonic()
        for name in (here.keys() & self.workers.keys()) - self._joined:
            self._start_s.append(time.time() - self.workers[name].submitted_s)
        # A job that Dask has cancelled for want of its worker has a successor of the same name.
        self._joined = (self._joined & self.workers.keys()) | here.keys()
        self._lost = {name: s for name, s in self._lost.items() if name in self.workers and name not in here}
        gone: dict[str, BatchJob] = {}
        missing: dict[str, BatchJob] = {}
        for name, job in list(self.workers.items()):
            if name in here:
                if any(self._leaves_soon(worker) for worker in here[name]):
                    logger.info("the worker of job %s leaves before the job ends", job.job_id)
                    self._leaving[name] = job
                    self._replace(name)
            else:
                (gone if name in self._joined else missing)[name] = job
        for name in [name for name in self._leaving if name not in here]:
            job = self._leaving.pop(name)
            self._futures.add(asyncio.ensure_future(job.close()))
        if here.keys() & self.workers.keys():
            self._failures = 0
        return gone, missing

    def _leaves_soon(self, worker: WorkerState) -> bool:
        """Whether it leaves before a job submitted now would have a worker."""
        lead_s = min(statistics.median(self._start_s), LONGEST_LEAD_S) if self._start_s else 0.0
        leaves_s = worker.extra.get(LEAVES)
        soon = leaves_s is not None and time.time() + lead_s > leaves_s
        return soon or worker.status == Status.closing_gracefully

    async def _keep_results(self) -> None:
        """Where all workers leave at one time, take what they have; give it away as soon as there is another worker."""
        scheduler = self.scheduler
        keeper = "" if self._keeper is None else self._keeper.address
        workers = [w for w in scheduler.workers.values() if w.address != keeper]
        leaving = [w for w in workers if w.status == Status.closing_gracefully]
        if self._keeper is None and leaving and not scheduler.running:
            self._keeper = await Keeper(scheduler.address, name=f"{self.name}-keeper", security=self.security)
        if self._keeper is None:
            return
        if not scheduler.running:
            await self._keeper.take_from(leaving, scheduler)
        elif await scheduler.retire_workers(workers=[self._keeper.address], close_workers=True, remove=True):
            await self._keeper.finished()
            self._keeper = None

    def _job_of(self, worker: str) -> str:
        """Name of the job that a worker belongs to; of several workers of a job each has a number behind it."""
        return worker.rpartition("-")[0] if "group" in self.new_spec else worker

    def _strike_off(
        self, gone: dict[str, BatchJob], missing: dict[str, BatchJob], states: dict[str, JobState]
    ) -> None:
        """Replace jobs that are not in the batch system any more, and those that have lost their workers for good."""
        for name, job in (gone | missing).items():
            state = states.get(str(job.job_id), JobState("ended", "not known any more"))
            if self.workers.get(name) is not job:
                continue
            at = f" on {state.node}" if state.node else ""
            if state.phase == "ended":
                logger.info("job %s%s has ended: %s", job.job_id, at, state.words)
            elif name in missing or not self._is_given_up(name, f"job {job.job_id}{at} ({state.words})"):
                continue
            self._futures.add(asyncio.ensure_future(job.close()))  # held jobs stay in the queue
            self._replace(name)
            if name in missing:
                words = f"; its log ends with: {said}" if (said := job.last_words()) else ""
                self._failed(
                    BatchSystemError(
                        f"job {job.job_id} ended{at} before its worker was there: {state.words}{words}"
                    )
                )

    def _is_given_up(self, name: str, job: str) -> bool:
        """Whether a job has been without its worker for too long: its node is lost, before the batch system hears of it."""
        patience_s: float = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
        if name not in self._lost:
            self._lost[name] = time.monotonic()
            logger.info(
                "%s has lost its worker; unless that is back within %.0f s the job is replaced",
                job,
                patience_s,
            )
        return time.monotonic() > self._lost[name] + patience_s

    def _replace(self, name: str) -> None:
        """Strike a job off the plan, and plan another one if it is for us to decide."""
        self.workers.pop(name, None)
        if self.worker_spec.pop(name, None) is not None and not self._is_adaptive():
            self.worker_spec.update(self.new_worker_spec())

    def _is_adaptive(self) -> bool:
        """Whether Dask decides how many workers there are."""
        return self._adaptive is not None and self._adaptive.state in ("starting", "running")

    def _failed(self, error: BatchSystemError, fatal: bool = False) -> None:
        """One more job came to nothing; pause, or give up."""
        self._failures += 1
        self._not_before = time.monotonic() + PAUSE_S * 2**self._failures
        if fatal or (self._failures >= MOST_FAILURES and not self.scheduler.workers):
            self._give_up(error)
        else:
            logger.warning("%s", error)

    def _give_up(self, error: BatchSystemError) -> None:
        """No more jobs; those that wait would fail too."""
        self.trouble = error
        logger.error("no more jobs are submitted: %s", error)
        if self._adaptive is not None:
            self._adaptive.stop(reason="jobs-fail")
        for name in [name for name in self.worker_spec if name not in self._joined]:
            del self.worker_spec[name]
        self._not_before = 0.0
        self._correct_state()
        self._fail_tasks(error)

    def _try_again(self) -> None:
        """Forget earlier trouble."""
        self.trouble, self._failures, self._not_before = None, 0, 0.0

    def _fail_tasks(self, error: BatchSystemError) -> None:
        """Tell those who wait for tasks that nobody will compute, as Dask does when no worker comes in time."""
        scheduler = self.scheduler
        if scheduler.running:
            return
        stimulus, exception = f"no-jobs-{time.time()}", dumps(error)
        for task in [*scheduler.unrunnable, *scheduler.queued]:
            with suppress(KeyError):  # gone with the one before
                scheduler.transition(
                    task.key, "erred", exception=exception, cause=task.key, stimulus_id=stimulus
                )

    def _explain(self, missing: dict[str, BatchJob], states: dict[str, JobState]) -> None:
        """Say why there is no worker, in the batch system's words."""
        waiting = Counter(
            s.words for j in missing.values() if (s := states.get(str(j.job_id))) and s.phase != "ended"
        )
        if not waiting or time.monotonic() < self._alone_since + SILENT_S:
            return
        listed = ", ".join(f"{n} {words}" for words, n in waiting.most_common(3))
        self._say(
            f"no worker has been there for {time.monotonic() - self._alone_since:.0f} s; jobs: {listed}",
            listed,
        )

    def _say(self, message: str, about: str = "") -> None:
        """Warn, but not of the same again and again."""
        about, now = about or message, time.monotonic()
        if about != self._said[0] or now > self._said[1] + REPEAT_S:
            self._said = (about, now)
            logger.warning("%s", message)
