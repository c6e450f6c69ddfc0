"""Multi-path residual networks: identity beside parallel residual branches of growing width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym.backbones.base import Backbone, Layer, LayerSpec
from rnr_gym.backbones.blocks import PlainBlock, PooledHead, Shortcut, round_to_eight
from rnr_gym.backbones.macs import conv_macs


class Branch(nn.Module):
    """Two 3 x 3 convolutions, each with one batch-norm for every sub-path that images can have come by.

    What arrives differs so much with the previous sub-path that statistics over all of them would
    fit none. The norms share scale and shift, so only their statistics are apart.
    `(N, in_width, H, W)` -> `(N, width, H / stride, W / stride)`.

    Args:
        in_width: channels that arrive.
        inner: channels between the convolutions.
        width: channels of the output.
        stride: of the first convolution.
        ways: previous sub-paths there are, the exit left out.
    """

    def __init__(self, in_width: int, inner: int, width: int, stride: int, ways: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, inner, 3, stride, 1, bias=False)
        self.norms1 = shared_norms(inner, ways)
        self.conv2 = nn.Conv2d(inner, width, 3, 1, 1, bias=False)
        self.norms2 = shared_norms(width, ways)

    def forward(self, x: Tensor, way: int) -> Tensor:
        x = F.relu(self.norms1[way](self.conv1(x)))
        y: Tensor = self.norms2[way](self.conv2(x))
        return y

    def plain(self) -> nn.Sequential:
        """The branch as the full path runs it, of the same modules."""
        return nn.Sequential(self.conv1, self.norms1[-1], nn.ReLU(inplace=True), self.conv2, self.norms2[-1])


def shared_norms(channels: int, count: int) -> nn.ModuleList:
    """Batch-norms with statistics of their own and one scale and shift for all."""
    norms = [nn.BatchNorm2d(channels) for _ in range(count)]
    for norm in norms[1:]:
        norm.weight, norm.bias = norms[0].weight, norms[0].bias
    return nn.ModuleList(norms)


class MultiPathLayer(Layer):
    """Sub-paths, after the exit where there is one: identity, then one residual branch of each inner width."""

    def __init__(self, place: LayerSpec, inner: Sequence[int], head: PooledHead | None) -> None:
        super().__init__()
        self.first, self.side, self.inner, self.head = place.first, place.side, list(inner), head
        stride = 1 + place.halve
        ways = 1 + len(inner)
        self.shortcut = Shortcut(place.in_width, place.width, stride)
        self.branches = nn.ModuleList(Branch(place.in_width, width, place.width, stride, ways) for width in inner)
        self.num_paths = place.first + ways
        self.widths = [place.width] * self.num_paths

    def forward(self, x: Tensor, sub_path: int, prev_sub_path: int | None = None) -> Tensor:
        kept: Tensor = self.shortcut(x)
        if sub_path == self.first:
            return kept  # already rectified by the layer before

        way = -1 if prev_sub_path is None else prev_sub_path - self.first
        branch = self.branches[sub_path - self.first - 1]
        return F.relu(kept + branch(x, way))

    def macs(self, sub_path: int, in_width: int) -> int:
        if sub_path <= self.first:
            return 0
        inner = self.inner[sub_path - self.first - 1]
        return conv_macs(in_width, inner, self.side) + conv_macs(inner, self.widths[-1], self.side)


class MultiPathResNet(Backbone):
    """A CIFAR-style ResNet whose every block offers identity and residual branches of growing inner width.

    The full path (widest branch everywhere) is a ResNet with parameter-free shortcuts (He et al. 2016, option A).

    Args:
        inner: inner widths as fractions of the stage's, ascending, the last 1; each is rounded to a multiple of 8.
        image_shape, classes, widths, blocks, exits, glance_widths, glance_strides, summary_groups, whitened: as for `Backbone`.
    """

    kind = "multipath"
    has_identity = True
    reads_prev_sub_path = True

    def __init__(
        self,
        image_shape: Sequence[int],
        classes: int,
        widths: Sequence[int] = (32, 64, 128),
        blocks: Sequence[int] = (3, 3, 3),
        inner: Sequence[float] = (0.25, 0.5, 1.0),
        exits: Sequence[int] = (),
        glance_widths: Sequence[int] = (),
        glance_strides: Sequence[int] = (),
        summary_groups: int = 0,
        whitened: bool = False,
    ) -> None:
        check_fractions(inner)
        self.inner = tuple(inner)
        super().__init__(image_shape, classes, widths, blocks, exits, glance_widths, glance_strides, summary_groups, whitened, {"inner": list(inner)})

    def _layer(self, place: LayerSpec, head: PooledHead | None) -> Layer:
        return MultiPathLayer(place, branch_widths(place.width, self.inner), head)

    def plain(self) -> nn.Sequential:
        blocks = [PlainBlock(layer.shortcut, layer.branches[-1].plain()) for layer in self.layers]
        return nn.Sequential(self.stem, *blocks, self.head).train(self.training)


def branch_widths(width: int, inner: Sequence[float]) -> list[int]:
    """The inner widths in channels; ascending, or a `ValueError` where rounding makes two of them equal."""
    rounded = [round_to_eight(width * part) for part in inner]
    if len(set(rounded)) < len(rounded):
        raise ValueError(f"`inner` must give distinct multiples of 8 at width {width}, got {list(inner)} -> {rounded}")
    return rounded


def check_fractions(inner: Sequence[float]) -> None:
    """Refuse inner widths that are not ascending fractions ending in 1."""
    if not inner or list(inner) != sorted(set(inner)) or inner[0] <= 0 or inner[-1] != 1:
        raise ValueError(f"`inner` must be ascending fractions of the width, the last of them 1, got {list(inner)}")
