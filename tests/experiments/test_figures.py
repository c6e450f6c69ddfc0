"""What a comparison says of losses, savings and outcomes, counted by hand; and what it says where there are no images."""

import json

import numpy as np
import pytest

from rnr_gym.experiments import statistics
from rnr_gym.experiments.comparison import ORACLE, Testbed, results
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS
from rnr_gym.experiments.statistics import BUDGETS
from tests.experiments.test_comparison import CHEAP, DEAR, MIDDLE, record, several, testbed
from tests.fixtures.paper_problem import DEALT, KINDS, paper

LOW, HIGH = EVAL_TRADEOFFS[0], EVAL_TRADEOFFS[-1]
HARD = [[[0, -1], [1, 0], [2, 1], [2, 2]][kind] for kind in DEALT]
"""Each kind of image its own path, the dearer the harder; .02, .25, .75 and 1.05 for the hopeless one."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 200)


def without_images():
    return testbed()._replace(images=None)


def found_by(name, part, content):
    (found,) = [
        line
        for line in content[part]
        if line["router"] == name and line.get("against") in (None, "static", "full")
    ]
    return found


def test_the_full_paths_accuracy_is_stated():
    assert testbed().plain().correct.tolist() == [True] * 7 + [False]
    assert testbed().plain().macs.tolist() == [100] * 8  # as a static network: no glance, no exit
    assert results([record("static", MIDDLE, static=True)], testbed())["full_accuracy"] == 7 / 8
    table = paper()
    table.prediction[:] = 0
    assert (
        results([record("static", MIDDLE, static=True)], Testbed(None, table, table))[
            "full_accuracy"
        ]
        == 1.0
    )


def test_what_is_lost_against_the_full_path_is_counted_for_learners():
    content = results(several(), testbed())
    assert content["full_accuracy"] == 7 / 8
    assert [(part["router"], part["against"]) for part in content["lost"]] == [("ppo", "full")]
    part = content["lost"][0]
    assert part["budgets"] == [0.3, 0.45, 0.6]  # seed 0 spends .25 at least
    for budget, (mean, low, high) in zip(part["budgets"], part["at"], strict=True):
        seeds = [5 / 8 + 2 / 8 * (budget - 0.25) / 0.8, 2 / 8 + 5 / 8 * (budget - 0.02) / 1.03]
        assert mean == pytest.approx(7 / 8 - np.mean(seeds))
        assert low <= mean <= high
    assert part["mean"] == pytest.approx(np.mean([mean for mean, _, _ in part["at"]]))


def test_savings_are_shares_of_what_a_rival_spends():
    content = results(several(), testbed())
    assert [(part["router"], part["against"]) for part in content["savings"]] == [("ppo", "static")]
    part = content["savings"][0]
    assert part["budgets"] == [0.3, 0.45, 0.6]
    for budget, (mean, _, _) in zip(part["budgets"], part["at"], strict=True):
        wanted = (
            5 / 8 + 2 / 8 * (budget - 0.23) / 0.77
        )  # the static paths' accuracy, between 10 at .23 and 22 at 1
        needed = [0.25 + 0.8 * (wanted - 5 / 8) / (2 / 8), 0.02 + 1.03 * (wanted - 2 / 8) / (5 / 8)]
        assert mean == pytest.approx(np.mean(needed) / budget)


def test_every_learner_is_measured_against_each_rival_that_it_meets():
    others = [
        record(name, MIDDLE, LOW) for name in ("random", "cheapest", "blind", "confidence", "dqn")
    ]
    content = results([*others, *several()], testbed())
    pairs = [
        (part["router"], part["against"])
        for part in content["differences"]
        if part["router"] != ORACLE
    ]
    assert [(part["router"], part["against"]) for part in content["savings"]] == pairs
    assert (
        [part["router"] for part in content["lost"]]
        == [part["router"] for part in content["by_outcome"]]
        == ["confidence", "dqn", "ppo"]
    )


def test_compute_is_told_apart_by_what_the_full_path_makes_of_an_image():
    ways = [[2, 2] if KINDS[kind] == "hopeless" else [1, 0] for kind in DEALT]
    content = results([record("ppo", ways, HIGH), record("ppo", DEAR, LOW)], testbed())
    part = dict(content["by_outcome"][0])
    assert part.pop("router") == "ppo"
    # of the two trade-offs the one whose compute, 7 x .25 + 1.05 over 8, is nearest .3; only the hopeless one is wrong
    assert part == pytest.approx(
        {"mean_compute": 2.8 / 8, "right": 0.25, "wrong": 1.05, "low": 0.8, "high": 0.8}
    )


def test_the_difference_between_outcomes_has_an_interval():
    part = results([record("ppo", HARD, HIGH)], testbed())["by_outcome"][0]
    right = (2 * 0.02 + 3 * 0.25 + 2 * 0.75) / 7
    assert (part["right"], part["wrong"]) == pytest.approx((right, 1.05))
    assert part["low"] < 1.05 - right < part["high"]
    assert part["low"] > 0


@pytest.mark.parametrize("shift", [0, 1])
def test_without_right_or_without_wrong_answers_there_is_nothing_to_tell_apart(shift):
    table = paper()
    table.prediction[:] = shift
    assert results([record("ppo", MIDDLE)], Testbed(None, table, table))["by_outcome"] == []


def test_what_is_never_reached_is_none_and_the_figures_are_strict_json():
    ppo = [record("ppo", CHEAP, HIGH), record("ppo", MIDDLE, LOW)]
    static = [record("static", MIDDLE, HIGH, static=True), record("static", DEAR, LOW, static=True)]
    content = results([*ppo, *static], testbed())
    part = found_by("ppo", "savings", content)
    assert part["budgets"][-1] == 0.6
    assert (
        part["at"][-1][0] is part["at"][-1][2] is None
    )  # the static paths go on to 7/8, ppo stops at 5/8
    assert part["mean"] is part["high"] is None
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_without_images_every_image_is_its_own_original_of_no_severity():
    testbed = without_images()
    assert testbed.originals.tolist() == list(range(8))
    assert testbed.severity.tolist() == [0] * 8
    assert testbed().originals.tolist() == [0, 1, 2, 3, 4, 5, 5, 6]
    assert testbed().severity.tolist() == [0, 0, 0, 0, 0, 3, 3, 3]


def test_without_images_all_figures_are_there_and_but_for_intervals_and_severities_the_same():
    with_images, without = results(several(), testbed()), results(several(), without_images())
    assert without.keys() == with_images.keys()
    for name in ("budgets", "full_accuracy", "rows", "routers"):
        assert without[name] == with_images[name]
    for name in ("differences", "savings", "lost"):
        for ours, theirs in zip(without[name], with_images[name], strict=True):
            assert (ours["router"], ours["against"], ours["budgets"]) == (
                theirs["router"],
                theirs["against"],
                theirs["budgets"],
            )
            assert ours["mean"] == pytest.approx(theirs["mean"])
    assert [part["severity"] for part in without["by_severity"]] == [[0]] * 4
    ppo = found_by("ppo", "by_severity", without)
    assert (ppo["compute"], ppo["accuracy"]) == (
        pytest.approx([0.135]),
        pytest.approx([(5 / 8 + 2 / 8) / 2]),
    )
    json.dumps(without, allow_nan=False)


def test_a_router_dearer_than_every_budget_costs_no_report():
    content = results(
        [record("ppo", DEAR), record("static", MIDDLE, static=True), record("confidence", MIDDLE)],
        testbed(),
    )
    assert [part["router"] for part in content["lost"]] == ["confidence"]
    assert [part["router"] for part in content["savings"]] == ["confidence"]
    assert [part["router"] for part in content["by_outcome"]] == ["ppo", "confidence"]
    assert content["budgets"] == list(BUDGETS)
