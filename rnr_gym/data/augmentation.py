"""Variations of small colour photographs for training: uint8 batches in, uint8 batches out, all from one generator."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torchvision import io

MARGIN = 4
"""A crop starts up to so many pixels off, reflected at the border (He et al., 2016, pad with zeros)."""
HOLE = 8
"""Side of the square that is greyed out (DeVries and Taylor, *Cutout*, 2017)."""
ALTERED = 0.25
"""Share of images whose pixels are blurred, made noisy or encoded again."""


def photographs(images: Tensor, generator: Generator) -> Tensor:
    """Crop, flip, alter the pixels of some, and cut a hole; uint8 `(N, C, H, W)` to the same."""
    return cut_out(altered(cropped(images, generator), generator), generator)


def _draw(generator: Generator, below: int, *shape: int) -> Tensor:
    return torch.randint(0, below, shape, generator=generator, device=generator.device)


def cropped(images: Tensor, generator: Generator) -> Tensor:
    """Shift each image by up to `MARGIN` pixels, its border reflected, and mirror half of them."""
    count, _, *side = images.shape
    rows, columns = (_shifted(size, count, generator) for size in side)
    columns = torch.where(_draw(generator, 2, count, 1) == 1, columns.flip(1), columns)
    each, channels = torch.arange(count, device=images.device), torch.arange(images.shape[1], device=images.device)
    return images[each[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _shifted(size: int, count: int, generator: Generator) -> Tensor:
    """int64 `(count, size)`: the pixels that a shifted row takes, turning back at both ends."""
    places = torch.arange(size, device=generator.device) + _draw(generator, 2 * MARGIN + 1, count, 1) - MARGIN
    return (size - 1) - ((size - 1) - places.abs()).abs()


def altered(images: Tensor, generator: Generator) -> Tensor:
    """Blur, add noise to, or encode again a share of the images, a third of it each; the rest stays as it is."""
    lot = torch.rand(len(images), generator=generator, device=images.device) / ALTERED * 3
    result = images.clone()
    for kind, alter in enumerate((blurred, noisy, encoded_again)):
        rows = torch.nonzero((lot >= kind) & (lot < kind + 1))[:, 0]
        if len(rows):
            result[rows] = alter(images[rows], generator)
    return result


def blurred(images: Tensor, generator: Generator) -> Tensor:
    """A three-pixel blur of random strength along both axes."""
    strength = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) * 0.3
    pixels = images.float()
    for axis in (2, 3):
        ends = [pixels.narrow(axis, 0, 1), pixels, pixels.narrow(axis, pixels.shape[axis] - 1, 1)]
        wide = torch.cat(ends, axis)
        sides = wide.narrow(axis, 0, pixels.shape[axis]) + wide.narrow(axis, 2, pixels.shape[axis])
        pixels = (1 - 2 * strength) * pixels + strength * sides
    return pixels.round().to(torch.uint8)


def noisy(images: Tensor, generator: Generator) -> Tensor:
    """Gaussian noise of a random standard deviation, up to 8 of 255 levels."""
    deviation = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) * 8.0
    noise = torch.randn(images.shape, generator=generator, device=images.device) * deviation
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def encoded_again(images: Tensor, generator: Generator) -> Tensor:
    """JPEG at a random quality of 50 to 95, and back."""
    qualities = (50 + _draw(generator, 46, len(images))).tolist()
    files = [io.encode_jpeg(image, quality) for image, quality in zip(images.cpu(), qualities, strict=True)]
    return torch.stack([io.decode_jpeg(file) for file in files]).to(images.device)


def cut_out(images: Tensor, generator: Generator) -> Tensor:
    """Grey out a square of `HOLE` pixels around a random place of each image."""
    tall, wide = (_near(size, len(images), generator) for size in images.shape[2:])
    return images.masked_fill(tall[:, None, :, None] & wide[:, None, None, :], 128)


def _near(size: int, count: int, generator: Generator) -> Tensor:
    """bool `(count, size)`: which pixels of a row lie within half a hole of a random one."""
    centre = _draw(generator, size, count, 1)
    return (torch.arange(size, device=generator.device) - centre + HOLE // 2) // HOLE == 0
