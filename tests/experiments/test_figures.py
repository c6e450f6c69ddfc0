"""The figures of a comparison, each a count that can be made by hand.

The records are those of `tests/fixtures/records.py`, over the problem on paper.
"""

import dataclasses
import json

import numpy as np
import pytest

from rnr_gym.experiments import figures, results, statistics
from rnr_gym.experiments.figures import RIVALS, compare_records, outcomes_by_router, row
from rnr_gym.experiments.results import ORACLE
from rnr_gym.experiments.statistics import BUDGETS
from tests.fixtures.paper_problem import paper
from tests.fixtures.records import (
    CHEAP,
    EXPENSIVE,
    HIGH,
    LOW,
    MIDDLE,
    paper_testbed,
    paths_by_kind,
    ppo_accuracies,
    record,
    several_records,
    static_accuracy,
)

SEPARATING = paths_by_kind(
    easy=[0, -1],
    middle=[1, 0],
    hard=[2, 1],
    hopeless=[2, 2],
)
"""Each kind of image has a path of its own: compute 0.02, 0.25, 0.75, and 1.05 for `hopeless`."""


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 200)


@pytest.fixture
def comparison():
    """All figures of the several records."""
    return compare_records(several_records(), paper_testbed())


def by_router(entries):
    """Figures by the router that they are of."""
    return {entry.router: entry for entry in entries}


def pairs_of(entries):
    return [(entry.router, entry.against) for entry in entries]


def mean_and_spread(of_seeds):
    return [np.mean(of_seeds), np.std(of_seeds, ddof=1)]


def answering_alike(prediction):
    """A testbed without images, all of whose answers are one class; the labels are class 0."""
    table = paper()
    table.prediction[:] = prediction
    return results.Testbed(images=None, source=table, table=table)


# Rows


def test_row_of_adaptive_router():
    paths = paths_by_kind(
        easy=[0, -1],
        middle=[1, 0],
        hard=[2, 2],
        hopeless=[0, -1],
    )
    ppo = record("ppo", paths, decision_macs=4)
    figures_of_row = dataclasses.asdict(row(ppo, paper_testbed()))

    # Path shares are 3/8, 3/8 and 2/8.
    entropy = 2 * 3 / 8 * np.log2(8 / 3) + 2 / 8 * np.log2(4)
    assert figures_of_row.pop("path_entropy") == pytest.approx(entropy)
    # MACs are 2, 2, 25, 25, 25, 105, 105, 2; the router adds 4 for each of 13 decisions.
    assert figures_of_row.pop("compute") == pytest.approx((291 + 52) / 800)
    # The best path of the hard ones is 21, which costs .3 less, twice, at .2 each.
    assert figures_of_row.pop("regret") == pytest.approx(2 * 0.3 * 0.2 / 8)
    assert figures_of_row == {
        "router": "ppo",
        "seed": 0,
        "tradeoff": 0.2,
        "static": False,
        "accuracy": 7 / 8,
        "router_macs": 52 / 8,
        "decision_macs": 4,
        "loss": 1 / 8,
        "distinct_paths": 3,
        "exits": 6 / 8,
        "images": 8,
        "seconds": 0.123,
    }


def test_row_of_static_router():
    """It is charged as a static network, but its regret as the environment charges."""
    static = record("static", [[2, 1]] * 8, static=True)
    figures_of_row = row(static, paper_testbed())

    assert figures_of_row.static is True
    assert figures_of_row.compute == 0.7
    assert figures_of_row.router_macs == 0.0
    assert figures_of_row.accuracy == 7 / 8
    assert figures_of_row.regret == pytest.approx(0.81725 - 0.725)
    assert figures_of_row.path_entropy == 0.0
    assert figures_of_row.distinct_paths == 1
    assert figures_of_row.exits == 0.0


def test_row_without_table_has_no_regret():
    testbed = paper_testbed()._replace(table=None)
    assert row(record("ppo", CHEAP), testbed).regret is None


def test_outcomes_by_router_seed_and_tradeoff():
    records = [
        record("ppo", CHEAP),
        record("ppo", EXPENSIVE),
        record("full", EXPENSIVE),
        record("ppo", EXPENSIVE, seed=1),
        record("ppo", EXPENSIVE, seed=1),
    ]

    outcomes = outcomes_by_router(records, 100)
    assert [*outcomes] == ["ppo", "full"]
    assert outcomes["ppo"].correct.shape == (2, 2, 8)
    assert outcomes["ppo"].compute.mean(2).tolist() == [[0.02, 1.05], [1.05, 1.05]]
    assert outcomes["full"].correct.tolist() == [[[1, 1, 1, 1, 1, 1, 1, 0]]]


def test_comparison_has_row_per_record(comparison):
    actual = [(entry.router, entry.seed, entry.tradeoff) for entry in comparison.rows]
    expected = [(entry.router, entry.seed, entry.tradeoff) for entry in several_records()]
    assert actual == expected
    assert comparison.budgets == list(BUDGETS)


# Routers


def test_comparison_has_figures_per_router(comparison):
    seeds = {entry.router: entry.seeds for entry in comparison.routers}
    assert seeds == {"static": 1, "full": 1, "ppo": 2, ORACLE: 1}
    assert [*seeds] == ["static", "full", "ppo", ORACLE]


def test_router_accuracy_has_spread_over_seeds(comparison):
    ppo = by_router(comparison.routers)["ppo"]
    at = dict(zip(BUDGETS, ppo.accuracy_at, strict=True))
    # Seed 0 spends .25 at least.
    assert at[0.05] == at[0.1] == at[0.2] == [None, None]

    expected = mean_and_spread(ppo_accuracies(0.45))
    assert at[0.45] == pytest.approx(expected)


def test_router_figures_are_means_over_seeds(comparison):
    ppo = by_router(comparison.routers)["ppo"]
    assert ppo.compute_range == pytest.approx([(0.25 + 0.02) / 2, 1.05])
    assert ppo.decision_macs == 0
    assert ppo.distinct_paths == 1


def test_router_regret_has_spread_over_seeds(comparison):
    of_seeds = []
    for seed in (0, 1):
        regrets = []
        for entry in several_records():
            if (entry.router, entry.seed) == ("ppo", seed):
                regrets.append(paper().regret(entry.evaluation.path, entry.tradeoff))
        of_seeds.append(np.mean(regrets))

    expected = mean_and_spread(of_seeds)
    assert by_router(comparison.routers)["ppo"].regret == pytest.approx(expected)


def test_router_with_one_seed_has_no_spread(comparison):
    assert by_router(comparison.routers)["static"].accuracy_at[-1][1] is None


def test_oracle_has_no_regret(comparison):
    assert by_router(comparison.routers)[ORACLE].regret == [0.0, None]


# Pairs


def test_rivals_are_imageless_rules_and_fqi():
    assert RIVALS == ("static", "blind", "confidence", "thresholds", "eenet", "fqi")


@pytest.fixture
def many_routers():
    """The figures of every kind of router."""
    names = ("random", "cheapest", "blind", "confidence", "thresholds", "fqi", "dqn")
    others = [record(name, MIDDLE, LOW) for name in names]
    return compare_records([*others, *several_records()], paper_testbed())


LEARNER_PAIRS = [
    ("confidence", "static"),
    ("confidence", "blind"),
    ("thresholds", "static"),
    ("thresholds", "blind"),
    ("thresholds", "confidence"),
    ("fqi", "static"),
    ("fqi", "blind"),
    ("fqi", "confidence"),
    ("fqi", "thresholds"),
    ("dqn", "static"),
    ("dqn", "blind"),
    ("dqn", "confidence"),
    ("dqn", "thresholds"),
    ("dqn", "fqi"),
    ("ppo", "static"),
    ("ppo", "blind"),
    ("ppo", "confidence"),
    ("ppo", "thresholds"),
    ("ppo", "fqi"),
]
"""Each adaptive router against its rivals; two rivals are compared once."""


def test_differences_pair_learners_with_rivals(many_routers):
    bounded = ("blind", "confidence", "thresholds", "fqi", "dqn", "static", "ppo")
    oracle_pairs = [(ORACLE, name) for name in bounded]
    assert pairs_of(many_routers.differences) == LEARNER_PAIRS + oracle_pairs


def test_savings_pair_learners_with_rivals(many_routers):
    """The oracle has a difference, but no saving."""
    assert pairs_of(many_routers.savings) == LEARNER_PAIRS


def test_lost_and_by_outcome_for_adaptive_routers(many_routers):
    adaptive = ["confidence", "thresholds", "fqi", "dqn", "ppo"]
    assert [entry.router for entry in many_routers.lost] == adaptive
    assert [entry.router for entry in many_routers.by_outcome] == adaptive


def test_difference_of_ppo_and_static(comparison):
    (difference,) = [pair for pair in comparison.differences if pair.router == "ppo"]
    assert difference.against == "static"
    assert difference.budgets[-2:] == [0.45, 0.6]

    gain = np.mean(ppo_accuracies(0.6)) - static_accuracy(0.6)
    assert difference.at[-1][0] == pytest.approx(gain)
    assert difference.low <= difference.mean <= difference.high


def test_saving_is_share_of_rival_compute(comparison):
    (saving,) = comparison.savings
    assert (saving.router, saving.against) == ("ppo", "static")
    assert saving.budgets == [0.3, 0.45, 0.6]
    for budget, (mean, _, _) in zip(saving.budgets, saving.at, strict=True):
        # Where the lines of both seeds reach the accuracy of the static paths.
        accuracy = static_accuracy(budget)
        first = 0.25 + 0.8 * (accuracy - 5 / 8) / (2 / 8)
        second = 0.02 + 1.03 * (accuracy - 2 / 8) / (5 / 8)
        assert mean == pytest.approx((first + second) / 2 / budget)


def test_lost_is_accuracy_below_full_path(comparison):
    (lost,) = comparison.lost
    assert (lost.router, lost.against) == ("ppo", "full")
    assert lost.budgets == [0.3, 0.45, 0.6]
    for budget, (mean, low, high) in zip(lost.budgets, lost.at, strict=True):
        accuracy = np.mean(ppo_accuracies(budget))
        assert mean == pytest.approx(7 / 8 - accuracy)
        assert low <= mean <= high
    means = [mean for mean, _, _ in lost.at]
    assert lost.mean == pytest.approx(np.mean(means))


def test_unreached_saving_is_none_in_strict_json():
    """The static paths are right 7 times in 8 at the top; ppo never exceeds 5 in 8."""
    records = [
        record("ppo", CHEAP, HIGH),
        record("ppo", MIDDLE, LOW),
        record("static", MIDDLE, HIGH, static=True),
        record("static", EXPENSIVE, LOW, static=True),
    ]
    comparison = compare_records(records, paper_testbed())
    (saving,) = comparison.savings
    assert saving.budgets[-1] == 0.6
    assert saving.at[-1][0] is None
    assert saving.at[-1][2] is None
    assert saving.mean is None
    assert saving.high is None

    content = comparison.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_too_expensive_router_has_no_pairs():
    """A learner that has learned little may spend more than every budget."""
    records = [
        record("ppo", EXPENSIVE),
        record("static", MIDDLE, static=True),
        record("confidence", MIDDLE),
    ]
    comparison = compare_records(records, paper_testbed())

    assert pairs_of(comparison.differences) == [("confidence", "static")]
    assert all(pair.budgets for pair in comparison.differences)
    assert pairs_of(comparison.savings) == [("confidence", "static")]
    assert pairs_of(comparison.lost) == [("confidence", "full")]
    assert [entry.router for entry in comparison.by_outcome] == ["ppo", "confidence"]
    assert comparison.budgets == list(BUDGETS)


# The full path, severities and outcomes


def test_full_accuracy_is_that_of_plain_network(comparison):
    assert comparison.full_accuracy == 7 / 8
    records = [record("static", MIDDLE, static=True)]
    assert compare_records(records, paper_testbed()).full_accuracy == 7 / 8
    assert compare_records(records, answering_alike(0)).full_accuracy == 1.0


def test_by_severity_near_fifth_of_compute(comparison):
    """At the high trade-off ppo spends .25 or .02, by seed; at the low one 1.05."""
    by_severity = by_router(comparison.by_severity)
    ppo = by_severity["ppo"]
    assert ppo.mean_compute == pytest.approx(0.135)
    assert ppo.severity == [0, 3]
    assert ppo.compute == pytest.approx([0.135, 0.135])
    # Without corruption all five are right, or the two easy ones; of the others none.
    assert ppo.accuracy == pytest.approx([(1 + 2 / 5) / 2, 0.0])
    assert by_severity[ORACLE].severity == [0, 3]


def test_by_outcome_separates_right_and_wrong():
    paths = paths_by_kind(
        easy=[1, 0],
        middle=[1, 0],
        hard=[1, 0],
        hopeless=[2, 2],
    )
    records = [record("ppo", paths, HIGH), record("ppo", EXPENSIVE, LOW)]
    (outcome,) = compare_records(records, paper_testbed()).by_outcome

    # Of the two trade-offs, the one whose compute, 7 x .25 + 1.05 over 8, is nearest .3.
    assert outcome.router == "ppo"
    assert outcome.mean_compute == pytest.approx(2.8 / 8)
    # The full path is wrong only for the hopeless image.
    assert outcome.right == pytest.approx(0.25)
    assert outcome.wrong == pytest.approx(1.05)
    assert (outcome.low, outcome.high) == pytest.approx((0.8, 0.8))


def test_by_outcome_difference_has_interval():
    records = [record("ppo", SEPARATING, HIGH)]
    (outcome,) = compare_records(records, paper_testbed()).by_outcome
    right = (2 * 0.02 + 3 * 0.25 + 2 * 0.75) / 7
    assert outcome.right == pytest.approx(right)
    assert outcome.wrong == pytest.approx(1.05)
    assert 0 < outcome.low < 1.05 - right < outcome.high


@pytest.mark.parametrize("prediction", [0, 1], ids=["all right", "all wrong"])
def test_by_outcome_empty_where_answers_alike(prediction):
    comparison = compare_records([record("ppo", MIDDLE)], answering_alike(prediction))
    assert comparison.by_outcome == []


# Difficulty, paths, classes and examples


def test_by_difficulty_needs_unknown_severities(comparison):
    """The paper's images have two."""
    assert comparison.by_difficulty is None


def test_by_difficulty_counts_right_paths():
    """Of 7 paths all are right for the easy images, then 6, 2 and none."""
    records = [
        record("static", MIDDLE, HIGH, static=True),
        record("full", EXPENSIVE, LOW, static=True),
        record("ppo", SEPARATING, HIGH),
        record("ppo", EXPENSIVE, LOW),
        record(ORACLE, paper().oracle(LOW), LOW),
    ]
    testbed = paper_testbed()._replace(images=None)
    difficulty = compare_records(records, testbed).by_difficulty

    assert difficulty.measure == "paths"
    assert difficulty.levels == ["all", "most", "few", "none"]
    assert difficulty.images == [2, 3, 2, 1]
    # Neither static paths nor points nor the oracle.
    (ppo,) = difficulty.routers
    assert ppo.router == "ppo"
    # The trade-off nearest .3 is the high one: (2 x .02 + 3 x .25 + 2 x .75 + 1.05) / 8.
    assert ppo.mean_compute == pytest.approx(3.34 / 8)
    assert ppo.compute == pytest.approx([0.02, 0.25, 0.75, 1.05])
    assert ppo.accuracy == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("share", "level"),
    [(1.0, "all"), (0.9, "most"), (2 / 3, "most"), (0.4, "half"), (0.3, "few"), (0.0, "none")],
)
def test_level_of_difficulty_by_share_of_right_paths(share, level):
    (idx,) = figures._level_of_difficulty(np.array([share]))
    assert figures.DIFFICULTIES[idx] == level


def test_by_difficulty_without_table_asks_the_full_path():
    testbed = paper_testbed()._replace(images=None, table=None)
    difficulty = compare_records([record("ppo", SEPARATING, HIGH)], testbed).by_difficulty
    assert difficulty.measure == "full path"
    assert difficulty.levels == ["right", "wrong"]
    assert difficulty.images == [7, 1]
    assert difficulty.routers[0].compute[1] == pytest.approx(1.05)


def test_paths_are_most_used_first():
    paths = compare_records([record("ppo", SEPARATING)], paper_testbed()).paths
    assert paths.offered == [[0, 1, 2], [0, 1, 2]]
    assert paths.exits is True
    assert paths.distinct == 4
    assert paths.compute == pytest.approx(3.34 / 8)
    # Of the two with two images, the one that comes first in lexicographic order.
    assert [used.path for used in paths.used] == [[1, 0], [0, -1], [2, 1], [2, 2]]
    assert [used.share for used in paths.used] == [3 / 8, 2 / 8, 2 / 8, 1 / 8]
    assert [used.accuracy for used in paths.used] == [1.0, 1.0, 1.0, 0.0]
    assert [used.compute for used in paths.used] == pytest.approx([0.25, 0.02, 0.75, 1.05])


def test_paths_beyond_most_used_are_left_out(monkeypatch):
    monkeypatch.setattr(figures, "MOST_USED", 2)
    paths = compare_records([record("ppo", SEPARATING)], paper_testbed()).paths
    assert len(paths.used) == 2
    assert paths.distinct == 4


def test_by_class_has_classes_with_images():
    """All of the paper's images are of the first of two classes."""
    (entry,) = compare_records([record("ppo", SEPARATING)], paper_testbed()).by_class
    assert (entry.label, entry.images) == ("right", 8)
    assert entry.compute == pytest.approx(3.34 / 8)
    assert entry.accuracy == 7 / 8


def test_examples_are_both_ends_of_compute(monkeypatch):
    monkeypatch.setattr(figures, "EXAMPLES", 3)
    examples = compare_records([record("ppo", SEPARATING)], paper_testbed()).examples
    assert [entry.image for entry in examples.cheapest] == [0, 1, 2]
    assert [entry.image for entry in examples.most_expensive] == [7, 6, 5]

    hopeless = examples.most_expensive[0]
    assert hopeless.path == [2, 2]
    assert hopeless.compute == pytest.approx(1.05)
    assert (hopeless.label, hopeless.prediction, hopeless.right) == ("right", "wrong", False)
    assert examples.cheapest[0].right is True


def test_examples_of_few_images_are_all_of_them(monkeypatch):
    monkeypatch.setattr(figures, "EXAMPLES", 100)
    examples = compare_records([record("ppo", SEPARATING)], paper_testbed()).examples
    assert len(examples.cheapest) == len(examples.most_expensive) == 8


def test_shown_record_is_last_adaptive_at_middle_compute():
    records = [
        record("ppo", CHEAP, 0.3),
        record("ppo", MIDDLE, 0.2),
        record("ppo", EXPENSIVE, 0.1),
        record("ppo", EXPENSIVE, 0.1, seed=1),
        record("static", MIDDLE, static=True),
        record(ORACLE, MIDDLE),
    ]
    shown = figures.record_to_show(records)
    assert (shown.router, shown.seed, shown.tradeoff) == ("ppo", 0, 0.2)


def test_shown_record_without_adaptive_router_is_last():
    records = [record("full", EXPENSIVE, static=True), record("static", MIDDLE, static=True)]
    assert figures.record_to_show(records).router == "static"


# Without images


@pytest.fixture
def without_images():
    """The figures of the several records where the images are missing."""
    testbed = paper_testbed()._replace(images=None)
    return compare_records(several_records(), testbed)


def test_figures_without_images_have_neither_classes_nor_examples(without_images):
    assert without_images.by_class == []
    assert without_images.examples.cheapest == without_images.examples.most_expensive == []
    assert without_images.paths.used


def test_figures_without_images_are_the_same(comparison, without_images):
    assert without_images.budgets == comparison.budgets
    assert without_images.full_accuracy == comparison.full_accuracy
    assert without_images.rows == comparison.rows
    assert without_images.routers == comparison.routers
    json.dumps(without_images.to_json(), allow_nan=False)


@pytest.mark.parametrize("name", ["differences", "savings", "lost"])
def test_pairs_without_images_keep_means(comparison, without_images, name):
    """Only the intervals differ, because originals are not known."""
    pairs = zip(getattr(without_images, name), getattr(comparison, name), strict=True)
    for without, with_images in pairs:
        assert without.router == with_images.router
        assert without.against == with_images.against
        assert without.budgets == with_images.budgets
        assert without.mean == pytest.approx(with_images.mean)


def test_severities_without_images_are_zero(without_images):
    severities = [entry.severity for entry in without_images.by_severity]
    assert severities == [[0]] * 4
    ppo = by_router(without_images.by_severity)["ppo"]
    assert ppo.compute == pytest.approx([0.135])
    assert ppo.accuracy == pytest.approx([(5 / 8 + 2 / 8) / 2])


def test_rivals_of_rival_are_those_before_it():
    assert figures.rivals_of("confidence") == ("static", "blind")
    assert figures.rivals_of("ppo") == RIVALS
