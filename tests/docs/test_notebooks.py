"""The notebooks of the documentation run, with small numbers, and are kept without outputs."""

from __future__ import annotations

import os
import shutil

import pytest

from ..needs import needs
from .pages import ROOT

needs("nbclient")
needs("ipykernel")

NOTEBOOKS = ROOT / "docs" / "notebooks"
SMALL = {
    "sample": "n = 4",
    "own-crystals": "epochs, count, n = 2, 30, 4",
    "own-reward": "steps, batch_size, candidates, relax_steps = 1, 8, 2, 1",
}
"""What is assigned after the cell of parameters."""

MOST_BYTES = 20_000


def test_all_notebooks_are_tested():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_notebooks_are_kept_clean(name):
    import nbformat

    path = NOTEBOOKS / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < MOST_BYTES
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)


@pytest.mark.parametrize("name", SMALL)
def test_notebooks_run(name, tmp_path, monkeypatch):
    import jax
    import nbformat
    from nbclient import NotebookClient

    if name == "own-reward":
        pytest.importorskip("chgnet")
    pytest.importorskip("smact")
    for file in NOTEBOOKS.iterdir():
        shutil.copy(file, tmp_path)
    notebook = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SMALL[name]))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("<iframe" in output.get("data", {}).get("text/html", "") for output in shown)
    assert not [output for output in shown if output.output_type == "error"]
    assert "━" not in str(shown)  # bars go when their step ends
