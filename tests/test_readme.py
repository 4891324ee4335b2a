"""What the README promises is what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_fifteen_lines_run_as_pasted(tmp_path):
    """From the README into a file, started in an empty folder: four files are scored."""
    code = re.search(r"<!-- python -->\n```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    (tmp_path / "example.py").write_text(code)
    run = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("1700 * var * {label_top: float32, label_QCD: float32} [")


def test_links_lead_somewhere():
    """Every relative link and picture of the README exists."""
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text())
    assert targets
    assert not [t for t in targets if not (README.parent / t).exists()]


def test_commands_exist():
    """Every subcommand that the README names is one."""
    from daskonic.cli import COMMANDS

    named = set(re.findall(r"(?:`|^)daskonic ([a-z]+)\b", README.read_text(), re.MULTILINE))
    assert named == set(COMMANDS)
