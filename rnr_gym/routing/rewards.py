"""The reward: a task term when the image is answered, minus the trade-off times the compute spent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rnr_gym.routing.observations import MAX_TRADEOFF

REWARDS = ("accuracy", "cross_entropy")


def task_term(reward: str, correct: NDArray[np.bool_], loss: NDArray[np.float64], loss_scale: float) -> NDArray[np.float64]:
    """float64, the shape of `correct`: 1 or 0 by top-1 correctness (`accuracy`), or minus the scaled loss (`cross_entropy`).

    `loss_scale` is 1 / the full path's mean loss on `route`, so that the scaled loss averages about 1 (Rao et al. 2019).
    """
    return correct.astype(np.float64) if reward == "accuracy" else -loss_scale * loss


def check_reward(reward: str) -> None:
    """Refuse an unknown reward."""
    if reward not in REWARDS:
        raise ValueError(f"`reward` must be one of {', '.join(REWARDS)}, got {reward!r}")


def check_tradeoff(tradeoff: object) -> tuple[float, float]:
    """The trade-off as `(low, high)`, equal where it is one number; a `ValueError` outside 0..4 or for an empty range."""
    pair = tradeoff if isinstance(tradeoff, tuple | list) else (tradeoff, tradeoff)
    if len(pair) != 2 or not all(isinstance(end, int | float | np.number) and not isinstance(end, bool) for end in pair):
        raise ValueError(f"`tradeoff` must be a number or a pair (low, high), got {tradeoff!r}")
    low, high = (float(end) for end in pair)
    if not 0.0 <= low <= high <= MAX_TRADEOFF:
        raise ValueError(f"`tradeoff` must lie in 0..{MAX_TRADEOFF:g}, with low <= high, got {tradeoff!r}")
    if low < high and low == 0.0:
        raise ValueError(f"`tradeoff` is drawn on a logarithmic scale, so low must be above 0 where it is below high, got {tradeoff!r}")
    return low, high


def check_one_tradeoff(tradeoff: object) -> float:
    """The trade-off as a float; a `ValueError` where `check_tradeoff` has one, and for a range."""
    if isinstance(tradeoff, tuple | list):
        raise ValueError(f"`tradeoff` must be a number here, got {tradeoff!r}")
    return check_tradeoff(tradeoff)[0]
