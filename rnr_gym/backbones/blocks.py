"""The pieces that routable networks are built from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym.macs import conv_macs, linear_macs


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
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features.mean((2, 3)), self.linear.weight[:, : features.shape[1]], self.linear.bias)

    def macs(self, channels: int) -> int:
        """MACs of an image whose features have that many channels."""
        return linear_macs(channels, self.linear.out_features)


class Shortcut(nn.Module):
    """The parameter-free residual shortcut: keep every `stride`-th pixel, append zero channels. Costs no MACs."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, width - in_width

    def forward(self, x: Tensor) -> Tensor:  # (N, in_width, H, W) -> (N, width, H / stride, W / stride)
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.extra)) if self.extra else x


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
