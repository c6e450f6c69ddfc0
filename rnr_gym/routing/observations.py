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
"""Quantisation steps between 0 and the highest value of a summary's entry."""
MAX_TRADEOFF = 4.0
"""Highest λ, in reward units per unit of compute; above it no answer is worth even its own cost."""


def confidence_features(probabilities: Tensor) -> Tensor:
    """How confident an answer is: `(N, classes)` -> `(N, 3)`, each 0..1.

    The columns are the largest probability, its lead over the second, and entropy / log(classes).
    """
    # The lead tells a choice between two classes from one among many, which the maximum cannot.
    top = probabilities.topk(2, 1).values
    lead = top[:, 0] - top[:, 1]
    entropy = torch.special.entr(probabilities).sum(1) / np.log(probabilities.shape[1])
    return torch.stack([top[:, 0], lead, entropy.clamp(0.0, 1.0)], 1)


class SummaryLayout(NamedTuple):
    """The parts of a summary, as slices of its last axis.

    Attributes:
        pooled: pooled features of this layer, z-scored with statistics from `train`, clipped to
            +-5, padded with zeros.
        glance: the glance's pooled features, in the same form.
        glance_probabilities: the glance's class probabilities, 0..1.
        exit_probabilities: those of the exit head that ran last (the glance at layer 0), 0..1.
        confidence: `confidence_features` of the exit probabilities.
    """

    pooled: slice
    glance: slice
    glance_probabilities: slice
    exit_probabilities: slice
    confidence: slice

    @property
    def size(self) -> int:
        """Width of a summary."""
        return int(self.confidence.stop)


class ObservationLayout(NamedTuple):
    """The parts of an observation, as slices of its last axis.

    Attributes:
        summary: everything that depends on the image.
        layer: one-hot over the T layers; zero after the end of the episode.
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
        """Width of an observation."""
        return int(self.tradeoff.stop)


def layout(
    pooled: int,
    glance: int,
    classes: int,
    layers: int,
    paths: int,
    glance_classes: int | None = None,
) -> ObservationLayout:
    """The layout of observations.

    Args:
        pooled: pooled features in a summary.
        glance: pooled features of the glance in a summary.
        classes: number of classes.
        layers: T.
        paths: K.
        glance_classes: class probabilities of the glance in a summary; `classes` by default.
    """
    if glance_classes is None:
        glance_classes = classes
    parts = _consecutive(0, pooled, glance, glance_classes, classes, 3)
    summary = SummaryLayout(*parts)
    return ObservationLayout(summary, *_consecutive(summary.size, layers, 1, paths, 1))


def _consecutive(start: int, *widths: int) -> list[slice]:
    """Slices of these widths, one after the other."""
    edges = np.cumsum((start, *widths)).tolist()
    return [slice(low, high) for low, high in itertools.pairwise(edges)]


def bounds(
    where: ObservationLayout,
    clip: float,
    ceiling: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The finite lowest and highest value of every entry of an observation, float32 `(D,)` each.

    Args:
        where: the layout.
        clip: bound of the z-scored features.
        ceiling: the most compute that one image can be charged.
    """
    low = np.zeros(where.size, np.float32)
    high = np.ones(where.size, np.float32)
    # Probabilities, one-hot entries and confidence lie in 0..1; these entries do not.
    for z_scored in (where.summary.pooled, where.summary.glance):
        low[z_scored] = -clip
        high[z_scored] = clip
    high[where.compute] = ceiling
    high[where.tradeoff] = MAX_TRADEOFF
    return low, high


def observe(
    where: ObservationLayout,
    summary: NDArray[np.float32],
    layer: NDArray[np.int64],
    prev_sub_path: NDArray[np.int64],
    compute: NDArray[np.float64],
    tradeoff: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Observations of N images, from what the network knows and what has been decided.

    Args:
        where: the layout.
        summary: float32 `(N, S)`.
        layer: int64 `(N,)`, T for answered images.
        prev_sub_path: int64 `(N,)`; ignored at layer 0.
        compute: float64 `(N,)`.
        tradeoff: float64 `(N,)`, λ.

    Returns:
        float32 `(N, D)`, a fresh array.
    """
    obs = np.zeros((len(layer), where.size), np.float32)
    obs[:, : where.summary.size] = summary
    obs[:, where.compute.start] = compute
    obs[:, where.tradeoff.start] = tradeoff

    num_layers = where.layer.stop - where.layer.start
    # An answered image has no layer: its one-hot stays zero.
    active = np.flatnonzero(layer < num_layers)
    obs[active, where.layer.start + layer[active]] = 1.0

    # Nothing was executed before layer 0.
    later = np.flatnonzero(layer > 0)
    obs[later, where.prev_sub_path.start + prev_sub_path[later]] = 1.0
    return obs


def layers_of(where: ObservationLayout, observation: NDArray[np.float32]) -> NDArray[np.int64]:
    """int64 `(N,)`: the layer of each observation `(N, D)`; 0 after the end of an episode."""
    return observation[:, where.layer].argmax(1)


def quantisation_steps(size: int, pooled: int) -> NDArray[np.float32]:
    """float32 `(size,)`: the quantisation step of each entry of a summary.

    Args:
        size: width of the summary.
        pooled: how many of its first entries are z-scores.
    """
    highest = np.where(np.arange(size) < pooled, CLIP, 1.0).astype(np.float32)
    return highest / np.float32(LEVELS)


def quantised(summary: NDArray[np.float32], pooled: int) -> NDArray[np.float32]:
    """A summary `(N, S)` rounded to whole quantisation steps, so that one byte holds each value."""
    step = quantisation_steps(summary.shape[-1], pooled)
    # Adding zero turns -0.0 into 0.0, which a byte cannot tell apart.
    return np.rint(summary / step) * step + np.float32(0.0)
