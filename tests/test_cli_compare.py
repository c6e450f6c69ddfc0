"""The command line: comparing routers, and validating the report."""

import json
import shutil
from itertools import pairwise

import pytest

from rnr_gym import data
from rnr_gym.agents import DEFAULT_AGENTS
from rnr_gym.backbones import zoo
from rnr_gym.experiments import comparison, runs
from rnr_gym.experiments.validation import validate
from rnr_gym.routing import route_table
from rnr_gym.training import calibration
from tests.fixtures.commands import fails, run, succeeds
from tests.fixtures.comparisons import (
    InlineExecutor,
    compare_command,
    compare_quickly,
    finished_report,
    read_results,
)
from tests.fixtures.digits import ENV, load_all
from tests.fixtures.files import snapshot
from tests.fixtures.profiles import keep

COLUMNS = 80


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    compare_quickly(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))


@pytest.fixture
def report_dir(tmp_path_factory, tmp_path):
    """A copy of a finished comparison that may be changed."""
    finished = finished_report(tmp_path_factory.getbasetemp())
    return shutil.copytree(finished, tmp_path / "report", copy_function=shutil.copy2)


def test_compare_prints_both_tables(tmp_path):
    report_dir = tmp_path / "report"
    output = succeeds(*compare_command(report_dir, ("static", "confidence"), seeds=1))
    # The last line has paths that must not be wrapped.
    tables = [line for line in output.splitlines() if "report:" not in line]
    assert max(len(line) for line in tables) <= COLUMNS
    assert "static" in output
    assert f"rnr-gym validate {report_dir}" in output

    for pair in read_results(report_dir)["differences"]:
        mean, low, high = (100 * pair[name] for name in ("mean", "low", "high"))
        assert f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" in output


def test_report_under_time_holds_for_its_profile_only(tmp_path, monkeypatch):
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path / "cache"))
    backbone = zoo.named("rnr-digits", None)
    profile = keep(backbone)
    report_dir = tmp_path / "report"
    command = compare_command(report_dir, ("full", "thresholds"), seeds=1)
    succeeds(*command, "--cost", "time")
    content = read_results(report_dir)
    assert content["arguments"] == {"cost": "time"}
    assert content["provenance"]["profile"] == str(profile)
    full = [row["compute"] for row in content["rows"] if row["router"] == "full"]
    assert set(full) == {1.0}
    assert "Compute is time spent" in (report_dir / "report.html").read_text()
    assert "verified" in succeeds("validate", report_dir)

    # Measured again.
    keep(backbone, seed=1)
    message = fails(report_dir, "validate", report_dir)
    assert "`provenance.profile` does not hold" in message


def test_validate_counts_rows(report_dir):
    num_rows = len(read_results(report_dir)["rows"])
    assert f"verified {num_rows} rows" in succeeds("validate", report_dir)


def test_validate_fails_where_figure_was_changed(report_dir):
    content = read_results(report_dir)
    content["rows"][0]["accuracy"] += 0.01
    (report_dir / "results.json").write_text(json.dumps(content))
    assert "`rows[0].accuracy` does not hold" in fails(report_dir, "validate", report_dir)


def without_seconds(content):
    """Results without what the clock measured."""
    rows = []
    for row in content["rows"]:
        rows.append({name: value for name, value in row.items() if name != "seconds"})
    return content | {"rows": rows}


def test_compare_resumes_with_missing_routers(report_dir):
    before = snapshot(report_dir)
    expected = read_results(report_dir)
    (report_dir / "results.json").unlink()
    (report_dir / "paths.npz").unlink()
    shutil.rmtree(report_dir / "routers" / "ppo-1")

    succeeds(*compare_command(report_dir))
    assert InlineExecutor.submitted == ["ppo"]
    after = snapshot(report_dir)
    kept = [file for file in before if "routers" in file.parts and "ppo-1" not in file.parts]
    assert len(kept) >= 6
    assert all(after[file] == before[file] for file in kept)

    actual = read_results(report_dir)
    assert without_seconds(actual) == without_seconds(expected)
    assert validate(report_dir) == len(expected["rows"])


def test_compare_killed_while_fitting_resumes(tmp_path, monkeypatch):
    fit = runs.fit
    fitted = []

    def fit_one_then_interrupt(name, *args):
        if len(fitted) == 1:
            raise KeyboardInterrupt
        fitted.append(name)
        return fit(name, *args)

    monkeypatch.setattr(runs, "fit", fit_one_then_interrupt)
    report_dir = tmp_path / "out"
    command = compare_command(report_dir, ("full", "confidence", "static"), seeds=1)
    code, output = run(*command)
    assert code == 130
    assert "run the same command to resume" in output.replace("\n", " ")
    assert not (report_dir / "results.json").exists()

    monkeypatch.setattr(runs, "fit", fit)
    succeeds(*command)
    assert len(InlineExecutor.submitted) == 2
    assert fitted[0] not in InlineExecutor.submitted


def test_compare_rejects_finished_report(report_dir):
    assert "is finished; choose another" in fails(report_dir, *compare_command(report_dir))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seeds": 3}, "seeds"),
        ({"steps": 1024}, "steps"),
        ({"agents": ("static",)}, "agents"),
        ({"weights": "None"}, "arguments"),
    ],
    ids=["seeds", "steps", "agents", "weights"],
)
def test_compare_rejects_changed_options(report_dir, change, name):
    (report_dir / "results.json").unlink()
    output = fails(report_dir, *compare_command(report_dir, **change))
    assert "`out` must be resumed with the settings that it was started with" in output
    assert name in output.split("where")[-1]


def test_default_agents_without_table_omit_those_that_need_it(tmp_path, monkeypatch):
    names = []

    def record_and_stop(agents, *_):
        names.extend(agents)
        raise KeyboardInterrupt

    monkeypatch.setattr(route_table, "LIMIT", 1)
    monkeypatch.setattr(comparison, "fit_routers", record_and_stop)
    code, _ = run("compare", ENV, "--out", tmp_path / "out")
    assert code == 130
    assert names == [name for name in DEFAULT_AGENTS if name not in ("fqi", "skipnet")]


@pytest.mark.slow
@pytest.mark.parametrize("env", ["RNR-CIFAR100-v0", "RNR-CIFAR100-Channels-v0"])
def test_cifar100_pretrain_and_compare(small_cifar, tmp_path, monkeypatch, env):
    monkeypatch.setattr(data, "load", load_all)
    # There are few pictures; those of a hundred classes take long enough as it is.
    monkeypatch.setattr(calibration, "MEASURED", 1_000)
    monkeypatch.setattr(calibration, "MEASURED_ON_EACH", 500)
    weights_file = tmp_path / "weights.safetensors"
    report_dir = tmp_path / "report"
    pretrain = ["pretrain", env, "--out", weights_file]
    succeeds(*pretrain, "--epochs", 1, "--glance-epochs", 1)

    command = ["compare", env, "--weights", weights_file, "--out", report_dir]
    command += ["--agents", "static", "ppo"]
    command += ["--seeds", 1, "--steps", 512, "--jobs", 1]
    assert "ppo" in succeeds(*command)
    assert validate(report_dir) == len(read_results(report_dir)["rows"])


@pytest.mark.slow
def test_compare_all_digits_in_worker_processes(tmp_path, monkeypatch):
    # All images, processes and resamples, as users have them.
    monkeypatch.undo()
    report_dir = tmp_path / "report"
    succeeds(*compare_command(report_dir, seeds=1))

    content = read_results(report_dir)
    assert content["images"] == len(load_all("digits", "test")) > 2_000
    assert validate(report_dir) == len(content["rows"])

    # The more expensive compute is, the less of it a static path spends.
    compute = [row["compute"] for row in content["rows"] if row["router"] == "static"]
    assert all(earlier >= later for earlier, later in pairwise(compute))
    regret = {router["router"]: router["regret"][0] for router in content["routers"]}
    assert regret["oracle"] == 0.0 < regret["confidence"] < regret["static"] < 0.3
