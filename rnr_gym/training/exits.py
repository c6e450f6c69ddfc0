"""Fitting the exit heads of off-the-shelf networks, whose other weights stay as they are."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.blocks import pooled_channels
from rnr_gym.data import ImageSet
from rnr_gym.routing.traversal import Traversal
from rnr_gym.training.calibration import as_image_set, batches, paths_near_full
from rnr_gym.training.random_paths import fixed_path

DECAY = 1e-3
"""Penalty on squared weights of z-scored features: there are few images for many weights."""
ITERATIONS = 100


@torch.no_grad()
def fit_exits(
    backbone: Backbone,
    images: Tensor | NDArray[np.uint8] | ImageSet,
    seed: int = 0,
    batch_size: int = 64,
) -> None:
    """Fit exit heads to answer as the full path does, on images that need no labels.

    Each head reads the mean of every channel that arrives, on the full path and on a path near it,
    and learns the probabilities of the full path by logistic regression. Only heads change.

    Args:
        backbone: a network made by `routable` with `exits`; changed in place.
        images: uint8 `(N, C, H, W)`, as they will be classified; more than there are channels.
        seed: of the order of images and of the paths.
        batch_size: images that run at once.

    Raises `ValueError` if there are no exit heads, or the images do not fit the backbone.
    """
    exit_layers = [idx for idx, layer in enumerate(backbone.layers) if layer.head is not None]
    if not exit_layers:
        raise ValueError("`backbone` must have exits, got one without; see `exits` of `routable`")
    image_set = as_image_set(backbone, images)
    generator = torch.Generator().manual_seed(seed)
    full_path = fixed_path(backbone, backbone.full_path)

    pooled: dict[int, list[Tensor]] = defaultdict(list)
    targets: list[Tensor] = []
    for pixels, _ in batches(backbone, image_set, batch_size, generator):
        for path in (full_path, paths_near_full(backbone, generator)[0]):
            traversal = Traversal.start(backbone, pixels, ())
            for layer, sub_path in enumerate(path):
                (group,) = traversal.groups
                pooled[layer].append(pooled_channels(group.features))
                traversal = traversal.step(np.full(len(pixels), sub_path))
            # The path near the full one learns from it as well.
            answers = traversal.logits if path is full_path else targets[-1]
            targets.append(answers)

    probabilities = torch.cat(targets).float().softmax(1)
    for layer in exit_layers:
        weight, bias = _regression(torch.cat(pooled[layer]).float(), probabilities)
        head = backbone.layers[layer].head
        head.linear.weight.copy_(weight)
        head.linear.bias.copy_(bias)


def _regression(features: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regression: `(N, C)`, `(N, classes)` -> weight `(classes, C)`, bias `(classes,)`."""
    mean = features.mean(0)
    std = features.std(0)
    # A channel that is always the same says nothing.
    scale = torch.where(std > 1e-6, 1.0 / std, 0.0)
    z_scores = (features - mean) * scale

    weight = features.new_zeros(probabilities.shape[1], features.shape[1])
    bias = features.new_zeros(probabilities.shape[1])
    with torch.enable_grad():
        weight.requires_grad_()
        bias.requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(F.linear(z_scores, weight, bias), probabilities)
            value = value + DECAY * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
    weight = weight.detach() * scale
    return weight, bias.detach() - weight @ mean
