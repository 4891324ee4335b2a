"""Real batch systems for the tests, up in seconds and gone afterwards.

Where their daemons are not installed, tests are skipped; with ``DASKONIC_BATCH_TESTS=required``, as in CI, that
is an error.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from daemons import eventually
from htcondor import Htcondor
from slurm import Slurm

import daskonic as dk


@pytest.fixture(scope="session")
def slurm():
    """A SLURM of four nodes."""
    yield from _running(Slurm)


@pytest.fixture(scope="session")
def htcondor():
    """An HTCondor pool of three nodes."""
    yield from _running(Htcondor)


@pytest.fixture(params=["slurm", "htcondor"])
def system(request, monkeypatch):
    """One batch system after the other, with its commands at hand; no job is left behind."""
    system = request.getfixturevalue(request.param)
    for name, value in system.environment.items():
        monkeypatch.setenv(name, value)
    yield system
    assert eventually(lambda: system.jobs() == []), system.jobs()


@pytest.fixture
def cluster(system, tmp_path):
    """Make a cluster of small jobs, closed in the end."""
    made = []

    def make(jobs=0, **options):
        small = {
            "memory": "500 MB",
            "threads": 1,
            "silence_logs": False,  # Dask would silence pytest's own handler
            "servers": ["127.0.0.1:1"],
            "log_directory": str(tmp_path / "jobs"),
            "job_script_prologue": [f"export PYTHONPATH={Path(__file__).parent}"],
        }
        disk = {"disk": "100 MB"} if system.name == "htcondor" else {}
        function = {"slurm": dk.slurm_cluster, "htcondor": dk.htcondor_cluster}[system.name]
        made.append(function(jobs, **(small | disk | options)))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def _running(kind):
    """Start one, if it can be, and stop it."""
    missing = kind.missing()
    if missing and os.environ.get("DASKONIC_BATCH_TESTS") == "required":
        pytest.fail(f"{missing} is needed; tests/batch/install.sh installs it")
    if missing:
        pytest.skip(f"{missing} is not here; tests/batch/install.sh, as root on Debian, installs it")
    folder = Path(tempfile.mkdtemp(prefix=f"{kind.name}-"))  # short: sockets have names of 100 characters
    folder.chmod(0o755)
    system = kind(folder)
    try:
        system.start()
        yield system
    finally:
        system.stop()
        shutil.rmtree(folder)
