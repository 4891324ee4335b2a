"""When the batch system ends this job: one fact for workers, requests and the driver of a run.

daskonic's own jobs know it on every batch system, since their script computes it where and when it begins. In other
jobs SLURM tells it (from version 23 on).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

__all__ = ["AGAIN", "END_TIME", "MARGIN", "job_end_s", "job_margin_s"]

END_TIME, MARGIN = "DASKONIC_JOB_END_TIME", "DASKONIC_JOB_MARGIN"
"""Environment of a job: when it ends (seconds since 1970), and how long before that it takes nothing new."""

AGAIN = 75
"""Exit code of a job that is to be started again, as its time was too short (``EX_TEMPFAIL`` of sysexits)."""

SLURM_END_TIME = "SLURM_JOB_END_TIME"
DEFAULT_MARGIN_S = 60.0


def job_end_s(environment: Mapping[str, str] = os.environ) -> float:
    """End of this job in seconds since 1970; infinite if nobody says."""
    for name in (END_TIME, SLURM_END_TIME):
        try:
            return float(environment[name])
        except (KeyError, ValueError):
            continue
    return math.inf


def job_margin_s(environment: Mapping[str, str] = os.environ) -> float:
    """How long before its end a job takes nothing new, in seconds."""
    try:
        return float(environment[MARGIN])
    except (KeyError, ValueError):
        return DEFAULT_MARGIN_S
