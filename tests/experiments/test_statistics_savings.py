"""Compute for equal accuracy, and accuracy lost against the full path."""

import numpy as np
import pytest

from rnr_gym.experiments import statistics
from rnr_gym.experiments.statistics import (
    BUDGETS,
    AccuracyCurve,
    RouterOutcomes,
    lost,
    paired_saving,
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
    monkeypatch.setattr(statistics, "RESAMPLES", 300)


# The compute that an accuracy needs


RISING = ([0.5, 0.7, 0.9], [0.2, 0.4, 0.8])
PLATEAU = ([0.5, 0.7, 0.7, 0.9], [0.1, 0.2, 0.4, 0.6])
DIP = ([0.5, 0.8, 0.6, 0.9], [0.1, 0.2, 0.3, 0.4])
NEEDED = {
    "between points": (RISING, {0.5: 0.2, 0.6: 0.3, 0.7: 0.4, 0.8: 0.6, 0.9: 0.8}),
    "below the cheapest": (RISING, {0.3: 0.2, 0.0: 0.2}),
    "above the best": (RISING, {0.9001: np.inf, 1.0: np.inf}),
    "start of a plateau": (PLATEAU, {0.7: 0.2, 0.8: 0.5}),
    "flat curve": (([0.5, 0.5], [0.1, 0.2]), {0.5: 0.1}),
    "before a dip": (DIP, {0.65: 0.15, 0.8: 0.2}),
    # From .6 at .3 to .9 at .4: .85 is five sixths of the way.
    "behind a dip": (DIP, {0.85: 0.3 + 0.1 * 5 / 6}),
    "falling curve": (([0.8, 0.6], [0.1, 0.2]), {0.7: 0.1, 0.8: 0.1, 0.81: np.inf}),
}


@pytest.mark.parametrize(("points", "expected"), NEEDED.values(), ids=NEEDED)
def test_curve_first_reaches_accuracy(points, expected):
    curve = AccuracyCurve(*map(np.array, points))
    needed = {accuracy: curve.needed(accuracy) for accuracy in expected}
    assert needed == pytest.approx(expected)


# Savings


def test_saving_of_half_at_every_budget():
    first = one_seed([0.5, 0.7, 0.9], [0.1, 0.2, 0.3])
    second = one_seed([0.5, 0.7, 0.9], [0.2, 0.4, 0.6])
    saving = paired_saving(first, second, TEN, [0.1, 0.2, 0.3, 0.45, 0.7])
    # The second cannot be as cheap as .1.
    assert saving.budgets == [0.2, 0.3, 0.45, 0.7]
    assert saving.at == [pytest.approx((0.5, 0.5, 0.5))] * 4
    assert overall(saving) == pytest.approx((0.5, 0.5, 0.5))

    reverse = paired_saving(second, first, TEN, [0.3])
    assert overall(reverse) == pytest.approx((2.0, 2.0, 2.0))


def test_saving_is_share_of_rival_compute():
    first = one_seed([0.6, 1.0], [0.1, 0.5])
    second = one_seed([0.4, 0.8], [0.1, 0.5])
    saving = paired_saving(first, second, TEN, [0.2, 0.4, 0.6])
    # The rival has .5, .7 and .8 at .2, .4 and .5; the first .6 at .1, .7 at .2, .8 at .3.
    assert means_of(saving) == pytest.approx([0.1 / 0.2, 0.2 / 0.4, 0.3 / 0.5])
    assert saving.mean == pytest.approx((0.5 + 0.5 + 0.6) / 3)


def test_saving_against_plateau_of_rival():
    """The rival needs no more compute than where it stops gaining."""
    first = one_seed([0.5, 0.7], [0.1, 0.3])
    second = one_seed([0.5, 0.7, 0.7], [0.1, 0.2, 0.9])
    saving = paired_saving(first, second, TEN, [0.45, 0.6])
    for mean, low, high in saving.at:
        assert (mean, high) == pytest.approx((1.5, 1.5))
        # In a tenth of the resamples neither gains anything, and both need the least.
        assert low == pytest.approx(1.0)


def test_saving_against_itself_is_one(few_resamples):
    """Whatever is resampled."""
    outcomes = random_outcomes()
    saving = paired_saving(outcomes, outcomes, np.arange(50) // 2, [0.5, 0.6])
    assert saving.at == [(1.0, 1.0, 1.0)] * 2


def test_saving_is_infinite_if_never_reached(few_resamples):
    first = one_seed([0.4, 0.6], [0.1, 0.2])
    second = one_seed([0.4, 0.9], [0.1, 0.6])
    saving = paired_saving(first, second, TEN, [0.1, 0.6])
    assert saving.at[0] == pytest.approx((1.0, 1.0, 1.0))
    assert saving.at[1][0] == np.inf
    assert saving.at[1][2] == np.inf
    assert saving.mean == np.inf


def test_saving_unbounded_if_resamples_fail(few_resamples):
    """Each router is right on another half of the images, so it is ahead in half the resamples."""
    correct = np.repeat([[1.0, 0.0], [0.0, 1.0]], 10, axis=1)  # (2, 20)
    compute = np.full((1, 1, 20), 0.3)
    first = RouterOutcomes(correct[None, :1], compute)
    second = RouterOutcomes(correct[None, 1:], compute)
    saving = paired_saving(first, second, np.arange(20), [0.3])
    assert overall(saving) == (1.0, 1.0, np.inf)


def test_saving_averages_and_resamples_seeds(few_resamples):
    """One seed needs half of what the rival does, the other all of it."""
    first = flat_outcomes([[0.5, 0.9], [0.5, 0.9]], [[0.1, 0.2], [0.2, 0.4]])
    second = one_seed([0.5, 0.9], [0.2, 0.4])
    saving = paired_saving(first, second, TEN, [0.2, 0.3])
    assert overall(saving) == pytest.approx((0.75, 0.5, 1.0))
    assert saving.at == [pytest.approx((0.75, 0.5, 1.0))] * 2


@pytest.mark.parametrize("statistic", [paired_saving, lost])
def test_figure_without_shared_budget_raises(statistic):
    first = one_seed([0.5, 0.7], [0.2, 0.3])
    second = one_seed([0.5, 0.7], [0.3, 0.4])
    message = r"`budgets` must hold one that both routers reach, got \[0.05, 0.1\]"
    with pytest.raises(ValueError, match=message):
        statistic(first, second, TEN, [0.05, 0.1])


def rising_pair(rng, images=250):
    """Two routers whose accuracy rises in a line with compute; the first needs half as much."""
    first_draw = rng.random(images)
    # Half of the images share their draw.
    second_draw = np.where(rng.random(images) < 0.5, first_draw, rng.random(images))
    levels = np.array([0.2, 0.4, 0.6, 0.8])[:, None]

    routers = []
    for draw, scale in ((first_draw, 0.5), (second_draw, 1.0)):
        correct = (draw < levels)[None].astype(np.float64)
        compute = np.tile(levels * scale, (1, 1, images))
        routers.append(RouterOutcomes(correct, compute))
    return routers


def test_saving_interval_covers_known_saving(few_resamples):
    rng = np.random.default_rng(1)
    covered = 0
    widths = []
    for seed in range(30):
        saving = paired_saving(*rising_pair(rng), np.arange(250), [0.5], seed=seed)
        covered += saving.low <= 0.5 <= saving.high
        widths.append(width(saving))
    # 95 % of 30 are 28.5.
    assert covered >= 25
    assert 0.02 < np.mean(widths) < 0.2


def test_saving_interval_follows_from_seed(few_resamples):
    routers = rising_pair(np.random.default_rng(3))

    def saving(seed):
        return paired_saving(*routers, np.arange(250), [0.3, 0.5], seed=seed)

    first = saving(seed=0)
    other = saving(seed=1)
    assert saving(seed=0) == first
    assert other.mean == first.mean
    assert (other.low, other.high) != (first.low, first.high)
    assert (other.low, other.high) == pytest.approx((first.low, first.high), abs=0.03)


# Accuracy lost against the full path


def test_lost_is_zero_at_equal_accuracy(few_resamples):
    full = one_seed([0.8], [1.0])
    loss = lost(one_seed([0.8, 0.8], [0.2, 0.9]), full, TEN)
    assert loss.budgets == [budget for budget in BUDGETS if budget >= 0.2]
    assert overall(loss) == (0.0, 0.0, 0.0)
    assert loss.at == [(0.0, 0.0, 0.0)] * len(loss.budgets)


def test_lost_of_full_path_itself_is_zero(few_resamples):
    full = one_seed([0.8], [1.0])
    assert overall(lost(full, full, TEN, [1.0])) == (0.0, 0.0, 0.0)


def test_lost_is_full_accuracy_less_router(few_resamples):
    router = one_seed([0.5, 0.9], [0.2, 0.6])
    full = one_seed([0.8], [1.0])
    loss = lost(router, full, TEN, [0.1, 0.2, 0.3, 0.6])
    assert loss.budgets == [0.2, 0.3, 0.6]
    # .5, .6 and .9 against .8
    assert means_of(loss) == pytest.approx([0.3, 0.2, -0.1])
    assert loss.mean == pytest.approx(0.4 / 3)
    assert means_in_intervals(loss)


def test_lost_is_paired_over_images(few_resamples):
    """Both are wrong on the same images but for one in ten, which alone widens the interval."""
    router = one_seed([0.7], [0.3], 200)
    full = one_seed([0.8], [1.0], 200)
    loss = lost(router, full, np.arange(200), [0.3])
    expected = 2 * 1.96 * np.sqrt(0.1 * 0.9 / 200)
    assert width(loss) == pytest.approx(expected, rel=0.25)


def test_lost_averages_and_resamples_seeds(few_resamples):
    router = flat_outcomes([[0.7], [0.9]], [[0.3], [0.3]], 200)
    full = one_seed([0.8], [1.0], 200)
    loss = lost(router, full, np.arange(200), [0.3])
    assert loss.mean == pytest.approx(0.0)
    # Resamples with either seed twice.
    assert (loss.low, loss.high) == pytest.approx((-0.1, 0.1), abs=0.05)
