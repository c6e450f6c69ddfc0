"""Compute for equal accuracy, losses against the full path, and the bootstrap behind them: counts by hand and known truths."""

import numpy as np
import pytest

from rnr_gym.experiments import statistics
from rnr_gym.experiments.statistics import (
    BUDGETS,
    AccuracyCurve,
    RouterOutcomes,
    lost,
    mean_difference_interval,
    paired_bootstrap,
    paired_saving,
)
from tests.experiments.test_statistics import flat

TEN = np.arange(10)


@pytest.fixture
def quick(monkeypatch):
    """Fewer resamples, where only the rough width matters."""
    monkeypatch.setattr(statistics, "RESAMPLES", 300)


@pytest.mark.parametrize(
    ("accuracy", "compute", "needed"),
    [
        ([0.5, 0.7, 0.9], [0.2, 0.4, 0.8], {0.5: 0.2, 0.6: 0.3, 0.7: 0.4, 0.8: 0.6, 0.9: 0.8}),
        ([0.5, 0.7, 0.9], [0.2, 0.4, 0.8], {0.3: 0.2, 0.0: 0.2}),  # even the cheapest is better
        ([0.5, 0.7, 0.9], [0.2, 0.4, 0.8], {0.9001: np.inf, 1.0: np.inf}),
        (
            [0.5, 0.7, 0.7, 0.9],
            [0.1, 0.2, 0.4, 0.6],
            {0.7: 0.2, 0.8: 0.5},
        ),  # a plateau is reached where it begins
        ([0.5, 0.5], [0.1, 0.2], {0.5: 0.1}),
        (
            [0.5, 0.8, 0.6, 0.9],
            [0.1, 0.2, 0.3, 0.4],
            {0.65: 0.15, 0.8: 0.2},
        ),  # a dip behind it changes nothing
        ([0.8, 0.6], [0.1, 0.2], {0.7: 0.1, 0.8: 0.1, 0.81: np.inf}),
    ],
)
def test_a_curve_knows_where_it_first_reaches_an_accuracy(accuracy, compute, needed):
    curve = AccuracyCurve(np.array(accuracy), np.array(compute))
    assert {wanted: curve.needed(wanted) for wanted in needed} == pytest.approx(needed)


def test_behind_a_dip_an_accuracy_is_reached_where_the_curve_reaches_it():
    # from .6 at .3 to .9 at .4: .85 is five sixths of the way
    assert AccuracyCurve(np.array([0.5, 0.8, 0.6, 0.9]), np.array([0.1, 0.2, 0.3, 0.4])).needed(
        0.85
    ) == pytest.approx(0.3 + 0.1 * 5 / 6)


def test_a_router_that_needs_half_the_compute_has_a_saving_of_a_half_at_every_budget():
    first, second = (
        flat([[0.5, 0.7, 0.9]], [[0.1, 0.2, 0.3]]),
        flat([[0.5, 0.7, 0.9]], [[0.2, 0.4, 0.6]]),
    )
    found = paired_saving(first, second, TEN, [0.1, 0.2, 0.3, 0.45, 0.7])
    assert found.budgets == [0.2, 0.3, 0.45, 0.7]  # what both can be as cheap as
    assert found.at == [pytest.approx((0.5, 0.5, 0.5))] * 4
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    back = paired_saving(second, first, TEN, [0.3])
    assert (back.mean, back.low, back.high) == pytest.approx((2.0, 2.0, 2.0))


def test_a_saving_is_the_compute_for_what_the_rival_has_over_what_the_rival_needs_for_it():
    first, second = flat([[0.6, 1.0]], [[0.1, 0.5]]), flat([[0.4, 0.8]], [[0.1, 0.5]])
    found = paired_saving(first, second, TEN, [0.2, 0.4, 0.6])
    # the rival has .5, .7 and .8 at .2, .4 and .5; the first .6 at once, .7 at .2, .8 at .3
    assert [mean for mean, _, _ in found.at] == pytest.approx([0.1 / 0.2, 0.2 / 0.4, 0.3 / 0.5])
    assert found.mean == pytest.approx((0.5 + 0.5 + 0.6) / 3)


def test_a_rival_that_gains_nothing_further_is_met_where_it_stopped_gaining():
    first, second = flat([[0.5, 0.7]], [[0.1, 0.3]]), flat([[0.5, 0.7, 0.7]], [[0.1, 0.2, 0.9]])
    for mean, low, high in paired_saving(first, second, TEN, [0.45, 0.6]).at:
        assert (mean, high) == pytest.approx((1.5, 1.5))
        assert low == pytest.approx(
            1.0
        )  # of resamples in which nobody gains anything, a tenth, both need the least


def test_a_router_needs_as_much_as_itself_whatever_is_resampled(quick):
    rng = np.random.default_rng(0)
    sweep = RouterOutcomes(
        (rng.random((3, 4, 50)) < 0.7).astype(np.float64), np.sort(rng.random((3, 4, 50)), axis=1)
    )
    found = paired_saving(sweep, sweep, np.arange(50) // 2, [0.5, 0.6])
    assert found.at == [(1.0, 1.0, 1.0)] * 2


def test_an_accuracy_that_is_never_reached_costs_infinitely_much(quick):
    first, second = flat([[0.4, 0.6]], [[0.1, 0.2]]), flat([[0.4, 0.9]], [[0.1, 0.6]])
    found = paired_saving(first, second, TEN, [0.1, 0.6])
    assert found.at[0] == pytest.approx((1.0, 1.0, 1.0))
    assert found.at[1][0] == found.at[1][2] == np.inf
    assert found.mean == np.inf


def test_an_accuracy_that_some_resamples_do_not_reach_is_unbounded_above(quick):
    """Half the images are right for one, the other half for the other, so each is ahead in half of the resamples."""
    right = np.repeat([[1.0, 0.0], [0.0, 1.0]], 10, 1)
    compute = np.full((1, 1, 20), 0.3)
    found = paired_saving(
        RouterOutcomes(right[:1][None], compute),
        RouterOutcomes(right[1:][None], compute),
        np.arange(20),
        [0.3],
    )
    assert (found.mean, found.low, found.high) == (1.0, 1.0, np.inf)


@pytest.mark.parametrize("statistic", [paired_saving, lost])
def test_without_a_budget_that_both_reach_there_is_no_figure(statistic):
    with pytest.raises(
        ValueError, match=r"`budgets` must hold one that both routers reach, got \[0.05, 0.1\]"
    ):
        statistic(
            flat([[0.5, 0.7]], [[0.2, 0.3]]), flat([[0.5, 0.7]], [[0.3, 0.4]]), TEN, [0.05, 0.1]
        )


def test_savings_of_seeds_are_averaged_and_seeds_resampled(quick):
    """One seed needs half of what the rival does, the other all of it."""
    first, second = (
        flat([[0.5, 0.9], [0.5, 0.9]], [[0.1, 0.2], [0.2, 0.4]]),
        flat([[0.5, 0.9]], [[0.2, 0.4]]),
    )
    found = paired_saving(first, second, TEN, [0.2, 0.3])
    assert (found.mean, found.low, found.high) == pytest.approx((0.75, 0.5, 1.0))
    assert found.at == [pytest.approx((0.75, 0.5, 1.0))] * 2


def growing(rng, images=250):
    """Two routers whose accuracy grows with compute as on a straight line; the first needs half as much for it."""
    one = rng.random(images)
    other = np.where(rng.random(images) < 0.5, one, rng.random(images))
    levels = np.array([0.2, 0.4, 0.6, 0.8])[:, None]
    computes = [np.tile(levels * scale, (1, 1, images)) for scale in (0.5, 1.0)]
    return [
        RouterOutcomes((draw < levels)[None].astype(np.float64), compute)
        for draw, compute in zip((one, other), computes, strict=True)
    ]


def test_the_interval_covers_a_known_saving(quick):
    rng, covered, widths = np.random.default_rng(1), 0, []
    for repeat in range(30):
        found = paired_saving(*growing(rng), np.arange(250), [0.5], seed=repeat)
        covered += found.low <= 0.5 <= found.high
        widths.append(found.high - found.low)
    assert covered >= 25  # 95 % of 30 are 28.5
    assert 0.02 < np.mean(widths) < 0.2


def test_the_same_seed_gives_the_same_savings_and_another_hardly_others(quick):
    sweeps = growing(np.random.default_rng(3))
    one, again, other = (
        paired_saving(*sweeps, np.arange(250), [0.3, 0.5], seed=seed) for seed in (0, 0, 1)
    )
    assert one == again
    assert one.mean == other.mean
    assert (one.low, one.high) != (other.low, other.high)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.03)


def test_a_router_as_good_as_the_full_path_loses_nothing(quick):
    full = flat([[0.8]], [[1.0]])
    found = lost(flat([[0.8, 0.8]], [[0.2, 0.9]]), full, TEN)
    assert found.budgets == [budget for budget in BUDGETS if budget >= 0.2]
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.at == [(0.0, 0.0, 0.0)] * len(found.budgets)
    itself = lost(full, full, TEN, [1.0])
    assert (itself.mean, itself.low, itself.high) == (0.0, 0.0, 0.0)


def test_what_is_lost_is_the_full_paths_accuracy_less_the_routers(quick):
    found = lost(
        flat([[0.5, 0.9]], [[0.2, 0.6]]), flat([[0.8]], [[1.0]]), TEN, [0.1, 0.2, 0.3, 0.6]
    )
    assert found.budgets == [0.2, 0.3, 0.6]
    # .5, .6 and .9 against .8
    assert [mean for mean, _, _ in found.at] == pytest.approx([0.3, 0.2, -0.1])
    assert found.mean == pytest.approx(0.4 / 3)
    for mean, low, high in found.at:
        assert low <= mean <= high


def test_what_is_lost_is_paired_over_images_and_averaged_over_seeds(quick):
    """The same images are wrong for both, but for one in ten: nothing else may widen the interval."""
    first, full = flat([[0.7], [0.9]], [[0.3], [0.3]], 200), flat([[0.8]], [[1.0]], 200)
    found = lost(first, full, np.arange(200), [0.3])
    assert found.mean == pytest.approx(0.0)
    assert (found.low, found.high) == pytest.approx(
        (-0.1, 0.1), abs=0.05
    )  # one seed twice, or the other
    alone = lost(flat([[0.7]], [[0.3]], 200), full, np.arange(200), [0.3])
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * np.sqrt(0.1 * 0.9 / 200), rel=0.25)


def test_a_bootstrap_hands_over_curves_by_ascending_compute_and_leads_with_the_mean(quick):
    shown = []

    def first_and_last(ours, theirs):
        shown.append((ours, theirs))
        return np.array([ours.accuracy[0], theirs.accuracy[-1], theirs.compute[-1]])

    first, second = flat([[0.9, 0.5, 0.7]], [[0.6, 0.2, 0.4]]), flat([[0.8, 0.3]], [[0.9, 0.1]])
    found = paired_bootstrap(first, second, TEN, first_and_last)
    assert [value for value, _, _ in found] == pytest.approx([(0.5 + 0.8 + 0.9) / 3, 0.5, 0.8, 0.9])
    assert all((np.diff(curve.compute) >= 0).all() for pair in shown for curve in pair)
    assert len(shown) > 300


def gap(ours, theirs):
    return ours.accuracy - theirs.accuracy


def test_both_routers_are_resampled_alike(quick):
    same = flat([[0.5]], [[0.3]])
    assert paired_bootstrap(same, same, TEN, gap) == [(0.0, 0.0, 0.0)] * 2
    ahead = flat([[0.7]], [[0.3]])  # right on two more of the ten
    _, (value, low, high) = paired_bootstrap(ahead, same, TEN, gap)
    assert value == pytest.approx(0.2)
    assert 0.0 <= low < value < high


def test_seeds_pair_up_where_both_have_as_many_and_one_seed_stands_for_itself(quick):
    uneven = flat([[1.0], [0.0]], [[0.3], [0.3]])
    assert paired_bootstrap(uneven, uneven, TEN, gap) == [(0.0, 0.0, 0.0)] * 2
    assert paired_bootstrap(uneven, flat([[0.0]], [[0.3]]), TEN, gap) == [(0.5, 0.0, 1.0)] * 2
    assert paired_bootstrap(flat([[1.0]], [[0.3]]), uneven, TEN, gap) == [(0.5, 0.0, 1.0)] * 2


def test_an_interval_of_a_difference_of_means_is_none_where_nothing_varies(quick):
    marked = np.arange(40) % 2 == 0
    assert mean_difference_interval(marked * 0.75 + 0.25, marked, np.arange(40)) == (0.75, 0.75)
    assert mean_difference_interval(np.ones(40), marked, np.arange(40)) == (0.0, 0.0)
    assert mean_difference_interval(marked * -1.0, marked, np.arange(40)) == (-1.0, -1.0)


def test_the_interval_covers_a_known_difference_of_means(quick):
    rng, covered, widths = np.random.default_rng(2), 0, []
    for repeat in range(40):
        marked = np.arange(200) < 50
        low, high = mean_difference_interval(
            rng.normal(0.3 * marked, 1.0), marked, np.arange(200), seed=repeat
        )
        covered += low <= 0.3 <= high
        widths.append(high - low)
    assert covered >= 34  # 95 % of 40 are 38
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(1 / 50 + 1 / 150), rel=0.15)


def test_for_a_difference_of_means_too_copies_are_no_further_evidence(quick):
    rng = np.random.default_rng(0)
    values, marked, source = rng.normal(size=60), np.arange(60) < 20, np.arange(60)
    one = mean_difference_interval(values, marked, source)
    four = mean_difference_interval(
        np.repeat(values, 4), np.repeat(marked, 4), 7 * np.repeat(source, 4) + 3
    )
    assert one == pytest.approx(four)
    low, high = mean_difference_interval(np.repeat(values, 4), np.repeat(marked, 4), np.arange(240))
    assert high - low == pytest.approx((one[1] - one[0]) / 2, rel=0.25)
    assert mean_difference_interval(values, marked, source) == one
    assert mean_difference_interval(values, marked, source, seed=1) != one


@pytest.mark.parametrize("count", [1, 7])
def test_resamples_without_images_of_both_kinds_are_left_out(quick, count):
    """Of eight images with one marked, a third of the resamples have none that is."""
    marked = np.arange(8) < count
    assert mean_difference_interval(marked * 0.5, marked, np.arange(8)) == (0.5, 0.5)
