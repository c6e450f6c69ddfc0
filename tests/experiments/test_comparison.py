"""Several routers side by side: each fitted once a seed, and every figure a count that can be made by hand."""

import os
import subprocess
import sys
import time
from concurrent.futures import Future

import numpy as np
import pytest

from rnr_gym import data
from rnr_gym.agents import FitConfig
from rnr_gym.agents.static import StaticRouter
from rnr_gym.classifier import ROUTER
from rnr_gym.data import ImageSet
from rnr_gym.experiments import comparison
from rnr_gym.experiments.comparison import (
    ORACLE,
    RIVALS,
    Record,
    Testbed,
    fit_routers,
    records,
    results,
    router_folder,
    row,
    sweeps,
)
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS, evaluate, evaluate_paths, sweep
from rnr_gym.experiments.runs import CONFIG, claim, identity, load
from rnr_gym.experiments.statistics import BUDGETS
from rnr_gym.routing.rollout import decision_macs
from tests.experiments.test_runs import ENV, few_digits, snapshot
from tests.fixtures.paper_problem import KINDS, paper

CHEAP, MIDDLE, DEAR = [[0, -1]] * 8, [[1, 0]] * 8, [[2, 2]] * 8
"""Of compute .02, .25 and 1.05."""


class Inline:
    """An executor that does what is submitted at once, in this process."""

    submitted: list

    def __init__(self, *_):
        Inline.submitted = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, work, *parts):
        future = Future()
        Inline.submitted.append(parts[0])
        try:
            future.set_result(work(*parts))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_):
        pass


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Few digits, fitted in this process."""
    few_digits(monkeypatch)
    monkeypatch.setattr(comparison, "ProcessPoolExecutor", Inline)


def fit_config():
    return FitConfig(ENV, steps=1024, progress=False)


def testbed():
    """The eight images on paper; the hard and the hopeless ones are versions of two originals, of severity 3."""
    table = paper()
    source, severity = np.array([0, 1, 2, 3, 4, 5, 5, 6]), np.array([0, 0, 0, 0, 0, 3, 3, 3])
    images = ImageSet(
        np.zeros((8, 1, 2, 2), np.uint8),
        np.zeros(8, np.int64),
        source,
        severity,
        ("right", "wrong"),
    )
    return Testbed(images, table, table)


def record(name, paths, tradeoff=0.2, seed=0, own=0, static=False):
    found = evaluate_paths(paper(), np.array(paths, np.int8), static, own)
    return Record(name, seed, tradeoff, static, own, 0.12345, found)


def test_a_row_says_what_became_of_the_images():
    ways = {"easy": [0, -1], "middle": [1, 0], "hard": [2, 2], "hopeless": [0, -1]}
    paths = [ways[KINDS[kind]] for kind in (0, 0, 1, 1, 1, 2, 2, 3)]
    found = row(record("ppo", paths, own=4), testbed())
    assert found.pop("path_entropy") == pytest.approx(
        2 * 3 / 8 * np.log2(8 / 3) + 2 / 8 * np.log2(4)
    )
    # MACs 2, 2, 25, 25, 25, 105, 105, 2 and the router's 4 for 1, 1, 2, 2, 2, 2, 2, 1 decisions
    assert found.pop("compute") == pytest.approx((291 + 52) / 800)
    # the best were 21 for the hard ones: .3 less compute twice, at .2 each
    assert found.pop("regret") == pytest.approx(2 * 0.3 * 0.2 / 8)
    facts = {
        "router": "ppo",
        "seed": 0,
        "tradeoff": 0.2,
        "static": False,
        "decision_macs": 4,
        "images": 8,
        "seconds": 0.123,
    }
    assert found == facts | {
        "accuracy": 7 / 8,
        "router_macs": 52 / 8,
        "loss": 1 / 8,
        "distinct_paths": 3,
        "exits": 6 / 8,
    }


def test_a_static_row_is_charged_as_static_and_its_regret_is_not():
    found = row(record("static", [[2, 1]] * 8, static=True), testbed())
    assert (found["compute"], found["accuracy"], found["router_macs"], found["static"]) == (
        0.7,
        7 / 8,
        0.0,
        True,
    )
    assert found["regret"] == pytest.approx(0.81725 - 0.725)
    assert (found["path_entropy"], found["distinct_paths"], found["exits"]) == (0.0, 1, 0.0)


def test_without_a_table_there_is_no_regret():
    assert row(record("ppo", CHEAP), testbed()._replace(table=None))["regret"] is None


def test_records_become_arrays_by_router_seed_and_tradeoff():
    ppo = [
        record("ppo", CHEAP),
        record("ppo", DEAR),
        record("ppo", DEAR, seed=1),
        record("ppo", DEAR, seed=1),
    ]
    found = [*ppo[:2], record("full", DEAR), *ppo[2:]]
    arrays = sweeps(found, 100)
    assert [*arrays] == ["ppo", "full"]
    assert arrays["ppo"].correct.shape == (2, 2, 8)
    assert arrays["ppo"].compute.mean(2).tolist() == [[0.02, 1.05], [1.05, 1.05]]
    assert arrays["full"].correct.tolist() == [[[1, 1, 1, 1, 1, 1, 1, 0]]]


def several():
    """Two seeds of ppo, static paths, a point and the oracle at two of the sweep's trade-offs."""
    low, high = EVAL_TRADEOFFS[0], EVAL_TRADEOFFS[-1]
    return [
        record("static", MIDDLE, high, static=True),
        record("static", DEAR, low, static=True),
        record("full", DEAR, low, static=True),
        record("full", DEAR, high, static=True),
        record("ppo", DEAR, low, 0),
        record("ppo", MIDDLE, high, 0),
        record("ppo", DEAR, low, 1),
        record("ppo", CHEAP, high, 1),
        record(ORACLE, paper().oracle(low), low),
        record(ORACLE, paper().oracle(high), high),
    ]


def test_results_hold_a_row_a_record_and_a_summary_a_router():
    found = results(several(), testbed())
    assert found["budgets"] == list(BUDGETS)
    assert [(part["router"], part["seed"], part["tradeoff"]) for part in found["rows"]] == [
        (one.router, one.seed, one.tradeoff) for one in several()
    ]
    assert [part["router"] for part in found["routers"]] == ["static", "full", "ppo", ORACLE]
    assert [part["seeds"] for part in found["routers"]] == [1, 1, 2, 1]


def test_a_summary_is_a_mean_and_a_spread_over_seeds():
    found = results(several(), testbed())["routers"][2]
    # budgets .05, .1, .2, .3, .45, .6: seed 0 spends .25..1.05, seed 1 .02..1.05; both are right 7/8 at the top
    at = dict(zip(BUDGETS, found["accuracy_at"], strict=True))
    assert at[0.05] == at[0.1] == at[0.2] == [None, None]  # which seed 0 does not reach
    seeds = [5 / 8 + 2 / 8 * (0.45 - 0.25) / 0.8, 2 / 8 + 5 / 8 * (0.45 - 0.02) / 1.03]
    assert at[0.45] == pytest.approx([np.mean(seeds), np.std(seeds, ddof=1)])
    assert found["compute_range"] == pytest.approx([(0.25 + 0.02) / 2, 1.05])
    regrets = [
        np.mean([paper().regret(np.array(paths, np.int8), at) for paths, at in parts])
        for parts in seeds_of(several())
    ]
    assert found["regret"] == pytest.approx([np.mean(regrets), np.std(regrets, ddof=1)])
    assert (found["decision_macs"], found["distinct_paths"]) == (0, 1)


def seeds_of(found):
    """Paths and trade-offs of ppo, by seed."""
    return [
        [
            (one.evaluation.path, one.tradeoff)
            for one in found
            if (one.router, one.seed) == ("ppo", seed)
        ]
        for seed in (0, 1)
    ]


def test_a_router_with_one_seed_has_no_spread_and_the_oracle_no_regret():
    found = results(several(), testbed())["routers"]
    assert found[0]["accuracy_at"][-1][1] is None
    assert found[3]["regret"] == [0.0, None]


def test_learners_are_measured_against_rivals_and_the_oracle_against_all():
    others = [
        record(name, MIDDLE, EVAL_TRADEOFFS[0])
        for name in ("random", "cheapest", "blind", "confidence", "thresholds", "fqi", "dqn")
    ]
    found = results([*others, *several()], testbed())
    pairs = [(part["router"], part["against"]) for part in found["differences"]]
    learnt = [("confidence", "static"), ("confidence", "blind")]
    learnt += [("thresholds", "static"), ("thresholds", "blind"), ("thresholds", "confidence")]
    learnt += [("fqi", rival) for rival in RIVALS[:4]]
    learnt += [(name, rival) for name in ("dqn", "ppo") for rival in RIVALS]
    assert RIVALS == ("static", "blind", "confidence", "thresholds", "fqi")
    bounds = ("blind", "confidence", "thresholds", "fqi", "dqn", "static", "ppo")
    assert pairs == learnt + [(ORACLE, name) for name in bounds]
    # ppo at .45 and .6 (as above, .45 and up) less static, between 10 at .23 and 22 at 1
    gap = found["differences"][pairs.index(("ppo", "static"))]
    assert gap["budgets"][-2:] == [0.45, 0.6]
    seeds = np.mean([5 / 8 + 2 / 8 * (0.6 - 0.25) / 0.8, 2 / 8 + 5 / 8 * (0.6 - 0.02) / 1.03])
    assert gap["at"][-1][0] == pytest.approx(seeds - (5 / 8 + 2 / 8 * (0.6 - 0.23) / 0.77))
    assert gap["low"] <= gap["mean"] <= gap["high"]


def test_two_routers_that_share_no_budget_are_not_compared():
    """A learner that spends more than every budget, as one does that has learnt little, must not cost the whole report."""
    found = results(
        [record("ppo", DEAR), record("static", MIDDLE, static=True), record("confidence", MIDDLE)],
        testbed(),
    )
    pairs = [(part["router"], part["against"]) for part in found["differences"] if part["budgets"]]
    assert pairs == [("confidence", "static")]


def test_means_by_severity_are_taken_where_compute_is_nearest_a_fifth():
    found = {part["router"]: part for part in results(several(), testbed())["by_severity"]}
    # ppo spends 1.05 at the low trade-off, and .25 or .02 at the high one
    assert found["ppo"]["mean_compute"] == pytest.approx(0.135)
    assert found["ppo"]["severity"] == [0, 3]
    assert found["ppo"]["compute"] == pytest.approx([0.135, 0.135])
    assert found["ppo"]["accuracy"] == pytest.approx([(1 + 2 / 5) / 2, 0.0])
    assert found[ORACLE]["severity"] == [0, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four routers, two seeds, of the shipped network on few digits."""
    with pytest.MonkeyPatch.context() as patch:
        few_digits(patch)
        patch.setattr(comparison, "ProcessPoolExecutor", Inline)
        path = tmp_path_factory.mktemp("routers")
        fit_routers(["static", "confidence", "random", "ppo"], fit_config(), 2, path, 1)
    return path


def test_each_router_is_fitted_once_a_seed_where_seeds_matter(folder):
    assert sorted(file.name for file in (folder / "routers").iterdir()) == [
        "confidence-0",
        "ppo-0",
        "ppo-1",
        "random-0",
        "random-1",
        "static-0",
    ]
    for name, seed in (("ppo", 0), ("ppo", 1), ("static", 0)):
        run = load(router_folder(folder, name, seed))
        assert (run.agent, run.fit_config.seed, run.fit_config.steps) == (name, seed, 1024)


def test_only_what_is_missing_is_fitted_and_learners_come_first(folder):
    before = snapshot(folder)
    fit_routers(["static", "confidence", "random", "ppo"], fit_config(), 2, folder, 1)
    assert Inline.submitted == []
    fit_routers(["full", "static", "ppo", "a2c", "cheapest"], fit_config(), 1, folder, 1)
    assert Inline.submitted == ["a2c", "full", "cheapest"]
    after = snapshot(folder)
    assert {file: after[file] for file in before} == before
    assert (router_folder(folder, "a2c", 0) / ROUTER).exists()


def test_a_router_that_was_begun_is_taken_up(tmp_path):
    claim(router_folder(tmp_path, "full", 0), identity("full", fit_config()), ROUTER)
    fit_routers(["full"], fit_config(), 1, tmp_path, 1)
    assert (router_folder(tmp_path, "full", 0) / ROUTER).exists()


def test_what_goes_wrong_in_a_fit_is_told(tmp_path):
    foreign = router_folder(tmp_path, "full", 0)
    foreign.mkdir(parents=True)
    (foreign / CONFIG).write_text("{}")
    with pytest.raises(ValueError, match="must be taken up as it was begun"):
        fit_routers(["full"], fit_config(), 1, tmp_path, 1)


def test_every_router_is_evaluated_at_every_tradeoff_and_the_oracle_is_added(folder):
    source = fit_config().source("test")
    testbed = Testbed(data.load("digits", "test"), source, source)
    found = list(records(["static", "ppo"], 2, folder, testbed))
    static, ppo = (load(router_folder(folder, name, 0)).router for name in ("static", "ppo"))
    assert isinstance(static, StaticRouter)
    wanted = [("static", 0, tradeoff) for tradeoff in sweep(static)]
    wanted += [("ppo", seed, tradeoff) for seed in (0, 1) for tradeoff in EVAL_TRADEOFFS] + [
        (ORACLE, 0, tradeoff) for tradeoff in EVAL_TRADEOFFS
    ]
    assert [(one.router, one.seed, one.tradeoff) for one in found] == wanted
    for one in found:
        assert one.static is (one.router == "static")
        assert one.decision_macs == (decision_macs(ppo, source.spec) if one.router == "ppo" else 0)
        assert len(one.evaluation.path) == len(testbed.images)
        if one.router == ORACLE:
            assert source.regret(one.evaluation.path, one.tradeoff) == 0.0
    first = next(one for one in found if one.router == "ppo")
    again = evaluate(source, ppo, first.tradeoff)
    assert all((ours == theirs).all() for ours, theirs in zip(first.evaluation, again, strict=True))
    for one in found[: len(sweep(static))]:
        assert (one.evaluation.path == static.path(one.tradeoff)).all()


def test_without_a_table_the_live_network_is_asked_and_there_is_no_oracle(folder):
    live = FitConfig(ENV, {"backend": "live"}).source("test")
    testbed = Testbed(data.load("digits", "test"), live, None)
    found, table = list(records(["static"], 1, folder, testbed)), fit_config().table("test")
    assert {one.router for one in found} == {"static"}
    for one in found:
        wanted = evaluate_paths(table, one.evaluation.path, static=True)
        assert (one.evaluation.correct == wanted.correct).all()
        assert (one.evaluation.macs == wanted.macs).all()


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """A parent starts a worker as a comparison does, says its number, and waits to be killed."""
    script = tmp_path / "parent.py"
    script.write_text(
        """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from rnr_gym.comparison import _end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker goes on")
