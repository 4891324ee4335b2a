"""The benchmarks run, compare what they claim to compare, and lose nothing; no times, sizes are tiny."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name, tmp_path, *options):
    """The JSON of one benchmark; each checks all scores itself and ends with an error if one is wrong."""
    told = tmp_path / "told.json"
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--rounds", 1, "--json", told, *options]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(told.read_text())
    assert name == f"bench_{result['benchmark']}"
    assert result["settings"]["rounds"] == 1
    assert len(result["machine"]["load"]) == 3
    for row in result["rows"]:
        for value in row.values():
            if isinstance(value, dict):
                assert 0 < value["low"] <= value["median"] <= value["high"]
    return result["rows"], done.stdout


def test_overlap(tmp_path):
    """Both kinds of tasks on both clusters, and what a worker held is between one chunk and all."""
    rows, table = run(
        "bench_overlap", tmp_path,
        "--chunks", 6, "--rows", 4, "--cpu-ms", 2, "--wait-ms", 10, "--at-once", 2,
    )  # fmt: skip
    assert {(r["tasks"], r["cluster"]) for r in rows} == {
        (tasks, cluster) for tasks in ("delayed", "process") for cluster in ("daskonic's", "user's, 1 thread")
    }
    for row in rows:
        assert 1 <= row["held"] <= 6
        assert row["to_instant"]["median"] > 0
        assert row["cluster"] in table


def test_peers(tmp_path):
    """Every scenario has a line, daskonic's tasks are all there, coffea's rates too if it is installed."""
    rows, table = run(
        "bench_peers", tmp_path,
        "--tasks", 2, "--rows", 250, "--batches", 100, "--small-tasks", 4, "--wait-ms", 5, "--at-once", 2,
        "--queue-tasks", 12, "--queue-wait-ms", 20, "--workers", 1,
    )  # fmt: skip
    assert [r["lost"] for r in rows] == [0] * len(rows)
    assert {r["scenario"].split(",")[0] for r in rows} == {"accelerator", "sink", "remainders", "queue"}
    assert rows[-1]["tasks"] == 12
    if "daskonic alone" not in table:
        assert all(r["ratio"] is not None for r in rows[:-1])


def test_native(tmp_path):
    """All clients but the C++ one, which has to be fetched, do the same requests."""
    rows, _ = run("bench_native", tmp_path, "--cases", "1MB", "8kB", "--seconds", 0.02, "--without-native")
    clients = ["daskonic", "shm", "grpcio", "sync", "async", "in Dask"]
    assert [(r["request"], r["client"]) for r in rows] == [
        (request, client) for request in ("1MB x 4", "8kB x 16") for client in clients
    ]
    assert all(r["to_c++"] is None for r in rows)


def test_models(tmp_path):
    """Rows through a server and in process, and scores that are the same."""
    rows, table = run(
        "bench_models", tmp_path, "--models", "facile", "point_voxel", "--seconds", 0.01, "--markdown"
    )  # fmt: skip
    assert [(r["model"], r["parameters"], r["batch"]) for r in rows] == [
        ("facile", 2033, 16000), ("point_voxel", 200100, 40),
    ]  # fmt: skip
    assert all(float(r["difference"]) < r["tolerance"] for r in rows)
    assert "| `point_voxel` | nx4, nx3, n | nx1, nx3 | 200,100 | 40 events |" in table


def test_processor(tmp_path):
    """Every form on the cluster that is asked for, with the accumulators of the form without inference."""
    rows, _ = run(
        "bench_processor", tmp_path,
        "--chunks", 6, "--cpu-ms", 2, "--wait-ms", 10, "--at-once", 2, "--clusters", "user's",
    )  # fmt: skip
    assert [r["form"] for r in rows] == ["none", "sync", "two-phase", "blocking"]
    assert [r["target"] for r in rows] == [None, 0.85, 0.93, None]


def test_fair(tmp_path):
    """Two processes that know nothing of each other get the same from one server, and the window found is a good one."""
    rows, _ = run(
        "bench_fair", tmp_path,
        "--models-ms", 50, "--windows", 2, "--seconds", 2, "--warm-s", 15, "--shared", "m50",
    )  # fmt: skip
    alone, together = rows
    assert alone["default_to_best"]["median"] >= 0.9
    assert together["jain"]["median"] >= 0.95
    assert together["of_capacity"]["median"] >= 0.8
