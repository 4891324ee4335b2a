"""dask-jobqueue, of which all is imported here: without its answer to Ctrl-C, a silent end of the process."""

from __future__ import annotations

import signal
import threading

_before = signal.getsignal(signal.SIGINT)

from dask_jobqueue.core import Job, JobQueueCluster
from dask_jobqueue.htcondor import HTCondorCluster, HTCondorJob
from dask_jobqueue.slurm import SLURMCluster, SLURMJob

if _before is not None and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, _before)

__all__ = ["HTCondorCluster", "HTCondorJob", "Job", "JobQueueCluster", "SLURMCluster", "SLURMJob"]
