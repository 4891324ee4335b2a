"""What jobs of the tests do."""

from __future__ import annotations

import os
import time

from distributed import get_worker


def noted(folder, i, seconds):
    """A task that takes a while and leaves a note that it ran, and where."""
    with (folder / str(os.getpid())).open("a") as notes:
        notes.write(f"{i} {get_worker().name}\n")
    time.sleep(seconds)
    return i, bytes(10_000)


def plugins(dask_worker):
    """Names of the worker's plugins."""
    return sorted(dask_worker.plugins)


def parent_and_self():
    """Process numbers of nanny and worker."""
    return os.getppid(), os.getpid()
