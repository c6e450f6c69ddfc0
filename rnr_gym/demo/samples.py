"""Images to start with: easy, medium and hard ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rnr_gym import data
from rnr_gym.backbones import Backbone
from rnr_gym.data import ImageSet
from rnr_gym.routing.traversal import Traversal

DIFFICULTIES = ("easy", "medium", "hard")
EACH = 3
"""Images of each difficulty."""
POOL = 300
"""They are chosen among the first so many images of a set."""


class Sample(NamedTuple):
    """An image to start with.

    Attributes:
        image: uint8 `(C, H, W)`.
        label: the true class.
        difficulty: one of `DIFFICULTIES`.
        caption: what it is, in a few words.
    """

    image: NDArray[np.uint8]
    label: int
    difficulty: str
    caption: str


def load(backbone: Backbone, data_root: str | None = None) -> list[Sample]:
    """Images of CIFAR-10's `test`; none where there are no images on this machine.

    Raises `ValueError` if what is there is not CIFAR-10.
    """
    try:
        images = data.load("cifar10", "test", data_root, download=False)
    except FileNotFoundError:
        return []
    return choose(images, backbone)


def choose(images: ImageSet, backbone: Backbone, seed: int = 0) -> list[Sample]:
    """`EACH` images of each difficulty, from easy to hard.

    An image is the harder, the less sure the glance is of its answer, right or wrong; each third
    of the images is one difficulty.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(-_confidence(images, backbone), kind="stable")
    groups = np.array_split(order, len(DIFFICULTIES))

    samples = []
    for difficulty, group in zip(DIFFICULTIES, groups, strict=True):
        for image_idx in rng.choice(group, min(EACH, len(group)), replace=False):
            label = int(images.labels[image_idx])
            sample = Sample(
                image=images.images[image_idx],
                label=label,
                difficulty=difficulty,
                caption=f"{images.classes[label]}, an image that the glance finds {difficulty}",
            )
            samples.append(sample)
    return samples


@torch.inference_mode()
def _confidence(images: ImageSet, backbone: Backbone) -> NDArray[np.float32]:
    """`(N,)`: the probability of the class that the glance finds most likely."""
    # A copy, because torch warns of arrays that are read-only.
    batch = torch.from_numpy(images.images[:POOL].copy())
    # The exit of layer 0 is the glance, which has run when the traversal starts.
    start = Traversal.start(backbone, batch)
    confidence: NDArray[np.float32] = start.exit_logits.float().softmax(1).amax(1).numpy()
    return confidence
