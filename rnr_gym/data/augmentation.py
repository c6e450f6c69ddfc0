"""Augmentation of small colour photographs for training: uint8 batches in, uint8 batches out.

Mirroring is left to the training loop, which alternates it (`Dataset.mirrored`).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

MARGIN = 2
"""Images move by up to this many pixels, their border reflected (He et al. 2016 pad with zeros)."""
HOLE = 8
"""Side in pixels of the square that is greyed out (DeVries and Taylor, *Cutout*, 2017)."""
GREY = 128


def photographs(images: Tensor, generator: Generator) -> Tensor:
    """Move each image and cut a hole; uint8 `(N, C, H, W)` to the same."""
    return cut_out(shifted(images, generator), generator)


def shifted(images: Tensor, generator: Generator) -> Tensor:
    """Move each image by up to `MARGIN` pixels along both axes, its border reflected."""
    batch_size, channels, height, width = images.shape
    rows = _shifted_idx(height, batch_size, generator)  # (N, H)
    columns = _shifted_idx(width, batch_size, generator)  # (N, W)

    # One gather with four broadcast indices moves every image by its own shift, without a loop.
    image_idx = torch.arange(batch_size, device=images.device)[:, None, None, None]
    channel_idx = torch.arange(channels, device=images.device)[:, None, None]
    return images[image_idx, channel_idx, rows[:, None, :, None], columns[:, None, None, :]]


def _shifted_idx(size: int, batch_size: int, generator: Generator) -> Tensor:
    """int64 `(N, size)`: the pixels that a shifted row takes, turning back at both ends."""
    shift = _draw(generator, 2 * MARGIN + 1, batch_size) - MARGIN
    idx = torch.arange(size, device=generator.device) + shift
    # -1 becomes 1, and `size` becomes `size - 2`: the border pixel itself is not repeated.
    return (size - 1) - ((size - 1) - idx.abs()).abs()


def cut_out(images: Tensor, generator: Generator) -> Tensor:
    """Grey out a square of `HOLE` pixels around a random pixel of each image."""
    batch_size, _, height, width = images.shape
    rows = _in_hole(height, batch_size, generator)  # (N, H)
    columns = _in_hole(width, batch_size, generator)  # (N, W)
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], GREY)


def _in_hole(size: int, batch_size: int, generator: Generator) -> Tensor:
    """bool `(N, size)`: which pixels of a row lie within half a hole of a random one."""
    centre = _draw(generator, size, batch_size)
    # An even side has no middle pixel: `HOLE // 2` pixels lie before the centre, one fewer after.
    offset = torch.arange(size, device=generator.device) - centre
    return (offset + HOLE // 2) // HOLE == 0


def _draw(generator: Generator, below: int, batch_size: int) -> Tensor:
    """int64 `(N, 1)`, uniform over 0..below-1."""
    return torch.randint(0, below, (batch_size, 1), generator=generator, device=generator.device)
