"""Every notebook is stored without outputs, uses public names, and runs in a new kernel."""

import json
import re
from pathlib import Path

import pytest

import rnr_gym

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
NEEDS_EXTRA = "notebooks need the extra `notebooks`"
EVERY_NOTEBOOK = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_notebooks_are_found():
    # Without any, the other tests would have nothing to run over.
    assert NOTEBOOKS


@EVERY_NOTEBOOK
def test_notebook_is_stored_without_outputs(path):
    nbformat = pytest.importorskip("nbformat", reason=NEEDS_EXTRA)
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"

    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [], cell.id
            assert cell.execution_count is None, cell.id


@EVERY_NOTEBOOK
def test_notebook_uses_public_names(path):
    used = set()
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        code = "".join(cell["source"])
        assert "from rnr_gym" not in code, cell["id"]
        used.update(re.findall(r"\brnr\.(\w+)", code))

    assert used
    assert used <= set(rnr_gym.__all__)


@pytest.mark.slow
@EVERY_NOTEBOOK
def test_notebook_runs(path, tmp_path):
    nbformat = pytest.importorskip("nbformat", reason=NEEDS_EXTRA)
    nbclient = pytest.importorskip("nbclient", reason=NEEDS_EXTRA)
    pytest.importorskip("ipykernel", reason=NEEDS_EXTRA)

    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        # The kernel's working directory.
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count, cell.id
