"""Measuring what a backbone stores with its weights.

These are pixel, batch-norm and summary statistics, whitening filters and the loss scale.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.blocks import WhitenedStem
from rnr_gym.data import ImageSet
from rnr_gym.routing.traversal import Traversal
from rnr_gym.training.random_paths import (
    fixed_path,
    path_logits,
    random_path,
    spread_paths,
    uniform_paths,
)

MEASURED = 10_240
"""Images that statistics are measured on; each gives many values, so more would change little."""
MEASURED_ON_EACH = 2_560
"""Images for each path that shares batch-norm statistics; with many such paths, fewer suffice."""
UNIFORM_SHARE = 3
"""How often each uniform path runs for one set of `spread_paths`."""
WHOLE_SHARE = 2
"""How often a block runs whole, relative to all its narrow sub-paths together, while those of an
off-the-shelf network are measured. Its weights were never trained for narrow sub-paths, so that few
of them at once keep its accuracy, and routers take paths near the full one."""
COMPARED = 128
"""Images on which narrow paths are compared with the full path, before and after measuring."""
WHITENING_EPSILON = 5e-4
"""Added to the eigenvalues of patches, or filters of the weakest directions would amplify noise."""


def set_pixel_statistics(backbone: Backbone, train: ImageSet) -> None:
    """Store mean and standard deviation of each channel, of training pixels scaled to 0..1."""
    scaled = np.asarray(train.images, np.float32) / 255.0  # (N, C, H, W)
    mean = torch.from_numpy(scaled.mean((0, 2, 3)))  # (C,)
    std = torch.from_numpy(scaled.std((0, 2, 3)))
    backbone.image_mean.copy_(mean[:, None, None])
    backbone.image_std.copy_(std[:, None, None])


@torch.no_grad()
def measure_whitening(backbone: Backbone, train: ImageSet) -> None:
    """Set the filters of every whitened stem to those that whiten 2 x 2 patches of `train`."""
    stems = [module for module in backbone.modules() if isinstance(module, WhitenedStem)]
    if not stems:
        return

    images, _ = next(batches(backbone, train, MEASURED))
    columns = F.unfold(backbone.prepare(images), 2)  # (N, C, H, W) -> (N, 4 * C, L)
    patches = columns.transpose(1, 2).flatten(0, 1)  # (N * L, 4 * C)

    values, vectors = torch.linalg.eigh(patches.T.cov())
    scaled = vectors / (values + WHITENING_EPSILON).sqrt()
    filters = scaled.T.unflatten(1, (-1, 2, 2))  # (4 * C, C, 2, 2)
    # Both signs of each filter, so that the activation after them loses nothing.
    for stem in stems:
        stem.filters.copy_(torch.cat([filters, -filters]))


def calibrate(
    backbone: Backbone,
    train: ImageSet,
    route: ImageSet,
    seed: int = 0,
    batch_size: int = 512,
) -> None:
    """Measure what the backbone stores with its weights.

    Batch-norm and summary statistics come from `train`, the loss scale from `route`.
    """
    generator = torch.Generator().manual_seed(seed)
    recalibrate(backbone, train, generator, batch_size)
    measure_summaries(backbone, train, generator, batch_size)

    # The scaled loss of the full path is then 1 on average.
    path = fixed_path(backbone, backbone.full_path)
    losses = []
    with torch.no_grad():
        for images, labels in batches(backbone, route, batch_size):
            logits, _ = path_logits(backbone, images, path, ())
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
        backbone.loss_scale.fill_(1.0 / float(torch.cat(losses).mean()))


@torch.no_grad()
def calibrate_paths(
    backbone: Backbone,
    images: Tensor | NDArray[np.uint8] | ImageSet,
    seed: int = 0,
    batch_size: int = 64,
) -> None:
    """Fit an off-the-shelf network's narrow sub-paths to images, which need no labels.

    Measures the batch-norms that only narrow sub-paths run, while two thirds of the other blocks
    run whole, and the statistics of summaries. Nothing of the full path changes. The new statistics
    of batch-norms are kept only if such paths then answer more like the full path on these images:
    `routable` predicts the channels that are left out, and to restore the variance that a
    prediction lacks mostly does harm. Paths on which many more blocks are narrow may become worse.

    Args:
        backbone: the network, changed in place and left in evaluation mode.
        images: some hundreds, uint8 `(N, C, H, W)`, as they will be classified.
        seed: of the order of images and of the paths.
        batch_size: images that are measured at once.

    Raises `ValueError` if the images do not fit the backbone or are fewer than 2.
    """
    image_set = as_image_set(backbone, images)
    generator = torch.Generator().manual_seed(seed)

    def run_narrow_paths(pixels: Tensor) -> None:
        # One image has no variance where its feature map is one pixel.
        if len(pixels) > 1:
            for path in paths_near_full(backbone, generator):
                path_logits(backbone, pixels, path, ())

    def draw_path(backbone: Backbone, generator: torch.Generator) -> list[int]:
        return paths_near_full(backbone, generator)[0]

    first_image, _ = next(batches(backbone, image_set, 1))
    narrow_norms = _norms(backbone) - full_path_norms(backbone, first_image)
    shuffled = batches(backbone, image_set, batch_size, generator)
    compared = image_set.take(np.arange(min(COMPARED, len(image_set))))
    paths = paths_near_full(backbone, generator)
    states = {norm: copy.deepcopy(norm.state_dict()) for norm in narrow_norms}
    before = distance_from_full(backbone, compared, paths, batch_size)
    _measure_norms(backbone, narrow_norms, shuffled, run_narrow_paths, len(image_set))
    if distance_from_full(backbone, compared, paths, batch_size) > before:
        for norm, state in states.items():
            norm.load_state_dict(state)
    measure_summaries(backbone, image_set, generator, batch_size, draw_path)


def as_image_set(backbone: Backbone, images: Tensor | NDArray[np.uint8] | ImageSet) -> ImageSet:
    """Images that need no labels as a set.

    Raises `ValueError` if they do not fit the backbone or are fewer than 2.
    """
    if not isinstance(images, ImageSet):
        pixels = torch.as_tensor(images)
        backbone.check_images(pixels)
        if pixels.dtype != torch.uint8:
            raise ValueError(f"`images` must be uint8, got {pixels.dtype}")
        images = ImageSet.of(pixels.cpu().numpy(), np.zeros(len(pixels), np.int64))
    backbone.check_images(torch.from_numpy(np.array(images.images[:1])))
    if len(images) < 2:
        raise ValueError(f"`images` must be at least 2, got {len(images)}")
    return images


def paths_near_full(backbone: Backbone, generator: torch.Generator) -> list[list[int]]:
    """Paths on which every layer takes each of its narrow sub-paths once, else runs whole."""
    narrow = list(range(backbone.narrowest, backbone.full_path))
    whole = [backbone.full_path] * max(1, WHOLE_SHARE * len(narrow))
    columns = []
    for offered in backbone.valid:
        numbers = [number if offered[number] else backbone.full_path for number in narrow]
        column = torch.tensor(numbers + whole)
        columns.append(column[torch.randperm(len(column), generator=generator)])
    return torch.stack(columns, 1).tolist()


@torch.no_grad()
def distance_from_full(
    backbone: Backbone,
    images: ImageSet,
    paths: list[list[int]],
    batch_size: int,
) -> float:
    """Mean Kullback-Leibler divergence of paths' answers from those of the full path, in nats."""
    backbone.eval()
    full_path = fixed_path(backbone, backbone.full_path)
    divergences = []
    for pixels, _ in batches(backbone, images, batch_size):
        expected = path_logits(backbone, pixels, full_path, ())[0].float().log_softmax(1)
        for path in paths:
            answered = path_logits(backbone, pixels, path, ())[0].float().log_softmax(1)
            divergence = F.kl_div(answered, expected, reduction="none", log_target=True).sum(1)
            divergences.append(divergence.cpu())
    return float(torch.cat(divergences).mean())


def batches(
    backbone: Backbone,
    images: ImageSet,
    batch_size: int,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images `(N, C, H, W)` and labels `(N,)` on the backbone's device.

    They come in order, or shuffled if a generator is given.
    """
    if generator is None:
        order = torch.arange(len(images))
    else:
        order = torch.randperm(len(images), generator=generator)

    for start in range(0, len(order), batch_size):
        image_idx = order[start : start + batch_size]
        pixels = torch.from_numpy(images.images[image_idx.numpy()])
        labels = torch.from_numpy(images.labels[image_idx.numpy()])
        # Decoded while this batch is used.
        images.prefetch(order[start + batch_size : start + 2 * batch_size].numpy())
        yield pixels.to(backbone.device), labels.to(backbone.device)


@torch.no_grad()
def full_path_norms(backbone: Backbone, images: Tensor) -> set[nn.BatchNorm2d]:
    """The batch-norms that run on the full path, exits and glance included."""
    norms: set[nn.BatchNorm2d] = set()
    hooks = []
    for norm in _norms(backbone):
        hooks.append(norm.register_forward_hook(lambda module, *_: norms.add(module)))

    backbone.eval()
    path_logits(backbone, images[:1], fixed_path(backbone, backbone.full_path), None)
    for hook in hooks:
        hook.remove()
    return norms


@torch.no_grad()
def recalibrate(
    backbone: Backbone,
    train: ImageSet,
    generator: torch.Generator,
    batch_size: int = 512,
) -> None:
    """Measure batch-norm statistics again.

    Those of the full path are measured on the full path alone, with `MEASURED` images; all others
    under random routing, with `MEASURED_ON_EACH` images for each path.
    """
    full_path = fixed_path(backbone, backbone.full_path)

    def run_full_path(images: Tensor) -> None:
        path_logits(backbone, images, full_path, None)

    # Uniform paths count as much as all mixtures together: most images that take a narrow sub-path
    # have taken narrow ones before.
    def run_other_paths(images: Tensor) -> None:
        mixtures = spread_paths(backbone, generator)
        for path in mixtures + UNIFORM_SHARE * uniform_paths(backbone):
            path_logits(backbone, images, path, None)

    # The full path must stay the plain network, so no other path touches its statistics.
    first_image, _ = next(batches(backbone, train, 1))
    full_norms = full_path_norms(backbone, first_image)
    other_norms = _norms(backbone) - full_norms

    shuffled = batches(backbone, train, batch_size, generator)
    _measure_norms(backbone, full_norms, shuffled, run_full_path, MEASURED)
    shuffled = batches(backbone, train, batch_size, generator)
    _measure_norms(backbone, other_norms, shuffled, run_other_paths, MEASURED_ON_EACH)


@torch.no_grad()
def measure_glance(
    backbone: Backbone,
    train: ImageSet,
    generator: torch.Generator,
    batch_size: int = 512,
) -> None:
    """Measure the batch-norm statistics of the glance again."""
    glance = backbone.glance
    assert glance is not None

    def run_glance(images: Tensor) -> None:
        glance(backbone.prepare(images))

    shuffled = batches(backbone, train, batch_size, generator)
    _measure_norms(backbone, _norms(glance), shuffled, run_glance, MEASURED)


def _norms(network: nn.Module) -> set[nn.BatchNorm2d]:
    return {module for module in network.modules() if isinstance(module, nn.BatchNorm2d)}


def _measure_norms(
    backbone: Backbone,
    norms: set[nn.BatchNorm2d],
    labelled_batches: Iterator[tuple[Tensor, Tensor]],
    run: Callable[[Tensor], None],
    num_images: int,
) -> None:
    """Average the statistics of `norms` over about `num_images` images.

    The network is left in evaluation mode.
    """
    backbone.eval()
    momenta = {norm: norm.momentum for norm in norms}
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        # Without momentum, a batch-norm keeps the plain average of all batches.
        norm.momentum = None

    measured = 0
    for images, _ in labelled_batches:
        run(images)
        measured += len(images)
        if measured >= num_images:
            break

    for norm, momentum in momenta.items():
        norm.momentum = momentum
    backbone.eval()


@torch.no_grad()
def measure_summaries(
    backbone: Backbone,
    train: ImageSet,
    generator: torch.Generator,
    batch_size: int = 512,
    draw_path: Callable[[Backbone, torch.Generator], list[int]] = random_path,
) -> None:
    """Store mean and standard deviation of pooled features, under random routing.

    There is one of each for every layer and channel, and for every channel of the glance.
    `draw_path` gives the path of a batch.
    """
    num_batches = math.ceil(MEASURED / batch_size)
    # Count, sum and sum of squares; in double precision, since squares of means are subtracted.
    size = (3, backbone.pooled_width)
    moments = [torch.zeros(size, dtype=torch.float64) for _ in range(backbone.num_layers)]
    glances = []

    shuffled = batches(backbone, train, batch_size, generator)
    for images, _ in islice(shuffled, num_batches):
        glances.append(Traversal.start(backbone, images).glance_pooled.cpu().double())

        # Without exits the stem runs at once, so that layer 0 has features to measure.
        traversal = Traversal.start(backbone, images, ())
        for layer, sub_path in enumerate(draw_path(backbone, generator)):
            (group,) = traversal.groups
            pooled = backbone.pool(group.features).cpu().double()  # (N, C)
            powers = torch.stack([torch.ones_like(pooled), pooled, pooled**2])  # (3, N, C)
            moments[layer][:, : pooled.shape[1]] += powers.sum(1)
            traversal = traversal.step(np.full(len(images), sub_path))

    for layer, (count, total, squares) in enumerate(moments):
        count = count.clamp(min=1)
        mean = total / count
        std = (squares / count - mean**2).clamp(min=0).sqrt()
        backbone.summary_mean[layer] = mean.float()
        # A channel that is always zero stays zero.
        backbone.summary_std[layer] = torch.where(std > 1e-6, std, 1.0).float()

    if backbone.glance is None:
        return
    glance = torch.cat(glances)  # (N, G)
    backbone.glance_mean.copy_(glance.mean(0).float())
    backbone.glance_std.copy_(glance.std(0).clamp(min=1e-6).float())


@torch.no_grad()
def evaluate_full_path(backbone: Backbone, images: ImageSet, batch_size: int = 512) -> float:
    """Top-1 accuracy of the plain network, 0..1."""
    path = fixed_path(backbone, backbone.full_path)
    correct = []
    for pixels, labels in batches(backbone, images, batch_size):
        logits, _ = path_logits(backbone, pixels, path, ())
        correct.append((logits.argmax(1) == labels).cpu())
    return float(torch.cat(correct).float().mean())
