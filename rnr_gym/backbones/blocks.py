"""The building blocks of routable networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym.backbones.folding import fused, with_parameters
from rnr_gym.backbones.macs import conv_macs, linear_macs

GLANCE_SIDE = 64
"""Shorter sides in pixels of what the glance of an off-the-shelf network sees are below it."""


def round_to_eight(width: float) -> int:
    """The nearest multiple of 8, at least 8: hardware is not faster at widths in between."""
    return max(8, 8 * round(width / 8))


def strided(side: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width in pixels after a padded convolution of that stride: rounded up."""
    height, width = side
    return -(-height // stride), -(-width // stride)


def pooled_channels(features: Tensor) -> Tensor:
    """Features `(N, C, H, W)` -> `(N, C)`, the mean of each channel.

    In single precision even if the network runs in half precision.
    """
    return features.mean((2, 3), dtype=torch.promote_types(features.dtype, torch.float32))


def residual_branch(in_width: int, inner: int, width: int, stride: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each followed by its batch-norm.

    `(N, in_width, H, W)` -> `(N, width, H / stride, W / stride)`.
    """
    return nn.Sequential(
        nn.Conv2d(in_width, inner, 3, stride, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
    )


class PlainBlock(nn.Module):
    """The ordinary residual block: shortcut plus branch, then ReLU."""

    def __init__(self, shortcut: Shortcut, branch: nn.Module) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut.rectified_sum(x, self.branch(x))


class PooledHead(nn.Module):
    """Global average pooling and one linear map.

    Features `(N, c <= C, H, W)`, or `(N, c)` if they have been averaged over the pixels already,
    -> logits `(N, classes)`. The head reads only the channels that arrive, so a pruned stream pays
    for no more.

    Args:
        channels: C.
        classes: number of classes.
        context: width of a vector that the head reads in addition to the features; 0 for none.
    """

    def __init__(self, channels: int, classes: int, context: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)
        self.context = nn.Linear(context, classes, bias=False) if context else None

    def forward(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        pooled = features
        if features.ndim == 4:
            pooled = pooled_channels(features)
        # A pruned stream holds the first channels, never others.
        weight = self.linear.weight[:, : pooled.shape[1]]
        logits = F.linear(pooled.to(weight.dtype), weight, self.linear.bias)

        if self.context is None or context is None:
            return logits
        return logits + self.context(context)

    def macs(self, channels: int) -> int:
        """MACs of an image whose features have that many channels."""
        in_features = channels
        if self.context is not None:
            in_features += self.context.in_features
        return linear_macs(in_features, self.linear.out_features)


class Shortcut(nn.Module):
    """The parameter-free residual shortcut: every `stride`-th pixel, zeros for new channels.

    `(N, in_width, H, W)` -> `(N, width, H / stride, W / stride)`. Costs no MACs.
    """

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.extra = width - in_width

    def forward(self, x: Tensor) -> Tensor:
        kept = self._kept(x)
        # Zeros at the end of the channels: pads are given from the last axis backwards.
        if self.extra:
            kept = F.pad(kept, (0, 0, 0, 0, 0, self.extra))
        return kept

    def rectified_sum(self, x: Tensor, branch: Tensor) -> Tensor:
        """ReLU of what the shortcut makes of `x` plus a branch's output, which is overwritten."""
        kept = self._kept(x)
        # No zeros are added, and no memory is fetched, which would take longer than the sum.
        branch[:, : kept.shape[1]] += kept
        return F.relu(branch, inplace=True)

    def _kept(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            return x[:, :, :: self.stride, :: self.stride]
        return x


class WhitenedStem(nn.Module):
    """Fixed whitening filters with GELU, then a convolution with batch-norm and ReLU.

    Images `(N, C, H, W)` -> features `(N, width, H / 2, W / 2)`, rounded up. The filters read 2 x 2
    patches that do not overlap. They are the eigenvectors of the training patches' covariance,
    scaled to unit variance, each with both signs, so that GELU loses nothing.
    `calibration.measure_whitening` sets them; until then they are random. Source: Jordan, *94% on
    CIFAR-10 in 3.29 Seconds on a Single GPU* (2024), whose patches overlap; halving the resolution
    at once costs a quarter as much.

    Args:
        image_shape: `(C, H, W)`.
        width: output channels.

    Attributes:
        side: `(height, width)` of the output, in pixels.
        macs: MACs of one image.
    """

    filters: Tensor

    def __init__(self, image_shape: Sequence[int], width: int) -> None:
        super().__init__()
        channels, height, width_px = image_shape
        num_filters = 8 * channels  # 4 * channels directions, both signs
        # A buffer, not a parameter: whitening is measured, never trained.
        self.register_buffer("filters", torch.randn(num_filters, channels, 2, 2) / 2.0)
        self.bias = nn.Parameter(torch.zeros(num_filters))
        self.conv = nn.Conv2d(num_filters, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.folded = nn.Sequential()

        self.side = strided((height, width_px), 2)
        whitening_macs = conv_macs(channels, num_filters, self.side, kernel=2)
        self.macs = whitening_macs + conv_macs(num_filters, width, self.side)

    def fold(self) -> None:
        """From now on, run convolutions that have filters and norm in them."""
        num_filters, channels = self.filters.shape[:2]
        whitening = nn.Conv2d(channels, num_filters, 2, 2, device="meta")
        self.folded = nn.Sequential(
            with_parameters(whitening, self.filters, self.bias),
            nn.GELU(),
            fused(self.conv.weight, self.norm),
            nn.ReLU(inplace=True),
        )

    def forward(self, images: Tensor) -> Tensor:
        # Odd sides get one zero row or column, so that every pixel lies in a patch.
        even = F.pad(images, (0, images.shape[3] % 2, 0, images.shape[2] % 2))
        if len(self.folded):
            features: Tensor = self.folded(even)
            return features

        whitened = F.gelu(F.conv2d(even, self.filters, self.bias, stride=2))
        return F.relu(self.norm(self.conv(whitened)), inplace=True)


class ResidualGlance(nn.Module):
    """A very small residual network over the whole image.

    Images `(N, C, H, W)` -> pooled `(N, G)`, logits `(N, classes)`.

    Args:
        image_shape: `(C, H, W)`.
        classes: number of classes.
        widths: channels of the whitened stem, then of one block each that halves the resolution;
            the last is G.

    Attributes:
        width: G.
        macs: MACs of one image.
    """

    def __init__(self, image_shape: Sequence[int], classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.width = widths[-1]
        self.stem = WhitenedStem(image_shape, widths[0])
        self.macs = self.stem.macs + linear_macs(self.width, classes)

        # The stem has halved the resolution already; every block halves it again.
        side = self.stem.side
        blocks = []
        for in_width, width in itertools.pairwise(widths):
            side = strided(side, 2)
            branch = residual_branch(in_width, width, width, 2)
            blocks.append(PlainBlock(Shortcut(in_width, width, 2), branch))
            self.macs += conv_macs(in_width, width, side) + conv_macs(width, width, side)

        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(self.width, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = pooled_channels(self.blocks(self.stem(images)))  # (N, G)
        return pooled, self.linear(pooled)


class Glance(nn.Module):
    """A very small network of plain convolutions over the whole image.

    Images `(N, C, H, W)` -> pooled `(N, G)`, logits `(N, classes)`.

    Args:
        image_shape: `(C, H, W)`.
        classes: number of classes.
        widths: output channels of each convolution; the last is G.
        strides: stride of each convolution.
        shrink: it sees the mean of every square of so many pixels a side.

    Attributes:
        width: G.
        macs: MACs of one image.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        classes: int,
        widths: Sequence[int],
        strides: Sequence[int],
        shrink: int = 1,
    ) -> None:
        super().__init__()
        self.width = widths[-1]
        self.shrink = shrink
        self.macs = linear_macs(self.width, classes)

        in_channels, height, width_px = image_shape
        side = strided((height, width_px), shrink)
        stages: list[nn.Module] = []
        for channels, stride in zip(widths, strides, strict=True):
            side = strided(side, stride)
            self.macs += conv_macs(in_channels, channels, side)
            stages.append(nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False))
            stages.append(nn.BatchNorm2d(channels))
            stages.append(nn.ReLU(inplace=True))
            in_channels = channels

        self.stages = nn.Sequential(*stages)
        self.linear = nn.Linear(self.width, classes)

    @classmethod
    def within(cls, image_shape: Sequence[int], classes: int, macs: float) -> Glance:
        """The widest one of a plain form that costs at most so many MACs, if any does.

        Images are averaged down by a power of two until the shorter side is below `GLANCE_SIDE`.
        Three convolutions halve the resolution each, and double the channels, of which the first
        has 8 to 64.
        """
        _, height, width_px = image_shape
        shrink = 1
        while min(height, width_px) // shrink >= GLANCE_SIDE:
            shrink *= 2

        def of_width(width: int) -> Glance:
            widths = (width, 2 * width, 4 * width)
            return cls(image_shape, classes, widths, (2, 2, 2), shrink)

        fitting = 8
        for width in range(16, 72, 8):
            # Only to be counted.
            with torch.device("meta"):
                if of_width(width).macs <= macs:
                    fitting = width
        return of_width(fitting)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.shrink > 1:
            images = F.avg_pool2d(images, self.shrink, ceil_mode=True)
        pooled = pooled_channels(self.stages(images))  # (N, G)
        dtype = next(self.linear.parameters()).dtype
        return pooled, self.linear(pooled.to(dtype))
