"""The command line: entering a router for the leaderboard, and validating an entry."""

import re

import pytest

from rnr_gym.experiments import leaderboard, statistics
from rnr_gym.experiments.entries import read_entry
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS
from tests.fixtures.commands import fails, succeeds, train_command
from tests.fixtures.digits import use_few_digits
from tests.fixtures.entries import rewritten

COLUMNS = 80


def quickly(patch):
    """Few digits and few resamples."""
    use_few_digits(patch)
    patch.setattr(statistics, "RESAMPLES", 200)
    patch.setenv("COLUMNS", str(COLUMNS))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quickly(monkeypatch)


@pytest.fixture(scope="module", params=["static", "confidence"])
def run_dir(tmp_path_factory, request):
    """The folder of a fitted router; leave it as it is."""
    run_dir = tmp_path_factory.mktemp("entries") / request.param
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        succeeds(*train_command(run_dir, request.param))
    return run_dir


def enter_command(run_dir, out, *options):
    return ["enter", run_dir, "--out", out, "--author", "A. Name", *options]


@pytest.fixture
def entry_file(run_dir, tmp_path):
    out = tmp_path / "entry.safetensors"
    succeeds(*enter_command(run_dir, out))
    return out


def test_enter_names_next_command(run_dir, tmp_path):
    out = tmp_path / "entry.safetensors"
    output = succeeds(*enter_command(run_dir, out, "--code", "https://example.org/code"))
    assert f"rnr-gym validate --entry {out}" in output
    entry = read_entry(out)
    assert (entry.author, entry.code) == ("A. Name", "https://example.org/code")
    assert entry.static == (entry.router == "static")


def cells_of(output, pattern):
    """The cells of the lines whose first cell has a form."""
    lines = [line.split() for line in output.splitlines()]
    return [cells for cells in lines if cells and re.fullmatch(pattern, cells[0])]


def test_validate_prints_rows_of_the_tradeoffs(entry_file):
    output = succeeds("validate", "--entry", entry_file)
    assert max(len(line) for line in output.splitlines()) <= COLUMNS
    expected = leaderboard.validate(read_entry(entry_file)).rows
    rows = cells_of(output, r"\d+\.\d{3}")
    assert len(rows) == len(expected) >= len(EVAL_TRADEOFFS)
    for cells, row in zip(rows, expected, strict=True):
        assert cells[:3] == [f"{row.tradeoff:.3f}", f"{row.accuracy:.1%}", f"{row.compute:.3f}"]
        assert cells[5] == f"{row.regret:.4f}"


def test_validate_prints_accuracies_and_regret(entry_file):
    output = succeeds("validate", "--entry", entry_file)
    standing = leaderboard.validate(read_entry(entry_file))
    expected = []
    for accuracy, _ in standing.figures.accuracy_at:
        expected.append("–" if accuracy is None else f"{100 * accuracy:.1f}")
    assert cells_of(output, r"\d+\.\d|–") == [expected]
    value, low, high = standing.regret
    assert f"Mean regret: {value:.4f}, 95 % interval [{low:.4f}, {high:.4f}]" in output


def test_validate_says_what_is_declared(entry_file):
    entry = read_entry(entry_file)
    output = " ".join(succeeds("validate", "--entry", entry_file).split())
    if entry.static:
        assert "Charged as a static network" in output
    else:
        assert "Declared: 0 MACs for each decision of the router" in output


def test_enter_does_not_overwrite(run_dir, entry_file):
    output = fails(entry_file.parent, *enter_command(run_dir, entry_file))
    assert "`out` must be a new file, got" in output


def test_enter_rejects_author_with_markup(run_dir, tmp_path):
    out = tmp_path / "entry.safetensors"
    output = fails(tmp_path, "enter", run_dir, "--out", out, "--author", "<b>")
    assert "`author` must be 1 to 60 printable characters" in output


def shorter(tensors, metadata):
    tensors["paths"] = tensors["paths"][:, :, :3]


def fewer(tensors, metadata):
    tensors["paths"] = tensors["paths"][:, :-1]


def other_images(tensors, metadata):
    metadata["source_digest"] = "0123456789ab"


def other_id(tensors, metadata):
    metadata["env"] = "RNR-Letters-v0"


REFUSED = {
    shorter: "`paths` must have 4 layers, as RNR-Digits-v0, got 3",
    fewer: "`paths` must have one path for each of the ",
    other_images: "the paths are those of other images",
    other_id: "`env` must be one of RNR-Digits-v0",
}
"""Changes of an entry, with what the error says."""


@pytest.mark.parametrize(
    ("change", "message"), REFUSED.items(), ids=[each.__name__ for each in REFUSED]
)
def test_validate_rejects_entry_that_does_not_fit(entry_file, change, message):
    rewritten(entry_file, change)
    assert message in fails(entry_file.parent, "validate", "--entry", entry_file)
