"""Photographs made harder: noise, blur, lost contrast and compression, each in five severities.

What is corrupted, and how, follows Hendrycks and Dietterich, *Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations* (2019); the strengths are our own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Generator, Tensor

from rnr_gym.data.images import ImageSet

SEVERITIES = 5
SEED = 2019
"""Of which image gets which corruption, so that the corrupted images are always the same."""
NOISE = 0.01
"""Standard deviation of noise per severity, in units of the pixel range."""
BLUR = (0.4, 0.6, 0.8, 1.0, 1.2)
"""Standard deviation of the blur by severity, in pixels."""
CONTRAST = 0.15
"""Share of the contrast that is lost per severity."""
QUALITY = (60, 40, 25, 15, 8)
"""JPEG quality by severity."""


def noisy(image: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add Gaussian noise."""
    noise = torch.randn(image.shape, generator=generator) * (255.0 * NOISE * severity)
    return (image + noise).round().clamp(0, 255).to(torch.uint8)


def blurred(image: Tensor, severity: int, generator: Generator) -> Tensor:
    """Blur by a Gaussian."""
    # Here and below: torchvision is slow to import, and most data sets do without it.
    from torchvision.transforms.v2 import functional as transforms

    return transforms.gaussian_blur(image, kernel_size=[7, 7], sigma=[BLUR[severity - 1]])


def flat(image: Tensor, severity: int, generator: Generator) -> Tensor:
    """Draw all pixels towards the mean grey."""
    from torchvision.transforms.v2 import functional as transforms

    return transforms.adjust_contrast(image, 1.0 - CONTRAST * severity)


def compressed(image: Tensor, severity: int, generator: Generator) -> Tensor:
    """Encode as JPEG and decode."""
    from torchvision.transforms.v2 import functional as transforms

    return transforms.jpeg(image, QUALITY[severity - 1])


CORRUPTIONS = (noisy, blurred, flat, compressed)
"""Each takes a uint8 image `(3, H, W)`, a severity 1..5 and a generator, and gives an image."""


def corrupted(images: ImageSet) -> ImageSet:
    """One corrupted version of each image: corruption and severity 1..5 are drawn, seeded."""
    generator = torch.Generator().manual_seed(SEED)
    kind = torch.randint(len(CORRUPTIONS), (len(images),), generator=generator)
    severity = torch.randint(1, SEVERITIES + 1, (len(images),), generator=generator)

    pixels = []
    for image, which, level in zip(
        np.asarray(images.images), kind.tolist(), severity.tolist(), strict=True
    ):
        # A copy, because the set is read-only and torch warns of tensors that are.
        corrupt = CORRUPTIONS[which]
        pixels.append(corrupt(torch.from_numpy(image.copy()), level, generator).numpy())
    return replace(images, images=np.stack(pixels), severity=severity.numpy())
