"""Fleets without a batch system: the policy, the folder, clients that follow it, and a server's job."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import dask.config
import numpy as np
import pytest
from click.testing import CliRunner
from faults import eventually
from fleet_folder import list_servers, spec
from hypothesis import given
from hypothesis import strategies as st
from triton_models import write_model

import daskonic as dk
from daskonic.cli import main
from daskonic.errors import ConfigError
from daskonic.fleet import background, controller, server
from daskonic.fleet.scaling import Load, Meter, Scaling, choose_models, spare
from daskonic.roster import CLIENT_LOOKS_S, Entry, Folder, Pulse, Roster

FLOAT = np.dtype("f4")


@pytest.fixture
def folder(tmp_path):
    """An empty fleet that this process controls."""
    folder = Folder(tmp_path / "fleets" / "toy")
    spec(tmp_path).write(folder)
    list_servers(folder)
    return folder


# -- how many ---------------------------------------------------------------------------------------


def run(scaling, seconds, load, begin=0.0):
    """Numbers wanted in each second of a load that depends on the servers that there are."""
    return [scaling.look(begin + s, load(scaling.wanted)) for s in range(seconds)]


def queueing(offered):
    """Servers that take one request after the other, each 0.1 s; ``offered`` of them would be busy all the time."""

    def load(ready):
        if not ready:
            return Load(demand=offered > 0)
        busy = min(offered / ready, 0.95)
        return Load(ready, int(100 * offered), 0.1 * busy / (1 - busy) / 2, 0.1)

    return load


def test_nothing_is_asked_for_by_itself():
    """Without a client there is the minimum, for ever."""
    assert set(run(Scaling(0, 4, now=0), 1000, queueing(0))) == {0}
    assert set(run(Scaling(2, 4, now=0), 1000, lambda ready: Load(ready))) == {2}


def test_from_zero_and_back():
    """A client that waits brings one server; when nobody has asked for the idle time, none is left."""
    scaling = Scaling(0, 4, now=0, idle_s=60)
    assert run(scaling, 30, queueing(0.3))[-1] == 1
    wanted = run(scaling, 120, lambda ready: Load(ready), begin=30)
    assert wanted[50] == 1
    assert wanted[-1] == 0


@given(st.floats(0.05, 6.0))
def test_a_steady_load_ends_the_changes(offered):
    """Whatever the load is, the number goes up to what it needs, and then nothing changes any more."""
    scaling = Scaling(0, 8, now=0, settle_s=10, idle_s=30)
    wanted = run(scaling, 2000, queueing(offered))
    assert wanted[-1] >= offered
    assert len(set(wanted[1000:])) == 1
    changes = np.diff(wanted)
    assert np.count_nonzero(changes < 0) <= 3


def test_long_queues_must_last():
    """A burst shorter than the settling time changes nothing."""
    scaling = Scaling(1, 4, now=0, settle_s=10)
    burst = [9.0, 0.5]
    wanted = [scaling.look(t, queueing(burst[t % 12 > 8])(scaling.wanted)) for t in range(120)]
    assert set(wanted) == {1}


def test_servers_that_are_not_there_yet_are_waited_for():
    """While a batch system is slow, nothing more is asked of it."""
    scaling = Scaling(1, 8, now=0, settle_s=10)
    slow = Load(1, 100, 1.0, 0.1)
    assert run(scaling, 15, lambda _: slow)[-1] == 2
    assert set(run(scaling, 1000, lambda _: slow, begin=15)) == {2}


def test_queue_time_may_be_given():
    """With a longest queue time, that is what counts, and not the computing."""
    assert run(Scaling(1, 4, now=0, longest_queue_s=1.0), 100, lambda n: Load(n, 10, 0.9, 0.01))[-1] == 1
    assert run(Scaling(1, 4, now=0, longest_queue_s=1.0), 100, lambda n: Load(n, 10, 1.2, 0.01))[-1] == 4


def test_meter_counts_the_last_seconds():
    """Means are over the span, and a server that was started again does not count backwards."""
    meter = Meter(10.0)
    for t in range(100):
        load = meter.load(t, {"a": (10 * t, 1.0 * t, 2.0 * t)}, demand=False)
    assert (load.requests, load.queue_s, load.compute_s) == (100, 0.1, 0.2)
    again = meter.load(100, {"a": (5, 0.1, 0.1)}, demand=True)
    assert (again.ready, again.requests, again.demand) == (1, 0, True)


@given(st.integers(1, 7), st.integers(1, 4))
def test_models_are_spread_over_servers(n, most):
    """As few servers as can hold all models hold them all, and giving one back leaves a copy of each."""
    models, there = [f"m{i}" for i in range(n)], []
    for _ in range(-(-n // most)):
        there.append(choose_models(models, there, most))
    assert {m for each in there for m in each} == set(models)
    servers = dict(enumerate([*there, *there]))
    while (key := spare(servers, sorted(servers))) is not None:
        del servers[key]
        assert {m for each in servers.values() for m in each} == set(models)
    assert len(servers) <= n


# -- the folder ---------------------------------------------------------------------------------------


def test_one_of_many_controls(folder):
    """Of those who claim a term at one time one succeeds."""
    won = []
    threads = [threading.Thread(daemon=True, target=lambda: won.append(folder.claim(2))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 15 + [True]


def test_what_is_written_is_read(folder):
    """Rosters and entries come back as they were; what is not there is None."""
    roster = Roster(2, 3, 4.0, "here", 5, {"k": "17"}, ("a:1", "b:2"), ("m",), "waits", "")
    folder.write_roster(roster)
    assert folder.roster() == roster
    entry = Entry(1, 2.0, "serves", "n1", "17", "a:1", ("m",), requests=3)
    folder.write_entry("k", entry)
    assert folder.entry("k") == entry
    assert folder.entry("other") is None


def test_a_pulse_is_told_by_changes(monkeypatch):
    """Another machine's clock may be wrong: once seen, only whether the beat goes on counts."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 50.0)
    pulse = Pulse()
    assert pulse.still_s(Entry(beat=1, written_s=20.0)) == 30.0
    now[0] += 5
    assert pulse.still_s(Entry(beat=2, written_s=9000.0)) == 0.0
    now[0] += 5
    assert pulse.still_s(Entry(beat=2, written_s=9000.0)) == 5.0


def test_servers_are_found_in_time():
    """A server says that it is ready, the controller lists it, a client reads that: within five seconds in all."""
    assert server.BEAT_S + controller.LOOK_S + CLIENT_LOOKS_S <= 5


@pytest.mark.parametrize("step", ["ask_to_stop", "claim", "write_roster"])
def test_a_fleet_that_ends_while_it_is_stopped(folder, monkeypatch, step):
    """Its controller may remove it at any moment of another process's ``stop``; then that is done, too."""
    list_servers(folder, pid=0)
    then = getattr(Folder, step)

    def after_its_end(self, *arguments):
        self.remove()
        return then(self, *arguments)

    monkeypatch.setattr(Folder, step, after_its_end)
    background.stop(str(folder.path))
    assert folder.is_gone()


def test_a_fleet_is_controlled_once(folder, tmp_path):
    """While somebody writes the roster, attaching is refused; once nobody does, it is not."""
    over = threading.Event()

    def beat():
        while not over.wait(0.1):
            list_servers(folder, term=1)

    beating = threading.Thread(daemon=True, target=beat)
    beating.start()
    with pytest.raises(ConfigError, match=f"controlled by process {os.getpid()} on here"):
        dk.ServerFleet.attach(str(folder.path))
    over.set()
    beating.join()
    list_servers(folder, pid=0)
    fleet = dk.ServerFleet.attach(str(folder.path))
    assert folder.roster().term == 2
    fleet.stop()
    assert folder.is_gone()


# -- a job ---------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    """The program of a server's job, beside a folder that the test writes as a controller would."""
    folder = Folder(tmp_path / "toy")
    write_model(tmp_path / "models", "sum", kind="sum")
    started = []

    def start(patience_s=100.0, **environment):
        spec(tmp_path, patience_s=patience_s).write(folder)
        folder.write_entry("k", Entry(models=("sum",)))
        list_servers(folder, jobs={"k": ""})
        command = [sys.executable, "-m", "daskonic.fleet.server", str(folder.path), "k", "--nthreads", "1"]
        started.append(subprocess.Popen(command, env=os.environ | environment))
        return folder, started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def serves(folder):
    entry = folder.entry("k")
    return entry is not None and entry.state == "serves"


def test_a_job_serves_until_it_is_disowned(job):
    """Its server takes requests when it is listed; taken off the list of jobs, it ends what it has and then itself."""
    folder, process = job()
    assert eventually(lambda: list_servers(folder, jobs={"k": ""}) or serves(folder), 60)
    entry = folder.entry("k")
    x = np.ones((3, 16), FLOAT)
    assert dk.Model("sum", servers=[entry.address])(x)[:, 0].tolist() == [16.0] * 3
    assert eventually(
        lambda: list_servers(folder, entry.address, jobs={"k": ""}) or folder.entry("k").requests, 20
    )
    list_servers(folder)
    assert process.wait(60) == 0
    assert folder.entry("k").state == "ended"
    assert folder.entry("k").why == "it is not wanted any more"


@pytest.mark.parametrize("how", ["nobody", "signal", "time", "gone"])
def test_a_job_ends_itself(job, how):
    """Without a controller for the fleet's patience, at SIGTERM, before its time limit, and when its fleet is removed."""
    if how == "time":
        folder, process = job(DASKONIC_JOB_END_TIME=str(time.time() + 12), DASKONIC_JOB_MARGIN="8")
    else:
        folder, process = job(patience_s=3.0 if how == "nobody" else 100.0)
        assert eventually(lambda: list_servers(folder, jobs={"k": ""}) or serves(folder), 60)
    if how == "signal":
        process.send_signal(signal.SIGTERM)
    if how == "gone":
        folder.remove()
    assert process.wait(60) == 0
    said = {"nobody": "nobody has controlled", "signal": "batch system ends", "time": "time is over"}
    if how in said:
        assert said[how] in folder.entry("k").why


def test_a_server_that_cannot_start_is_said(job, tmp_path):
    """The reason is in the folder, for the controller."""
    shutil.rmtree(tmp_path / "models" / "sum")
    write_model(tmp_path / "models", "sum", kind="fails_to_load")
    folder, process = job()
    assert process.wait(60) == 81
    assert "the weights are not where they should be" in folder.entry("k").why


# -- the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "none"], "there is no fleet in"),
        (["stop", "none"], "there is no fleet in"),
        (["attach", "none"], "there is no fleet in"),
        (["start", "toy", "--cluster", "nowhere", "--models", "{models}"], "no cluster 'nowhere'"),
        (["start", "toy", "--cluster", "slurm", "--models", "/nowhere"], "does not exist"),
        (
            ["start", "toy", "--cluster", "slurm", "--models", "{models}", "--model", "x"],
            "no model x; it has sum",
        ),
        (
            ["start", "toy", "--cluster", "slurm", "--models", "{models}", "--min", "2"],
            "minimum is 2 and maximum 1",
        ),
        (["start", "toy", "--cluster", "slurm", "--models", "{models}", "--idle", "soon"], "idle is 'soon'"),
    ],
)
def test_errors_are_one_line(arguments, said, tmp_path, monkeypatch):
    """What is wrong is said before anything is submitted."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "models", "sum", kind="sum")
    arguments = [a.format(models=tmp_path / "models") for a in arguments]
    with dask.config.set({"daskonic.fleets": str(tmp_path / "fleets")}):
        result = CliRunner().invoke(main, ["fleet", *arguments])
    assert result.exit_code in (2, 3)
    assert said in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_status(folder):
    """What a fleet does, for a person and for a script."""
    list_servers(folder, "n1:1", jobs={"k": "17", "l": ""})
    folder.write_entry(
        "k", Entry(3, time.time(), "serves", "n1", "17", "n1:1", ("double",), requests=4, queue_s=0.2)
    )
    folder.write_entry("l", Entry(models=("double",)))
    result = CliRunner().invoke(main, ["fleet", "status", str(folder.path)])
    assert "1 servers, 2 jobs of slurm (0 to 2)" in result.output
    assert "50.0 ms" in result.output
    facts = CliRunner().invoke(main, ["fleet", "status", str(folder.path), "--json"])
    jobs = json.loads(facts.output)["jobs"]
    assert [(job["job"], job["state"]) for job in jobs] == [("17", "serves"), ("", "waits")]
