"""The folder of a finished comparison: its files, and what they say."""

import numpy as np
import pytest
from PIL import Image

from rnr_gym.agents import FitConfig
from rnr_gym.experiments import runs
from rnr_gym.experiments.comparison import router_dir
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS, evaluate
from rnr_gym.experiments.results import ORACLE
from tests.fixtures.comparisons import compare_quickly, read_results
from tests.fixtures.digits import ENV

ROW_FIELDS = [
    "router",
    "seed",
    "tradeoff",
    "static",
    "accuracy",
    "compute",
    "router_macs",
    "decision_macs",
    "loss",
    "regret",
    "path_entropy",
    "distinct_paths",
    "exits",
    "images",
    "seconds",
]
PROVENANCE = [
    "environment",
    "arguments",
    "split",
    "rnr_gym",
    "weights and images",
    "route table",
    "code",
    "torch",
    "matplotlib",
    "threads",
    "machine",
]
NUM_LAYERS = 4


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    compare_quickly(monkeypatch)


@pytest.fixture
def source():
    return FitConfig(ENV).source("test")


def rows_of(results, router, seed=0):
    return [row for row in results["rows"] if (row["router"], row["seed"]) == (router, seed)]


def test_report_dir_lists_all_files(report_dir):
    names = {file.name for file in report_dir.iterdir()}
    assert names == {
        "config.json",
        "results.json",
        "paths.npz",
        "report.html",
        "pareto.png",
        "gallery.png",
        "routers",
    }


@pytest.mark.parametrize("name", ["pareto.png", "gallery.png"])
def test_report_pictures_are_png(report_dir, name):
    with Image.open(report_dir / name) as picture:
        assert picture.format == "PNG"


def test_report_rows_cover_all_tradeoffs(report_dir):
    rows = read_results(report_dir)["rows"]
    static = runs.load(router_dir(report_dir, "static", 0)).router

    # A static router is evaluated at a trade-off of each of its paths, too.
    static_tradeoffs = sorted({*EVAL_TRADEOFFS, *static.tradeoffs})
    expected = [("static", 0, tradeoff) for tradeoff in static_tradeoffs]
    for name, seed in (("confidence", 0), ("ppo", 0), ("ppo", 1), (ORACLE, 0)):
        expected += [(name, seed, tradeoff) for tradeoff in EVAL_TRADEOFFS]
    assert [(row["router"], row["seed"], row["tradeoff"]) for row in rows] == expected


def test_report_rows_have_every_field(report_dir):
    for row in read_results(report_dir)["rows"]:
        assert [*row] == ROW_FIELDS


def test_report_rows_match_evaluation(report_dir, source):
    """The figures are those of the routers in the same folder."""
    rows = read_results(report_dir)["rows"]
    for row in rows:
        if row["router"] == ORACLE:
            continue
        router = runs.load(router_dir(report_dir, row["router"], row["seed"])).router
        evaluation = evaluate(source, router, row["tradeoff"])
        compute = evaluation.macs.mean() / source.spec.plain_macs
        regret = source.regret(evaluation.path, row["tradeoff"])

        assert row["accuracy"] == evaluation.correct.mean()
        assert row["compute"] == pytest.approx(compute)
        assert row["router_macs"] == evaluation.router_macs.mean()
        assert row["loss"] == pytest.approx(evaluation.loss.mean())
        assert row["regret"] == pytest.approx(regret)


def test_report_row_figures_in_range(report_dir, source):
    results = read_results(report_dir)
    for row in results["rows"]:
        assert row["images"] == results["images"] == len(source.labels)
        assert 0 <= row["accuracy"] <= 1

        # The ceiling is the environment's, without the router's own MACs.
        router_compute = row["decision_macs"] * NUM_LAYERS / source.spec.plain_macs
        assert 0 < row["compute"] <= source.spec.ceiling + router_compute


def test_report_keeps_paths_and_predictions(report_dir, source):
    rows = read_results(report_dir)["rows"]
    with np.load(report_dir / "paths.npz", allow_pickle=False) as arrays:
        names = {f"path_{i}" for i in range(len(rows))}
        names |= {f"prediction_{i}" for i in range(len(rows))}
        assert set(arrays.files) == names

        for i, row in enumerate(rows):
            path = arrays[f"path_{i}"]
            prediction = arrays[f"prediction_{i}"]
            assert path.shape == (row["images"], NUM_LAYERS)
            assert path.dtype == np.int8
            assert (prediction == source.labels).mean() == row["accuracy"]


def test_report_results_name_provenance(report_dir):
    results = read_results(report_dir)
    provenance = results["provenance"]
    assert [*provenance] == PROVENANCE
    assert provenance["environment"] == results["env"] == ENV
    assert provenance["split"] == "test"
    assert len(provenance["code"]) == 12
    assert len(provenance["weights and images"]) == 12
    assert results["seeds"] == 2


def shown_record(report_dir):
    """Row, path and compute of the shown record."""
    results = read_results(report_dir)
    shown = results["shown"]
    for i, row in enumerate(results["rows"]):
        if {name: row[name] for name in shown} == shown:
            with np.load(report_dir / "paths.npz") as arrays:
                return row, arrays[f"path_{i}"]
    raise AssertionError(f"there is no row of {shown}")


def test_report_paths_are_those_of_shown_record(report_dir, source):
    paths = read_results(report_dir)["paths"]
    row, path = shown_record(report_dir)
    assert paths["distinct"] == row["distinct_paths"]
    assert paths["compute"] == pytest.approx(row["compute"])
    assert paths["exits"] is True
    assert paths["offered"] == [np.flatnonzero(valid).tolist() for valid in source.spec.valid]

    most_used = paths["used"][0]
    assert most_used["share"] == (path == most_used["path"]).all(1).mean()
    shares = [used["share"] for used in paths["used"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 1.0 + 1e-9


def test_report_classes_add_up_to_shown_record(report_dir):
    by_class = read_results(report_dir)["by_class"]
    row, _ = shown_record(report_dir)
    images = np.array([entry["images"] for entry in by_class])
    assert images.sum() == row["images"]
    for name in ("compute", "accuracy"):
        values = np.array([entry[name] for entry in by_class])
        assert (images * values).sum() / images.sum() == pytest.approx(row[name])


def test_report_examples_are_in_order_of_compute(report_dir, source):
    examples = read_results(report_dir)["examples"]
    _, path = shown_record(report_dir)
    compute = [entry["compute"] for entry in examples["cheapest"]]
    compute += [entry["compute"] for entry in reversed(examples["most_expensive"])]
    assert compute == sorted(compute)
    for entry in [*examples["cheapest"], *examples["most_expensive"]]:
        assert entry["path"] == path[entry["image"]].tolist()
        assert entry["label"] == str(source.labels[entry["image"]])
        assert entry["right"] == (entry["label"] == entry["prediction"])


def test_report_learning_has_logged_steps(report_dir):
    """The learner of this comparison writes logs; the others have none."""
    learning = read_results(report_dir)["learning"]
    assert [(curve["router"], curve["seed"]) for curve in learning] == [("ppo", 0), ("ppo", 1)]
    for curve in learning:
        assert curve["steps"] == sorted(curve["steps"])
        assert len(curve["reward"]) == len(curve["steps"]) > 0


def test_report_gallery_shows_middle_compute(report_dir):
    """It shows the last learner at the trade-off whose compute is nearest the median."""
    results = read_results(report_dir)
    shown = results["shown"]
    assert (shown["router"], shown["seed"]) == ("ppo", 0)

    rows = rows_of(results, "ppo")
    compute = np.array([row["compute"] for row in rows])
    distance = np.abs(compute - np.median(compute))
    tradeoffs = [row["tradeoff"] for row in rows]
    assert distance[tradeoffs.index(shown["tradeoff"])] == pytest.approx(distance.min())
