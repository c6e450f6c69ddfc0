"""From outcomes to statements: curves, equal compute, paired intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from rnr_gym.experiments.evaluation import Evaluation

BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6)
"""Mean computes at which routers are compared."""
RESAMPLES = 2000


class RouterOutcomes(NamedTuple):
    """One router at every trade-off and seed, image by image.

    Attributes:
        correct: float64 `(S, L, N)`, 1 or 0, for S seeds, L trade-offs and N images.
        compute: float64 `(S, L, N)`, the router's own included.
    """

    correct: NDArray[np.float64]
    compute: NDArray[np.float64]

    @classmethod
    def of(cls, evaluations: Sequence[Sequence[Evaluation]], plain_macs: int) -> RouterOutcomes:
        """From evaluations by seed and trade-off."""
        correct = np.array([[found.correct for found in seed] for seed in evaluations], np.float64)
        return cls(correct, np.array([[found.macs for found in seed] for seed in evaluations]) / plain_macs)


def at_budgets(accuracy: NDArray[np.float64], compute: NDArray[np.float64], budgets: Sequence[float]) -> NDArray[np.float64]:
    """Accuracy `(B,)` at mean computes, interpolated between the trade-offs `(L,)`.

    Above the dearest trade-off the router just spends less; below the cheapest it has nothing to offer: NaN.
    """
    order = np.argsort(compute, kind="stable")
    found: NDArray[np.float64] = np.interp(budgets, compute[order], accuracy[order], left=np.nan)
    return found


def accuracy_at(sweep: RouterOutcomes, budgets: Sequence[float] = BUDGETS) -> NDArray[np.float64]:
    """float64 `(S, B)`: each seed's accuracy at each budget."""
    return np.array([at_budgets(right.mean(1), spent.mean(1), budgets) for right, spent in zip(*sweep, strict=True)])


def shared_budgets(first: RouterOutcomes, second: RouterOutcomes, budgets: Sequence[float] = BUDGETS) -> list[float]:
    """The budgets that some seed of each can be as cheap as."""
    cheapest = max(float(found.compute.mean(2).min(1).max()) for found in (first, second))
    return [float(budget) for budget in budgets if budget >= cheapest]


def _reached(first: RouterOutcomes, second: RouterOutcomes, budgets: Sequence[float]) -> list[float]:
    """The shared budgets; a `ValueError` if there is none."""
    shared = shared_budgets(first, second, budgets)
    if not shared:
        raise ValueError(f"`budgets` must hold one that both routers reach, got {list(budgets)}")
    return shared


class Difference(NamedTuple):
    """One router against another: a value and its 95 % interval.

    Attributes:
        mean, low, high: a mean over the budgets that both reach.
        budgets: those budgets.
        at: (mean, low, high) at each of them.
    """

    mean: float
    low: float
    high: float
    budgets: list[float]
    at: list[tuple[float, float, float]]


def paired_difference(first: RouterOutcomes, second: RouterOutcomes, source: NDArray[np.int64], budgets: Sequence[float] = BUDGETS, seed: int = 0) -> Difference:
    """Accuracy gained at interpolated equal compute, with intervals by `paired_bootstrap`.

    Raises `ValueError` if no budget is within reach of both.
    """
    shared = _reached(first, second, budgets)

    def gain(ours: AccuracyCurve, theirs: AccuracyCurve) -> NDArray[np.float64]:
        return np.interp(shared, ours.compute, ours.accuracy) - np.interp(shared, theirs.compute, theirs.accuracy)

    return _difference(paired_bootstrap(first, second, source, gain, seed), shared)


def paired_saving(first: RouterOutcomes, second: RouterOutcomes, source: NDArray[np.int64], budgets: Sequence[float] = BUDGETS, seed: int = 0) -> Difference:
    """Compute spent for equal accuracy, as a share: what the first needs to be as accurate as the second is at each budget.

    Both are taken where their curves first reach that accuracy; infinite where the first never does.
    Raises `ValueError` if no budget is within reach of both.
    """
    shared = _reached(first, second, budgets)

    def share(ours: AccuracyCurve, theirs: AccuracyCurve) -> NDArray[np.float64]:
        wanted = np.interp(shared, theirs.compute, theirs.accuracy)
        return np.array([ours.needed(accuracy) / theirs.needed(accuracy) for accuracy in wanted])

    return _difference(paired_bootstrap(first, second, source, share, seed), shared)


def lost(first: RouterOutcomes, full: RouterOutcomes, source: NDArray[np.int64], budgets: Sequence[float] = BUDGETS, seed: int = 0) -> Difference:
    """Accuracy lost against the full path, at each budget that the router can be as cheap as; `ValueError` if there is none."""
    reached = _reached(first, first, budgets)

    def short(ours: AccuracyCurve, theirs: AccuracyCurve) -> NDArray[np.float64]:
        return theirs.accuracy[-1] - np.interp(reached, ours.compute, ours.accuracy)

    return _difference(paired_bootstrap(first, full, source, short, seed), reached)


class AccuracyCurve(NamedTuple):
    """One seed's accuracy and compute, float64 `(L,)` each, by ascending compute."""

    accuracy: NDArray[np.float64]
    compute: NDArray[np.float64]

    def needed(self, accuracy: float) -> float:
        """The compute at which the curve first reaches an accuracy; infinity if it never does."""
        enough = self.accuracy >= accuracy
        if not enough.any():
            return float("inf")
        place = int(enough.argmax())
        if place == 0:
            return float(self.compute[0])
        part = (accuracy - self.accuracy[place - 1]) / (self.accuracy[place] - self.accuracy[place - 1])
        return float(self.compute[place - 1] + part * (self.compute[place] - self.compute[place - 1]))


def paired_bootstrap(
    first: RouterOutcomes, second: RouterOutcomes, source: NDArray[np.int64], statistic: Callable[[AccuracyCurve, AccuracyCurve], NDArray[np.float64]], seed: int = 0
) -> list[tuple[float, float, float]]:
    """Value and 95 % percentile interval of each entry of a statistic of two curves, a mean over seeds.

    Both routers are resampled alike: whole originals (all images with one number in `source`, int64 `(N,)`), and seeds,
    which pair up where both have as many. A router with one seed stands for itself. The first entry is the mean of the rest.
    """
    ours, theirs = _by_original(first, source), _by_original(second, source)

    def value(originals: NDArray[np.int64], seeds: NDArray[np.int64] = np.zeros(1, np.int64)) -> NDArray[np.float64]:  # noqa: B008
        weights = np.bincount(originals, minlength=len(ours.images))
        curves = zip(_curves(ours, weights, seeds), _curves(theirs, weights, seeds), strict=True)
        at = np.mean([statistic(*pair) for pair in curves], axis=0)
        return np.concatenate([[at.mean()], at])

    samples = [np.arange(len(ours.images)), np.arange(max(len(first.correct), len(second.correct)))]
    samples = samples if len(samples[1]) > 1 else samples[:1]
    with np.errstate(invalid="ignore"):  # of the standard error, which nobody reads, where a saving is infinite
        found = stats.bootstrap(samples, value, vectorized=False, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed))
    return [(float(mean), float(low), float(high)) for mean, low, high in zip(value(*samples), *found.confidence_interval, strict=True)]


def _difference(rows: list[tuple[float, float, float]], budgets: list[float]) -> Difference:
    return Difference(*rows[0], budgets, rows[1:])


class _Sums(NamedTuple):
    """A sweep with images added up by original: `(S, L, G)`, `(S, L, G)`, and images an original `(G,)`."""

    correct: NDArray[np.float64]
    compute: NDArray[np.float64]
    images: NDArray[np.int64]


def _by_original(sweep: RouterOutcomes, source: NDArray[np.int64]) -> _Sums:
    _, which = np.unique(source, return_inverse=True)
    member = sparse.csr_array((np.ones(len(source)), (np.arange(len(source)), which)))
    added = [np.stack([part @ member for part in values]) for values in sweep]
    return _Sums(added[0], added[1], np.bincount(which))


def _curves(sums: _Sums, weights: NDArray[np.int64], seeds: NDArray[np.int64]) -> list[AccuracyCurve]:
    """The curves of resampled originals and seeds."""
    total, taken = float(weights @ sums.images), seeds % len(sums.correct)
    accuracy, compute = sums.correct @ weights / total, sums.compute @ weights / total
    order = np.argsort(compute, axis=1, kind="stable")
    return [AccuracyCurve(accuracy[seed, order[seed]], compute[seed, order[seed]]) for seed in taken]


def mean_difference_interval(values: NDArray[np.float64], marked: NDArray[np.bool_], source: NDArray[np.int64], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of how much higher the mean of `values` `(N,)` is on marked images than on the rest; originals are resampled.

    Resamples without images of both kinds say nothing and are left out.
    """
    _, which = np.unique(source, return_inverse=True)

    def gap(originals: NDArray[np.int64]) -> float:
        weights = np.bincount(originals, minlength=which.max() + 1)[which]
        inside, outside = weights * marked, weights * ~marked
        if not (inside.any() and outside.any()):
            return float("nan")
        return float(np.average(values, weights=inside) - np.average(values, weights=outside))

    originals = (np.arange(which.max() + 1),)
    with warnings.catch_warnings(action="ignore", category=stats.DegenerateDataWarning):
        found = stats.bootstrap(originals, gap, vectorized=False, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed))
    low, high = np.nanpercentile(found.bootstrap_distribution, (2.5, 97.5))
    return float(low), float(high)


def by_group(values: NDArray, group: NDArray) -> list[float]:
    """The mean of `values` `(N,)` in each group `(N,)`, groups ascending."""
    return [float(values[group == level].mean()) for level in np.unique(group)]


def path_entropy(path: NDArray[np.int8]) -> float:
    """Shannon entropy, in bits, of the distribution of paths `(N, T)`; 0 where all images go one way."""
    return float(stats.entropy(np.unique(path, axis=0, return_counts=True)[1], base=2))
