"""The command line: quick help, one line for a user's mistake, an exit code by class."""

from __future__ import annotations

import subprocess
import sys

import pytest

from daskonic.cli import COMMANDS, EXTRAS


def daskonic(*arguments, code=None):
    """Run a command in a fresh process, or ``code`` before it."""
    start = f"{code or ''}\nimport sys; sys.argv[0] = 'daskonic'\nfrom daskonic.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", start, *arguments], capture_output=True, text=True, check=False
    )


def test_help_names_every_command():
    shown = daskonic("--help").stdout
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    shown = daskonic(command, "--help")
    assert shown.returncode == 0
    assert f"daskonic {command}" in shown.stdout


@pytest.mark.parametrize("arguments", [["tagg"], ["tag"], ["tag", "a.root", "--mode", "x"]])
def test_wrong_usage_is_2_without_a_traceback(arguments):
    run = daskonic(*arguments)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert "Error" in run.stderr


@pytest.mark.parametrize(
    ("package", "arguments"),
    [("matplotlib", ["demo"]), ("onnxruntime", ["demo"]), ("onnx", ["serve", "MODEL"])],
)
def test_a_missing_package_is_named_with_its_extra(package, arguments, tmp_path):
    """The commands say what to install, before they start anything."""
    model = tmp_path / "m.onnx"
    model.write_bytes(b"")
    arguments = [str(model) if a == "MODEL" else a for a in arguments]
    run = daskonic(*arguments, code=f"import sys; sys.modules[{package!r}] = None")
    assert run.returncode == 2, run.stderr
    assert f"daskonic[{EXTRAS[package]}]" in run.stderr
    assert len(run.stderr.splitlines()) == 1
