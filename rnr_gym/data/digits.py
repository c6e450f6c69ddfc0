"""scikit-learn's 1,797 handwritten digits, whole and in seeded corruptions of five severities.

Source: UCI Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), as shipped with scikit-learn.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from rnr_gym.data.images import SPLITS, ImageSet, rank_in_class

CLASSES = tuple("0123456789")
CANVAS = 12
"""Side in pixels: the 8 x 8 scan with a margin of 2, so that a moved digit stays whole."""
SEVERITIES = 5
TURN, SHIFT, NOISE = math.radians(20.0), 0.6, 0.06
"""Growth a severity: half-width of the turn in radians, of the shift in pixels, and the noise's standard deviation (of 0..1)."""
SEED = 20190101
DRAWS = {"train": 1, "route": 4, "test": 1}
"""How often each digit is there at each severity, corrupted anew; more in `route`, or routers learn its images by heart."""


def _originals(split: str) -> tuple[Tensor, Tensor, Tensor]:
    bunch = load_digits()
    quarter = rank_in_class(bunch.target.astype(np.int64)) % 4
    part = {"train": quarter < 2, "route": quarter == 2, "test": quarter == 3}[split]
    scans = torch.from_numpy(bunch.images[part] * (255.0 / 16.0)).round().to(torch.uint8)
    margin = (CANVAS - scans.shape[-1]) // 2
    rows = torch.from_numpy(np.flatnonzero(part))
    return F.pad(scans, (margin,) * 4)[:, None], torch.from_numpy(bunch.target[part]).long(), rows


def corrupt(images: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, move and add noise to uint8 `(N, 1, H, W)` images, each by its own severity (int, 0 leaves it as it is)."""

    def draw(*shape: int) -> Tensor:
        return 2.0 * torch.rand(len(images), *shape, generator=generator, device=images.device) - 1.0

    level = severity.to(torch.float32)
    angle, shift = draw() * level * TURN, draw(2) * (level * SHIFT * 2.0 / images.shape[-1])[:, None]
    cos, sin = angle.cos(), angle.sin()
    affine = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, align_corners=False)
    noise = torch.randn(moved.shape, generator=generator, device=images.device) * (255.0 * NOISE * level)[:, None, None, None]
    return torch.where((level > 0)[:, None, None, None], moved + noise, images.float()).round().clamp(0, 255).to(torch.uint8)


def load(split: str, data_root: str | None = None, download: bool = True) -> ImageSet:
    """One split: a half of the digits for `train`, a quarter each for `route` and `test`.

    Every digit is there untouched (severity 0) and corrupted at severities 1 to 5, `DRAWS[split]` times each.
    Originals are dealt by (class, rank within the class) modulo 4, so no digit is in two splits. `data_root` and
    `download` are accepted as for every data set; the digits come with scikit-learn and need neither.
    """
    scans, labels, rows = _originals(split)
    levels = torch.arange(SEVERITIES + 1).repeat(DRAWS[split])
    severity = levels.repeat_interleave(len(scans))
    generator = torch.Generator().manual_seed(SEED + SPLITS.index(split))
    images = corrupt(scans.repeat(len(levels), 1, 1, 1), severity, generator)
    copies = [part.repeat(len(levels)).numpy() for part in (labels, rows)]
    return ImageSet(images.numpy(), copies[0], copies[1], severity.numpy(), CLASSES)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """A fresh corruption of random severity for each untouched training image, uint8 to uint8."""
    severity = torch.randint(0, SEVERITIES + 1, (len(images),), generator=generator, device=images.device)
    return corrupt(images, severity, generator)
