"""What a backbone stores beside its weights, measured: pixel, batch-norm and summary statistics, the loss scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym.backbones.base import Backbone
from rnr_gym.data import ImageSet
from rnr_gym.paths import answers, fixed_path, random_path, spread_paths
from rnr_gym.traversal import Traversal


def set_pixel_statistics(backbone: Backbone, train: ImageSet) -> None:
    """Store the training images' mean and standard deviation a channel, of pixels scaled to 0..1."""
    scaled = train.images.astype(np.float32) / 255.0
    for buffer, value in ((backbone.image_mean, scaled.mean((0, 2, 3))), (backbone.image_std, scaled.std((0, 2, 3)))):
        buffer.copy_(torch.from_numpy(value)[:, None, None])


def calibrate(backbone: Backbone, train: ImageSet, route: ImageSet, seed: int = 0, batch_size: int = 512) -> None:
    """Measure what the backbone stores beside its weights: batch-norm and summary statistics on `train`, the loss scale on `route`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        recalibrate(backbone, train, generator, batch_size)
        measure_summaries(backbone, train, generator, batch_size)
        losses = [
            F.cross_entropy(answers(backbone, images, fixed_path(backbone, backbone.full_path), ())[0], labels, reduction="none")
            for images, labels in batches(backbone, route, batch_size)
        ]
        backbone.loss_scale.fill_(1.0 / float(torch.cat(losses).mean()))


def batches(backbone: Backbone, images: ImageSet, batch_size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels on the backbone's device, in order, or shuffled where a generator is given."""
    order = torch.arange(len(images)) if generator is None else torch.randperm(len(images), generator=generator)
    device = backbone.image_mean.device
    for rows in order.split(batch_size):
        yield torch.from_numpy(images.images[rows.numpy()]).to(device), torch.from_numpy(images.labels[rows.numpy()]).to(device)


def full_path_norms(backbone: Backbone, images: Tensor) -> set[nn.BatchNorm2d]:
    """The batch-norms that run on the full path, exits and glance included."""
    seen: set[nn.BatchNorm2d] = set()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_hook(lambda module, *_: seen.add(module)) for norm in norms]
    backbone.eval()
    answers(backbone, images[:1], fixed_path(backbone, backbone.full_path), None)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def recalibrate(backbone: Backbone, train: ImageSet, generator: torch.Generator, batch_size: int = 512, only_others: bool = False) -> None:
    """Measure batch-norm statistics again: the full path's set on the full path alone, every other under random routing.

    With `only_others` the full path's set stays as it is.
    """
    first = next(batches(backbone, train, 1))[0]
    norms = {module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)}
    full = full_path_norms(backbone, first)
    if not only_others:
        _measure_norms(backbone, full, train, generator, batch_size, lambda: [fixed_path(backbone, backbone.full_path)])
    _measure_norms(
        backbone, norms - full, train, generator, batch_size, lambda: spread_paths(backbone, generator) + spread_paths(backbone, generator)
    )
    backbone.eval()


def _measure_norms(
    backbone: Backbone,
    norms: set[nn.BatchNorm2d],
    train: ImageSet,
    generator: torch.Generator,
    batch_size: int,
    paths: Callable[[], list[list[int]]],
) -> None:
    backbone.eval()
    momenta = {norm: norm.momentum for norm in norms}
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None
    for images, _ in batches(backbone, train, batch_size, generator):
        for path in paths():
            answers(backbone, images, path, None)
    for norm, momentum in momenta.items():
        norm.momentum = momentum


def measure_summaries(backbone: Backbone, train: ImageSet, generator: torch.Generator, batch_size: int = 512) -> None:
    """Store mean and standard deviation of the pooled features, by layer and channel, under random routing."""
    moments = [torch.zeros(3, backbone.pooled_width, dtype=torch.float64) for _ in range(backbone.num_layers)]
    glanced = []
    for images, _ in batches(backbone, train, batch_size, generator):
        traversal = Traversal.start(backbone, images)
        glanced.append(traversal.glance_pooled.cpu().double())
        for layer, sub_path in enumerate(random_path(backbone, generator)):
            (group,) = traversal.groups
            pooled = backbone.pool(group.features).cpu().double()
            moments[layer][:, : pooled.shape[1]] += torch.stack([torch.ones_like(pooled), pooled, pooled**2]).sum(1)
            traversal = traversal.step(np.full(len(images), sub_path))
    for layer, (count, total, squares) in enumerate(moments):
        mean = total / count.clamp(min=1)
        spread = (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()
        backbone.summary_mean[layer] = mean.float()
        backbone.summary_std[layer] = torch.where(spread > 1e-6, spread, 1.0).float()
    everything = torch.cat(glanced)
    backbone.glance_mean.copy_(everything.mean(0).float())
    backbone.glance_std.copy_(everything.std(0).clamp(min=1e-6).float())


@torch.no_grad()
def evaluate_full_path(backbone: Backbone, images: ImageSet, batch_size: int = 512) -> float:
    """Top-1 accuracy of the plain network, 0..1."""
    path = fixed_path(backbone, backbone.full_path)
    right = [(answers(backbone, pixels, path, ())[0].argmax(1) == labels).cpu() for pixels, labels in batches(backbone, images, batch_size)]
    return float(torch.cat(right).float().mean())
