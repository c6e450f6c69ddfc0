"""From outcomes to statements: curves, equal compute, paired intervals.

Images are resampled by their originals: all versions of one original are drawn together, because
they are no independent evidence.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from rnr_gym.experiments.evaluation import Evaluation
from rnr_gym.routing.protocols import Indices

BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6)
"""Mean computes at which routers are compared."""
RESAMPLES = 2000
"""Bootstrap resamples behind every interval."""
BATCH = 100
"""Resamples that are computed together; all of them at once would need 300 MB."""


class Mean(NamedTuple):
    """A mean over the images with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class RouterOutcomes(NamedTuple):
    """One router with S seeds at L trade-offs, for N images.

    Attributes:
        correct: float64 `(S, L, N)`, 1 or 0.
        compute: float64 `(S, L, N)`, the router's own included.
    """

    correct: NDArray[np.float64]
    compute: NDArray[np.float64]

    @classmethod
    def of(cls, evaluations: Sequence[Sequence[Evaluation]], plain_cost: int) -> RouterOutcomes:
        """From evaluations by seed and trade-off."""
        correct = []
        cost = []
        for of_seed in evaluations:
            correct.append([evaluation.correct for evaluation in of_seed])
            cost.append([evaluation.cost for evaluation in of_seed])
        return cls(np.array(correct, np.float64), np.array(cost) / plain_cost)


class AccuracyCurve(NamedTuple):
    """One seed's accuracy and compute, float64 `(L,)` each, by ascending compute."""

    accuracy: NDArray[np.float64]
    compute: NDArray[np.float64]

    def accuracy_at(self, compute: Sequence[float]) -> NDArray[np.float64]:
        """Interpolated accuracies; constant below the cheapest and above the most expensive."""
        return np.interp(compute, self.compute, self.accuracy)

    def needed(self, accuracy: float) -> float:
        """The compute at which the curve first reaches an accuracy; infinity if it never does."""
        reached = self.accuracy >= accuracy
        if not reached.any():
            return float("inf")

        # The first point that is high enough; a dip behind it changes nothing.
        after = int(reached.argmax())
        if after == 0:
            return float(self.compute[0])

        # Between two points the curve is a straight line.
        before = after - 1
        rise = self.accuracy[after] - self.accuracy[before]
        part = (accuracy - self.accuracy[before]) / rise
        step = self.compute[after] - self.compute[before]
        return float(self.compute[before] + part * step)


class Difference(NamedTuple):
    """One router compared with another: values with their 95 % intervals.

    Attributes:
        mean: the mean over the budgets that both reach.
        low: lower end of its interval.
        high: upper end of its interval.
        budgets: those budgets.
        at: (mean, low, high) at each of them.
    """

    mean: float
    low: float
    high: float
    budgets: list[float]
    at: list[tuple[float, float, float]]


def at_budgets(
    accuracy: NDArray[np.float64],
    compute: NDArray[np.float64],
    budgets: Sequence[float],
) -> NDArray[np.float64]:
    """Accuracy `(B,)` at mean computes, interpolated between the trade-offs `(L,)`.

    Above the most expensive trade-off the router spends less than the budget; below the cheapest it
    has nothing to offer: NaN.
    """
    # Routers may spend more at a higher trade-off, and `np.interp` needs ascending positions.
    order = np.argsort(compute, kind="stable")
    at: NDArray[np.float64] = np.interp(budgets, compute[order], accuracy[order], left=np.nan)
    return at


def accuracy_at(
    outcomes: RouterOutcomes,
    budgets: Sequence[float] = BUDGETS,
) -> NDArray[np.float64]:
    """float64 `(S, B)`: each seed's accuracy at each budget."""
    accuracies = []
    for correct, compute in zip(*outcomes, strict=True):
        accuracies.append(at_budgets(correct.mean(1), compute.mean(1), budgets))
    return np.array(accuracies)


def shared_budgets(
    first: RouterOutcomes,
    second: RouterOutcomes,
    budgets: Sequence[float] = BUDGETS,
) -> list[float]:
    """The budgets that every seed of both routers can be as cheap as."""
    cheapest = max(_cheapest(first), _cheapest(second))
    return [float(budget) for budget in budgets if budget >= cheapest]


def _cheapest(outcomes: RouterOutcomes) -> float:
    """The least mean compute that every seed can be set to."""
    of_seeds = outcomes.compute.mean(2).min(1)  # (S, L, N) -> (S,)
    return float(of_seeds.max())


def paired_difference(
    first: RouterOutcomes,
    second: RouterOutcomes,
    original_id: Indices,
    budgets: Sequence[float] = BUDGETS,
    seed: int = 0,
) -> Difference:
    """Accuracy that the first gains at interpolated equal compute.

    Args:
        first: a router.
        second: the router that it is compared with.
        original_id: int64 `(N,)`, the same for all versions of one original.
        budgets: mean computes.
        seed: of the bootstrap, see `paired_bootstrap`.

    Raises `ValueError` if no budget is within reach of both.
    """
    shared = _reached(first, second, budgets)

    def gain(curve: AccuracyCurve, rival: AccuracyCurve) -> NDArray[np.float64]:
        return curve.accuracy_at(shared) - rival.accuracy_at(shared)

    return _difference(paired_bootstrap(first, second, original_id, gain, seed), shared)


def paired_saving(
    first: RouterOutcomes,
    second: RouterOutcomes,
    original_id: Indices,
    budgets: Sequence[float] = BUDGETS,
    seed: int = 0,
) -> Difference:
    """Compute that the first needs to be as accurate as the second, as a share of the second's.

    The accuracies are the second's at each budget. Both computes are those at which a curve first
    reaches the accuracy; infinite where the first never does. The arguments are those of
    `paired_difference`.

    Raises `ValueError` if no budget is within reach of both.
    """
    shared = _reached(first, second, budgets)

    def share(curve: AccuracyCurve, rival: AccuracyCurve) -> NDArray[np.float64]:
        targets = rival.accuracy_at(shared)
        return np.array([curve.needed(target) / rival.needed(target) for target in targets])

    return _difference(paired_bootstrap(first, second, original_id, share, seed), shared)


def lost(
    first: RouterOutcomes,
    full: RouterOutcomes,
    original_id: Indices,
    budgets: Sequence[float] = BUDGETS,
    seed: int = 0,
) -> Difference:
    """Accuracy that a router loses against the full path, at each budget within its reach.

    The arguments are those of `paired_difference`.

    Raises `ValueError` if no budget is within reach.
    """
    reached = _reached(first, first, budgets)

    def loss(curve: AccuracyCurve, full_path: AccuracyCurve) -> NDArray[np.float64]:
        # The full path has one compute, so its curve is a point.
        return full_path.accuracy[-1] - curve.accuracy_at(reached)

    return _difference(paired_bootstrap(first, full, original_id, loss, seed), reached)


def _reached(
    first: RouterOutcomes,
    second: RouterOutcomes,
    budgets: Sequence[float],
) -> list[float]:
    """The shared budgets; raises `ValueError` if there is none."""
    shared = shared_budgets(first, second, budgets)
    if not shared:
        raise ValueError(f"`budgets` must hold one that both routers reach, got {list(budgets)}")
    return shared


def _difference(figures: list[tuple[float, float, float]], budgets: list[float]) -> Difference:
    # `paired_bootstrap` returns the mean over the budgets first.
    mean, low, high = figures[0]
    return Difference(mean=mean, low=low, high=high, budgets=budgets, at=figures[1:])


def paired_bootstrap(
    first: RouterOutcomes,
    second: RouterOutcomes,
    original_id: Indices,
    statistic: Callable[[AccuracyCurve, AccuracyCurve], NDArray[np.float64]],
    seed: int = 0,
) -> list[tuple[float, float, float]]:
    """Value and 95 % percentile interval of each entry of a statistic of two curves.

    Values are means over the routers' seeds. Both routers are resampled alike: by whole originals,
    and by seeds, which pair up where both routers have equally many. A router with one seed is the
    same in all resamples of seeds.

    Args:
        first: a router.
        second: the router that it is compared with.
        original_id: int64 `(N,)`, the same for all versions of one original.
        statistic: two curves -> float64 `(n,)`.
        seed: of the resamples.

    Returns:
        n + 1 of (value, low, high): first those of the mean over the entries, then each entry's.
    """
    first_sums = _sums_by_original(first, original_id)
    second_sums = _sums_by_original(second, original_id)
    num_originals = len(first_sums.images)
    num_seeds = max(len(first.correct), len(second.correct))
    only_seed = np.zeros(1, np.int64)

    def value(originals: Indices, seeds: Indices = only_seed) -> NDArray[np.float64]:
        weights = np.bincount(originals, minlength=num_originals)
        # The same weights and seeds for both, so what they have in common cancels.
        first_curves = _curves(first_sums, weights, seeds)
        second_curves = _curves(second_sums, weights, seeds)
        entries = [statistic(*pair) for pair in zip(first_curves, second_curves, strict=True)]
        means = np.mean(entries, axis=0)  # (n,)
        return np.concatenate([[means.mean()], means])

    # SciPy resamples each sample by itself: originals, and seeds where there are several.
    samples = [np.arange(num_originals)]
    if num_seeds > 1:
        samples.append(np.arange(num_seeds))

    # A saving may be infinite; then the standard error, which is not used, is invalid.
    with np.errstate(invalid="ignore"):
        bootstrap = stats.bootstrap(
            samples,
            value,
            vectorized=False,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    figures = zip(value(*samples), *bootstrap.confidence_interval, strict=True)
    return [(float(mean), float(low), float(high)) for mean, low, high in figures]


class _Sums(NamedTuple):
    """Outcomes summed over the versions of each of G originals.

    Attributes:
        correct: float64 `(S, L, G)`.
        compute: float64 `(S, L, G)`.
        images: int64 `(G,)`, the number of versions.
    """

    correct: NDArray[np.float64]
    compute: NDArray[np.float64]
    images: Indices


def _sums_by_original(outcomes: RouterOutcomes, original_id: Indices) -> _Sums:
    _, original = np.unique(original_id, return_inverse=True)
    num_images = len(original_id)
    # Sparse, because a dense (N, G) matrix takes 800 MB for 10,000 originals.
    membership = sparse.csr_array((np.ones(num_images), (np.arange(num_images), original)))
    return _Sums(
        correct=np.stack([of_seed @ membership for of_seed in outcomes.correct]),
        compute=np.stack([of_seed @ membership for of_seed in outcomes.compute]),
        images=np.bincount(original),
    )


def _curves(sums: _Sums, weights: Indices, seeds: Indices) -> list[AccuracyCurve]:
    """The curves of the chosen seeds, with each original counted `weights` `(G,)` times."""
    num_images = float(weights @ sums.images)
    accuracy = sums.correct @ weights / num_images  # (S, L)
    compute = sums.compute @ weights / num_images
    # The order of trade-offs by compute may differ from resample to resample.
    order = np.argsort(compute, axis=1, kind="stable")

    curves = []
    # Modulo, because a router with one seed stands in for each of the other's.
    for seed in seeds % len(sums.correct):
        curves.append(AccuracyCurve(accuracy[seed, order[seed]], compute[seed, order[seed]]))
    return curves


def mean_over_images(values: NDArray[np.float64], original_id: Indices, seed: int = 0) -> Mean:
    """The mean of `values` `(N,)` and its 95 % percentile interval; originals are resampled."""
    _, original = np.unique(original_id, return_inverse=True)
    sums = np.bincount(original, weights=values)  # (G,)
    num_versions = np.bincount(original)

    def mean(originals: Indices, axis: int = -1) -> NDArray[np.float64]:
        # An original that is drawn brings all its versions.
        means: NDArray[np.float64] = sums[originals].sum(axis) / num_versions[originals].sum(axis)
        return means

    # Images that are all alike have an interval of no width, and no standard error.
    with np.errstate(invalid="ignore"):
        bootstrap = stats.bootstrap(
            (np.arange(len(sums)),),
            mean,
            vectorized=True,
            batch=BATCH,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    low, high = bootstrap.confidence_interval
    return Mean(value=float(values.mean()), low=float(low), high=float(high))


def mean_difference_interval(
    values: NDArray[np.float64],
    marked: NDArray[np.bool_],
    original_id: Indices,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of the mean over marked images less that over the others.

    Originals are resampled. Resamples without images of both kinds are left out.

    Args:
        values: float64 `(N,)`.
        marked: bool `(N,)`.
        original_id: int64 `(N,)`, the same for all versions of one original.
        seed: of the resamples.
    """
    _, original = np.unique(original_id, return_inverse=True)
    num_originals = original.max() + 1

    def gap(originals: Indices) -> float:
        # (N,): how often each image was drawn, with all versions of its original.
        weights = np.bincount(originals, minlength=num_originals)[original]
        inside = weights * marked
        outside = weights * ~marked
        if not (inside.any() and outside.any()):
            return float("nan")
        return float(np.average(values, weights=inside) - np.average(values, weights=outside))

    # SciPy warns of NaN among the resamples, but its own interval is not used.
    with warnings.catch_warnings(action="ignore", category=stats.DegenerateDataWarning):
        bootstrap = stats.bootstrap(
            (np.arange(num_originals),),
            gap,
            vectorized=False,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    low, high = np.nanpercentile(bootstrap.bootstrap_distribution, (2.5, 97.5))
    return float(low), float(high)


def by_group(values: NDArray, group: NDArray) -> list[float]:
    """The mean of `values` `(N,)` in each group `(N,)`, groups ascending."""
    return [float(values[group == level].mean()) for level in np.unique(group)]


def path_entropy(path: NDArray[np.int8]) -> float:
    """Shannon entropy, in bits, of the distribution of paths `(N, T)`.

    It is 0 where all images take one path.
    """
    _, counts = np.unique(path, axis=0, return_counts=True)
    return float(stats.entropy(counts, base=2))
