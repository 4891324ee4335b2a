"""A fleet on real batch systems: servers come and go by load, die, reach their limits, lose their controller; no row is lost."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import dask.config
import numpy as np
import pytest
from daemons import eventually
from triton_models import write_model

import daskonic as dk
from daskonic.errors import BatchSystemError, DaskonicError
from daskonic.fleet import background, fleet_status

ROWS, THREADS = 20, 6


@pytest.fixture
def fleet(system, tmp_path):
    """Make a fleet of small jobs without GPUs, stopped in the end if it is still there."""
    write_model(tmp_path / "models", "sum", kind="sum", fixed_ms=100)
    name = f"test-{system.name}"

    def make(**options):
        small = {
            "memory": "300 MB",
            "log_directory": str(tmp_path / "jobs"),
            "gpus": 0,
            "walltime": "01:00:00",
        }
        disk = {"disk": "100 MB"} if system.name == "htcondor" else {}
        quick = {"settle": "2 s", "idle": "4 s"}
        return dk.ServerFleet(name, system.name, tmp_path / "models", **(small | disk | quick | options))

    with dask.config.set({"daskonic.fleets": str(tmp_path / "fleets")}):
        yield make
        if (tmp_path / "fleets" / name).exists():
            background.stop(name)


@pytest.fixture
def analysis():
    """Threads that score rows all the time, and note what is wrong."""
    runs = []

    def begin(address):
        runs.append(Analysis(address))
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


class Analysis:
    """What the clients of a fleet do."""

    def __init__(self, address):
        self.model = dk.Model("sum", servers=[address], timeout="90 s")
        self.wrong, self.answers = [], 0
        self._over = threading.Event()
        self._threads = [threading.Thread(daemon=True, target=self._run, args=(i,)) for i in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def _run(self, seed):
        rng = np.random.default_rng(seed)
        while not self._over.is_set():
            x = rng.random((ROWS, 16), dtype=np.float32)
            try:
                y = self.model(x)
                if not np.allclose(y[:, 0], x.sum(axis=1), rtol=1e-5):
                    self.wrong.append("rows are mixed up")
                self.answers += 1
            except DaskonicError as error:
                self.wrong.append(repr(error))

    def goes_on(self):
        """Whether there are answers to requests of now."""
        before = self.answers
        return eventually(lambda: self.answers > before + 2 * THREADS, 60)

    def end(self):
        """No more."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.model.pool().close()


def jobs_that_serve(name):
    """Numbers of the jobs whose servers take requests."""
    return {job.job for job in fleet_status(name).jobs if job.state == "serves"}


def kill_one_server(folder):
    """Without a word to it, as when its node is lost; whether there was one."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"daskonic.fleet.server" in words and str(folder).encode() in words:
            os.kill(int(process.name), signal.SIGKILL)
            return True
    return False


def test_from_zero_to_two_servers_and_back(fleet, system, analysis):
    """The first request brings a server, long queues a second one, and when nobody asks there is no job."""
    with fleet(maximum=2) as made:
        assert system.jobs() == []
        run = analysis(made.address)
        assert eventually(lambda: len(jobs_that_serve(made.name)) == 2, 120), made
        pool = run.model.pool()
        assert eventually(lambda: sum(e.requests_total > 0 for e in pool.stats().endpoints) == 2, 60), (
            pool.stats()
        )
        assert run.goes_on()
        run.end()
        assert eventually(lambda: system.jobs() == [], 60), made
    assert run.wrong == []


def test_deaths_and_limits_cost_no_row(fleet, system, analysis):
    """A server dies with its job, its controller is killed and another client attaches, jobs reach their limits: all rows are right."""
    made = fleet(minimum=1, walltime="00:00:40", margin="8 s")
    made.create()
    controller = background.control(made.name)
    run = analysis(made.address)
    assert eventually(lambda: jobs_that_serve(made.name), 60), made
    (first,) = jobs_that_serve(made.name)
    assert run.goes_on()

    os.kill(controller, signal.SIGKILL)
    attached = dk.ServerFleet.attach(made.name)
    assert jobs_that_serve(made.name) <= {first}  # the same job: nothing was started anew
    assert run.goes_on()

    assert kill_one_server(attached.address.removeprefix("fleet:"))
    assert eventually(lambda: jobs_that_serve(made.name) - {first}, 60), made
    (second,) = jobs_that_serve(made.name) - {first}
    assert eventually(lambda: jobs_that_serve(made.name) - {first, second}, 90), made
    assert run.goes_on()
    run.end()
    attached.stop()
    assert run.wrong == []
    assert eventually(lambda: system.jobs() == [])


def test_no_job_outlives_its_fleet(fleet, system):
    """Servers that nobody controls end by themselves, and so do those whose fleet is gone."""
    made = fleet(minimum=1, patience="2 s")
    made.create()
    controller = background.control(made.name)
    assert eventually(lambda: jobs_that_serve(made.name), 60), made
    os.kill(controller, signal.SIGKILL)
    assert eventually(lambda: system.jobs() == [], 60), made


def test_a_refusal_is_told_to_who_waits(fleet, system, tmp_path):
    """Where the batch system takes no such job, the first call fails with its words."""
    refused = {
        "slurm": {"queue": "nowhere"},
        "htcondor": {"job_extra_directives": {"request_cpus": "many cores"}},
    }
    with fleet(**refused[system.name]) as made:
        model = dk.Model("sum", servers=[made.address], timeout="60 s")
        with pytest.raises(BatchSystemError, match="[Ii]nvalid partition|request_cpus|RequestCpus|parse"):
            model(np.ones((2, 16), np.float32))
        model.pool().close()
