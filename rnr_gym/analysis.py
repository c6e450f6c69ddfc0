"""From outcomes to statements: curves, equal compute, paired intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rnr_gym.evaluation import Evaluation

BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6)
"""Mean computes at which routers are compared."""
RESAMPLES = 2000


class Sweep(NamedTuple):
    """One router at every trade-off and seed, image by image.

    Attributes:
        correct: float64 `(S, L, N)`, 1 or 0, for S seeds, L trade-offs and N images.
        compute: float64 `(S, L, N)`, the router's own included.
    """

    correct: NDArray[np.float64]
    compute: NDArray[np.float64]

    @classmethod
    def of(cls, evaluations: Sequence[Sequence[Evaluation]], plain_macs: int) -> Sweep:
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


def accuracy_at(sweep: Sweep, budgets: Sequence[float] = BUDGETS) -> NDArray[np.float64]:
    """float64 `(S, B)`: each seed's accuracy at each budget."""
    return np.array([at_budgets(right.mean(1), spent.mean(1), budgets) for right, spent in zip(*sweep, strict=True)])


def shared_budgets(first: Sweep, second: Sweep, budgets: Sequence[float] = BUDGETS) -> list[float]:
    """The budgets that some seed of each can be as cheap as."""
    cheapest = max(float(found.compute.mean(2).min(1).max()) for found in (first, second))
    return [float(budget) for budget in budgets if budget >= cheapest]


class Difference(NamedTuple):
    """How much more accurate one router is than another at equal compute: a value and its 95 % interval.

    Attributes:
        mean, low, high: over the budgets that both reach.
        budgets: those budgets.
        at: (mean, low, high) at each of them.
    """

    mean: float
    low: float
    high: float
    budgets: list[float]
    at: list[tuple[float, float, float]]


def paired_difference(first: Sweep, second: Sweep, source: NDArray[np.int64], budgets: Sequence[float] = BUDGETS, seed: int = 0) -> Difference:
    """Paired bootstrap over images and seeds at interpolated equal compute (percentile interval).

    Both routers are resampled alike: whole originals (all images with one number in `source`, int64 `(N,)`), and seeds,
    which pair up where both have as many. A router with one seed stands for itself. Raises `ValueError` if no budget
    is within reach of both.
    """
    shared = shared_budgets(first, second, budgets)
    if not shared:
        raise ValueError(f"`budgets` must hold one that both routers reach, got {list(budgets)}")
    ours, theirs = _by_original(first, source), _by_original(second, source)

    def gain(originals: NDArray[np.int64], seeds: NDArray[np.int64] = np.zeros(1, np.int64)) -> NDArray[np.float64]:  # noqa: B008
        weights = np.bincount(originals, minlength=len(ours.images))
        at = _mean_at(ours, weights, seeds, shared) - _mean_at(theirs, weights, seeds, shared)
        return np.concatenate([[at.mean()], at])

    samples = [np.arange(len(ours.images)), np.arange(max(len(first.correct), len(second.correct)))]
    samples = samples if len(samples[1]) > 1 else samples[:1]
    found = stats.bootstrap(samples, gain, vectorized=False, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed))
    rows = [(float(mean), float(low), float(high)) for mean, low, high in zip(gain(*samples), *found.confidence_interval, strict=True)]
    return Difference(rows[0][0], rows[0][1], rows[0][2], shared, rows[1:])


class _Sums(NamedTuple):
    """A sweep with images added up by original: `(S, L, G)`, `(S, L, G)`, and images an original `(G,)`."""

    correct: NDArray[np.float64]
    compute: NDArray[np.float64]
    images: NDArray[np.int64]


def _by_original(sweep: Sweep, source: NDArray[np.int64]) -> _Sums:
    _, which = np.unique(source, return_inverse=True)
    member = np.zeros((len(source), which.max() + 1))
    member[np.arange(len(source)), which] = 1.0
    return _Sums(sweep.correct @ member, sweep.compute @ member, member.sum(0).astype(np.int64))


def _mean_at(sums: _Sums, weights: NDArray[np.int64], seeds: NDArray[np.int64], budgets: Sequence[float]) -> NDArray[np.float64]:
    """Accuracy `(B,)` of resampled originals, a mean over resampled seeds."""
    total = float(weights @ sums.images)
    taken = seeds % len(sums.correct)
    accuracy, compute = sums.correct[taken] @ weights / total, sums.compute[taken] @ weights / total
    return np.mean([np.interp(budgets, spent[order], right[order]) for right, spent, order in _ordered(accuracy, compute)], axis=0)


def _ordered(accuracy: NDArray[np.float64], compute: NDArray[np.float64]) -> list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]]:
    return [(right, spent, np.argsort(spent, kind="stable")) for right, spent in zip(accuracy, compute, strict=True)]


def path_entropy(path: NDArray[np.int8]) -> float:
    """Shannon entropy, in bits, of the distribution of paths `(N, T)`; 0 where all images go one way."""
    return float(stats.entropy(np.unique(path, axis=0, return_counts=True)[1], base=2))


def by_severity(values: NDArray, severity: NDArray[np.int64]) -> list[float]:
    """The mean of `values` `(N,)` at each severity, ascending."""
    return [float(values[severity == level].mean()) for level in np.unique(severity)]
