"""Several routers on one environment: fitted once per seed, evaluated at every trade-off."""

from dataclasses import replace

import numpy as np
import pytest

from rnr_gym import data
from rnr_gym.agents import FitConfig
from rnr_gym.agents.static import StaticRouter
from rnr_gym.classifier import CONFIG_FILE, ROUTER_FILE
from rnr_gym.experiments import results, runs
from rnr_gym.experiments.comparison import evaluate_routers, fit_routers, router_dir
from rnr_gym.experiments.evaluation import (
    EVAL_TRADEOFFS,
    eval_tradeoffs,
    evaluate,
    evaluate_paths,
)
from rnr_gym.experiments.results import ORACLE
from rnr_gym.routing.rollout import decision_macs
from tests.fixtures.comparisons import InlineExecutor, fit_inline
from tests.fixtures.digits import ENV
from tests.fixtures.files import snapshot

FIT_CONFIG = FitConfig(ENV, steps=1024, progress=False)
NAMES = ["static", "confidence", "random", "ppo"]


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    fit_inline(monkeypatch)


@pytest.fixture(scope="module")
def fitted_dir(tmp_path_factory):
    """The folder of a comparison with four fitted routers, up to two seeds each."""
    report_dir = tmp_path_factory.mktemp("routers")
    with pytest.MonkeyPatch.context() as patch:
        fit_inline(patch)
        fit_routers(NAMES, FIT_CONFIG, seeds=2, report_dir=report_dir, jobs=1)
    return report_dir


def test_fit_routers_once_per_seed(fitted_dir):
    """A router without randomness is fitted once."""
    assert sorted(file.name for file in (fitted_dir / "routers").iterdir()) == [
        "confidence-0",
        "ppo-0",
        "ppo-1",
        "random-0",
        "random-1",
        "static-0",
    ]


@pytest.mark.parametrize(("name", "seed"), [("ppo", 0), ("ppo", 1), ("static", 0)])
def test_fit_routers_writes_runs(fitted_dir, name, seed):
    run = runs.load(router_dir(fitted_dir, name, seed))
    assert run.agent == name
    assert run.fit_config.seed == seed
    assert run.fit_config.steps == 1024


def test_fit_routers_twice_fits_nothing(fitted_dir):
    before = snapshot(fitted_dir)
    fit_routers(NAMES, FIT_CONFIG, seeds=2, report_dir=fitted_dir, jobs=1)
    assert InlineExecutor.submitted == []
    assert snapshot(fitted_dir) == before


def test_fit_routers_fits_missing_learners_first(tmp_path):
    fit_routers(["static", "random"], FIT_CONFIG, seeds=1, report_dir=tmp_path, jobs=1)
    before = snapshot(tmp_path)

    names = ["full", "static", "random", "a2c", "cheapest"]
    fit_routers(names, FIT_CONFIG, seeds=1, report_dir=tmp_path, jobs=1)
    assert InlineExecutor.submitted == ["a2c", "full", "cheapest"]
    assert (router_dir(tmp_path, "a2c", 0) / ROUTER_FILE).exists()

    after = snapshot(tmp_path)
    assert {file: after[file] for file in before} == before


def test_fit_routers_resumes_started_run(tmp_path):
    run_dir = router_dir(tmp_path, "full", 0)
    runs.start_or_resume(run_dir, runs.identity("full", FIT_CONFIG), ROUTER_FILE)
    fit_routers(["full"], FIT_CONFIG, seeds=1, report_dir=tmp_path, jobs=1)
    assert (run_dir / ROUTER_FILE).exists()


def test_fit_routers_raises_errors_of_workers(tmp_path):
    run_dir = router_dir(tmp_path, "full", 0)
    run_dir.mkdir(parents=True)
    (run_dir / CONFIG_FILE).write_text("{}")
    with pytest.raises(ValueError, match="must be resumed with the settings"):
        fit_routers(["full"], FIT_CONFIG, seeds=1, report_dir=tmp_path, jobs=1)


@pytest.fixture
def table():
    return FIT_CONFIG.table("test")


@pytest.fixture
def records(fitted_dir, table):
    """All records of static, of both seeds of ppo, and of the oracle."""
    testbed = results.Testbed(images=data.load("digits", "test"), source=table, table=table)
    return list(evaluate_routers(["static", "ppo"], 2, fitted_dir, testbed))


@pytest.fixture
def ppo(fitted_dir):
    return runs.load(router_dir(fitted_dir, "ppo", 0)).router


@pytest.fixture
def static(fitted_dir):
    return runs.load(router_dir(fitted_dir, "static", 0)).router


def test_evaluate_routers_at_every_tradeoff(records, static):
    assert isinstance(static, StaticRouter)
    expected = [("static", 0, tradeoff) for tradeoff in eval_tradeoffs(static)]
    for name, seed in (("ppo", 0), ("ppo", 1), (ORACLE, 0)):
        expected += [(name, seed, tradeoff) for tradeoff in EVAL_TRADEOFFS]
    actual = [(record.router, record.seed, record.tradeoff) for record in records]
    assert actual == expected


def test_evaluate_routers_charges(records, ppo, table):
    """Only learners decide, and only the static router is charged as a static network."""
    macs = {"static": 0, "ppo": decision_macs(ppo, table.spec), ORACLE: 0}
    for record in records:
        assert record.static is (record.router == "static")
        assert record.decision_macs == macs[record.router]
        assert len(record.evaluation.path) == len(table.labels)


def test_evaluate_routers_oracle_has_no_regret(records, table):
    oracle = [record for record in records if record.router == ORACLE]
    assert len(oracle) == len(EVAL_TRADEOFFS)
    for record in oracle:
        assert table.regret(record.evaluation.path, record.tradeoff) == 0.0


def test_evaluate_routers_matches_evaluate(records, ppo, table):
    record = next(record for record in records if record.router == "ppo")
    expected = evaluate(table, ppo, record.tradeoff)
    for actual_field, expected_field in zip(record.evaluation, expected, strict=True):
        np.testing.assert_array_equal(actual_field, expected_field)


def test_evaluate_routers_follows_static_paths(records, static):
    for record in records:
        if record.router == "static":
            assert (record.evaluation.path == static.path(record.tradeoff)).all()


def test_evaluate_routers_live_without_table(fitted_dir, table):
    """Where there is no table the network runs, and there is no oracle."""
    live = replace(FIT_CONFIG, kwargs={"backend": "live"}).source("test")
    testbed = results.Testbed(images=data.load("digits", "test"), source=live, table=None)
    records = list(evaluate_routers(["static"], 1, fitted_dir, testbed))
    assert {record.router for record in records} == {"static"}

    for record in records:
        expected = evaluate_paths(table, record.evaluation.path, static=True)
        assert (record.evaluation.correct == expected.correct).all()
        assert (record.evaluation.macs == expected.macs).all()
