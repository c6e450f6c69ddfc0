"""Accuracies at equal compute, checked by hand or by a simulation whose truth is known."""

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
from tests.fixtures.outcomes import (
    TEN,
    flat_outcomes,
    means_in_intervals,
    means_of,
    one_seed,
    overall,
    random_outcomes,
    width,
)


@pytest.fixture
def few_resamples(monkeypatch):
    """Where only the rough width of an interval matters."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)


# Curves


def test_accuracy_interpolated_between_tradeoffs():
    # In any order of compute.
    accuracy = np.array([0.9, 0.5, 0.7])
    compute = np.array([0.6, 0.2, 0.4])
    budgets = [0.2, 0.3, 0.4, 0.5, 0.6]
    at = at_budgets(accuracy, compute, budgets)
    assert at == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert at_budgets(accuracy, compute, [0.25]) == pytest.approx([0.55])


def test_accuracy_outside_of_curve():
    """Below the cheapest trade-off there is none; above the most expensive it is constant."""
    accuracy = np.array([0.9, 0.5])
    compute = np.array([0.6, 0.2])
    at = at_budgets(accuracy, compute, [0.1, 0.199, 0.7, 5.0])
    assert np.isnan(at[:2]).all()
    assert at[2:].tolist() == [0.9, 0.9]


def test_accuracy_of_each_seed():
    outcomes = flat_outcomes([[0.4, 0.8], [0.2, 0.6]], [[0.2, 0.6], [0.3, 0.5]])
    at = accuracy_at(outcomes, [0.25, 0.4])
    assert at.shape == (2, 2)
    assert at[0] == pytest.approx([0.45, 0.6])
    assert np.isnan(at[1, 0])
    assert at[1, 1] == pytest.approx(0.4)


def test_accuracy_at_default_budgets():
    outcomes = one_seed([0.4, 0.8], [0.01, 0.9])
    assert accuracy_at(outcomes).shape == (1, len(BUDGETS))


def evaluation_of(correct, macs):
    """An evaluation of three images, of which nothing else is read."""
    unused = np.zeros(3)
    return Evaluation(
        path=unused,
        prediction=unused,
        correct=np.array(correct, np.bool_),
        loss=unused,
        macs=np.array(macs),
        router_macs=unused,
        cost=np.array(macs),
    )


def test_outcomes_from_evaluations():
    cheap = evaluation_of([1, 0, 0], macs=[10, 20, 30])
    expensive = evaluation_of([1, 1, 0], macs=[40, 50, 60])
    wrong = evaluation_of([0, 0, 0], macs=[1, 2, 3])
    first_seed = [cheap, expensive]
    second_seed = [wrong, wrong]

    outcomes = RouterOutcomes.of([first_seed, second_seed], 100)
    assert outcomes.correct.tolist() == [
        [[1, 0, 0], [1, 1, 0]],
        [[0, 0, 0], [0, 0, 0]],
    ]
    assert outcomes.compute.tolist() == [
        [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]],
        [[0.01, 0.02, 0.03], [0.01, 0.02, 0.03]],
    ]


# Differences


def test_difference_of_interpolated_accuracies():
    first = one_seed([0.5, 0.9], [0.2, 0.6])
    second = one_seed([0.4, 0.6], [0.2, 0.6])
    difference = paired_difference(first, second, TEN, [0.2, 0.4, 0.6])
    # .5 - .4, .7 - .5 and .9 - .6
    assert means_of(difference) == pytest.approx([0.1, 0.2, 0.3])
    assert difference.mean == pytest.approx(0.2)
    assert difference.budgets == [0.2, 0.4, 0.6]

    assert means_in_intervals(difference)


def test_difference_changes_sign_when_swapped():
    first = one_seed([0.5, 0.9], [0.2, 0.6])
    second = one_seed([0.4, 0.6], [0.2, 0.6])
    difference = paired_difference(first, second, TEN, [0.2, 0.4, 0.6])
    swapped = paired_difference(second, first, TEN, [0.2, 0.4, 0.6])
    assert swapped.mean == pytest.approx(-0.2)
    assert (swapped.low, swapped.high) == pytest.approx((-difference.high, -difference.low))


def test_difference_from_itself_is_zero():
    """Whatever is resampled."""
    outcomes = random_outcomes()
    difference = paired_difference(outcomes, outcomes, np.arange(50) // 2, [0.5, 0.6])
    assert overall(difference) == (0.0, 0.0, 0.0)
    assert difference.at == [(0.0, 0.0, 0.0)] * 2


def test_difference_omits_unreached_budgets():
    first = one_seed([0.5, 0.9], [0.2, 0.6])
    second = one_seed([0.4, 0.6], [0.3, 0.6])
    difference = paired_difference(first, second, TEN, [0.1, 0.25, 0.3, 0.7])
    assert difference.budgets == [0.3, 0.7]


def test_difference_without_budget_raises():
    first = one_seed([0.5, 0.9], [0.2, 0.6])
    second = one_seed([0.4, 0.6], [0.3, 0.6])
    message = r"`budgets` must hold one that both routers reach, got \[0.1, 0.25\]"
    with pytest.raises(ValueError, match=message):
        paired_difference(first, second, TEN, [0.1, 0.25])


@pytest.mark.parametrize("swapped", [False, True], ids=["first", "second"])
def test_difference_omits_budget_a_seed_exceeds(swapped):
    """The accuracy of that seed would be that of a more expensive router."""
    uneven = flat_outcomes([[0.5, 0.9], [0.8, 0.9]], [[0.1, 0.6], [0.5, 0.6]])
    other = one_seed([0.4, 0.6], [0.1, 0.6])
    pair = (other, uneven) if swapped else (uneven, other)
    difference = paired_difference(*pair, TEN, [0.1, 0.3, 0.5, 0.6])
    assert difference.budgets == [0.5, 0.6]


# Intervals


def simulated(rng, images=200, copies=1):
    """Two routers that are right on 80 % and 70 % of images, and often on the same ones.

    They are so at every compute between .1 and .9. The third result is `original_id`: each
    original has so many equal copies.
    """
    first_draw = rng.random(images)
    # Half of the images share their draw.
    second_draw = np.where(rng.random(images) < 0.5, first_draw, rng.random(images))
    computes = np.array([0.1, 0.9])[None, :, None]
    compute = np.broadcast_to(computes, (1, 2, images * copies))

    routers = []
    for correct in (first_draw < 0.8, second_draw < 0.7):
        copied = np.repeat(correct, copies).astype(np.float64)
        routers.append(RouterOutcomes(np.tile(copied, (1, 2, 1)), compute))
    return *routers, np.repeat(np.arange(images), copies)


def test_interval_covers_known_difference(few_resamples):
    rng = np.random.default_rng(1)
    covered = 0
    widths = []
    for seed in range(40):
        difference = paired_difference(*simulated(rng), [0.3], seed=seed)
        covered += difference.low <= 0.1 <= difference.high
        widths.append(width(difference))
    # 95 % of 40 are 38.
    assert covered >= 34

    # Half of the images share a draw, of which .8 - .7 differ by +1. Of the others .8 x .3 differ
    # by +1 and .2 x .7 by -1. So the variance is .5 x .1 + .5 x (.24 + .14) - .1^2 = .23.
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.23 / 200), rel=0.1)


def test_interval_ignores_copies_of_originals(few_resamples):
    """Nine copies of each image are no further evidence, unless they count as originals."""
    originals = simulated(np.random.default_rng(2))
    first, second, original_id = simulated(np.random.default_rng(2), copies=9)
    of_originals = paired_difference(*originals, [0.3, 0.6])
    of_copies = paired_difference(first, second, original_id, [0.3, 0.6])
    assert overall(of_copies) == pytest.approx(overall(of_originals))

    as_originals = paired_difference(first, second, np.arange(len(original_id)), [0.3, 0.6])
    assert width(as_originals) == pytest.approx(width(of_originals) / 3, rel=0.25)


def test_interval_ignores_order_and_gaps_of_ids(few_resamples):
    first, second, original_id = simulated(np.random.default_rng(2), copies=3)
    order = np.random.default_rng(0).permutation(len(original_id))
    shuffled = []
    for outcomes in (first, second):
        correct = outcomes.correct[..., order]
        shuffled.append(RouterOutcomes(correct, outcomes.compute[..., order]))

    difference = paired_difference(first, second, original_id, [0.3])
    of_shuffled = paired_difference(*shuffled, 7 * original_id[order] + 11, [0.3])
    assert overall(of_shuffled) == pytest.approx(overall(difference))


def test_interval_weighs_originals_by_images(few_resamples):
    correct = np.array([[[1.0, 1.0, 1.0, 0.0]]])
    compute = np.full((1, 1, 4), 0.3)
    first = RouterOutcomes(correct, compute)
    second = RouterOutcomes(np.zeros_like(correct), compute)
    difference = paired_difference(first, second, np.array([5, 5, 5, 8]), [0.3])
    assert difference.mean == pytest.approx(0.75)
    # Resamples with one of the originals alone.
    assert (difference.low, difference.high) == (0.0, 1.0)


def test_interval_is_wider_where_compute_varies(few_resamples):
    """Compute is resampled with the images, and so is the accuracy at equal compute."""
    rng = np.random.default_rng(0)
    correct = np.tile((np.arange(100) < 50).astype(np.float64), (1, 2, 1))
    correct[:, 1] = 1.0
    even = np.zeros_like(correct)
    even[:, 0] = 0.2
    even[:, 1] = 0.6
    uneven = even + rng.permutation(np.linspace(-0.2, 0.2, 100))
    rival = RouterOutcomes(np.zeros_like(correct), even)

    widths = []
    for compute in (even, uneven):
        router = RouterOutcomes(correct, compute)
        difference = paired_difference(router, rival, np.arange(100), [0.4])
        assert difference.mean == pytest.approx(0.75)
        widths.append(width(difference))
    assert widths[1] > 1.05 * widths[0]


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_interval_resamples_seeds(few_resamples, num_seeds):
    """One seed is always right, the other never; two draws give both, or either one twice."""
    first = flat_outcomes([[1.0], [0.0]], [[0.3], [0.3]])
    second = flat_outcomes([[0.0]] * num_seeds, [[0.3]] * num_seeds)
    difference = paired_difference(first, second, TEN, [0.3])
    assert overall(difference) == (0.5, 0.0, 1.0)


def test_interval_of_one_seed_each(few_resamples):
    first = one_seed([1.0], [0.3])
    second = one_seed([0.0], [0.3])
    difference = paired_difference(first, second, TEN, [0.3])
    assert overall(difference) == (1.0, 1.0, 1.0)


def test_interval_follows_from_seed():
    routers = simulated(np.random.default_rng(3))
    difference = paired_difference(*routers, [0.3], seed=0)
    assert paired_difference(*routers, [0.3], seed=0) == difference

    other = paired_difference(*routers, [0.3], seed=1)
    assert (other.low, other.high) == pytest.approx((difference.low, difference.high), abs=0.015)


# Paths and groups


@pytest.mark.parametrize(
    ("paths", "bits"),
    [
        ([[1, 2], [1, 2], [1, 2], [1, 2]], 0.0),
        ([[1, 2], [1, 1], [2, 2], [0, -1]], 2.0),
        # 1/2 x 1 bit, and twice 1/4 x 2 bits.
        ([[1, 2], [1, 2], [2, 2], [0, -1]], 1.5),
        ([[1, 2], [2, 1], [1, 2], [2, 1]], 1.0),
    ],
    ids=["one path", "four paths", "three paths", "two paths"],
)
def test_path_entropy_in_bits(paths, bits):
    assert path_entropy(np.array(paths, np.int8)) == pytest.approx(bits)


def test_group_means_ascend_with_group():
    values = np.array([1.0, 2.0, 3.0, 10.0, 20.0, 6.0])
    severity = np.array([0, 5, 0, 2, 2, 5])
    assert by_group(values, severity) == [2.0, 15.0, 4.0]
