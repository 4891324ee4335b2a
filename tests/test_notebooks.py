"""The notebooks run from top to bottom, and what they show was made by running them."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def cells_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    """Or nothing below would be tested."""
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path):
    """In an empty folder, without an error, showing something wherever the committed one does."""
    notebook = nbformat.read(path, as_version=4)
    shown = [bool(cell.outputs) for cell in cells_of(notebook)]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    assert [bool(cell.outputs) for cell in cells_of(notebook)] == shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_was_run(path):
    """All cells in order, without an error, and without a path of the machine that ran them."""
    notebook = nbformat.read(path, as_version=4)
    cells = cells_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    text = path.read_text()
    for private in (str(ROOT), str(Path.home()), "site-packages"):
        assert private not in text
