"""Keeps the servers of a fleet at the number that the load wants, for as long as it is the one that controls it.

Once a second it reads what the jobs say of their servers, asks the policy how many there shall be, submits and disowns jobs,
and writes the list that clients read. The batch system is asked only about jobs that say nothing::

    job waits                          its reason is the fleet's note
    job ends before its server serves  another one, with pauses; after the third in a row that is the fleet's trouble
    server will leave soon             another one is submitted, so early that it is there in time
    server says nothing                off the list; replaced when its job has ended, or after a minute
    one server too many                disowned: its job ends itself once its requests have ended

What it knows is in the folder, so that another controller can go on where this one was killed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import os
import platform
import threading
import time
import uuid
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from typing import Literal

from daskonic.deploy.job import BatchJob
from daskonic.deploy.state import JobState
from daskonic.errors import BatchSystemError, ConfigError
from daskonic.fleet.job import SILENT_S, Member, job_of
from daskonic.fleet.scaling import Meter, choose_models, spare
from daskonic.fleet.spec import Spec
from daskonic.roster import Entry, Folder, Roster

__all__ = ["Controller"]

logger = logging.getLogger(__name__)

LOOK_S = 1.0
LOST_S = 60.0
"""So long, though its job runs, and the job is cancelled."""
ASK_S, LONG_ASK_S = 2.0, 10.0
"""Between questions to the batch system: where a job is young or silent, and where jobs just wait."""
YOUNG_S = 20.0
GONE_S = 90.0
"""A disowned job that is still there after that is cancelled."""
LEAD, LONGEST_LEAD_S = 1.5, 300.0
RECENT = 8
MOST_FAILURES = 3
PAUSE_S, LONGEST_PAUSE_S = 2.0, 300.0
CLOSING_S = 30.0


class Controller:
    """One at a time for a fleet.

    Parameters
    ----------
    folder : Folder

    Attributes
    ----------
    roster : Roster
        As it was written last.

    Raises
    ------
    ConfigError
        There is no such fleet.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._spec = Spec.read(folder)
        self._servers: dict[str, Member] = {}
        self._scaling = self._spec.scaling(time.monotonic())
        self._meter = Meter(self._spec.settle_s)
        self._end = threading.Event()
        self._ending: Literal["stop", "detach"] = "detach"
        self._asked_servers = folder.asked()
        self._asked_s = 0.0
        self._failures = 0
        self._not_before = 0.0
        self._trouble = self._note = ""
        self._start_s: deque[float] = deque(maxlen=RECENT)
        self._is_complete = self._is_written = self._is_deposed = False
        self.roster = Roster()

    def end(self, how: Literal["stop", "detach"]) -> None:
        """From any thread: cancel all jobs and remove the fleet, or leave it to whoever attaches next."""
        self._ending = how
        self._end.set()

    def take_over(self) -> None:
        """Become the one that controls the fleet; go on with the jobs that there are.

        Raises
        ------
        ConfigError
            Somebody else controls it.
        """
        before = self._folder.roster() or Roster()
        for term in itertools.count(before.term + 1):
            before = self._folder.roster() or before
            self._refuse_controlled(before)
            if self._folder.claim(term):
                break
        for key, number in before.jobs.items():
            entry = self._folder.entry(key) or Entry()
            if (
                number or entry.job
            ):  # else it was perhaps never submitted; if it was, it ends as it is not wanted
                server = self._servers[key] = Member(key, self._job(key), entry.models, time.time(), entry)
                server.job.job_id = number or entry.job
                server.has_served = entry.state != "starts"
        self._is_complete = bool(before.servers)
        self.roster = Roster(term, before.beat, servers=before.servers)
        self._publish()
        if self._servers:
            logger.info("%s: taken over from %s with %d jobs", self._folder, before.who, len(self._servers))

    async def run(self) -> None:
        """Until :meth:`end`, or until another one controls the fleet, or it is gone."""
        if self._servers:
            self._scaling.wanted = max(len(self._servers), self._scaling.wanted)
        beating = asyncio.create_task(self._beat())
        while not self._end.is_set():
            if self._folder.is_to_stop():
                self.end("stop")
            try:
                await self._look()
            except OSError as error:
                logger.warning("%s: %s", self._folder, error)
            await asyncio.to_thread(self._end.wait, LOOK_S)
        beating.cancel()
        if not self._is_deposed:
            await (self._stop() if self._ending == "stop" else self._detach())

    async def _beat(self) -> None:
        """Show again and again that somebody controls the fleet, also while the batch system takes a minute to answer."""
        while True:
            await asyncio.sleep(LOOK_S)
            with suppress(OSError):
                self._publish()

    # -- one at a time ----------------------------------------------------------------------------

    def _refuse_controlled(self, roster: Roster) -> None:
        """ConfigError if somebody controls the fleet: it takes a moment to see that nobody does."""
        if not roster.pid or (roster.host == platform.node() and not _lives(roster.pid)):
            return
        begin, now = roster, time.monotonic()
        while time.monotonic() < now + SILENT_S:
            time.sleep(LOOK_S / 4)
            latest = self._folder.roster() or begin
            if (latest.term, latest.beat) != (begin.term, begin.beat):
                if not latest.pid:
                    return
                raise ConfigError(
                    f"{self._folder} is controlled by {latest.who}; servers=['fleet:{self._folder.path.name}'] uses it as it is"
                )

    def _see_successor(self) -> None:
        """Give up if another one has taken the fleet over, which it may if this process stood still, or removed it."""
        roster = self._folder.roster()
        mine = self.roster.host, self.roster.pid
        self._is_deposed |= self._folder.is_gone() if roster is None else (roster.host, roster.pid) != mine
        if self._is_deposed:
            logger.warning(
                "%s is controlled by %s now", self._folder, "nobody" if roster is None else roster.who
            )
            self._end.set()

    # -- once a second ----------------------------------------------------------------------------

    async def _look(self) -> None:
        """Compare servers, jobs and load."""
        self._read()
        await self._ask()
        asked = self._folder.asked()
        demand, self._asked_servers = asked != self._asked_servers, asked
        now = time.monotonic()
        sums = {
            s.key: (s.entry.requests, s.entry.queue_s, s.entry.compute_s)
            for s in self._servers.values()
            if s.serves
        }
        before = self._scaling.wanted
        load = self._meter.load(now, sums, demand=demand)
        wanted = self._scaling.look(now, load)
        if wanted != before:
            told = (
                f"{load.queue_s * 1e3:.3g} ms in queues, {load.compute_s * 1e3:.3g} ms computed"
                if load.requests
                else ""
            )
            why = told or ("requests wait" if demand else "no requests")
            logger.info("%s: %d servers wanted instead of %d (%s)", self._folder, wanted, before, why)
        self._disown(wanted)
        await self._submit(wanted)
        self._publish()

    def _read(self) -> None:
        """What the jobs say."""
        for server in self._servers.values():
            entry = self._folder.entry(server.key)
            if entry is None:
                continue
            server.entry = entry
            if entry.beat:
                server.still_s = server.pulse.still_s(entry)
            if server.serves and not server.has_served:
                server.has_served = True
                self._start_s.append(time.time() - server.submitted_s)
                self._failures, self._trouble = 0, ""
                logger.info("%s: %s serves (job %s)", self._folder, entry.address, server.job.job_id)

    async def _ask(self) -> None:
        """The batch system, about jobs that say nothing."""
        silent = [
            s for s in self._servers.values() if not s.entry.beat or s.still_s > SILENT_S or s.is_disowned
        ]
        silent += [
            s for s in self._servers.values() if s.entry.state in ("leaves", "ended") and s not in silent
        ]
        known = [s for s in silent if s.job.job_id]
        young = any(s.entry.beat or time.time() < s.submitted_s + YOUNG_S for s in known)
        if not known:
            self._note = ""
        if not known or time.monotonic() < self._asked_s + (ASK_S if young else LONG_ASK_S):
            return
        self._asked_s = time.monotonic()
        try:
            states = await type(known[0].job).states([s.job for s in known])
        except BatchSystemError as error:  # it may be away for a while; servers are not
            self._note = str(error)
            return
        waiting: Counter[str] = Counter()
        for server in known:
            state = states.get(str(server.job.job_id), JobState("ended", "not known any more"))
            if state.phase == "ended":
                await self._ended(server, state)
            elif server.is_disowned and (state.phase == "waits" or time.time() > server.disowned_s + GONE_S):
                await self._drop(server, "cancelled")
            elif server.still_s > LOST_S:
                await self._drop(server, f"cancelled, for it has said nothing for {server.still_s:.0f} s")
            elif not server.entry.beat:
                waiting[state.words] += 1
        listed = ", ".join(f"{n} {words}" for words, n in waiting.most_common(3))
        self._note = f"jobs: {listed}" if listed else ""

    async def _ended(self, server: Member, state: JobState) -> None:
        """A job is over."""
        at = f" on {state.node}" if state.node else ""
        why = server.entry.why or state.words
        await self._drop(server, f"ended{at}: {why}")
        if not server.has_served and not server.is_disowned:
            words = server.entry.why or server.job.last_words()
            self._failed(
                f"job {server.job.job_id} ended{at} before its server was ready: {state.words}; {words}"
            )

    async def _drop(self, server: Member, what: str) -> None:
        """Forget a job, which is taken out of the batch system if it is still there."""
        logger.info("%s: job %s %s", self._folder, server.job.job_id, what)
        await server.job.close()
        self._servers.pop(server.key, None)
        self._folder.drop_entry(server.key)

    def _disown(self, wanted: int) -> None:
        """Those that are too many: jobs that do not serve yet, the last one first, then those that end first."""
        stay = {s.key: s for s in self._servers.values() if s.stays(self._lead_s())}
        while len(stay) > wanted:
            order = sorted(stay, key=lambda k: (stay[k].serves, stay[k].entry.leaves_s, -stay[k].submitted_s))
            models = {key: stay[key].models for key in order}
            key = order[0] if not wanted else spare(models, order)
            if key is None:
                return
            stay.pop(key).disowned_s = time.time()
            logger.info("%s: job %s is not wanted any more", self._folder, self._servers[key].job.job_id)

    async def _submit(self, wanted: int) -> None:
        """Those that are missing."""
        while time.monotonic() >= self._not_before:
            stay = [s for s in self._servers.values() if s.stays(self._lead_s())]
            if len(stay) >= wanted:
                return
            key = uuid.uuid4().hex[:8]
            models = choose_models(self._spec.models, [s.models for s in stay], self._spec.per_server)
            server = Member(key, self._job(key), models, time.time())
            self._folder.write_entry(key, Entry(models=models))
            self._servers[key] = server
            self._publish()  # before it is submitted: a job that is not on the list ends
            if self._is_deposed:
                return
            try:
                await server.job.start()
            except BatchSystemError as refusal:
                del self._servers[key]
                self._folder.drop_entry(key)
                self._failed(str(refusal), fatal=True)
                return

    def _failed(self, why: str, *, fatal: bool = False) -> None:
        """A job came to nothing: pause, and tell clients if there is no server at all."""
        self._failures += 1
        self._not_before = time.monotonic() + min(PAUSE_S * 2**self._failures, LONGEST_PAUSE_S)
        logger.warning("%s: %s", self._folder, why)
        if (fatal or self._failures >= MOST_FAILURES) and not any(s.serves for s in self._servers.values()):
            self._trouble = why

    def _publish(self) -> None:
        """Write the roster. Servers are listed once all models have one: a client that asks for one finds it."""
        if self._is_written:
            self._see_successor()
        if self._is_deposed:
            return
        serving = [s for s in self._servers.values() if s.serves]
        self._is_complete = bool(serving) and (
            self._is_complete or {m for s in serving for m in s.models} >= set(self._spec.models)
        )
        self.roster = Roster(
            term=self.roster.term,
            beat=self.roster.beat + 1,
            written_s=time.time(),
            host=platform.node(),
            pid=os.getpid(),
            jobs={s.key: str(s.job.job_id or "") for s in self._servers.values() if not s.is_disowned},
            servers=tuple(sorted(s.entry.address for s in serving)) if self._is_complete else (),
            models=self._spec.models,
            note=self._note,
            trouble=self._trouble,
        )
        self._folder.write_roster(self.roster)
        self._is_written = True

    def _job(self, key: str) -> BatchJob:
        """A job, not submitted yet."""
        return job_of(self._spec.system, self._folder.path, key, dict(self._spec.options))

    def _lead_s(self) -> float:
        """How long a server takes from its submission until it serves, and some more."""
        return min(LEAD * max(self._start_s, default=0.0), LONGEST_LEAD_S)

    # -- the end ----------------------------------------------------------------------------------

    async def _stop(self) -> None:
        """No job and no folder."""
        for server in self._servers.values():
            server.disowned_s = time.time()
        self._publish()
        await asyncio.gather(*(server.job.close() for server in self._servers.values()))
        end = time.monotonic() + CLOSING_S
        with suppress(BatchSystemError):
            while self._servers and time.monotonic() < end:
                jobs = [s.job for s in self._servers.values()]
                states = await type(jobs[0]).states(jobs)
                if all(state.phase == "ended" for state in states.values()):
                    break
                await asyncio.sleep(LOOK_S / 2)
        self._folder.remove()
        logger.info("%s has ended", self._folder)

    async def _detach(self) -> None:
        """Servers go on for as long as the fleet's patience, or until somebody else controls them."""
        self._publish()
        self._folder.write_roster(dataclasses.replace(self.roster, pid=0, beat=self.roster.beat + 1))


def _lives(pid: int) -> bool:
    """Whether a process of this host is there, and not only waits for its parent to hear of its end."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
