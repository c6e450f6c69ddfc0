"""What a backbone stores beside its weights, measured: pixel, batch-norm and summary statistics, the loss scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.blocks import WhitenedStem
from rnr_gym.data import ImageSet
from rnr_gym.routing.traversal import Traversal
from rnr_gym.training.random_paths import answers, fixed_path, random_path, spread_paths, uniform_paths

MEASURED = 10_240
"""Images that statistics are measured on; each gives many values, so more would change little."""
MEASURED_ON_EACH = 2_560
"""Images for each of the paths that share batch-norm statistics; the paths are many, so these suffice."""
UNIFORM_SHARE = 3
"""How often each uniform path runs beside mixtures that take every pair of sub-paths once."""
WHITENING_EPSILON = 5e-4
"""Added to the eigenvalues of patches, or filters of the weakest directions would amplify noise."""


def set_pixel_statistics(backbone: Backbone, train: ImageSet) -> None:
    """Store the training images' mean and standard deviation a channel, of pixels scaled to 0..1."""
    scaled = train.images.astype(np.float32) / 255.0
    for buffer, value in ((backbone.image_mean, scaled.mean((0, 2, 3))), (backbone.image_std, scaled.std((0, 2, 3)))):
        buffer.copy_(torch.from_numpy(value)[:, None, None])


@torch.no_grad()
def measure_whitening(backbone: Backbone, train: ImageSet) -> None:
    """Set the filters of every whitened stem to those that whiten 2 x 2 patches of `train`."""
    stems = [module for module in backbone.modules() if isinstance(module, WhitenedStem)]
    if not stems:
        return

    images, _ = next(batches(backbone, train, MEASURED))
    patches = F.unfold(backbone.prepare(images), 2).transpose(1, 2).flatten(0, 1)  # (P, 4 * C)
    values, vectors = torch.linalg.eigh(patches.T.cov())
    filters = (vectors / (values + WHITENING_EPSILON).sqrt()).T.unflatten(1, (-1, 2, 2))
    for stem in stems:
        stem.filters.copy_(torch.cat([filters, -filters]))


def calibrate(backbone: Backbone, train: ImageSet, route: ImageSet, seed: int = 0, batch_size: int = 512) -> None:
    """Measure what the backbone stores beside its weights.

    Batch-norm and summary statistics come from `train`, the loss scale from `route`.
    """
    generator = torch.Generator().manual_seed(seed)
    recalibrate(backbone, train, generator, batch_size)
    measure_summaries(backbone, train, generator, batch_size)

    path = fixed_path(backbone, backbone.full_path)
    losses = []
    with torch.no_grad():
        for images, labels in batches(backbone, route, batch_size):
            logits, _ = answers(backbone, images, path, ())
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
        backbone.loss_scale.fill_(1.0 / float(torch.cat(losses).mean()))


def batches(backbone: Backbone, images: ImageSet, batch_size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels on the backbone's device, in order, or shuffled where a generator is given."""
    order = torch.arange(len(images)) if generator is None else torch.randperm(len(images), generator=generator)
    device = backbone.image_mean.device
    for rows in order.split(batch_size):
        yield torch.from_numpy(images.images[rows.numpy()]).to(device), torch.from_numpy(images.labels[rows.numpy()]).to(device)


@torch.no_grad()
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
def recalibrate(backbone: Backbone, train: ImageSet, generator: torch.Generator, batch_size: int = 512) -> None:
    """Measure batch-norm statistics again.

    The full path's set is measured on the full path alone, with `MEASURED` images; every other under
    random routing, with `MEASURED_ON_EACH` images for each path.
    """
    full_path = fixed_path(backbone, backbone.full_path)

    def run_full_path(images: Tensor) -> None:
        answers(backbone, images, full_path, None)

    # Uniform paths count as much as all mixtures together: most images that take a narrow sub-path
    # have come by narrow ones.
    def run_other_paths(images: Tensor) -> None:
        mixtures = spread_paths(backbone, generator)
        for path in mixtures + UNIFORM_SHARE * uniform_paths(backbone):
            answers(backbone, images, path, None)

    full_norms = full_path_norms(backbone, next(batches(backbone, train, 1))[0])
    other_norms = _norms(backbone) - full_norms
    shuffled = batches(backbone, train, batch_size, generator)
    _measure_norms(backbone, full_norms, shuffled, run_full_path, MEASURED)
    shuffled = batches(backbone, train, batch_size, generator)
    _measure_norms(backbone, other_norms, shuffled, run_other_paths, MEASURED_ON_EACH)


@torch.no_grad()
def measure_glance(backbone: Backbone, train: ImageSet, generator: torch.Generator, batch_size: int = 512) -> None:
    """Measure the batch-norm statistics of the glance again."""
    glance = backbone.glance
    assert glance is not None

    def run_glance(images: Tensor) -> None:
        glance(backbone.prepare(images))

    shuffled = batches(backbone, train, batch_size, generator)
    _measure_norms(backbone, _norms(glance), shuffled, run_glance, MEASURED)


def _norms(module: nn.Module) -> set[nn.BatchNorm2d]:
    return {part for part in module.modules() if isinstance(part, nn.BatchNorm2d)}


def _measure_norms(
    backbone: Backbone,
    norms: set[nn.BatchNorm2d],
    pairs: Iterator[tuple[Tensor, Tensor]],
    run: Callable[[Tensor], None],
    num_images: int,
) -> None:
    """Average the statistics of `norms` over about `num_images` images; the network is left in evaluation mode."""
    backbone.eval()
    momenta = {norm: norm.momentum for norm in norms}
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None

    measured = 0
    for images, _ in pairs:
        run(images)
        measured += len(images)
        if measured >= num_images:
            break

    for norm, momentum in momenta.items():
        norm.momentum = momentum
    backbone.eval()


@torch.no_grad()
def measure_summaries(backbone: Backbone, train: ImageSet, generator: torch.Generator, batch_size: int = 512) -> None:
    """Store mean and standard deviation of the pooled features, by layer and channel, under random routing."""
    moments = [torch.zeros(3, backbone.pooled_width, dtype=torch.float64) for _ in range(backbone.num_layers)]
    glanced = []
    for images, _ in islice(batches(backbone, train, batch_size, generator), -(-MEASURED // batch_size)):
        glanced.append(Traversal.start(backbone, images).glance_pooled.cpu().double())
        traversal = Traversal.start(backbone, images, ())  # no exits, so that the stem runs at once
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
