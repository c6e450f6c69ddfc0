"""Multi-path residual networks: identity beside parallel residual branches of growing width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym.backbones.base import Backbone, Layer, Place
from rnr_gym.backbones.blocks import PlainBlock, PooledHead, Shortcut, residual_branch, round_to_eight
from rnr_gym.macs import conv_macs


class MultiPathLayer(Layer):
    """Sub-paths, after the exit where there is one: identity, then one residual branch of each inner width."""

    def __init__(self, place: Place, inner: Sequence[int], head: PooledHead | None) -> None:
        super().__init__()
        self.first, self.side, self.inner, self.head = place.first, place.side, list(inner), head
        self.shortcut = Shortcut(place.in_width, place.width, 1 + place.halve)
        self.branches = nn.ModuleList(residual_branch(place.in_width, part, place.width, 1 + place.halve) for part in inner)
        self.num_paths = place.first + 1 + len(inner)
        self.widths = [place.width] * self.num_paths

    def forward(self, x: Tensor, sub_path: int, came_by: int | None = None) -> Tensor:
        kept: Tensor = self.shortcut(x)
        if sub_path == self.first:
            return kept  # already rectified by the layer before
        return F.relu(kept + self.branches[sub_path - self.first - 1](x))

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
        image_shape, classes, widths, blocks, exits, glance_widths, glance_strides, condensed: as for `Backbone`.
    """

    kind = "multipath"

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
        condensed: int = 0,
    ) -> None:
        check_fractions(inner)
        self.inner = tuple(inner)
        super().__init__(image_shape, classes, widths, blocks, exits, glance_widths, glance_strides, condensed, {"inner": list(inner)})

    def _layer(self, place: Place, head: PooledHead | None) -> Layer:
        return MultiPathLayer(place, branch_widths(place.width, self.inner), head)

    def plain(self) -> nn.Sequential:
        blocks = [PlainBlock(layer.shortcut, layer.branches[-1]) for layer in self.layers]
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
