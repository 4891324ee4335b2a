"""Clusters on real batch systems: workers come, go and are replaced; nothing is lost; trouble is said."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections import Counter

import dask.config
import pytest
from daemons import eventually
from distributed import Client, wait
from tasks import fails_as_its_job_ends, noted, parent_and_self, plugins

import daskonic as dk
from daskonic.errors import BatchSystemError

JOIN_S = 60


def notes(folder):
    """How often each task ran, and the workers that did."""
    lines = [line.split() for path in folder.iterdir() for line in path.read_text().splitlines()]
    return Counter(int(i) for i, _ in lines), {worker for _, worker in lines}


@pytest.fixture
def folder(tmp_path):
    """Where tasks leave notes."""
    path = tmp_path / "notes"
    path.mkdir()
    return path


def test_early_and_late_workers_have_the_plugin(cluster, system):
    """Workers are jobs with the plugin, also those that are asked for later; close leaves no job."""
    made = cluster(1)
    with Client(made) as client:
        client.wait_for_workers(1, timeout=JOIN_S)
        made.scale(2)
        client.wait_for_workers(2, timeout=JOIN_S)
        assert all("daskonic" in found for found in client.run(plugins).values())
        assert len(system.jobs()) == 2
        made.scale(1)
        assert eventually(lambda: len(system.jobs()) == 1)


def test_workers_speak_tls_on_request(cluster):
    """With ``security=True`` scheduler and workers speak TLS."""
    made = cluster(1, security=True)
    with Client(made) as client:
        client.wait_for_workers(1, timeout=JOIN_S)
        assert made.scheduler_address.startswith("tls://")
        assert all(worker.startswith("tls://") for worker in client.scheduler_info()["workers"])


@pytest.mark.parametrize("sized", ["scale", "adapt"])
def test_jobs_that_end_cost_no_results(cluster, folder, sized):
    """Jobs that end together are replaced, whichever way the cluster was sized, and hardly a task runs twice."""
    made = cluster(walltime="00:00:20")
    if sized == "scale":
        made.scale(2)
    else:
        made.adapt(minimum=0, maximum=2)
    with Client(made) as client:
        n = 160
        futures = client.map(noted, [folder] * n, range(n), [0.25] * n, pure=False)
        results = client.gather(futures)
    assert [i for i, _ in results] == list(range(n))
    ran, workers = notes(folder)
    assert len(workers) > 2
    assert sum(ran.values()) <= 1.2 * n


def test_a_job_that_is_cancelled_hands_its_results_over(cluster, system, folder):
    """A worker that is told to end finishes its task, gives its results away, and another job takes its place."""
    made = cluster(2)
    with Client(made) as client:
        client.wait_for_workers(2, timeout=JOIN_S)
        first = client.map(noted, [folder] * 10, range(10), [0.1] * 10, pure=False)
        wait(first)
        before = set(system.jobs())
        system.cancel(min(before))
        assert eventually(lambda: len(set(system.jobs()) - before) == 1)
        assert [i for i, _ in client.gather(first)] == list(range(10))
        assert max(notes(folder)[0].values()) == 1
        client.wait_for_workers(2, timeout=JOIN_S)


def test_a_job_that_dies_is_replaced(cluster, folder):
    """What a worker had when it was killed is computed again, by the one that replaces it."""
    made = cluster(1)
    with Client(made) as client:
        client.wait_for_workers(1, timeout=JOIN_S)
        futures = client.map(noted, [folder] * 10, range(10), [0.1] * 10, pure=False)
        wait(futures)
        ((address, processes),) = client.run(parent_and_self).items()
        for process in processes:
            os.kill(process, signal.SIGKILL)
        assert eventually(lambda: address not in made.scheduler.workers)
        assert [i for i, _ in client.gather(futures)] == list(range(10))
    assert (
        len(list(folder.iterdir())) == 2
    )  # processes; the job may have been started again by the batch system


@pytest.mark.parametrize("python", ["/nowhere/bin/python", "/bin/false"])
def test_missing_environment_is_said(cluster, python):
    """Jobs whose Python is not there end the run with a line that says where and what."""
    made = cluster(3, python=python)
    with Client(made) as client:
        future = client.submit(os.getpid)
        with pytest.raises(
            BatchSystemError, match="ended.*before its worker was there.*exit code 81"
        ) as caught:
            future.result(timeout=JOIN_S)
    if "nowhere" in python:
        assert "/nowhere/bin/python" in str(caught.value)


def test_blocked_scheduler_is_said(cluster):
    """Jobs that cannot reach the scheduler say so, and so does the run."""
    made = cluster(3, scheduler_options={"contact_address": "tcp://127.0.0.1:9"})
    with Client(made.scheduler.address) as client:
        future = client.submit(os.getpid)
        with pytest.raises(
            BatchSystemError, match=r"no connection to the Dask scheduler at tcp://127.0.0.1:9"
        ):
            future.result(timeout=JOIN_S)


REFUSED = {
    "slurm": [
        ({"queue": "nowhere"}, "[Ii]nvalid partition"),
        ({"queue": "group", "account": "nobody"}, "[Ii]nvalid account"),
        ({"memory": "900 GB"}, "Requested node configuration is not available"),
    ],
    "htcondor": [
        ({"job_extra_directives": {"request_cpus": "many cores"}}, "request_cpus|RequestCpus|parse")
    ],
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_in_the_words_of_the_batch_system(name, request, monkeypatch, tmp_path):
    """Wrong partition, account, memory: an error at once, with what the batch system says of it."""
    system = request.getfixturevalue(name)
    for key, value in system.environment.items():
        monkeypatch.setenv(key, value)
    function = {"slurm": dk.slurm_cluster, "htcondor": dk.htcondor_cluster}[name]
    for options, words in REFUSED[name]:
        with pytest.raises(BatchSystemError, match=words) as caught:
            function(2, servers=["127.0.0.1:1"], log_directory=str(tmp_path), **options)
        assert "\n" not in str(caught.value)
    assert system.jobs() == []


@pytest.mark.parametrize(
    ("system", "trouble"),
    [("slurm", "no free node"), ("htcondor", "no free node"), ("htcondor", "too much memory")],
    indirect=["system"],
)
def test_why_no_job_starts_is_said(cluster, system, caplog, monkeypatch, trouble):
    """While jobs wait and no worker is there, the log has the batch system's reason in one line."""
    monkeypatch.setattr("daskonic.deploy.cluster.SILENT_S", 3.0)
    words = {
        "slurm": "PENDING .*(Nodes required for job are|ReqNodeNotAvail)",
        "htcondor": "idle .no match found",
    }
    if trouble == "no free node":
        system.close_nodes()
    try:
        cluster(2, memory="900 GB" if trouble == "too much memory" else "500 MB")
        said = re.compile("no worker has been there for .*" + words[system.name])
        assert eventually(lambda: any(said.search(line) for line in caplog.messages), JOIN_S), caplog.text
    finally:
        if trouble == "no free node":
            system.open_nodes()


@pytest.mark.parametrize(("name", "command"), [("slurm", "sbatch"), ("htcondor", "condor_submit")])
def test_a_machine_without_the_commands_is_said(name, command, tmp_path, monkeypatch):
    """One line that names the command, and where there is one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    function = {"slurm": dk.slurm_cluster, "htcondor": dk.htcondor_cluster}[name]
    with pytest.raises(BatchSystemError, match=f"cannot run '{command}'.*such as a login node"):
        function(1, servers=["127.0.0.1:1"], log_directory=str(tmp_path))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (dk.slurm_cluster, ["apptainer exec {image} python3 -m daskonic.deploy.node"]),
        (dk.htcondor_cluster, ["universe = container", "container_image = {image}"]),
    ],
)
def test_container_in_the_job_script(function, words, tmp_path):
    """A container image is named to Apptainer, or to HTCondor."""
    image = tmp_path / "image.sif"
    image.touch()
    with function(servers=["127.0.0.1:1"], log_directory=str(tmp_path), environment=str(image)) as made:
        for each in words:
            assert each.format(image=image) in made.job_script()


def test_what_fails_as_its_job_ends_is_tried_elsewhere(cluster, system, tmp_path):
    """A task that has no time left in a job that ends is no error: another worker does it."""
    note = tmp_path / "note"
    made = cluster(1)
    with Client(made) as client:
        future = client.submit(fails_as_its_job_ends, note)
        assert eventually(note.exists, JOIN_S)
        system.cancel(system.jobs()[0])
        assert future.result(timeout=JOIN_S) != note.read_text()


def test_packed_environment(cluster, tmp_path):
    """A packed environment is unpacked on the node, and its Python runs the worker."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexport PACKED=yes; exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    packed = tmp_path / "env.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(python, "bin/python")
    made = cluster(1, environment=str(packed))
    with Client(made) as client:
        assert client.submit(os.getenv, "PACKED").result(timeout=JOIN_S) == "yes"


def test_sites(cluster, system):
    """A preset has the parameters of a centre; an argument goes before it."""
    site = {"system": system.name, "memory": "300 MB", "walltime": "01:00:00"}
    with dask.config.set({"daskonic.sites": {"centre": site}}):
        made = cluster(site="centre", memory="400 MB")
    script = made.job_script()
    assert "--memory-limit 381" in script
    assert "3600 seconds" in script


@pytest.fixture(autouse=True)
def _log(caplog):
    """The log is about what daskonic says."""
    caplog.set_level(logging.INFO, "daskonic")


def test_ctrl_c_stays_what_it_is():
    """dask-jobqueue makes it a silent end of the process; with daskonic it is still an interrupt."""
    code = (
        "import signal; from daskonic.deploy.driver import _job_class; _job_class('slurm'); "
        "import dask_jobqueue.runner; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
