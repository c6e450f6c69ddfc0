"""Statements about routers, each checked against a count by hand or a simulation whose truth is known."""

import numpy as np
import pytest

from rnr_gym.experiments import statistics
from rnr_gym.experiments.evaluation import Evaluation
from rnr_gym.experiments.statistics import (
    BUDGETS,
    RouterOutcomes,
    accuracy_at,
    at_budgets,
    by_group,
    paired_difference,
    path_entropy,
)


def flat(accuracies, computes, images=10):
    """A sweep of given mean accuracies and computes `(S, L)`, in which all images cost the same."""
    right = np.arange(images)[None, None] < images * np.array(accuracies)[..., None] - 1e-9
    spent = np.broadcast_to(np.array(computes, np.float64)[..., None], right.shape)
    return RouterOutcomes(right.astype(np.float64), np.array(spent))


def simulated(rng, images=200, copies=1):
    """Two routers that are right on 80 % and 70 % of images, often the same ones, at every compute between .1 and .9."""
    one = rng.random(images)
    other = np.where(rng.random(images) < 0.5, one, rng.random(images))
    both = [np.repeat(right, copies).astype(np.float64) for right in (one < 0.8, other < 0.7)]
    compute = np.broadcast_to(np.array([0.1, 0.9])[None, :, None], (1, 2, images * copies))
    return [RouterOutcomes(np.tile(right, (1, 2, 1)), compute) for right in both], np.repeat(
        np.arange(images), copies
    )


@pytest.fixture
def quick(monkeypatch):
    """Fewer resamples, where only the rough width matters."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)


def test_accuracy_at_a_budget_is_interpolated_between_tradeoffs():
    accuracy, compute = np.array([0.9, 0.5, 0.7]), np.array([0.6, 0.2, 0.4])  # in any order
    assert at_budgets(accuracy, compute, [0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(
        [0.5, 0.6, 0.7, 0.8, 0.9]
    )
    assert at_budgets(accuracy, compute, [0.25]) == pytest.approx([0.5 + 0.2 / 4])


def test_below_the_cheapest_there_is_nothing_and_above_the_dearest_no_more():
    found = at_budgets(np.array([0.9, 0.5]), np.array([0.6, 0.2]), [0.1, 0.199, 0.7, 5.0])
    assert np.isnan(found).tolist() == [True, True, False, False]
    assert found[2:].tolist() == [0.9, 0.9]


def test_each_seed_has_its_own_accuracy_at_a_budget():
    found = accuracy_at(flat([[0.4, 0.8], [0.2, 0.6]], [[0.2, 0.6], [0.3, 0.5]]), [0.25, 0.4])
    assert found.shape == (2, 2)
    assert found[0] == pytest.approx([0.45, 0.6])
    assert np.isnan(found[1, 0])
    assert found[1, 1] == pytest.approx(0.4)
    assert accuracy_at(flat([[0.4, 0.8]], [[0.01, 0.9]])).shape == (1, len(BUDGETS))


def test_a_sweep_is_made_of_evaluations_by_seed_and_tradeoff():
    def evaluation(correct, macs):
        nothing = np.zeros(3)
        return Evaluation(
            nothing, nothing, np.array(correct, np.bool_), nothing, np.array(macs), nothing
        )

    seeds = [
        [evaluation([1, 0, 0], [10, 20, 30]), evaluation([1, 1, 0], [40, 50, 60])],
        [evaluation([0, 0, 0], [1, 2, 3])] * 2,
    ]
    found = RouterOutcomes.of(seeds, 100)
    assert found.correct.tolist() == [[[1, 0, 0], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]]]
    assert found.compute.tolist() == [[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], [[0.01, 0.02, 0.03]] * 2]


def test_a_difference_is_that_of_the_interpolated_accuracies():
    first, second = flat([[0.5, 0.9]], [[0.2, 0.6]]), flat([[0.4, 0.6]], [[0.2, 0.6]])
    found = paired_difference(first, second, np.arange(10), [0.2, 0.4, 0.6])
    # .5 - .4, .7 - .5 and .9 - .6
    assert [mean for mean, _, _ in found.at] == pytest.approx([0.1, 0.2, 0.3])
    assert found.mean == pytest.approx(0.2)
    assert found.budgets == [0.2, 0.4, 0.6]
    for mean, low, high in [(found.mean, found.low, found.high), *found.at]:
        assert low <= mean <= high
    swapped = paired_difference(second, first, np.arange(10), [0.2, 0.4, 0.6])
    assert swapped.mean == pytest.approx(-0.2)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_a_router_differs_from_itself_by_nothing_whatever_is_resampled():
    rng = np.random.default_rng(0)
    sweep = RouterOutcomes(
        (rng.random((3, 4, 50)) < 0.7).astype(np.float64), np.sort(rng.random((3, 4, 50)), axis=1)
    )
    found = paired_difference(sweep, sweep, np.arange(50) // 2, [0.5, 0.6])
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.at == [(0.0, 0.0, 0.0)] * 2


def test_a_budget_that_one_of_them_does_not_reach_is_left_out():
    first, second = flat([[0.5, 0.9]], [[0.2, 0.6]]), flat([[0.4, 0.6]], [[0.3, 0.6]])
    assert paired_difference(first, second, np.arange(10), [0.1, 0.25, 0.3, 0.7]).budgets == [
        0.3,
        0.7,
    ]
    with pytest.raises(
        ValueError, match=r"`budgets` must hold one that both routers reach, got \[0.1, 0.25\]"
    ):
        paired_difference(first, second, np.arange(10), [0.1, 0.25])


@pytest.mark.parametrize("swapped", [False, True])
def test_a_budget_that_some_seed_does_not_reach_is_left_out_too(swapped):
    """Its accuracy there would be that of a dearer router."""
    uneven, other = (
        flat([[0.5, 0.9], [0.8, 0.9]], [[0.1, 0.6], [0.5, 0.6]]),
        flat([[0.4, 0.6]], [[0.1, 0.6]]),
    )
    first, second = (other, uneven) if swapped else (uneven, other)
    assert paired_difference(first, second, np.arange(10), [0.1, 0.3, 0.5, 0.6]).budgets == [
        0.5,
        0.6,
    ]


def test_the_interval_covers_a_known_difference(quick):
    rng, covered, widths = np.random.default_rng(1), 0, []
    for repeat in range(40):
        (first, second), source = simulated(rng)
        found = paired_difference(first, second, source, [0.3], seed=repeat)
        covered += found.low <= 0.1 <= found.high
        widths.append(found.high - found.low)
    assert covered >= 34  # 95 % of 40 are 38
    # The two disagree as follows: half the images share one draw, of which .8 - .7 differ by +1; of the others
    # .8 x .3 differ by +1 and .2 x .7 by -1. So the variance is .5 x .1 + .5 x (.24 + .14) - .1^2 = .23.
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.23 / 200), rel=0.1)


def test_copies_of_an_original_are_no_further_evidence(quick):
    (first, second), source = simulated(np.random.default_rng(2))
    (many, others), sources = simulated(np.random.default_rng(2), copies=9)
    one, nine = (
        paired_difference(first, second, source, [0.3, 0.6]),
        paired_difference(many, others, sources, [0.3, 0.6]),
    )
    assert (nine.mean, nine.low, nine.high) == pytest.approx((one.mean, one.low, one.high))
    as_if = paired_difference(many, others, np.arange(len(sources)), [0.3, 0.6])
    assert as_if.high - as_if.low == pytest.approx((one.high - one.low) / 3, rel=0.25)


def test_numbers_of_originals_may_have_gaps_and_any_order(quick):
    (first, second), source = simulated(np.random.default_rng(2), copies=3)
    order = np.random.default_rng(0).permutation(len(source))
    mixed = [RouterOutcomes(*(part[..., order] for part in sweep)) for sweep in (first, second)]
    one, other = (
        paired_difference(first, second, source, [0.3]),
        paired_difference(*mixed, 7 * source[order] + 11, [0.3]),
    )
    assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high))


def test_originals_with_more_images_weigh_more(quick):
    right = np.array([[[1.0, 1.0, 1.0, 0.0]]])
    compute = np.full((1, 1, 4), 0.3)
    found = paired_difference(
        RouterOutcomes(right, compute),
        RouterOutcomes(0 * right, compute),
        np.array([5, 5, 5, 8]),
        [0.3],
    )
    assert found.mean == pytest.approx(0.75)
    assert (found.low, found.high) == (0.0, 1.0)  # one original or the other alone


def test_compute_is_resampled_with_the_images(quick):
    """At equal compute a router whose images cost unlike is less certain than one whose images all cost the same."""
    rng = np.random.default_rng(0)
    right = np.tile((np.arange(100) < 50).astype(np.float64), (1, 2, 1))
    right[:, 1] = 1.0
    even = np.broadcast_to(np.array([0.2, 0.6])[None, :, None], right.shape)
    noise = rng.permutation(np.linspace(-0.2, 0.2, 100))
    other = RouterOutcomes(0 * right, np.array(even))
    widths = []
    for spent in (even, even + noise):
        found = paired_difference(
            RouterOutcomes(right, np.array(spent)), other, np.arange(100), [0.4]
        )
        assert found.mean == pytest.approx(0.75)
        widths.append(found.high - found.low)
    assert widths[1] > 1.05 * widths[0]


def test_seeds_are_resampled_where_there_are_some(quick):
    """One seed is always right, the other never; two draws of seeds give both, one twice, or the other twice."""
    first = flat([[1.0], [0.0]], [[0.3], [0.3]])
    for second in (flat([[0.0]], [[0.3]]), flat([[0.0], [0.0]], [[0.3], [0.3]])):
        found = paired_difference(first, second, np.arange(10), [0.3])
        assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    alone = paired_difference(flat([[1.0]], [[0.3]]), flat([[0.0]], [[0.3]]), np.arange(10), [0.3])
    assert (alone.mean, alone.low, alone.high) == (1.0, 1.0, 1.0)


def test_the_same_seed_gives_the_same_interval_and_another_hardly_another():
    (first, second), source = simulated(np.random.default_rng(3))
    one, again, other = (
        paired_difference(first, second, source, [0.3], seed=seed) for seed in (0, 0, 1)
    )
    assert one == again
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.015)


@pytest.mark.parametrize(
    ("paths", "bits"),
    [
        ([[1, 2], [1, 2], [1, 2], [1, 2]], 0.0),
        ([[1, 2], [1, 1], [2, 2], [0, -1]], 2.0),
        ([[1, 2], [1, 2], [2, 2], [0, -1]], 1.5),  # 1/2 x 1 + 2 x 1/4 x 2
        ([[1, 2], [2, 1], [1, 2], [2, 1]], 1.0),
    ],
)
def test_path_entropy_in_bits(paths, bits):
    assert path_entropy(np.array(paths, np.int8)) == pytest.approx(bits)


def test_means_by_severity_ascend_with_it():
    values, severity = np.array([1.0, 2.0, 3.0, 10.0, 20.0, 6.0]), np.array([0, 5, 0, 2, 2, 5])
    assert by_group(values, severity) == [2.0, 15.0, 4.0]
