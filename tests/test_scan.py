"""A scan tells what a server does by batch size and requests in flight, and what follows for an entry."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner
from triton_models import write_model

import daskonic as dk
from daskonic import demo, errors, scan, server
from daskonic.cli import main
from daskonic.server.entry import read_config

QUICK = {"seconds": 0.3, "rounds": 2}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A model that takes 100 ms for any batch, by itself; graphs; rows of open length."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder, "slow", kind="sum", max_batch_size=64, fixed_ms=100)
    write_model(folder, "graph", kind="graph")
    write_model(folder, "open", kind="two_outputs", max_batch_size=8)
    return folder


@pytest.fixture(scope="module")
def running(repository):
    with dk.local_server(repository) as triton:
        yield triton


def rates(found, **wanted):
    """Rows per second of the points that are so, in order."""
    return [
        p.rows_per_s for p in found.points if all(getattr(p, key) == value for key, value in wanted.items())
    ]


def test_what_a_scan_finds(running):
    """Rows for a fixed time: the rate goes with the batch size, computing takes that time, sizes too large are left out."""
    told = []
    found = scan.scan("slow", running.address, batch_sizes=(1, 8, 64, 256), concurrencies=(1, 2), **QUICK,
                      progress=lambda done, total: told.append((done, total)))  # fmt: skip
    assert [(p.batch_size, p.concurrency) for p in found.points] == [
        (b, c) for b in (1, 8, 64) for c in (1, 2)
    ]
    one, eight, most = rates(found, concurrency=1)
    assert one < eight < most
    for point in found.points:
        assert point.rows_per_s_least <= point.rows_per_s <= point.rows_per_s_most
        assert point.latency_ms_least <= point.latency_ms <= point.latency_ms_most
        assert min(point.latency_ms_least, point.compute_ms) >= 100
    assert told[-1] == (12, 12)
    assert (found.model, found.version, found.servers) == ("slow", "1", (running.address,))
    assert scan.recommended(found)["max_batch_size"] == 64


def test_instances(repository):
    """Two copies of a model that only waits do more than one, and the entry stays as it was."""
    before = (repository / "slow" / "config.pbtxt").read_text()
    found = scan.scan_entry(
        repository, "slow", instances=(1, 2), batch_sizes=(64,), concurrencies=(4,), **QUICK
    )
    (one,), (two,) = rates(found, instances=1), rates(found, instances=2)
    assert two > 1.2 * one
    assert scan.recommended(found)["instances"] == 2
    assert (repository / "slow" / "config.pbtxt").read_text() == before


def test_inputs(running):
    """Real rows are repeated, shapes stand for open dimensions, and a model without batches is one request."""
    rows = {"X": np.ones((3, 5), "f4")}
    given = {"batch_sizes": (8,), "concurrencies": (1,), "seconds": 0.05, "rounds": 1}
    for more in ({"inputs": rows}, {"shapes": {"X": [5]}}):
        assert len(scan.scan("open", running.address, **given, **more).points) == 1
    (point,) = scan.scan("graph", running.address, **given, shapes={"X": [3, 4]}).points
    assert point.batch_size == 0
    assert point.rows_per_s > 0
    for more, error, text in (
        ({}, errors.ConfigError, "'open' takes X: float32.any.; say the shape of a row"),
        ({"inputs": {"Z": rows["X"]}}, errors.SpecError, "has no input Z; it takes X"),
        ({"inputs": {"X": np.ones((3, 5, 5))}}, errors.SpecError, r"rows of shape \[5, 5\]"),
        ({"shapes": {"X": [5]}, "batch_sizes": (16,)}, errors.ConfigError, "takes 8 rows at most"),
        ({"shapes": {"X": [5]}, "rounds": 0}, errors.ConfigError, "have to be above 0"),
    ):
        with pytest.raises(error, match=text):
            scan.scan("open", running.address, **given | more)
    with pytest.raises(errors.ModelNotFoundError):
        scan.scan("none", running.address, **given)


def made(*points):
    """A scan of (instances, batch size, concurrency, rows/s) with a spread of 1 %."""
    return scan.Scan("m", "1", ("a:1",), 1.0, 3, tuple(
        scan.Point(i, b, c, rate, 0.99 * rate, 1.01 * rate, b / rate, b / rate, b / rate, 1e3 * b / rate, 0.0)
        for i, b, c, rate in points
    ))  # fmt: skip


class TestRecommended:
    def test_smallest_that_is_enough(self):
        """The fewest instances, the smallest batch as preferred and the largest as maximum, a tenth of its time as delay."""
        found = made((1, 64, 1, 900), (2, 1, 1, 100), (2, 64, 1, 980), (2, 64, 4, 990), (2, 256, 4, 1000), (2, 1024, 4, 800),
                     (4, 256, 4, 1010))  # fmt: skip
        assert scan.recommended(found) == {
            "instances": 2, "max_batch_size": 256, "preferred_batch_sizes": [64], "queue_delay_us": 6531,
        }  # fmt: skip

    def test_noise_decides_nothing(self):
        """What did as well in one round is not ruled out."""
        found = made((1, 64, 1, 500), (2, 64, 1, 1000))
        noisy = dataclasses.replace(found.points[0], rows_per_s_most=990.0)
        assert scan.recommended(dataclasses.replace(found, points=(noisy, found.points[1])))["instances"] == 1

    def test_without_batches(self):
        """Only the instances can be said."""
        assert scan.recommended(made((2, 0, 1, 10), (1, 0, 1, 5))) == {"instances": 2}
        assert scan.recommended(made((0, 0, 1, 10))) == {}


def test_tune(tmp_path):
    """What follows goes into the entry, its warm-up included, and Triton takes it."""
    server.add_onnx(tmp_path, "m", demo.shipped().model,
                    warm_up={"pf_points": [2, 9], "pf_features": [15, 9], "pf_mask": [1, 9]})  # fmt: skip
    found = made((1, 1, 1, 100), (2, 64, 1, 1000), (2, 128, 1, 1001))
    changed = scan.tune(tmp_path, "m", found)
    assert changed == {
        "max_batch_size": (1024, 128), "preferred_batch_sizes": ([], [64]), "queue_delay_us": (500, 6400), "instances": (1, 2),
    }  # fmt: skip
    config = read_config(tmp_path / "m" / "config.pbtxt")
    assert [w.batch_size for w in config.model_warmup] == [1, 64]
    assert config.parameters["threads"].string_value == "1"
    assert scan.tune(tmp_path, "m", found) == {}
    assert not server.examine(tmp_path, cores=2)
    with dk.local_server(tmp_path) as triton:
        assert [m["state"] for m in triton.models()] == ["READY"]
    with pytest.raises(errors.ConfigError, match="disagree on whether there is a batch dimension"):
        scan.tune(tmp_path, "m", made((1, 0, 1, 10)))


def test_files(tmp_path):
    """A scan is written and read again; other files are refused."""
    found = made((1, 64, 1, 1000))
    found.write(tmp_path / "scan.json")
    assert scan.Scan.read(tmp_path / "scan.json") == found
    for content in ("[]", "{}", "no"):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(errors.InputError, match="is not a scan"):
            scan.Scan.read(tmp_path / "other.json")
    with pytest.raises(errors.InputError, match="cannot be read"):
        scan.Scan.read(tmp_path / "none.json")
    with pytest.raises(errors.OutputError):
        found.write(tmp_path / "none" / "scan.json")


class TestCommand:
    """``daskonic scan``, ``daskonic models tune`` and ``daskonic models add --from-scan``."""

    def run(self, *words):
        return CliRunner().invoke(main, [str(word) for word in words])

    def test_scan_and_tune(self, tmp_path, running):
        """A table, a file and a picture; the file goes into an entry, an old one or a new one."""
        words = ["scan", "slow", "--server", running.address, "--batch-sizes", "1,32", "--concurrencies", "1", "--seconds",
                 "0.2", "--rounds", "1"]  # fmt: skip
        done = self.run(*words, "--output", tmp_path / "scan.json", "--plot", tmp_path / "scan.png")
        assert done.exit_code == 0, done.output
        assert "recommended: max_batch_size=32, preferred_batch_sizes=[32]" in done.output
        assert (tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG")
        assert len(json.loads(self.run(*words, "--json").output)["points"]) == 2
        onnx_path = demo.shipped().model
        done = self.run(
            "models", "add", tmp_path / "r", onnx_path, "--name", "m", "--from-scan", tmp_path / "scan.json"
        )
        assert done.exit_code == 0, done.output
        config = read_config(tmp_path / "r" / "m" / "config.pbtxt")
        assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (32, [32])
        self.run("models", "add", tmp_path / "r", onnx_path, "--name", "m")
        done = self.run("models", "tune", tmp_path / "r", "m", tmp_path / "scan.json")
        assert "max_batch_size: 1024 → 32" in done.output
        done = self.run("models", "tune", tmp_path / "r", "m", tmp_path / "scan.json")
        assert done.output.strip() == "nothing changes"

    def test_repository(self, repository):
        """A server is started for it."""
        done = self.run("scan", "slow", "--repository", repository, "--instances", "1,2", "--batch-sizes", "8",
                        "--concurrencies", "1", "--seconds", "0.1", "--rounds", "1")  # fmt: skip
        assert done.exit_code == 0, done.output
        assert "instances" in done.output

    def test_mistakes(self, repository):
        """Wrong usage, and a model that is not there."""
        for words, code, text in (
            (["m", "--server", "a:1", "--repository", repository], 2, "exclude each other"),
            (["m", "--server", "a:1", "--instances", "1"], 2, "--instances needs --repository"),
            (["m", "--server", "a:1", "--batch-sizes", "a"], 2, "numbers, separated by commas"),
            (["none", "--repository", repository], 3, "cannot be read"),
        ):
            done = self.run("scan", *words)
            assert (done.exit_code, text in done.output) == (code, True), done.output
