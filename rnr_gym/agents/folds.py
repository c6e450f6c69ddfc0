"""Parts of `route` for cross-fitting: estimates are judged on images they have not seen."""

from __future__ import annotations

import numpy as np

from rnr_gym.agents.base import FitConfig
from rnr_gym.routing.protocols import Indices, RoutingSource
from rnr_gym.routing.sources import open_images


def folds(groups: Indices, num: int, rng: np.random.Generator) -> Indices:
    """int64 `(N,)`: the fold of each image, 0..num - 1; a group `(N,)` is never split."""
    _, group = np.unique(groups, return_inverse=True)
    fold_of_group = rng.permutation(np.arange(group.max() + 1) % num)
    fold: Indices = fold_of_group[group]
    return fold


def originals(fit_config: FitConfig, source: RoutingSource) -> Indices:
    """int64 `(N,)`: which original each image is a version of; all differ where that is unknown."""
    unknown = np.arange(len(source.labels))
    # A bundled table needs no images, and those that are missing are not worth a download.
    kwargs = {**fit_config.source_kwargs("route"), "download": False}
    try:
        images = open_images(**kwargs)
    except FileNotFoundError:
        return unknown

    # A table that was given as an object may be of other images.
    if not np.array_equal(images.labels, source.labels):
        return unknown
    return images.original_id
