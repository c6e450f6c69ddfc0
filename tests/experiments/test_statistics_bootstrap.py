"""The bootstrap behind the intervals of paired figures and of differences of means."""

import numpy as np
import pytest

from rnr_gym.experiments import statistics
from rnr_gym.experiments.statistics import mean_difference_interval, paired_bootstrap
from tests.fixtures.outcomes import (
    TEN,
    flat_outcomes,
    one_seed,
)

FORTY = np.arange(40)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    """Only the rough width of an interval matters."""
    monkeypatch.setattr(statistics, "RESAMPLES", 300)


def gap(curve, rival):
    """A statistic: accuracies gained."""
    return curve.accuracy - rival.accuracy


def test_bootstrap_passes_ascending_curves():
    pairs = []

    def statistic(curve, rival):
        pairs.append((curve, rival))
        return np.array([curve.accuracy[0], rival.accuracy[-1], rival.compute[-1]])

    first = one_seed([0.9, 0.5, 0.7], [0.6, 0.2, 0.4])
    second = one_seed([0.8, 0.3], [0.9, 0.1])
    figures = paired_bootstrap(first, second, TEN, statistic)
    # The mean over the entries comes first.
    values = [value for value, _, _ in figures]
    assert values == pytest.approx([(0.5 + 0.8 + 0.9) / 3, 0.5, 0.8, 0.9])

    assert len(pairs) > 300
    for curve, rival in pairs:
        assert (np.diff(curve.compute) >= 0).all()
        assert (np.diff(rival.compute) >= 0).all()


def test_bootstrap_resamples_both_routers_alike():
    router = one_seed([0.5], [0.3])
    assert paired_bootstrap(router, router, TEN, gap) == [(0.0, 0.0, 0.0)] * 2


def test_bootstrap_interval_of_gain():
    # Right on two more of the ten images.
    first = one_seed([0.7], [0.3])
    second = one_seed([0.5], [0.3])
    _, (value, low, high) = paired_bootstrap(first, second, TEN, gap)
    assert value == pytest.approx(0.2)
    assert 0.0 <= low < value < high


def test_bootstrap_pairs_equally_many_seeds():
    uneven = flat_outcomes([[1.0], [0.0]], [[0.3], [0.3]])
    assert paired_bootstrap(uneven, uneven, TEN, gap) == [(0.0, 0.0, 0.0)] * 2


def test_bootstrap_repeats_single_seed():
    """A router with one seed is compared with each seed of the other."""
    uneven = flat_outcomes([[1.0], [0.0]], [[0.3], [0.3]])
    never = one_seed([0.0], [0.3])
    always = one_seed([1.0], [0.3])
    assert paired_bootstrap(uneven, never, TEN, gap) == [(0.5, 0.0, 1.0)] * 2
    assert paired_bootstrap(always, uneven, TEN, gap) == [(0.5, 0.0, 1.0)] * 2


@pytest.mark.parametrize(
    ("scale", "shift", "expected"),
    [(0.75, 0.25, 0.75), (0.0, 1.0, 0.0), (-1.0, 0.0, -1.0)],
    ids=["higher", "equal", "lower"],
)
def test_mean_difference_of_constants_is_exact(scale, shift, expected):
    """Where values do not vary among images of a kind, the interval has no width."""
    marked = FORTY % 2 == 0
    interval = mean_difference_interval(marked * scale + shift, marked, FORTY)
    assert interval == (expected, expected)


def test_mean_difference_interval_covers_truth():
    rng = np.random.default_rng(2)
    marked = np.arange(200) < 50
    covered = 0
    widths = []
    for seed in range(40):
        values = rng.normal(0.3 * marked, 1.0)
        low, high = mean_difference_interval(values, marked, np.arange(200), seed=seed)
        covered += low <= 0.3 <= high
        widths.append(high - low)

    # 95 % of 40 are 38.
    assert covered >= 34
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(1 / 50 + 1 / 150), rel=0.15)


@pytest.fixture
def sixty():
    """Values of sixty originals, which of them are marked, and their numbers."""
    rng = np.random.default_rng(0)
    return rng.normal(size=60), np.arange(60) < 20, np.arange(60)


def test_mean_difference_ignores_copies(sixty):
    """Four copies of each image are no further evidence, unless they count as originals."""
    values, marked, original_id = sixty
    interval = mean_difference_interval(values, marked, original_id)

    copied_values = np.repeat(values, 4)
    copied_marked = np.repeat(marked, 4)
    copied_id = 7 * np.repeat(original_id, 4) + 3
    of_copies = mean_difference_interval(copied_values, copied_marked, copied_id)
    assert of_copies == pytest.approx(interval)

    low, high = mean_difference_interval(copied_values, copied_marked, np.arange(240))
    assert high - low == pytest.approx((interval[1] - interval[0]) / 2, rel=0.25)


def test_mean_difference_follows_from_seed(sixty):
    interval = mean_difference_interval(*sixty)
    assert mean_difference_interval(*sixty) == interval
    assert mean_difference_interval(*sixty, seed=1) != interval


@pytest.mark.parametrize("num_marked", [1, 7])
def test_mean_difference_of_rare_mark_is_exact(num_marked):
    """With one of eight images marked, a third of the resamples have none that is."""
    marked = np.arange(8) < num_marked
    assert mean_difference_interval(marked * 0.5, marked, np.arange(8)) == (0.5, 0.5)
