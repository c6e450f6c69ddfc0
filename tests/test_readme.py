"""The README's code runs, and the files, ids and names that the documents mention are there."""

import re
from pathlib import Path

import pytest

import rnr_gym
from rnr_gym.registration import IDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rnr_gym"
README = ROOT / "README.md"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "benchmarks/cifar10/README.md")
PUBLIC = set(rnr_gym.__all__) - {"__version__"}


def section(title):
    """The text of the README's section, without its heading."""
    text = README.read_text()
    return re.search(rf"(?s)\n## {title}\n(.*?)(?=\n## |\Z)", text)[1]


def python_blocks(text):
    return re.findall(r"(?s)```python\n(.*?)```", text)


@pytest.mark.slow
def test_readme_ten_lines_run(capsys):
    (code,) = python_blocks(section("Ten lines"))
    exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(r"\[.*\] \d\.\d+ (True|False)\n", capsys.readouterr().out)


def test_readme_code_uses_public_names():
    blocks = python_blocks(README.read_text())
    used = set()
    for code in blocks:
        assert "from rnr_gym" not in code
        used.update(re.findall(r"\brnr\.(\w+)", code))
    assert used
    assert used <= PUBLIC


def test_readme_lists_every_public_name():
    _, listed = section("In Python").split("The public names")
    names = re.findall(r"`(\w+)`", listed)
    assert sorted(names) == sorted(PUBLIC)


def test_readme_table_lists_every_id():
    ids = re.findall(r"^\| `([^`]+)`", section("Environments"), re.MULTILINE)
    assert ids == list(IDS)


def test_readme_layout_lists_every_module():
    listed = re.findall(r"^\| `([\w./]+)` \|", section("Layout"), re.MULTILINE)
    expected = {path.name for path in PACKAGE.glob("*.py")}
    expected.remove("__init__.py")
    # Python itself adds `__pycache__`.
    for path in PACKAGE.iterdir():
        if path.is_dir() and path.name != "__pycache__":
            expected.add(f"{path.name}/")
    assert sorted(listed) == sorted(expected)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_names_existing_files(document):
    text = (ROOT / document).read_text()
    named = re.findall(r"`((?:benchmarks|notebooks|rnr_gym|tests)/[\w./-]*)`", text)
    pictures = re.findall(r"\]\((docs/\S+)\)", text)
    assert named
    for name in [*named, *pictures]:
        assert (ROOT / name).exists(), name
