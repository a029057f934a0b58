"""The notebooks of docs/ run from their first cell to their last, on a model that was hardly trained."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "docs").glob("*.ipynb")))
def test_runs(name, trained_checkout, monkeypatch):
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setenv("SCENES", "40")
    book = nbformat.read(ROOT / "docs" / name, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    shown = [output for cell in code for output in cell.outputs]
    assert shown, "the notebook is to be committed as it was run"
    NotebookClient(book, timeout=200, resources={"metadata": {"path": str(trained_checkout)}}).execute()
    assert all(cell.execution_count for cell in code)


def test_the_new_task_is_under_40_lines():
    book = nbformat.read(ROOT / "docs/new_task.ipynb", as_version=4)
    [definition] = [cell.source for cell in book.cells if "class CountTask" in cell.source]
    assert len(definition.splitlines()) < 40


def test_the_new_modality_is_at_most_100_lines():
    assert len((ROOT / "docs/assets/thermal.py").read_text().splitlines()) <= 100
