"""The pieces that routable networks are built from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym.backbones.macs import conv_macs, linear_macs


def round_to_eight(width: float) -> int:
    """The nearest multiple of 8, at least 8: narrower convolutions save no time on real hardware."""
    return max(8, 8 * round(width / 8))


def residual_branch(in_width: int, inner: int, width: int, stride: int) -> nn.Sequential:
    """Two 3 x 3 convolutions with their own batch-norms. `(N, in_width, H, W)` -> `(N, width, H / stride, W / stride)`."""
    return nn.Sequential(
        nn.Conv2d(in_width, inner, 3, stride, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
    )


class PlainBlock(nn.Module):
    """The ordinary residual block: shortcut plus branch, then ReLU."""

    def __init__(self, shortcut: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.shortcut, self.branch = shortcut, branch

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.branch(x))


class PooledHead(nn.Module):
    """Global average pooling and one linear map. Features `(N, c <= C, H, W)` -> logits `(N, classes)`.

    Reads only the channels that are there, so a pruned stream pays for no more.

    Args:
        channels: C.
        classes: number of classes.
        context: width of a vector that the head reads beside the features; 0 for none.
    """

    def __init__(self, channels: int, classes: int, context: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)
        self.context = nn.Linear(context, classes, bias=False) if context else None

    def forward(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        weight = self.linear.weight[:, : features.shape[1]]
        logits = F.linear(features.mean((2, 3)), weight, self.linear.bias)

        if self.context is None or context is None:
            return logits
        return logits + self.context(context)

    def macs(self, channels: int) -> int:
        """MACs of an image whose features have that many channels."""
        context = self.context.in_features if self.context is not None else 0
        return linear_macs(channels + context, self.linear.out_features)


class Shortcut(nn.Module):
    """The parameter-free residual shortcut: keep every `stride`-th pixel, append zero channels. Costs no MACs."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, width - in_width

    def forward(self, x: Tensor) -> Tensor:  # (N, in_width, H, W) -> (N, width, H / stride, W / stride)
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.extra)) if self.extra else x


class WhitenedStem(nn.Module):
    """Fixed whitening filters with GELU, then a convolution with batch-norm and ReLU.

    Images `(N, C, H, W)` -> features `(N, width, H / 2, W / 2)`, rounded up. The filters read 2 x 2
    patches that do not overlap: the eigenvectors of the training patches' covariance, scaled to unit
    variance, each with both signs, so that GELU loses nothing. `calibration.measure_whitening` sets
    them; until then they are random. Source: Jordan, *94% on CIFAR-10 in 3.29 Seconds on a Single
    GPU* (2024), whose patches overlap; halving the resolution at once costs a quarter as much.

    Args:
        image_shape: `(C, H, W)`.
        width: output channels.
    """

    filters: Tensor

    def __init__(self, image_shape: Sequence[int], width: int) -> None:
        super().__init__()
        channels, height, width_px = image_shape
        patches = 8 * channels  # 4 * channels directions, both signs
        self.register_buffer("filters", torch.randn(patches, channels, 2, 2) / 2.0)
        self.bias = nn.Parameter(torch.zeros(patches))
        self.conv = nn.Conv2d(patches, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

        side = (-(-height // 2), -(-width_px // 2))
        self.macs = conv_macs(channels, patches, side, kernel=2) + conv_macs(patches, width, side)

    def forward(self, images: Tensor) -> Tensor:
        even = F.pad(images, (0, images.shape[3] % 2, 0, images.shape[2] % 2))
        whitened = F.gelu(F.conv2d(even, self.filters, self.bias, stride=2))
        return F.relu(self.norm(self.conv(whitened)))


class ResidualGlance(nn.Module):
    """A very small residual network. Images `(N, C, H, W)` -> pooled `(N, G)`, logits `(N, classes)`.

    Args:
        image_shape: `(C, H, W)`.
        classes: number of classes.
        widths: channels of the whitened stem, then of one block each that halves the
            resolution; the last is G.
    """

    def __init__(self, image_shape: Sequence[int], classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = WhitenedStem(image_shape, widths[0])
        self.macs = self.stem.macs + linear_macs(widths[-1], classes)
        side = (-(-image_shape[1] // 2), -(-image_shape[2] // 2))

        blocks = []
        for in_width, width in itertools.pairwise(widths):
            side = (-(-side[0] // 2), -(-side[1] // 2))
            branch = residual_branch(in_width, width, width, 2)
            blocks.append(PlainBlock(Shortcut(in_width, width, 2), branch))
            self.macs += conv_macs(in_width, width, side) + conv_macs(width, width, side)

        self.blocks = nn.Sequential(*blocks)
        self.width = widths[-1]
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.blocks(self.stem(images)).mean((2, 3))
        return pooled, self.linear(pooled)


class Glance(nn.Module):
    """A very small network over the whole image. Images `(N, C, H, W)` -> pooled `(N, G)`, logits `(N, classes)`.

    Args:
        image_shape: `(C, H, W)`.
        widths: output channels of each convolution; the last is G.
        strides: stride of each convolution.
    """

    def __init__(self, image_shape: Sequence[int], classes: int, widths: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        if len(widths) != len(strides) or not widths:
            raise ValueError(f"`glance` needs as many widths as strides, at least one, got {list(widths)} and {list(strides)}")
        stages, self.macs = [], linear_macs(widths[-1], classes)
        channels, height, width_px = image_shape
        for width, stride in zip(widths, strides, strict=True):
            height, width_px = -(-height // stride), -(-width_px // stride)
            self.macs += conv_macs(channels, width, (height, width_px))
            stages += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.width, self.stages, self.linear = channels, nn.Sequential(*stages), nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.stages(images).mean((2, 3))
        return pooled, self.linear(pooled)
