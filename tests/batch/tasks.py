"""What jobs of the tests do."""

from __future__ import annotations

import os
import time

from distributed import get_worker
from distributed.core import Status


def noted(folder, i, seconds):
    """A task that takes a while and leaves a note that it ran, and where."""
    with (folder / str(os.getpid())).open("a") as notes:
        notes.write(f"{i} {get_worker().name}\n")
    time.sleep(seconds)
    return i, bytes(10_000)


def fails_as_its_job_ends(note):
    """The first time it waits until its worker leaves, and fails; then it does not."""
    if note.exists():
        return get_worker().name
    note.write_text(get_worker().name)
    while get_worker().status != Status.closing_gracefully:
        time.sleep(0.05)
    raise TimeoutError("there was no time")


def plugins(dask_worker):
    """Names of the worker's plugins."""
    return sorted(dask_worker.plugins)


def parent_and_self():
    """Process numbers of nanny and worker."""
    return os.getppid(), os.getpid()
