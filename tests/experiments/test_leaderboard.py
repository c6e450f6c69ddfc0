"""The figures of leaderboard entries, and the committed leaderboard."""

import json

import numpy as np
import pytest

from rnr_gym.experiments import entries, leaderboard
from rnr_gym.experiments.entries import read_entry
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS
from rnr_gym.experiments.leaderboard import standing
from rnr_gym.experiments.report import router_dir
from rnr_gym.experiments.statistics import BUDGETS, mean_over_images
from tests.fixtures.comparisons import COMPARED, compare_quickly, read_results
from tests.fixtures.digits import ENV
from tests.fixtures.documents import ROOT
from tests.fixtures.entries import CHANGE_AT, paper_entry, rewritten
from tests.fixtures.modules import module_of
from tests.fixtures.records import MIDDLE, paper_testbed
from tests.fixtures.routing import assert_near

BENCHMARKS = ROOT / "benchmarks"
WITHOUT_IMAGES = ("RNR-CIFAR10-Table-v0", "RNR-Digits-v0")


# Known answers


def paper_regrets(tradeoff):
    """What images of each kind lose by the path of the paper's entry: once easy, middle, ..."""
    if tradeoff < CHANGE_AT:
        # Path 22 costs 1.05; the best ones .02, .25, .75 and .02. All but hopeless are right.
        return np.array([1.03, 0.8, 0.3, 1.03]) * tradeoff
    # Path 10 costs .25, and is wrong for hard images, whose best path is 21 or, from 1.37 on, 0.
    hard = max(1 - 0.75 * tradeoff, -0.02 * tradeoff) + 0.25 * tradeoff
    return np.array([0.23 * tradeoff, 0.0, hard, 0.23 * tradeoff])


def test_regret_of_each_image_is_known():
    by_kind = np.mean([paper_regrets(tradeoff) for tradeoff in EVAL_TRADEOFFS], axis=0)
    expected = by_kind[[0, 0, 1, 1, 1, 2, 2, 3]]
    result = standing(paper_entry(), paper_testbed())
    np.testing.assert_allclose(result.regrets, expected)
    assert_near(result.regret.value, expected.mean())
    assert_near(result.figures.regret[0], expected.mean())


def test_accuracy_at_budgets_is_known():
    # 7/8 at 1.05 and 5/8 at .25, and in both cases two decisions of .01 each.
    expected = [None, None, None]
    expected += [5 / 8 + 2 / 8 * (budget - 0.27) / 0.8 for budget in (0.3, 0.45, 0.6)]
    result = standing(paper_entry(), paper_testbed())
    for (accuracy, _), known in zip(result.figures.accuracy_at, expected, strict=True):
        if known is None:
            assert accuracy is None
        else:
            assert_near(accuracy, known)
    assert_near(result.router_share, 0.02)


def test_static_entry_pays_for_no_exit_head():
    paths = np.array([MIDDLE] * 16, np.int8)
    entry = paper_entry(static=True, decision_macs=0, paths=paths)
    result = standing(entry, paper_testbed())
    # Stem, cheap and the exit head that answers: without the glance.
    assert_near([row.compute for row in result.rows], np.full(16, 0.23))
    assert result.router_share == 0.0


def test_declared_decisions_change_compute_but_not_regret():
    cheap = standing(paper_entry(decision_macs=0), paper_testbed())
    expensive = standing(paper_entry(decision_macs=10), paper_testbed())
    assert expensive.regret == cheap.regret
    assert_near(expensive.router_share, 0.2)
    assert expensive.figures.accuracy_at != cheap.figures.accuracy_at


def test_regret_needs_a_table():
    result = standing(paper_entry(), paper_testbed()._replace(table=None))
    assert result.regrets is None
    assert result.regret is None
    assert result.figures.regret is None
    assert (
        result.figures.accuracy_at == standing(paper_entry(), paper_testbed()).figures.accuracy_at
    )


@pytest.mark.parametrize("which", [0, 8, 15])
def test_one_other_path_changes_the_figures(which):
    paths = paper_entry().paths.copy()
    paths[which, 2] = [1, 1]
    honest = standing(paper_entry(), paper_testbed())
    tampered = standing(paper_entry(paths=paths), paper_testbed())
    assert tampered.regret.value != honest.regret.value
    assert tampered.rows[which] != honest.rows[which]


# Intervals


def test_interval_is_that_of_a_share():
    values = np.zeros(1000)
    values[:300] = 1.0
    mean = mean_over_images(values, np.arange(1000))
    # 1.96 standard errors.
    error = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert mean.value == 0.3
    assert mean.low == pytest.approx(0.3 - error, abs=0.1 * error)
    assert mean.high == pytest.approx(0.3 + error, abs=0.1 * error)


def test_interval_draws_versions_of_an_original_together():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.random(50), 6)
    versions = mean_over_images(values, np.repeat(np.arange(50), 6))
    alone = mean_over_images(values[::6], np.arange(50))
    np.testing.assert_allclose(versions, alone)


def test_interval_of_equal_images_has_no_width():
    assert mean_over_images(np.full(20, 0.25), np.arange(20)) == (0.25, 0.25, 0.25)


# The same as a comparison


@pytest.fixture
def _quick(monkeypatch):
    compare_quickly(monkeypatch)


def entered(report_dir, name, out):
    """The entry of a router of a comparison."""
    entries.enter_run(router_dir(report_dir, name, 0), out, "A. Name")
    return read_entry(out)


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("name", COMPARED)
def test_rows_are_those_of_the_comparison(report_dir, tmp_path, name):
    result = leaderboard.validate(entered(report_dir, name, tmp_path / "entry"))
    content = read_results(report_dir)
    rows = [row for row in content["rows"] if (row["router"], row["seed"]) == (name, 0)]
    assert len(result.rows) == len(rows)
    for actual, expected in zip(result.rows, rows, strict=True):
        for figure in expected.keys() - {"seconds"}:
            assert getattr(actual, figure) == expected[figure], figure


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("name", ["static", "confidence"])
def test_figures_are_those_of_the_comparison(report_dir, tmp_path, name):
    # These have one seed only, as an entry has.
    result = leaderboard.validate(entered(report_dir, name, tmp_path / "entry"))
    routers = {router["router"]: router for router in read_results(report_dir)["routers"]}
    assert result.figures.accuracy_at == routers[name]["accuracy_at"]
    assert result.figures.regret == routers[name]["regret"]
    assert_near(result.regret.value, routers[name]["regret"][0])


@pytest.mark.usefixtures("_quick")
def test_changed_paths_change_the_figures(report_dir, tmp_path):
    out = tmp_path / "entry"
    honest = leaderboard.validate(entered(report_dir, "confidence", out))

    def send_all_to_the_full_path(tensors, metadata):
        tensors["paths"][8] = 3

    rewritten(out, send_all_to_the_full_path)
    changed = leaderboard.validate(read_entry(out))
    assert changed.rows[8].compute > honest.rows[8].compute
    assert changed.regret != honest.regret


@pytest.mark.usefixtures("_quick")
def test_other_images_are_refused_before_a_table_is_built(monkeypatch):
    monkeypatch.setattr(entries, "open_testbed", lambda *_: pytest.fail("a table was opened"))
    digest = entries.origin(ENV, "pretrained", entries.open_test(ENV, "pretrained"))
    with pytest.raises(ValueError, match="the paths are those of other images"):
        leaderboard.validate(paper_entry(weights_digest=digest["weights_digest"]))


# The committed leaderboard


@pytest.fixture(scope="module")
def board():
    """The module that writes the leaderboard."""
    return module_of(BENCHMARKS / "leaderboard.py")


@pytest.fixture(scope="module")
def computed(board):
    """The rows that follow from the entries of ids that need no images."""
    return board.rows_of(board.ranked(WITHOUT_IMAGES))


def committed(board):
    """The rows of those ids in the file."""
    return [row for row in board.stored() if row["id"] in WITHOUT_IMAGES]


def test_committed_rows_follow_from_their_entries(board, computed):
    assert {row["id"] for row in computed} == set(WITHOUT_IMAGES)
    board.check(committed(board), computed)
    # Nothing but figures that follow, so that the file is written the same again.
    assert board.written(board.stored()) == board.BOARD.read_text()


def test_every_entry_has_a_row(board):
    files = {path.stem for path in board.ENTRIES.glob("*.safetensors")}
    assert files == {row["entry"] for row in board.stored()}


def test_first_row_is_not_above_itself(computed):
    for env in WITHOUT_IMAGES:
        first, *others = [row for row in computed if row["id"] == env]
        assert first["above_first"] == ""
        for row in others:
            above = float(row["regret"]) - float(first["regret"])
            assert float(row["above_first"]) == pytest.approx(above, abs=1.1e-5)


REPORTS = {
    "RNR-CIFAR10-Table-v0": "cifar10-table",
    "RNR-CIFAR10-v0": "cifar10",
    "RNR-Digits-v0": "digits",
}
"""By id, the committed report with the same routers."""


@pytest.mark.parametrize(("env", "report"), REPORTS.items())
def test_regret_of_our_routers_is_that_of_the_report(board, env, report):
    content = json.loads((BENCHMARKS / "results" / f"{report}.json").read_text())
    for row in board.stored():
        if (row["id"], row["author"]) != (env, "rnr-gym"):
            continue
        assert row["source_digest"] == content["provenance"]["weights and images"]
        regrets = []
        for reported in content["rows"]:
            # Static routers have trade-offs of their own besides.
            everywhere = np.isclose(reported["tradeoff"], EVAL_TRADEOFFS).any()
            if (reported["router"], reported["seed"]) == (row["router"], 0) and everywhere:
                regrets.append(reported["regret"])
        assert len(regrets) == len(EVAL_TRADEOFFS)
        assert float(row["regret"]) == pytest.approx(np.mean(regrets), abs=1e-5)


COLUMNS = [f"accuracy_at_{BUDGETS[-1]:g}", "regret", "regret_low", "above_first_high", "router"]
COLUMNS += ["router_share", "weights_digest", "source_digest", "declared_decision_macs", "code"]


@pytest.mark.parametrize("column", COLUMNS)
def test_changed_row_does_not_hold(board, computed, column):
    rows = committed(board)
    value = rows[-1][column]
    try:
        rows[-1][column] = f"{float(value) + 1.002:.4f}"
    except ValueError:
        rows[-1][column] = value + "x"
    with pytest.raises(ValueError, match=f"`{column}` of {rows[-1]['entry']} must be"):
        board.check(rows, computed)


def test_empty_figure_does_not_hold(board, computed):
    rows = committed(board)
    rows[-1]["regret"] = ""
    with pytest.raises(ValueError, match=r"`regret` of .* must be"):
        board.check(rows, computed)


def test_missing_row_does_not_hold(board, computed):
    with pytest.raises(ValueError, match="must have one row for each of"):
        board.check(committed(board)[1:], computed)


def test_other_order_does_not_hold(board, computed):
    rows = committed(board)
    with pytest.raises(ValueError, match="must be sorted by id, weights and regret"):
        board.check(rows[::-1], computed)


def test_figures_within_rounding_of_machines_hold(board, computed):
    rows = committed(board)
    for row in rows:
        row["accuracy_at_0.3"] = f"{float(row['accuracy_at_0.3']) + 0.0005:.4f}"
    board.check(rows, computed)


def test_tampered_entry_does_not_give_its_row(board, computed, tmp_path):
    name = "digits-thresholds.safetensors"
    path = tmp_path / name
    path.write_bytes((board.ENTRIES / name).read_bytes())

    def answer_at_once(tensors, metadata):
        tensors["paths"][4] = -1
        tensors["paths"][4, :, 0] = 0

    rewritten(path, answer_at_once)
    (tampered,) = board.rows_of(board.ranked((), tmp_path))
    (stored,) = (row for row in committed(board) if row["entry"] == path.stem)
    # Alone it is the first of its group.
    tampered = {**tampered, **{name: stored[name] for name in stored if "above" in name}}
    with pytest.raises(ValueError, match=r"must be .* as its entry gives"):
        board.check_row(stored, tampered)


def test_entry_that_does_not_hold_is_named(board, tmp_path):
    entries.write_entry(tmp_path / "foreign.safetensors", paper_entry())
    with pytest.raises(ValueError, match=r"^foreign\.safetensors: `weights_digest` must be"):
        board.ranked((), tmp_path)
