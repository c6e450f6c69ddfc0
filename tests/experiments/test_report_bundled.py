"""A comparison on a table that ships, on a machine without its images: all figures, no gallery, and the same proof."""

import json
import shutil
from functools import lru_cache

import pytest

from rnr_gym import data
from rnr_gym.agents import FitConfig
from rnr_gym.backbones import zoo
from rnr_gym.experiments import comparison, report, runs, statistics
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS
from rnr_gym.experiments.report import validate
from rnr_gym.routing import route_table
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.spec import RoutingSpec
from tests.experiments.test_comparison import Inline
from tests.fixtures import small

ENV = "RNR-CIFAR10-Table-v0"
AGENTS = ("static", "confidence", "random")


def quick(patch, base):
    """The tables of a small backbone as those that ship, and routers fitted in this process."""
    patch.setattr(zoo, "FOLDER", base / "weights")
    patch.setattr(comparison, "ProcessPoolExecutor", Inline)
    patch.setattr(statistics, "RESAMPLES", 200)


@lru_cache(maxsize=1)
def written(base):
    """The folder of a comparison, as `rnr-gym compare` writes it; once a process."""
    folder, backbone = base / "report", small.backbone("multipath", summary_groups=8)
    fit_config = FitConfig(ENV, {"data_root": str(base / "nowhere")}, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        quick(patch, base)
        for split, seed in (("route", 0), ("test", 1)):
            table = route_table.build(
                backbone, small.images(60, seed=seed), RoutingSpec.of(backbone), progress=False
            )
            table.save(zoo.bundled("rnr-cifar10-small", f"frozen.{split}"))
        runs.claim(
            folder,
            {**runs.identity("compare", fit_config), "agents": list(AGENTS), "seeds": 1},
            report.RESULTS,
        )
        testbed = report.testbed(fit_config)
        comparison.fit_routers(AGENTS, fit_config, 1, folder, 1)
        report.write(
            folder, fit_config, 1, list(comparison.records(AGENTS, 1, folder, testbed)), testbed
        )
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("shipped")


@pytest.fixture(autouse=True)
def _quick(monkeypatch, base):
    quick(monkeypatch, base)


@pytest.fixture
def folder(base):
    return written(base)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_the_bench_is_the_table_alone(folder):
    found = results(folder)
    testbed = report.testbed(FitConfig(ENV, found["arguments"]))
    assert testbed.images is None
    assert isinstance(testbed.source, RouteTable)
    assert testbed.table is testbed.source
    assert len(testbed.source.labels) == found["images"] == 60


def test_images_that_are_not_there_are_not_fetched_for_it(folder, monkeypatch):
    asked, load = [], data.load
    monkeypatch.setattr(data, "load", lambda *parts: asked.append(parts) or load(*parts))
    arguments = results(folder)["arguments"]
    assert report.testbed(FitConfig(ENV, arguments)).images is None
    assert asked == [("cifar10", "test", arguments["data_root"], False)]


def test_images_that_are_not_those_of_the_table_are_none(folder, small_cifar):
    """Ten pictures, where the table knows sixty."""
    testbed = report.testbed(FitConfig(ENV, {"data_root": str(small_cifar)}))
    assert testbed.images is None
    assert testbed.originals.tolist() == list(range(60))


def test_there_is_no_gallery_and_everything_else(folder):
    names = {file.name for file in folder.iterdir()}
    assert names == {
        "config.json",
        "results.json",
        "paths.npz",
        "report.html",
        "pareto.png",
        "routers",
    }
    found, page = results(folder), (folder / "report.html").read_text()
    assert found["gallery"] is False
    assert "gallery.png" not in page
    assert 'src="pareto.png"' in page
    assert found["env"] == found["provenance"]["environment"] == ENV


def test_all_parts_have_figures(folder):
    found = results(folder)
    assert [part["router"] for part in found["routers"]] == [*AGENTS, "oracle"]
    assert [(part["router"], part["against"]) for part in found["savings"]] == [
        ("confidence", "static")
    ]
    assert [(part["router"], part["against"]) for part in found["lost"]] == [("confidence", "full")]
    assert [part["router"] for part in found["by_outcome"]] == ["confidence"]
    assert all(part["severity"] == [0] for part in found["by_severity"])
    assert len([row for row in found["rows"] if row["router"] == "confidence"]) == len(
        EVAL_TRADEOFFS
    )
    assert 0 < found["full_accuracy"] < 1


def test_the_results_are_strict_json(folder):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    json.loads((folder / "results.json").read_text(), parse_constant=refuse)


def test_it_holds(folder):
    assert validate(folder) == len(results(folder)["rows"])


def change_full_accuracy(content):
    content["full_accuracy"] += 0.01


def change_saving(content):
    content["savings"][0]["mean"] = 0.123


def change_saving_at_a_budget(content):
    content["savings"][0]["at"][0][0] = 0.123


def change_loss(content):
    content["lost"][0]["mean"] -= 0.01


def change_interval_of_a_loss(content):
    content["lost"][0]["at"][0][1] -= 0.01


def change_compute_by_outcome(content):
    content["by_outcome"][0]["right"] -= 0.01


def change_interval_by_outcome(content):
    content["by_outcome"][0]["high"] -= 0.01


def claim_severities(content):
    content["by_severity"][0]["severity"] = [5]


def drop_outcomes(content):
    content["by_outcome"] = []


@pytest.mark.parametrize(
    "change",
    [
        *(
            change_full_accuracy,
            change_saving,
            change_saving_at_a_budget,
            change_loss,
            change_interval_of_a_loss,
        ),
        *(change_compute_by_outcome, change_interval_by_outcome, claim_severities, drop_outcomes),
    ],
    ids=lambda change: change.__name__,
)
def test_a_changed_figure_is_refused(folder, tmp_path, change):
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = results(copy)
    change(content)
    (copy / "results.json").write_text(json.dumps(content))
    (copy / "report.html").write_text(report.page(content))
    with pytest.raises(ValueError, match=r"does not hold|must have"):
        validate(copy)


def test_another_table_is_refused(folder, base, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", shutil.copytree(base / "weights", tmp_path / "weights"))
    path = zoo.bundled("rnr-cifar10-small", "frozen.test")
    table = RouteTable.load(path)
    table.loss[0, 0] += 1.0
    table.save(path)
    with pytest.raises(ValueError, match="`provenance` does not hold"):
        validate(folder)
