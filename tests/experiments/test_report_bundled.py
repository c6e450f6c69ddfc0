"""A comparison on a bundled table where its images are missing: all figures, but no gallery."""

import json
import shutil

import pytest

from rnr_gym import data
from rnr_gym.agents import FitConfig
from rnr_gym.backbones import weights
from rnr_gym.experiments import comparison, results, statistics, workers
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS
from rnr_gym.experiments.validation import validate
from rnr_gym.routing import route_table
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small
from tests.fixtures.comparisons import InlineExecutor, read_results, write_results

ENV = "RNR-CIFAR10-Table-v0"
BACKBONE = "rnr-cifar10-small"
AGENTS = ("static", "confidence", "random")
NUM_IMAGES = 60


def use_small_tables(patch, weights_dir):
    """Bundle the tables of a small backbone, and fit routers in this process."""
    patch.setattr(weights, "WEIGHTS_DIR", weights_dir)
    patch.setattr(workers, "ProcessPoolExecutor", InlineExecutor)
    patch.setattr(statistics, "RESAMPLES", 200)


def bundle_tables():
    """Write the tables of both splits to where bundled files are."""
    backbone = small.backbone("multipath", summary_groups=8)
    spec = RoutingSpec.of(backbone)
    for seed, split in enumerate(("route", "test")):
        images = small.images(NUM_IMAGES, seed=seed)
        table = route_table.build(backbone, images, spec, progress=False)
        table.save(weights.table_file(BACKBONE, split))


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("bundled")


@pytest.fixture(scope="module")
def report_dir(base_dir):
    """The folder of a comparison; leave it as it is."""
    report_dir = base_dir / "report"
    kwargs = {"data_root": str(base_dir / "nowhere")}
    fit_config = FitConfig(ENV, kwargs, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        use_small_tables(patch, base_dir / "weights")
        bundle_tables()
        comparison.compare(fit_config, AGENTS, seeds=1, jobs=1, report_dir=report_dir)
    return report_dir


@pytest.fixture(autouse=True)
def _small_tables(monkeypatch, base_dir):
    use_small_tables(monkeypatch, base_dir / "weights")


def open_testbed(kwargs):
    return results.Testbed.open(FitConfig(ENV, kwargs))


def test_bundled_testbed_is_table_alone(report_dir):
    content = read_results(report_dir)
    testbed = open_testbed(content["arguments"])
    assert testbed.images is None
    assert isinstance(testbed.source, RouteTable)
    assert testbed.table is testbed.source
    assert len(testbed.source.labels) == content["images"] == NUM_IMAGES


def test_bundled_testbed_downloads_no_images(report_dir, monkeypatch):
    calls = []
    load = data.load

    def recording_load(*args):
        calls.append(args)
        return load(*args)

    monkeypatch.setattr(data, "load", recording_load)
    kwargs = read_results(report_dir)["arguments"]
    assert open_testbed(kwargs).images is None
    # The last argument is whether to download.
    assert calls == [("cifar10", "test", kwargs["data_root"], False)]


def test_bundled_testbed_ignores_other_images(report_dir, small_cifar):
    """Ten pictures cannot be those of a table of sixty."""
    testbed = open_testbed({"data_root": str(small_cifar)})
    assert testbed.images is None
    assert testbed.original_id.tolist() == list(range(NUM_IMAGES))


def test_bundled_report_has_no_gallery(report_dir):
    names = {file.name for file in report_dir.iterdir()}
    assert names == {
        "config.json",
        "results.json",
        "paths.npz",
        "report.html",
        "pareto.png",
        "routers",
    }
    assert read_results(report_dir)["gallery"] is False


def test_bundled_report_page_has_no_gallery(report_dir):
    page = (report_dir / "report.html").read_text()
    assert "Cheapest and most expensive images" not in page
    assert "data:image" not in page
    assert "Compute by class" not in page
    assert "Compute against difficulty" in page


def test_bundled_report_has_paths_but_no_images(report_dir):
    content = read_results(report_dir)
    assert content["examples"] == {"cheapest": [], "most_expensive": []}
    assert content["by_class"] == []
    assert content["by_difficulty"]["measure"] == "paths"
    assert sum(content["by_difficulty"]["images"]) == NUM_IMAGES
    assert content["paths"]["used"]


def test_bundled_report_has_all_figures(report_dir):
    content = read_results(report_dir)
    assert content["env"] == content["provenance"]["environment"] == ENV
    assert [router["router"] for router in content["routers"]] == [*AGENTS, "oracle"]

    savings = [(pair["router"], pair["against"]) for pair in content["savings"]]
    assert savings == [("confidence", "static")]
    lost = [(pair["router"], pair["against"]) for pair in content["lost"]]
    assert lost == [("confidence", "full")]
    assert [figures["router"] for figures in content["by_outcome"]] == ["confidence"]

    # Without images nothing is known of severities.
    assert all(figures["severity"] == [0] for figures in content["by_severity"])
    rows = [row for row in content["rows"] if row["router"] == "confidence"]
    assert len(rows) == len(EVAL_TRADEOFFS)
    assert 0 < content["full_accuracy"] < 1


def test_bundled_report_is_strict_json(report_dir):
    def reject(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (report_dir / "results.json").read_text()
    json.loads(text, parse_constant=reject)


def test_validate_accepts_bundled_report(report_dir):
    assert validate(report_dir) == len(read_results(report_dir)["rows"])


def change_full_accuracy(content):
    content["full_accuracy"] += 0.01


def change_saving(content):
    content["savings"][0]["mean"] = 0.123


def change_saving_at_budget(content):
    content["savings"][0]["at"][0][0] = 0.123


def change_lost(content):
    content["lost"][0]["mean"] -= 0.01


def change_lost_interval(content):
    content["lost"][0]["at"][0][1] -= 0.01


def change_outcome_compute(content):
    content["by_outcome"][0]["right"] -= 0.01


def change_outcome_interval(content):
    content["by_outcome"][0]["high"] -= 0.01


def claim_severities(content):
    content["by_severity"][0]["severity"] = [5]


def drop_outcomes(content):
    content["by_outcome"] = []


def change_difficulty(content):
    content["by_difficulty"]["routers"][0]["compute"][0] += 0.01


def change_images_of_difficulty(content):
    content["by_difficulty"]["images"][0] += 1


CHANGES = [
    change_full_accuracy,
    change_saving,
    change_saving_at_budget,
    change_lost,
    change_lost_interval,
    change_outcome_compute,
    change_outcome_interval,
    claim_severities,
    drop_outcomes,
    change_difficulty,
    change_images_of_difficulty,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_validate_rejects_changed_bundled_report(report_dir, tmp_path, change):
    copy_dir = shutil.copytree(report_dir, tmp_path / "copy")
    content = read_results(copy_dir)
    change(content)
    write_results(copy_dir, content)
    with pytest.raises(ValueError, match=r"does not hold|must have"):
        validate(copy_dir)


def test_validate_rejects_other_bundled_table(report_dir, base_dir, tmp_path, monkeypatch):
    weights_dir = shutil.copytree(base_dir / "weights", tmp_path / "weights")
    monkeypatch.setattr(weights, "WEIGHTS_DIR", weights_dir)
    path = weights.table_file(BACKBONE, "test")
    table = RouteTable.load(path)
    table.loss[0, 0] += 1.0
    table.save(path)
    with pytest.raises(ValueError, match=r"`provenance\.weights and images` does not hold"):
        validate(report_dir)
