"""What the C library keeps of freed memory: enough for the next messages, and no more of it for long.

Dask's nanny starts workers with ``MALLOC_TRIM_THRESHOLD_=65536``, so that freed memory goes back to the system at once.
That also freezes glibc's mmap threshold at 128 kB: each message is mapped, page-faulted and unmapped again, 1.6 to 2.5
times slower at 1 to 8 MB. Undone, freed memory stays with the process until somebody asks for it, and Dask, which counts
it, would spill and pause for nothing. So a worker does both.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Any

__all__ = ["give_back", "keep_messages"]

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
TRIM_THRESHOLD_NBYTES = 256 * 2**20
MMAP_THRESHOLD_NBYTES = 32 * 2**20
TOP_PAD_NBYTES = 64 * 2**20
"""Size of the heaps of other threads than the first one: with as much padding they are not unmapped whenever they are empty."""


def keep_messages() -> None:
    """Let this process use freed buffers of a message's size again, on all of its threads.

    Without Dask, too: glibc's own defaults cost hundreds of page faults for a message.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is None:
        logger.debug("no mallopt in this C library")
        return
    mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_NBYTES)
    mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_NBYTES)
    mallopt(M_TOP_PAD, TOP_PAD_NBYTES)


def give_back() -> None:
    """Return what is free to the system, in the midst of the heap too.

    Other threads of this process may wait for some 30 ms for each GB that is returned, and next to nothing where there is
    none (measured with glibc 2.36, four threads of 1 GB: 60 to 200 ms, and 0.4 ms the second time).
    """
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def _libc() -> Any:
    """The C library; None where it is not glibc."""
    try:
        return ctypes.CDLL("libc.so.6")
    except OSError:
        return None
