"""The exact front of cost and task term over all choices of one path per image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def front(
    task: NDArray[np.float64], cost: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The highest mean task term at each mean cost; between two points, a mixture of both.

    Args:
        task: `(E, N)`, what each path earns with each image.
        cost: `(E,)`, what each path costs.

    Returns:
        Mean costs and task terms, `(n,)` each, ascending.
    """
    num_images = task.shape[1]
    image_idx = np.arange(num_images)
    # All images start on the cheapest path. Each then climbs, along the upper hull of its own
    # paths, to whichever path gains most per unit of cost.
    current = np.full(num_images, cost.argmin())
    start = [cost.min(), task[current, image_idx].mean()]
    extras = []
    gains = []
    while True:
        extra = cost[:, None] - cost[current]  # (E, N)
        gain = task - task[current, image_idx]
        # Where a gain costs nothing, the slope is infinite.
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where((extra >= 0) & (gain > 0), gain / extra, 0.0)
        best = slope.argmax(0)
        climbing = np.flatnonzero(slope[best, image_idx])
        if len(climbing) == 0:
            break
        extras.append(extra[best[climbing], climbing])
        gains.append(gain[best[climbing], climbing])
        current[climbing] = best[climbing]

    if not extras:
        return np.array(start[:1]), np.array(start[1:])
    # Of all images, those climbs first that gain most.
    climbs = np.stack([np.concatenate(extras), np.concatenate(gains)])  # (2, n)
    climbs = climbs[:, np.argsort(climbs[0] / climbs[1], kind="stable")] / num_images
    mean_cost, mean_task = np.cumsum(np.insert(climbs, 0, start, axis=1), axis=1)
    return mean_cost, mean_task
