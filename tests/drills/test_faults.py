"""The list of deliberate faults fits the code; `python -m tests.drills.faults` tries them all."""

import re

import pytest

from tests.drills.faults import FAULTS, ROOT, is_caught

EVERY_FAULT = pytest.mark.parametrize(
    "fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.right.strip()[:30]}"
)


@EVERY_FAULT
def test_fault_can_be_made(fault):
    code = (ROOT / "rnr_gym" / fault.file).read_text()
    assert code.count(fault.right) == 1


@EVERY_FAULT
def test_test_of_fault_exists(fault):
    path, _, name = fault.test.partition("::")
    code = (ROOT / path).read_text()
    assert not name or re.search(rf"^def {name}\(", code, re.MULTILINE)


def test_a_fault_is_caught():
    assert is_caught(FAULTS[0])
