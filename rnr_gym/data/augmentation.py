"""Variations of small colour photographs for training: uint8 batches in, uint8 batches out.

Mirroring is left to the training loop, which alternates it (`Dataset.mirrored`).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

MARGIN = 2
"""Images move by up to this many pixels, reflected at the border (He et al. 2016 pad with zeros)."""
HOLE = 8
"""Side in pixels of the square that is greyed out (DeVries and Taylor, *Cutout*, 2017)."""


def photographs(images: Tensor, generator: Generator) -> Tensor:
    """Move each image and cut a hole; uint8 `(N, C, H, W)` to the same."""
    return cut_out(shifted(images, generator), generator)


def shifted(images: Tensor, generator: Generator) -> Tensor:
    """Move each image by up to `MARGIN` pixels along both axes, its border reflected."""
    count, channels, height, width = images.shape
    rows = _shifted_idx(height, count, generator)  # (N, H)
    columns = _shifted_idx(width, count, generator)  # (N, W)

    image_idx = torch.arange(count, device=images.device)[:, None, None, None]
    channel_idx = torch.arange(channels, device=images.device)[:, None, None]
    return images[image_idx, channel_idx, rows[:, None, :, None], columns[:, None, None, :]]


def _shifted_idx(size: int, count: int, generator: Generator) -> Tensor:
    """int64 `(count, size)`: the pixels that a shifted row takes, turning back at both ends."""
    shift = _draw(generator, 2 * MARGIN + 1, count, 1) - MARGIN
    idx = torch.arange(size, device=generator.device) + shift
    return (size - 1) - ((size - 1) - idx.abs()).abs()


def cut_out(images: Tensor, generator: Generator) -> Tensor:
    """Grey out a square of `HOLE` pixels around a random place of each image."""
    count, _, height, width = images.shape
    rows = _in_hole(height, count, generator)
    columns = _in_hole(width, count, generator)
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 128)


def _in_hole(size: int, count: int, generator: Generator) -> Tensor:
    """bool `(count, size)`: which pixels of a row lie within half a hole of a random one."""
    centre = _draw(generator, size, count, 1)
    offset = torch.arange(size, device=generator.device) - centre
    return (offset + HOLE // 2) // HOLE == 0


def _draw(generator: Generator, below: int, *shape: int) -> Tensor:
    return torch.randint(0, below, shape, generator=generator, device=generator.device)
