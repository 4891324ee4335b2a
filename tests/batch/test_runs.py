"""Whole runs on real batch systems: the scores are those of a run on this machine, whatever happens to the jobs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from daemons import eventually
from jet_files import make_events, write_root
from triton_models import write_model

import daskonic as dk
from daskonic.server.entry import read_config, write_config
from daskonic.server.repository import add_onnx
from daskonic.tagging.jobs import RunJobs

SHIPPED = Path(__file__).parents[2] / "examples" / "top_tagging" / "data"
FEATURES = "inputs:\n  X:\n    vars:\n" + 16 * "      - [jet_code, null]\n"
EVENTS, EVENTS_PER_PARTITION = 300, 2
PARTITIONS = EVENTS // EVENTS_PER_PARTITION
SMALL = {
    "slurm": ("--job-option", "memory=500 MB", "--job-option", "threads=2"),
    "htcondor": ("--job-option", "memory=500 MB", "--job-option", "disk=100 MB", "--job-option", "threads=2"),
}
RUN_S = 240

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The shipped network, and one that takes its time: a run through it lasts about 25 s with any number of workers.

    Requests for the network are not joined, or it would round as they happen to be.
    """
    repository = tmp_path_factory.mktemp("models")
    path = add_onnx(repository, "top", SHIPPED / "model.onnx") / "config.pbtxt"
    config = read_config(path)
    config.ClearField("dynamic_batching")
    write_config(path, config)
    write_model(repository, "slow", kind="sum", instances=4, per_item_us=160_000)
    with dk.local_server(repository) as server:
        yield server


@pytest.fixture(scope="module")
def slow(server, tmp_path_factory):
    """Arguments of a run of many partitions, and what its scores must be, byte for byte."""
    folder = tmp_path_factory.mktemp("slow")
    write_root(folder / "a.root", make_events(EVENTS))
    (folder / "features.yaml").write_text(FEATURES)
    arguments = [
        str(folder / "a.root"), "--model", "slow", "--server", server.address, "--classes", "plus,minus",
        "--features", str(folder / "features.yaml"), "--chunk-size", str(EVENTS_PER_PARTITION),
    ]  # fmt: skip
    assert (
        daskonic("tag", *arguments, "--output", folder / "out", "--workers", "2")["partitions"] == PARTITIONS
    )
    return arguments, contents(folder / "out")


@pytest.fixture
def output(system, tmp_path):
    """Where a run writes; whatever comes, its jobs do not outlive the test."""
    yield tmp_path / "out"
    run = RunJobs.found(tmp_path / "out")
    if run is not None:
        run.cancel()


def daskonic(command, *arguments, code=0):
    """Run a command that prints JSON."""
    with running(command, *arguments, "--json") as process:
        out, err = process.communicate(timeout=RUN_S)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return json.loads(out) if out else err


@contextmanager
def running(*arguments):
    """A command under way."""
    process = subprocess.Popen(
        [sys.executable, "-m", "daskonic", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def contents(output):
    """Bytes of the scores."""
    return {p.name: p.read_bytes() for p in (Path(output) / "scores").glob("*.parquet")}


def done(output):
    """Finished partitions."""
    log = Path(output) / "partitions.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def log_of(output):
    """What the run's log says."""
    log = Path(output) / "jobs" / "run.log"
    return log.read_text() if log.exists() else ""


def workers(output):
    """Ids of jobs that the run has submitted."""
    words = [line.split() for line in log_of(output).splitlines()]
    return [line[4] for line in words if line[-1] == "submitted"]


def test_four_jobs_give_the_scores_of_this_machine(server, system, output, tmp_path):
    """On the shipped files, also when a worker job is cancelled in the middle; the log says so."""
    arguments = [
        *(str(SHIPPED / name) for name in ("qcd_1.root", "ttbar_1.root")), "--model", "top",
        "--server", server.address, "--features", str(SHIPPED / "features.yaml"), "--chunk-size", "100",
    ]  # fmt: skip
    daskonic("tag", *arguments, "--output", tmp_path / "here", "--workers", "2")
    options = ("--cluster", system.name, "--jobs", "4", *SMALL[system.name])
    with running("tag", *arguments, "--output", output, *options) as run:
        assert eventually(lambda: done(output) >= 4 or run.poll() is not None, RUN_S)
        victim = workers(output)[0]
        system.cancel(victim)
        _, err = run.communicate(timeout=RUN_S)
    assert run.returncode == 0, err
    assert contents(output) == contents(tmp_path / "here") != {}
    log = log_of(output)
    assert f"the worker of job {victim} leaves" in log or f"job {victim} " in log
    assert len(workers(output)) == 5
    assert daskonic("status", output)["state"] == "complete"


def test_time_limits_and_a_lost_node_cost_only_time(slow, system, output):
    """Jobs reach their limit, and a node goes down, of which HTCondor does not hear: others take their place, the log says so."""
    arguments, scores = slow
    limits = ("--job-option", "walltime=00:00:25", "--job-option", "margin=2.5 s")
    pairs = ("--job-option", "cores=2", "--job-option", "processes=2")
    options = ("--cluster", system.name, "--jobs", "2", *SMALL[system.name], *pairs, *limits)
    with running("tag", *arguments, "--output", output, *options) as run:
        assert eventually(lambda: done(output) > PARTITIONS // 8 or run.poll() is not None, RUN_S)
        first = workers(output)
        node = system.lose_node()
        _, err = run.communicate(timeout=RUN_S)
    assert run.returncode == 0, err
    assert contents(output) == scores
    log = log_of(output)
    leave = re.findall(r"job (\S+) leaves before the job ends", log)
    lost = re.findall(rf"job (\S+) on {node}\S* (?:has ended|\((?i:running)\) has lost its worker)", log)
    assert set(leave + lost) >= set(first), log
    assert leave, log
    assert lost or system.name == "slurm", log  # SLURM tells the workers
    assert len(workers(output)) >= 4


def test_submit_status_cancel_and_submit_again(slow, server, system, output):
    """A submitted run is seen and cancelled from another shell, which leaves no job; submitted again it goes on."""
    arguments, scores = slow
    options = ("--output", output, "--cluster", system.name, "--jobs", "2", *SMALL[system.name])
    daskonic("submit", *arguments, *options)
    assert eventually(lambda: done(output) > PARTITIONS // 8, RUN_S)
    with frozen(server):  # else the run might end meanwhile
        status = daskonic("status", output)
        assert status["state"] == "runs"
        assert status["partitions_total"] == PARTITIONS
        assert 0 < status["partitions"] < PARTITIONS
        assert status["rows_per_s"] > 0
        assert sum(status["workers"].values()) >= 1
        assert "running" in status["driver"].lower()
        assert "has a run already" in daskonic("submit", *arguments, *options, code=6)
        jobs = {job.split(".")[0] for job in system.jobs()}
        assert len(jobs) >= 2
        assert {job.split(".")[0] for job in daskonic("cancel", output)["jobs"]} >= jobs
    assert system.jobs() == []
    assert daskonic("status", output)["state"] == "stopped"
    kept = done(output)
    assert kept < PARTITIONS
    daskonic("submit", *arguments, *options)
    assert await_end(output)["state"] == "complete"
    assert contents(output) == scores
    assert done(output) == PARTITIONS  # not one was done twice


@pytest.mark.parametrize(
    ("system", "where"), [("slurm", "--jobs"), ("htcondor", "--workers")], indirect=["system"]
)
def test_a_driver_that_is_out_of_time_goes_on(slow, system, output, where):
    """The job that drives is submitted again when its time ends, also where all workers are in it."""
    arguments, scores = slow
    options = ("--output", output, "--cluster", system.name, where, "2", *SMALL[system.name])
    daskonic("submit", *arguments, *options, "--driver-option", "walltime=00:00:24")
    assert await_end(output)["state"] == "complete"
    assert contents(output) == scores
    assert len(json.loads((output / "manifest.json").read_text())["runs"]) >= 2


@contextmanager
def frozen(server):
    """A server that says nothing for a while."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def await_end(output):
    """Status of a run that drives itself, when it does so no more."""
    found = {}

    def is_over():
        found.update(daskonic("status", output))
        return found["state"] in ("complete", "stopped")

    assert eventually(is_over, RUN_S), found
    return found


def test_a_driver_whose_time_is_too_short_does_not_go_on_for_ever(slow, system, output):
    """No partition fits into its job: it is submitted again once at most, and status tells what to do."""
    arguments, _ = slow
    options = ("--output", output, "--cluster", system.name, "--workers", "2", *SMALL[system.name])
    daskonic("submit", *arguments, *options, "--chunk-size", EVENTS, "--driver-option", "walltime=00:00:16")
    found = await_end(output)
    assert found["state"] == "stopped"
    assert found["partitions"] == 0
    assert "walltime" in found["trouble"]
    assert "--chunk-size" in found["trouble"]
