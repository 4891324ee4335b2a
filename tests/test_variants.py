"""Variants of a network are kept where they give its numbers, and not elsewhere."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from models import facile

from daskonic.cli import main
from daskonic.errors import ConfigError, InputError
from daskonic.server.variants import KINDS, make_variants


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network and inputs of 500 rows."""
    path = tmp_path_factory.mktemp("variants") / "facile.onnx"
    onnx.save(facile.network(), path)
    return path, {"input": np.random.default_rng(0).uniform(0, 2, (500, 15)).astype(np.float32)}


def run(path, inputs):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def test_all_are_kept_where_little_is_asked(model, tmp_path):
    """The difference that is told is the one of the files that are there; 8 bits are smaller."""
    path, inputs = model
    made = {v.kind: v for v in make_variants(path, tmp_path, inputs, tolerance=0.5, rounds=1)}
    assert list(made) == list(KINDS)
    for variant in made.values():
        assert variant.path.stat().st_size == variant.nbytes
        apart = np.abs(run(path, inputs) - run(variant.path, inputs)).max()
        assert variant.difference == pytest.approx(apart, rel=1e-3, abs=1e-6)
        assert variant.speed > 0
    assert made["optimised"].difference <= 1e-5 < made["fp16"].difference < made["int8"].difference
    assert made["int8"].nbytes < path.stat().st_size


def test_what_differs_is_not_kept(model, tmp_path):
    """Rounding to 16 and 8 bits is more than the tolerance."""
    path, inputs = model
    made = {v.kind: v for v in make_variants(path, tmp_path, inputs, tolerance=1e-5, rounds=1)}
    assert {kind for kind, v in made.items() if v.path is None} == {"fp16", "int8"}
    assert "more than the tolerance of 1e-05" in made["fp16"].why_not
    assert [p.name for p in tmp_path.iterdir()] == ["facile.optimised.onnx"]


def test_a_converter_that_fails(model, tmp_path, monkeypatch):
    """The others are made all the same, and its words are told."""

    def fail(path, target):
        target.write_text("half a file")
        raise NotImplementedError("no such operator\nat line 3")

    monkeypatch.setitem(KINDS, "fp16", fail)
    path, inputs = model
    made = make_variants(path, tmp_path, inputs, tolerance=0.5, rounds=1)
    assert [v.why_not for v in made] == ["", "no such operator", ""]
    assert (made[1].difference, made[1].speed) == (None, None)
    assert not (tmp_path / "facile.fp16.onnx").exists()


def test_mistakes(model, tmp_path):
    """Inputs of another shape, and kinds that there are not."""
    path, inputs = model
    with pytest.raises(InputError, match="does not run on these inputs"):
        make_variants(path, tmp_path, {"input": inputs["input"][:, :3]}, tolerance=1)
    with pytest.raises(ConfigError, match="no variant fp8; there are optimised, fp16, int8"):
        make_variants(path, tmp_path, inputs, tolerance=1, kinds=["fp8"])


def test_command(model, tmp_path):
    """A table, or a list for a script."""
    path, inputs = model
    np.savez(tmp_path / "inputs.npz", **inputs)
    command = [
        "models",
        "variants",
        str(path),
        str(tmp_path / "made"),
        "--inputs",
        str(tmp_path / "inputs.npz"),
    ]
    done = CliRunner().invoke(main, [*command, "--tolerance", "1e-5", "--json"])
    assert done.exit_code == 0, done.output
    assert [(v["kind"], bool(v["path"])) for v in json.loads(done.output)] == [
        ("optimised", True), ("fp16", False), ("int8", False),
    ]  # fmt: skip
    done = CliRunner().invoke(main, [*command, "--tolerance", "0.5"])
    assert done.exit_code == 0, done.output
    assert "facile.int8.onnx" in done.output
