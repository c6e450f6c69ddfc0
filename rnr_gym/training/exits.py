"""Fitting exits and glance of off-the-shelf networks, whose other weights stay as they are."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym import checks
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.blocks import Glance, ResidualGlance, pooled_channels
from rnr_gym.backbones.gallery import gallery_of
from rnr_gym.data import ImageSet
from rnr_gym.data.augmentation import shifted
from rnr_gym.progress import progress_bar
from rnr_gym.routing.traversal import Traversal
from rnr_gym.training.calibration import as_image_set, batches, measure_glance, paths_near_full
from rnr_gym.training.random_paths import fixed_path

DECAY = 1e-3
"""Penalty on squared weights of z-scored features: there are few images for many weights."""
ITERATIONS = 100
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
"""Of the glance, by AdamW."""
WARM_UP = 0.1
"""Share of the glance's steps in which its learning rate rises."""


def fit_exits(
    backbone: Backbone,
    images: Tensor | NDArray[np.uint8] | ImageSet,
    seed: int = 0,
    batch_size: int = 64,
    epochs: int = 30,
) -> None:
    """Fit exit heads and glance to answer as the full path does, on images that need no labels.

    Each head reads the mean of every channel that arrives, on the full path and on a path near it,
    and learns the probabilities of the full path by logistic regression. The glance learns them
    from the pixels, by gradient descent from new weights, on images that are moved by a few pixels;
    then its statistics are measured. Nothing else changes.

    Args:
        backbone: a network made by `routable` with `exits`; changed in place.
        images: uint8 `(N, C, H, W)`, as they will be classified. For heads, more than there are
            channels; for a glance, as many as there are, because it has to learn from pixels.
        seed: of the order of images, of the paths, and of the glance's weights.
        batch_size: images that run at once.
        epochs: how often the glance sees each image.

    Raises `ValueError` if there are neither exit heads nor a glance, or the images do not fit the
    backbone.
    """
    checks.integer("epochs", epochs, 1)
    exit_layers = [idx for idx, layer in enumerate(backbone.layers) if layer.head is not None]
    if not exit_layers and backbone.glance is None:
        raise ValueError("`backbone` must have exits, got one without; see `exits` of `routable`")
    if gallery_of(backbone) is not None:
        raise ValueError("`backbone` must be one that classifies, got one that retrieves")
    image_set = as_image_set(backbone, images)
    generator = torch.Generator().manual_seed(seed)
    backbone.eval()
    if exit_layers:
        _fit_heads(backbone, exit_layers, image_set, generator, batch_size)
    if backbone.glance is not None:
        _fit_glance(backbone, backbone.glance, image_set, generator, batch_size, epochs)


@torch.no_grad()
def _fit_heads(
    backbone: Backbone,
    exit_layers: Sequence[int],
    image_set: ImageSet,
    generator: torch.Generator,
    batch_size: int,
) -> None:
    """Fit the heads of some layers."""
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


def _fit_glance(
    backbone: Backbone,
    glance: Glance | ResidualGlance,
    image_set: ImageSet,
    generator: torch.Generator,
    batch_size: int,
    epochs: int,
) -> None:
    """Fit the glance, and measure its statistics."""
    plain = backbone.plain().eval()
    with torch.no_grad():
        logits = [
            plain(backbone.prepare(pixels)).float()
            for pixels, _ in batches(backbone, image_set, batch_size)
        ]
    probabilities = torch.cat(logits).softmax(1)  # (N, classes)

    # In single precision, whatever the network's.
    student = copy.deepcopy(glance).float().requires_grad_(True)
    _reset(student, generator)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * math.ceil(len(image_set) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=WARM_UP
    )

    student.train()
    with torch.enable_grad(), progress_bar(total=steps, desc="glance", unit="step") as bar:
        for _ in range(epochs):
            for image_idx in torch.randperm(len(image_set), generator=generator).split(batch_size):
                pixels = shifted(torch.from_numpy(image_set.images[image_idx.numpy()]), generator)
                images = backbone.prepare(pixels.to(backbone.device)).float()
                _, answers = student(images)
                loss = F.cross_entropy(answers, probabilities[image_idx.to(backbone.device)])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()

    glance.load_state_dict(student.state_dict())
    measure_glance(backbone, image_set, generator, batch_size)
    with torch.no_grad():
        pooled = torch.cat(
            [
                Traversal.start(backbone, pixels, {0}).glance_pooled.float()
                for pixels, _ in batches(backbone, image_set, batch_size)
            ]
        )
    backbone.glance_mean.copy_(pooled.mean(0))
    backbone.glance_std.copy_(pooled.std(0).clamp(min=1e-6))


def _reset(student: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of convolutions, and take back all else that was learned."""
    for module in student.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


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
