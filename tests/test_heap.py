"""Freed memory: at hand for the next messages, and back at the system soon after."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import dask
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster, get_worker

import daskonic as dk

NBYTES = 600 * 2**20

COUNT_FAULTS = """
import resource, sys, threading

if sys.argv[1] == "keep":
    from daskonic.heap import keep_messages
    keep_messages()

told = []

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():  # on a thread, as tasks are: its heaps are others than those of the first thread
    tensor, in_flight = bytes(8_000_000), []
    for message in range(120):
        if message % 8 == 0:  # a call of eight batches is over
            in_flight.clear()
        if message == 24:
            before = faults()
        in_flight.append(b"".join((b"header", tensor)))
    told.append((faults() - before) / 96)

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(told[0])
"""


def faults_a_message(how: str) -> float:
    """Page faults of a message of 8 MB (1954 pages) in a process as Dask's nanny starts it."""
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"}
    told = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, how],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return float(told.stdout)


def test_messages_find_memory_that_is_there_already():
    """Without padded heaps an eighth of the page faults would be left (pages of 4 kB)."""
    assert faults_a_message("keep") < 0.1 * faults_a_message("leave")


def resident_nbytes() -> int:
    """Of this process."""
    return psutil.Process().memory_info().rss


def hold_and_free() -> tuple[int, int]:
    """Memory of the worker before, and with many arrays of a message's size, which are then freed."""
    dk.Model("any").pool()
    before = resident_nbytes()
    arrays, results = [], []
    for _ in range(NBYTES // 2**23):
        arrays.append(np.ones(2**20))
        results.append(np.ones(2**13))
    held = resident_nbytes()
    get_worker().results = results  # live on, between what is freed
    del arrays
    return before, held


@pytest.mark.parametrize("with_plugin", [True, False], ids=["plugin", "no plugin"])
def test_worker_gives_back_what_tasks_have_freed(with_plugin):
    """Also a worker without the plugin, whose tasks name their servers."""
    servers = ["127.0.0.1:9"]
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        if with_plugin:
            client.register_plugin(dk.InferencePlugin(servers))
        else:
            client.run(dask.config.set, {"daskonic.servers": servers})
        before, held = client.submit(hold_and_free).result()
        assert held > before + 0.9 * NBYTES
        deadline = time.monotonic() + 60
        while True:
            (now,) = client.run(resident_nbytes).values()
            if now < before + 0.2 * NBYTES:
                break
            assert time.monotonic() < deadline, f"{now / 1e6:.0f} MB, and {before / 1e6:.0f} MB before"
            time.sleep(0.5)
