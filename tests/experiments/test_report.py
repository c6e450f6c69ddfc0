"""A comparison as a folder, and the proof that its figures hold: a folder with one of them changed is refused."""

import json
import shutil
import sys
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image

from rnr_gym import cli
from rnr_gym.agents import FitConfig
from rnr_gym.experiments import comparison, report, runs, statistics
from rnr_gym.experiments.comparison import ORACLE, Record
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS, evaluate, evaluate_paths
from rnr_gym.experiments.report import percent, validate
from tests.experiments.test_comparison import Inline
from tests.experiments.test_runs import ENV, few_digits, snapshot

AGENTS = ("static", "confidence", "ppo")
FIELDS = {
    *(
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
    ),
    *("path_entropy", "distinct_paths", "exits", "images", "seconds"),
}


def quick(patch):
    """Few digits, fitted in this process, and intervals from few resamples."""
    few_digits(patch)
    patch.setattr(comparison, "ProcessPoolExecutor", Inline)
    patch.setattr(statistics, "RESAMPLES", 200)


@lru_cache(maxsize=1)
def finished(base):
    """The folder that `rnr-gym compare` wrote, once a process; leave it as it is."""
    folder = base / "finished report"
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        command = [
            "rnr-gym",
            "compare",
            ENV,
            "--out",
            str(folder),
            "--agents",
            *AGENTS,
            "--seeds",
            "2",
            "--steps",
            "512",
            "--jobs",
            "1",
        ]
        patch.setattr(sys, "argv", command)
        cli.main()
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return finished(tmp_path_factory.getbasetemp())


@pytest.fixture
def copy(folder, tmp_path):
    """A copy to change."""
    return shutil.copytree(folder, tmp_path / "copy")


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_the_folder_holds_figures_paths_page_and_pictures(folder):
    names = {file.name for file in folder.iterdir()}
    assert names == {
        "config.json",
        "results.json",
        "paths.npz",
        "report.html",
        "pareto.png",
        "gallery.png",
        "routers",
    }
    for name in ("pareto.png", "gallery.png"):
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG"


def test_each_router_seed_and_tradeoff_has_a_row_with_every_field(folder):
    rows, static = results(folder)["rows"], runs.load(folder / "routers" / "static-0").router
    assert all(row.keys() == FIELDS for row in rows)
    wanted = [("static", 0, tradeoff) for tradeoff in sorted({*EVAL_TRADEOFFS, *static.tradeoffs})]
    wanted += [("confidence", 0, tradeoff) for tradeoff in EVAL_TRADEOFFS]
    wanted += [("ppo", seed, tradeoff) for seed in (0, 1) for tradeoff in EVAL_TRADEOFFS] + [
        (ORACLE, 0, tradeoff) for tradeoff in EVAL_TRADEOFFS
    ]
    assert [(row["router"], row["seed"], row["tradeoff"]) for row in rows] == wanted


def test_a_rows_figures_are_those_of_the_router_in_the_folder(folder):
    source, found = FitConfig(ENV).source("test"), results(folder)
    for row in found["rows"]:
        if row["router"] != ORACLE:
            again = evaluate(
                source,
                runs.load(folder / "routers" / f"{row['router']}-{row['seed']}").router,
                row["tradeoff"],
            )
            assert row["accuracy"] == again.correct.mean()
            assert row["compute"] == pytest.approx(again.macs.mean() / source.spec.plain_macs)
            assert row["router_macs"] == again.router_macs.mean()
            assert row["loss"] == pytest.approx(again.loss.mean())
            assert row["regret"] == pytest.approx(source.regret(again.path, row["tradeoff"]))
        assert row["images"] == len(source.labels) == found["images"]
        assert 0 <= row["accuracy"] <= 1
        assert (
            0
            < row["compute"]
            <= source.spec.ceiling + row["decision_macs"] * 4 / source.spec.plain_macs
        )


def test_paths_and_predictions_are_kept_for_each_row_and_image(folder):
    source, found = FitConfig(ENV).source("test"), results(folder)
    with np.load(folder / "paths.npz", allow_pickle=False) as stored:
        assert set(stored.files) == {
            f"{part}_{place}"
            for part in ("path", "prediction")
            for place in range(len(found["rows"]))
        }
        for place, row in enumerate(found["rows"]):
            path, prediction = stored[f"path_{place}"], stored[f"prediction_{place}"]
            assert path.shape == (row["images"], 4)
            assert path.dtype == np.int8
            assert (prediction == source.labels).mean() == row["accuracy"]


def test_it_says_what_it_was_measured_on(folder):
    found = results(folder)
    facts = {
        "environment",
        "arguments",
        "split",
        "rnr_gym",
        "weights and images",
        "code",
        "torch",
        "threads",
        "machine",
    }
    assert found["provenance"].keys() == facts
    assert (found["provenance"]["environment"], found["provenance"]["split"]) == (ENV, "test")
    assert len(found["provenance"]["code"]) == len(found["provenance"]["weights and images"]) == 12
    assert (found["env"], found["seeds"]) == (ENV, 2)
    assert found["shown"]["router"] == "ppo"


def test_a_report_that_was_not_touched_holds(folder):
    before = snapshot(folder)
    assert validate(folder) == len(results(folder)["rows"])
    assert snapshot(folder) == before


def test_what_the_clock_measured_need_not_hold(copy):
    content = results(copy)
    content["rows"][3]["seconds"] += 7.0
    (copy / "results.json").write_text(json.dumps(content))
    assert validate(copy) == len(content["rows"])


def row_of(content, router):
    """A row in the middle of a router's."""
    return [row for row in content["rows"] if row["router"] == router][5]


def change_accuracy(content):
    row_of(content, "ppo")["accuracy"] += 0.01


def change_compute(content):
    row_of(content, "ppo")["compute"] -= 0.005


def change_static_compute(content):
    row_of(content, "static")["compute"] -= 0.005


def change_regret(content):
    row_of(content, "confidence")["regret"] -= 0.002


def change_loss(content):
    row_of(content, "confidence")["loss"] -= 0.01


def change_router_macs(content):
    for name in ("router_macs", "decision_macs"):
        row_of(content, "ppo")[name] = 0


def change_interval(content):
    content["differences"][0]["low"] += 0.01


def change_interval_at_a_budget(content):
    content["differences"][0]["at"][-1][2] += 0.01


def change_full_accuracy(content):
    content["full_accuracy"] += 0.01


def change_saving(content):
    content["savings"][-1]["mean"] = 0.4


def change_saving_at_a_budget(content):
    content["savings"][-1]["at"][-1][0] = 0.4


def make_a_saving_infinite(content):
    finite = [at for pair in content["savings"] for at in pair["at"] if at[0] is not None]
    finite[0][:] = [None, None, None]


def drop_a_saving(content):
    content["savings"].pop()


def change_loss_against_the_full_path(content):
    content["lost"][0]["at"][-1][0] -= 0.01


def change_interval_of_a_loss(content):
    content["lost"][-1]["high"] -= 0.01


def change_compute_by_outcome(content):
    content["by_outcome"][0]["wrong"] += 0.01


def change_interval_by_outcome(content):
    content["by_outcome"][-1]["low"] += 0.01


def change_budgets(content):
    content["budgets"][0] = 0.04


def change_summary(content):
    content["routers"][1]["accuracy_at"][-1][0] += 0.01


def change_spread(content):
    content["routers"][2]["accuracy_at"][-1][1] = 0.001


def change_severity(content):
    content["by_severity"][0]["accuracy"][2] += 0.01


def change_count(content):
    content["images"] = 10_000


def change_seeds(content):
    content["seeds"] = 20


def drop_a_row(content):
    content["rows"].remove(row_of(content, "confidence"))


def drop_a_router(content):
    content["routers"].pop(0)


def add_an_image(content):
    row_of(content, "ppo")["images"] += 1


def change_weights(content):
    content["provenance"]["weights and images"] = "0" * 12


@pytest.mark.parametrize(
    "change",
    [
        *(
            change_accuracy,
            change_compute,
            change_static_compute,
            change_regret,
            change_loss,
            change_router_macs,
            change_interval,
        ),
        *(
            change_interval_at_a_budget,
            change_budgets,
            change_summary,
            change_spread,
            change_severity,
            change_count,
            change_seeds,
        ),
        *(
            change_full_accuracy,
            change_saving,
            change_saving_at_a_budget,
            make_a_saving_infinite,
            drop_a_saving,
        ),
        *(
            change_loss_against_the_full_path,
            change_interval_of_a_loss,
            change_compute_by_outcome,
            change_interval_by_outcome,
        ),
        *(drop_a_row, drop_a_router, add_an_image, change_weights),
    ],
    ids=lambda change: change.__name__,
)
def test_a_changed_figure_is_refused_even_if_the_page_was_changed_with_it(copy, change):
    content = results(copy)
    change(content)
    (copy / "results.json").write_text(json.dumps(content))
    (copy / "report.html").write_text(report.page(content))
    with pytest.raises(ValueError, match=r"does not hold|must have|answers differ when run again"):
        validate(copy)


def test_a_router_that_is_charged_as_a_static_one_is_refused_even_if_all_figures_follow(copy):
    content = results(copy)
    testbed, found = report.testbed(FitConfig(content["env"], content["arguments"])), []
    with np.load(copy / "paths.npz") as stored:
        for place, row in enumerate(content["rows"]):
            static, own = row["static"] or row["router"] == "confidence", row["decision_macs"]
            outcome = evaluate_paths(testbed.source, stored[f"path_{place}"], static, own)
            found.append(
                Record(
                    row["router"],
                    row["seed"],
                    row["tradeoff"],
                    static,
                    own,
                    row["seconds"],
                    outcome,
                )
            )
    forged = content | json.loads(json.dumps(comparison.results(found, testbed)))
    assert row_of(forged, "confidence")["compute"] < row_of(content, "confidence")["compute"]
    (copy / "results.json").write_text(json.dumps(forged))
    (copy / "report.html").write_text(report.page(forged))
    with pytest.raises(ValueError, match="static"):
        validate(copy)


def change_arrays(folder, change):
    """Write `paths.npz` anew."""
    with np.load(folder / "paths.npz") as stored:
        arrays = dict(stored)
    change(arrays)
    np.savez_compressed(folder / "paths.npz", **arrays)


@pytest.mark.parametrize("router", ["static", "confidence", "ppo", ORACLE])
def test_a_changed_path_of_one_image_is_refused(copy, router):
    place = [row["router"] for row in results(copy)["rows"]].index(router) + 5

    def change(arrays):
        path = arrays[f"path_{place}"]
        path[0] = [3, 3, 3, 3] if path[0, 0] != 3 else [0, -1, -1, -1]

    change_arrays(copy, change)
    with pytest.raises(ValueError, match=r"does not hold|answers differ when run again"):
        validate(copy)


def test_changed_answers_are_refused_even_if_they_are_right(copy):
    labels = FitConfig(ENV).source("test").labels
    place = [row["router"] for row in results(copy)["rows"]].index("confidence")
    change_arrays(
        copy, lambda arrays: arrays.update({f"prediction_{place}": labels.astype(np.int16)})
    )
    with pytest.raises(
        ValueError, match=r"row \d+ \(confidence, seed 0\): \d+ answers differ when run again"
    ):
        validate(copy)


def test_a_changed_number_on_the_page_is_refused(copy):
    page, content = (copy / "report.html").read_text(), results(copy)
    shown = percent(*content["routers"][1]["accuracy_at"][-1])
    assert shown in page
    (copy / "report.html").write_text(page.replace(shown, "99.9"))
    with pytest.raises(ValueError, match=r"`report.html` does not follow from results.json"):
        validate(copy)


def test_a_folder_that_is_no_finished_report_is_refused(copy, tmp_path):
    (copy / "results.json").unlink()
    for folder in (copy, tmp_path, tmp_path / "nothing"):
        with pytest.raises(
            FileNotFoundError,
            match=r"`report` must be the folder of a finished comparison, got .*, which has no results.json",
        ):
            validate(folder)


def test_the_gallery_shows_the_last_learner_at_its_middle_compute(folder):
    content = results(folder)
    ours = [row for row in content["rows"] if row["router"] == "ppo" and row["seed"] == 0]
    far = [abs(row["compute"] - np.median([row["compute"] for row in ours])) for row in ours]
    shown = next(row for row in ours if row["tradeoff"] == content["shown"]["tradeoff"])
    assert (content["shown"]["router"], content["shown"]["seed"]) == ("ppo", 0)
    assert far[ours.index(shown)] == pytest.approx(min(far))
