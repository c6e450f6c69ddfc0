"""Every notebook is stored with the outputs of a new kernel, uses public names, and runs again."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rnr_gym

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDS_EXTRA = "notebooks need the extra `notebooks`"
EVERY_NOTEBOOK = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
MOST_BYTES = 500_000
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
COLAB = "https://colab.research.google.com/github"
INSTALL = """\
import sys

if "google.colab" in sys.modules:
    %pip install --quiet "rnr-gym @ git+{repository}"
"""


def repository():
    """The project's address, such as `https://github.com/owner/name`."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return pyproject["project"]["urls"]["Repository"]


def cells_of(path):
    return json.loads(path.read_text())["cells"]


def source(cell):
    return "".join(cell["source"])


def code_cells(path):
    return [cell for cell in cells_of(path) if cell["cell_type"] == "code"]


def solution_number(cell):
    """The number of the exercise that a code cell solves; None for other cells."""
    found = re.match(r"# @title Solution (\d+)\n", source(cell))
    if cell["cell_type"] != "code" or found is None:
        return None
    return int(found[1])


def exercise_numbers(cell):
    """The numbers of the exercises that a Markdown cell sets."""
    if cell["cell_type"] != "markdown":
        return []
    return [int(number) for number in re.findall(r"^(\d+)\. \*\*", source(cell), re.MULTILINE)]


def kinds(outputs):
    """What a cell shows, without repetitions: names of streams, and media types."""
    shown = set()
    for output in outputs:
        if output["output_type"] == "stream":
            shown.add(output["name"])
        else:
            shown.update(output["data"])
    return shown


def texts(outputs):
    """Everything that can be read in a cell's outputs."""
    for output in outputs:
        if output["output_type"] == "stream":
            yield "".join(output["text"])
            continue
        for media_type, content in output["data"].items():
            if media_type.startswith("text/"):
                yield "".join(content)


def test_notebooks_are_found():
    # Without any, the other tests would have nothing to run over.
    assert NOTEBOOKS


@EVERY_NOTEBOOK
def test_notebook_has_a_valid_format(path):
    nbformat = pytest.importorskip("nbformat", reason=NEEDS_EXTRA)
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"


@EVERY_NOTEBOOK
def test_notebook_opens_in_colab(path):
    address = repository().removeprefix("https://github.com")
    badge, install, title, *_ = cells_of(path)
    target = f"{COLAB}{address}/blob/main/notebooks/{path.name}"
    assert source(badge) == f"[![Open in Colab]({BADGE})]({target})"
    assert source(install) == INSTALL.format(repository=repository()).rstrip("\n")
    assert source(title).startswith("# ")


@EVERY_NOTEBOOK
def test_notebook_is_stored_with_outputs(path):
    cells = code_cells(path)
    # As a new kernel counts, from the first cell to the last.
    counts = [cell["execution_count"] for cell in cells]
    assert counts == list(range(1, len(cells) + 1)), "run `make notebooks`"

    assert any("image/png" in kinds(cell["outputs"]) for cell in cells)
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] != "error", cell["id"]
            assert output.get("name") != "stderr", cell["id"]


@EVERY_NOTEBOOK
def test_outputs_say_nothing_of_a_machine(path):
    for cell in code_cells(path):
        assert "execution" not in cell["metadata"], f"{cell['id']} has times"
        for text in texts(cell["outputs"]):
            # A path starts where a word could start; fractions and addresses do not.
            assert not re.search(r"(?<![\w/:.<])(?:/[\w.-]+){2,}", text), cell["id"]
            assert not re.search(r"\b[A-Z]:\\", text), cell["id"]


@EVERY_NOTEBOOK
def test_notebook_is_small(path):
    assert path.stat().st_size <= MOST_BYTES


@EVERY_NOTEBOOK
def test_notebook_uses_public_names(path):
    used = set()
    for cell in code_cells(path):
        code = source(cell)
        assert "from rnr_gym" not in code, cell["id"]
        used.update(re.findall(r"\brnr\.(\w+)", code))

    assert used
    assert used <= set(rnr_gym.__all__)


@EVERY_NOTEBOOK
def test_every_exercise_has_a_folded_solution(path):
    exercises = []
    solutions = []
    for cell in cells_of(path):
        exercises += exercise_numbers(cell)
        number = solution_number(cell)
        if number is None:
            continue
        solutions.append(number)
        # It follows its own exercise, and nobody sees it who does not ask.
        assert exercises[-1] == number, cell["id"]
        metadata = cell["metadata"]
        assert metadata["jupyter"]["source_hidden"], cell["id"]
        assert {"hide-cell", "solution"} <= set(metadata["tags"]), cell["id"]
        assert metadata["cellView"] == "form", cell["id"]

    assert len(exercises) >= 3
    assert exercises == solutions == list(range(1, len(exercises) + 1))


@EVERY_NOTEBOOK
def test_links_between_notebooks_lead_somewhere(path):
    for cell in cells_of(path):
        for name in re.findall(r"\]\(([\w.-]+\.ipynb)\)", source(cell)):
            assert (path.parent / name).is_file(), cell["id"]


@pytest.mark.slow
@EVERY_NOTEBOOK
def test_notebook_runs(path, tmp_path):
    pytest.importorskip("nbclient", reason=NEEDS_EXTRA)
    pytest.importorskip("ipykernel", reason=NEEDS_EXTRA)

    # As `make notebooks` does, on a copy.
    copy = Path(shutil.copy(path, tmp_path))
    command = [sys.executable, str(ROOT / "notebooks" / "run.py"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    # Text is not compared: learners differ in the last digits from one processor to the next.
    ran, stored = (
        {cell["id"]: kinds(cell["outputs"]) for cell in code_cells(version)}
        for version in (copy, path)
    )
    assert ran == stored
