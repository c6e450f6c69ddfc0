"""What the README says is true."""

import re
from pathlib import Path

import pytest

from rnr_gym.registration import IDS

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_ten_lines_run_as_they_stand(capsys):
    lines = re.search(r"(?s)## Ten lines.*?```python\n(.*?)```", README.read_text())[1]
    exec(compile(lines, "README.md", "exec"), {})
    assert re.fullmatch(r"\[.*\] \d\.\d+ (True|False)\n", capsys.readouterr().out)


def test_every_environment_stands_in_the_table():
    rows = re.search(r"(?s)## Environments\n(.*?)\n## ", README.read_text())[1]
    assert re.findall(r"^\| `([^`]+)`", rows, re.MULTILINE) == list(IDS)


def test_every_file_it_names_is_there():
    text, root = README.read_text(), README.parent
    layout = re.search(r"(?s)## Layout.*?```\n(.*?)```", text)[1]
    for name in re.findall(r"\b[\w/]+\.py\b", layout):
        assert (root / "rnr_gym" / name).is_file(), name
    for name in re.findall(r"`(benchmarks/\w+\.py|rnr_gym/\S+\.py)`", text) + re.findall(
        r"\]\((docs/\S+)\)", text
    ):
        assert (root / name).is_file(), name
