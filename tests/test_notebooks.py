"""Every notebook runs from top to bottom in a fresh kernel, and is kept without outputs."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
EVERY = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@EVERY
def test_it_is_valid_and_kept_without_outputs(path):
    nbformat = pytest.importorskip("nbformat", reason="notebooks need the extra `notebooks`")
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [], cell.id
            assert cell.execution_count is None, cell.id


@pytest.mark.slow
@EVERY
def test_it_runs(path, tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="notebooks need the extra `notebooks`")
    nbclient = pytest.importorskip("nbclient", reason="notebooks need the extra `notebooks`")
    pytest.importorskip("ipykernel", reason="notebooks need the extra `notebooks`")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


def test_there_are_notebooks():
    assert NOTEBOOKS
