"""One fact about the end of a job, for workers and requests."""

from __future__ import annotations

import math
import time

import pytest

from daskonic.ending import job_end_s, job_margin_s
from daskonic.pool.call import job_left_s


@pytest.fixture(autouse=True)
def _no_job(monkeypatch):
    for name in ("DASKONIC_JOB_END_TIME", "DASKONIC_JOB_MARGIN", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)


def test_no_end_outside_of_jobs():
    """Where nobody says when the job ends, there is all the time."""
    assert job_end_s() == math.inf
    assert job_left_s() == math.inf


def test_a_job_of_daskonic_s_knows_its_end_on_every_batch_system(monkeypatch):
    """What its script computed goes before SLURM's account, and requests end before it, too."""
    end = time.time() + 100
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(end + 1000))
    monkeypatch.setenv("DASKONIC_JOB_END_TIME", str(end))
    monkeypatch.setenv("DASKONIC_JOB_MARGIN", "8")
    assert job_end_s() == end
    assert job_margin_s() == 8
    assert 60 < job_left_s() <= 96


def test_slurm_s_own_account_serves_other_workers(monkeypatch):
    """Workers that daskonic did not start have half a minute for what follows the last answer."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 100))
    assert 40 < job_left_s() <= 70
