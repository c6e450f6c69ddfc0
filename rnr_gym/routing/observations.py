"""What a router sees: the summary of an image so far, and the observation built around it."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CLIP = 5.0
"""Pooled features in a summary are z-scores clipped to this many standard deviations."""
LEVELS = 127
"""Quantised summaries have so many steps from 0 to their highest value."""
MAX_TRADEOFF = 4.0
"""Reward units for one unit of compute; above it even the cheapest answer is worth less than none."""


def confidence(probabilities: Tensor) -> Tensor:
    """Class probabilities `(N, classes)` -> `(N, 3)`: the largest, its lead over the second, and entropy / log(classes)."""
    top = probabilities.topk(2, 1).values
    entropy = torch.special.entr(probabilities).sum(1) / np.log(probabilities.shape[1])
    return torch.stack([top[:, 0], top[:, 0] - top[:, 1], entropy.clamp(0.0, 1.0)], 1)


class SummaryLayout(NamedTuple):
    """Where the parts of a summary stand; slices of its last axis.

    Attributes:
        pooled: pooled features of this layer, z-scored with statistics from `train`, clipped to +-5, padded with zeros.
        glance: the glance's pooled features, treated alike.
        glance_probabilities: the glance's class probabilities, 0..1.
        exit_probabilities: those of the exit head that ran last (the glance at layer 0), 0..1.
        confidence: largest exit probability, lead over the second, normalised entropy; each 0..1.
    """

    pooled: slice
    glance: slice
    glance_probabilities: slice
    exit_probabilities: slice
    confidence: slice

    @property
    def size(self) -> int:
        return int(self.confidence.stop)


class ObservationLayout(NamedTuple):
    """Where the parts of an observation stand; slices of its last axis.

    Attributes:
        summary: see `SummaryLayout`; all that depends on the image.
        layer: one-hot over the T layers; zero once the episode has ended.
        compute: compute so far.
        prev_sub_path: one-hot over the K sub-paths, the one executed last; zero at layer 0.
        tradeoff: λ, 0..4.
    """

    summary: SummaryLayout
    layer: slice
    compute: slice
    prev_sub_path: slice
    tradeoff: slice

    @property
    def size(self) -> int:
        return int(self.tradeoff.stop)


def _consecutive(start: int, *widths: int) -> list[slice]:
    edges = np.cumsum((start, *widths)).tolist()
    return [slice(low, high) for low, high in itertools.pairwise(edges)]


def steps(size: int, pooled: int) -> NDArray[np.float32]:
    """float32 `(size,)`: one quantisation step of each value of a summary whose first `pooled` ones are z-scores."""
    return np.where(np.arange(size) < pooled, CLIP, 1.0).astype(np.float32) / np.float32(LEVELS)


def quantised(summary: NDArray[np.float32], pooled: int) -> NDArray[np.float32]:
    """A summary `(N, S)` rounded to whole steps; no zero is negative, so that one byte a value holds all there is."""
    step = steps(summary.shape[-1], pooled)
    return np.rint(summary / step) * step + np.float32(0.0)


def layout(pooled: int, glance: int, classes: int, layers: int, paths: int, glance_classes: int | None = None) -> ObservationLayout:
    """The layout for a backbone of these widths; the glance answers with `classes` probabilities if nothing else is said."""
    glanced = classes if glance_classes is None else glance_classes
    summary = SummaryLayout(*_consecutive(0, pooled, glance, glanced, classes, 3))
    return ObservationLayout(summary, *_consecutive(summary.size, layers, 1, paths, 1))


def bounds(where: ObservationLayout, clip: float, ceiling: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The finite lowest and highest value of every entry of an observation; `ceiling` is the most compute there can be."""
    low, high = np.zeros(where.size, np.float32), np.ones(where.size, np.float32)
    for part in (where.summary.pooled, where.summary.glance):
        low[part], high[part] = -clip, clip
    high[where.compute], high[where.tradeoff] = ceiling, MAX_TRADEOFF
    return low, high


def observe(
    where: ObservationLayout,
    summary: NDArray[np.float32],
    layer: NDArray[np.int64],
    prev_sub_path: NDArray[np.int64],
    compute: NDArray[np.float64],
    tradeoff: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Observations float32 `(N, D)` from summaries `(N, S)` and what has been decided; everything else is `(N,)`."""
    observation = np.zeros((len(layer), where.size), np.float32)
    observation[:, : where.summary.size] = summary
    going = np.flatnonzero(layer < where.layer.stop - where.layer.start)
    observation[going, where.layer.start + layer[going]] = 1.0
    moved = np.flatnonzero(layer > 0)
    observation[moved, where.prev_sub_path.start + prev_sub_path[moved]] = 1.0
    observation[:, where.compute.start] = compute
    observation[:, where.tradeoff.start] = tradeoff
    return observation


def layers_of(where: ObservationLayout, observation: NDArray[np.float32]) -> NDArray[np.int64]:
    """int64 `(N,)`: the layer each observation `(N, D)` was made at; 0 for those of ended episodes."""
    return observation[:, where.layer].argmax(1)
