"""The reward: a task term for the answer, minus the trade-off times the compute spent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rnr_gym import checks
from rnr_gym.routing.observations import MAX_TRADEOFF

REWARDS = ("accuracy", "cross_entropy")
TRADEOFF_RANGE = (0.003, 2.0)
"""λ at which routers learn and are evaluated.

At the lower end the whole network may run for a gain of a third of a point of accuracy; at the
upper end the glance has to do.
"""


def tradeoff_grid(num: int) -> tuple[float, ...]:
    """`num` trade-offs over `TRADEOFF_RANGE`, equally spaced on a logarithmic scale, ascending."""
    return tuple(np.geomspace(*TRADEOFF_RANGE, num).tolist())


def task_term(
    reward: str,
    correct: NDArray[np.bool_],
    loss: NDArray[np.float64],
    loss_scale: float,
) -> NDArray[np.float64]:
    """The part of the return that depends on the answer; float64, the shape of `correct`.

    Args:
        reward: `"accuracy"` for 1 or 0 by top-1 correctness, `"cross_entropy"` for minus the scaled
            loss (Rao et al. 2019).
        correct: whether the top class is right.
        loss: cross-entropy in nats.
        loss_scale: 1 / the full path's mean loss on `route`, so that the scaled loss is about 1.
    """
    check_reward(reward)
    if reward == "accuracy":
        return correct.astype(np.float64)
    return -loss_scale * loss


def check_reward(reward: str) -> None:
    """Raise `ValueError` for an unknown reward."""
    checks.choice("reward", reward, REWARDS)


def check_tradeoff(tradeoff: object) -> tuple[float, float]:
    """The trade-off as `(low, high)`, equal where it is a number.

    Raises:
        ValueError: it is neither a number nor a pair of them, lies outside 0..4, or is an empty
            range.
    """
    pair = tradeoff if isinstance(tradeoff, tuple | list) else (tradeoff, tradeoff)
    if len(pair) != 2 or not all(map(checks.is_number, pair)):
        raise ValueError(f"`tradeoff` must be a number or a pair (low, high), got {tradeoff!r}")

    low = float(pair[0])
    high = float(pair[1])
    if not 0.0 <= low <= high <= MAX_TRADEOFF:
        raise ValueError(
            f"`tradeoff` must lie in 0..{MAX_TRADEOFF:g}, with low <= high, got {tradeoff!r}"
        )
    # The logarithm of 0 would be drawn from.
    if low < high and low == 0.0:
        raise ValueError(
            "`tradeoff` is drawn on a logarithmic scale, so low must be above 0 where it is below "
            f"high, got {tradeoff!r}"
        )
    return low, high


def check_one_tradeoff(tradeoff: object) -> float:
    """The trade-off as a float; raises `ValueError` as `check_tradeoff` does, and for a range."""
    if isinstance(tradeoff, tuple | list):
        raise ValueError(f"`tradeoff` must be a number here, got {tradeoff!r}")
    return check_tradeoff(tradeoff)[0]
