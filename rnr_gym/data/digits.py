"""The 1,797 handwritten digits of scikit-learn, untouched and corrupted at five severities.

Source: UCI Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), as shipped with
scikit-learn.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Generator, Tensor
from torch.nn import functional as F

from rnr_gym.data.images import SPLITS, ImageSet, rank_in_class

CLASSES = tuple("0123456789")
CANVAS = 12
"""Side in pixels: the 8 x 8 scan with a margin of 2, so that a moved digit stays whole."""
SEVERITIES = 5
TURN = math.radians(20.0)
"""Half-width in radians of the random turn, per level of severity."""
SHIFT = 0.6
"""Half-width in pixels of the random shift along each axis, per level of severity."""
NOISE = 0.06
"""Standard deviation of the noise, of pixels scaled to 0..1, per level of severity."""
SEED = 20190101
"""Seed of the corruptions of `train`; the other splits take the numbers after it."""
DRAWS = {"train": 1, "route": 4, "test": 1}
"""Versions of each digit per severity; more in `route`, or routers would memorise its images."""


def load(split: str, data_root: str | None = None, download: bool = True) -> ImageSet:
    """One split: half of the digits for `train`, a quarter each for `route` and `test`.

    Every digit is there untouched (severity 0) and corrupted at severities 1 to 5, `DRAWS[split]`
    times each. Originals are split by (class, rank within the class) modulo 4, so no digit is in
    two splits. `data_root` and `download` are accepted as for every data set; the digits come with
    scikit-learn and need neither.
    """
    scans, labels, original_id = _originals(split)
    levels = torch.arange(SEVERITIES + 1).repeat(DRAWS[split])
    num_versions = len(levels)

    # All scans at the first level, then all scans at the second, and so on.
    severity = levels.repeat_interleave(len(scans))  # (levels * scans,)
    generator = torch.Generator().manual_seed(SEED + SPLITS.index(split))
    images = corrupt(scans.repeat(num_versions, 1, 1, 1), severity, generator)

    return ImageSet(
        images=images.numpy(),
        labels=np.tile(labels, num_versions),
        original_id=np.tile(original_id, num_versions),
        severity=severity.numpy(),
        classes=CLASSES,
    )


def _originals(split: str) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """Scans uint8 `(N, 1, 12, 12)` of a split, their labels `(N,)` and numbers `(N,)`."""
    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    quarter = rank_in_class(labels) % 4
    in_split = {"train": quarter < 2, "route": quarter == 2, "test": quarter == 3}[split]

    # Scans have 17 grey levels, 0..16.
    scaled = torch.from_numpy(bunch.images[in_split] * (255.0 / 16.0))
    scans = scaled.round().to(torch.uint8)  # (N, 8, 8)
    margin = (CANVAS - scans.shape[-1]) // 2
    padded = F.pad(scans, (margin, margin, margin, margin))[:, None]  # (N, 1, 12, 12)
    return padded, labels[in_split], np.flatnonzero(in_split)


def corrupt(images: Tensor, severity: Tensor, generator: Generator) -> Tensor:
    """Turn, move and add noise to uint8 `(N, 1, H, W)` images, each by its own severity.

    `severity` is int `(N,)`; images of severity 0 stay as they are.
    """
    level = severity.to(torch.float32)  # (N,)
    level_of_pixel = level[:, None, None, None]  # (N, 1, 1, 1)
    side = images.shape[-1]

    # `affine_grid` measures in half image sides: the image spans -1..1.
    angle = _symmetric(images, generator) * level * TURN  # (N,)
    shift = _symmetric(images, generator, 2) * (level * SHIFT * 2.0 / side)[:, None]  # (N, 2)
    cos = angle.cos()
    sin = angle.sin()
    first_row = torch.stack([cos, -sin, shift[:, 0]], 1)
    second_row = torch.stack([sin, cos, shift[:, 1]], 1)
    affine = torch.stack([first_row, second_row], 1)  # (N, 2, 3)

    originals = images.float()
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(originals, grid, align_corners=False)
    normal = torch.randn(moved.shape, generator=generator, device=images.device)
    noise = normal * (255.0 * NOISE * level)[:, None, None, None]

    # Interpolation need not return a pixel's value to the last bit, not even where nothing moved.
    corrupted = torch.where(level_of_pixel > 0, moved + noise, originals)
    return corrupted.round().clamp(0, 255).to(torch.uint8)


def _symmetric(images: Tensor, generator: Generator, *shape: int) -> Tensor:
    """Float `(N, *shape)`, uniform over -1..1."""
    uniform = torch.rand(len(images), *shape, generator=generator, device=images.device)
    return 2.0 * uniform - 1.0


def augment(images: Tensor, generator: Generator) -> Tensor:
    """A new corruption of random severity for each untouched training image, uint8 to uint8."""
    severity = torch.randint(
        0, SEVERITIES + 1, (len(images),), generator=generator, device=images.device
    )
    return corrupt(images, severity, generator)
