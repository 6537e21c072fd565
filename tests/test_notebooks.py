"""Notebooks are kept without outputs, and run from beginning to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"EPOCHS": "1", "MEMBERS": "2", "MAX_EVAL": "1", "MAX_ITEMS": "300", "FOLDER": "runs", "OMP_NUM_THREADS": "1"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


def test_outputs_are_stripped(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One process for all notebooks: imports take longer than most of what they do."""
    manager = KernelManager()
    manager.start_kernel()
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_it_runs_and_shows_tables_and_figures(
    notebook: nbformat.NotebookNode, kernel: KernelManager, tmp_path: Path
) -> None:
    afresh = f"%reset -f\nimport os\nos.chdir({str(tmp_path)!r})\nos.environ.update({SMALL!r})\n%reset -f"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells.insert(0, nbformat.v4.new_code_cell(afresh))
    client = NotebookClient(notebook, km=kernel, timeout=300)
    try:
        client.execute()
    finally:
        client.kc.stop_channels()
    shown = [output.get("data", {}) for cell in code for output in cell.outputs]
    assert any("<table" in data.get("text/html", "") for data in shown)
    assert any("image/png" in data for data in shown) == any("plt.show()" in cell.source for cell in code)
