"""``import daskonic`` is light."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from jet_files import make_events, write_parquet, write_root
from test_tag_cli import FEATURES

HEAVY = (
    "coffea",
    "dask_jobqueue",
    "uproot",
    "pyarrow",
    "matplotlib",
    "onnxruntime",
    "onnx",
    "torch",
    "tritonclient",
)


def modules_after(statement: str) -> set[str]:
    """Top-level modules of a fresh interpreter that ran ``statement``."""
    code = (
        f"{statement}; import sys, json; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return set(json.loads(out))


def said_without(package: str, arguments: Sequence[str], folder: Path) -> str:
    """What a command says on stderr where a package is not installed."""
    code = f"import sys; sys.modules[{package!r}] = None; from daskonic.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder).stderr


def test_import_pulls_in_nothing_heavy():
    """Neither the extras nor even awkward, Dask or gRPC come with the bare import."""
    loaded = modules_after("import daskonic")
    assert not loaded & {*HEAVY, "awkward", "distributed", "grpc", "numpy"}


def test_names_do_not_pull_in_extras():
    """Naming every public object imports no package of an extra."""
    loaded = modules_after("import daskonic as dk; [getattr(dk, n) for n in dk.__all__]")
    assert not loaded & (set(HEAVY) - {"tritonclient", "pyarrow"})  # awkward takes pyarrow along where it is


def test_unknown_name_is_an_attribute_error():
    """A typo in a public name behaves as in any module."""
    assert (
        "no attribute"
        in subprocess.run(
            [sys.executable, "-c", "import daskonic; daskonic.Modell"],
            capture_output=True,
            text=True,
            check=False,
        ).stderr
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tag", "nothing.root", "--model", "m", "--server", "127.0.0.1:1", "--output", "."), "nothing.root"),
        (("status", "."), "no run"),
        (("cancel", "."), "no run"),
    ],
    ids=["tag", "status", "cancel"],
)
def test_runs_here_need_no_batch_system(tmp_path, arguments, words):
    """Without dask-jobqueue these commands get as far as their files."""
    said = said_without("dask_jobqueue", arguments, tmp_path)
    assert words in said
    assert "package" not in said


@pytest.mark.parametrize(("package", "name"), [("uproot", "a.root"), ("pyarrow", "a.parquet")])
def test_files_without_the_package_that_reads_them(triton, tmp_path, package, name):
    """The error names what to install, and does not call the files bad."""
    write = write_root if name == "a.root" else write_parquet
    file = write(tmp_path / name, make_events(3))
    features = tmp_path / "features.yaml"
    features.write_text(FEATURES)
    arguments = ["tag", str(file), "--model", "sum", "--server", triton.address, "--output", "out"]
    said = said_without(package, [*arguments, "--features", str(features)], tmp_path)
    assert f"this needs the package {package}: pip install 'daskonic[root]'" in said
