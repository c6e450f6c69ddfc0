"""README lists every public name, id and module. `test_docs.py` runs its code."""

import re
from pathlib import Path

import rnr_gym
from rnr_gym.registration import IDS
from tests.fixtures import digits

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rnr_gym"
README = ROOT / "README.md"
PUBLIC = set(rnr_gym.__all__) - {"__version__"}


def section(title):
    """The text of the README's section, without its heading."""
    text = README.read_text()
    return re.search(rf"(?s)\n## {title}\n(.*?)(?=\n## |\Z)", text)[1]


def test_ten_lines_play_an_episode(capsys, monkeypatch):
    digits.use_few_digits(monkeypatch)
    code = re.search(r"(?s)```python\n(.*?)```", section("Ten lines"))[1]
    exec(compile(code.replace("100_000", "2_000"), "README.md", "exec"), {})
    # The path of an image has at least one sub-path before the -1 that follow an exit.
    assert re.fullmatch(r"\[ *\d[\d -]*\] \d\.\d+ (True|False)\n", capsys.readouterr().out)


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
