"""Incremental channel pruning: output channels in ordered groups, sub-path i computes groups 1 to i.

Two forms. *Residual*: the channels inside each block are pruned, so the stream between blocks keeps its width.
*VGG-like*: the stream itself is pruned, and what a layer costs depends on how the image came (`prev_sub_path`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym.backbones.base import Backbone, Layer, LayerSpec
from rnr_gym.backbones.blocks import PlainBlock, PooledHead, Shortcut, residual_branch
from rnr_gym.backbones.macs import conv_macs


class PrefixBatchNorm(nn.BatchNorm2d):
    """Batch-norm over the first channels only, however many arrive; those left out keep their statistics.

    As in `nn.BatchNorm2d`, `momentum=None` keeps plain averages, here of the batches that each channel was in.
    """

    seen: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("seen", torch.zeros(channels), persistent=False)

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        if hasattr(self, "seen"):  # the parent's constructor calls this first
            self.seen.zero_()

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        part = slice(0, x.shape[1])
        mean, var = self.running_mean[part], self.running_var[part]  # views, updated in place
        momentum = self.momentum
        if self.training and momentum is None:
            momentum = 0.0
            self._average(x, mean, var, self.seen[part])
        return F.batch_norm(x, mean, var, self.weight[part], self.bias[part], self.training, momentum or 0.0, self.eps)

    @torch.no_grad()
    def _average(self, x: Tensor, mean: Tensor, var: Tensor, seen: Tensor) -> None:
        seen += 1.0
        mean += (x.mean((0, 2, 3)) - mean) / seen
        var += (x.var((0, 2, 3)) - var) / seen


class PrunedResidualLayer(Layer):
    """A residual block whose inner channels are computed up to group i.

    The first norm is shared (its input has its full width always), the second has a set for each sub-path.
    """

    def __init__(self, place: LayerSpec, groups: int, head: PooledHead | None) -> None:
        super().__init__()
        in_width, width = place.in_width, place.width
        self.first, self.side, self.stride, self.head = place.first, place.side, 1 + place.halve, head
        self.inner = [width * group // groups for group in range(1, groups + 1)]
        self.shortcut = Shortcut(in_width, width, self.stride)
        self.conv1, self.norm1 = nn.Conv2d(in_width, width, 3, self.stride, 1, bias=False), PrefixBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.ModuleList(nn.BatchNorm2d(width) for _ in self.inner)
        self.num_paths = place.first + groups
        self.widths = [width] * self.num_paths

    def forward(self, x: Tensor, sub_path: int, prev_sub_path: int | None = None) -> Tensor:
        inner = self.inner[sub_path - self.first]
        y = F.conv2d(x, self.conv1.weight[:inner], stride=self.stride, padding=1)
        y = F.conv2d(F.relu(self.norm1(y)), self.conv2.weight[:, :inner], padding=1)
        return F.relu(self.shortcut(x) + self.norm2[sub_path - self.first](y))

    def macs(self, sub_path: int, in_width: int) -> int:
        inner = self.inner[sub_path - self.first]
        return conv_macs(in_width, inner, self.side) + conv_macs(inner, self.widths[-1], self.side)

    def plain(self) -> PlainBlock:
        """This block at full width, of ordinary modules."""
        branch = residual_branch(self.conv1.in_channels, self.conv1.out_channels, self.conv2.out_channels, self.stride)
        for ours, theirs in zip((self.conv1, self.norm1, self.conv2, self.norm2[-1]), (branch[0], branch[1], branch[3], branch[4]), strict=True):
            theirs.load_state_dict(ours.state_dict())
        return PlainBlock(self.shortcut, branch)


class PrunedConvLayer(Layer):
    """A convolution that reads the channels that came and computes its own up to group i; one norm set for each `prev_sub_path`."""

    def __init__(self, place: LayerSpec, groups: int, head: PooledHead | None) -> None:
        super().__init__()
        self.first, self.side, self.pool, self.head = place.first, place.side, place.halve, head
        steps = [place.width * group // groups for group in range(1, groups + 1)]
        self.conv = nn.Conv2d(place.in_width, place.width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(PrefixBatchNorm(place.width) for _ in steps)
        self.num_paths = place.first + groups
        self.widths = [0] * place.first + steps

    def forward(self, x: Tensor, sub_path: int, prev_sub_path: int | None = None) -> Tensor:
        x = F.max_pool2d(x, 2, ceil_mode=True) if self.pool else x
        y = F.conv2d(x, self.conv.weight[: self.widths[sub_path], : x.shape[1]], padding=1)
        key = -1 if prev_sub_path is None else prev_sub_path - self.first
        return F.relu(self.norms[key](y))

    def macs(self, sub_path: int, in_width: int) -> int:
        return conv_macs(in_width, self.widths[sub_path], self.side)

    def plain(self) -> nn.Sequential:
        """This layer at full width, of ordinary modules."""
        conv, norm = nn.Conv2d(self.conv.in_channels, self.conv.out_channels, 3, 1, 1, bias=False), nn.BatchNorm2d(self.conv.out_channels)
        conv.load_state_dict(self.conv.state_dict())
        norm.load_state_dict(self.norms[-1].state_dict())
        pool = [nn.MaxPool2d(2, ceil_mode=True)] if self.pool else []
        return nn.Sequential(*pool, conv, norm, nn.ReLU(inplace=True))


class ChannelPrunedNet(Backbone):
    """A network whose layers can each stop after any of k ordered channel groups.

    Args:
        style: `"residual"` (blocks of two convolutions, inner channels pruned) or `"vgg"` (single convolutions, stream pruned).
        groups: k, the channel groups of a layer; widths must be multiples of 8 * k.
        image_shape, classes, widths, blocks, exits, glance_widths, glance_strides, summary_groups, whitened: as for `Backbone`.
    """

    kind = "channels"

    def __init__(
        self,
        image_shape: Sequence[int],
        classes: int,
        style: str = "residual",
        widths: Sequence[int] = (32, 64, 128),
        blocks: Sequence[int] = (3, 3, 3),
        groups: int = 4,
        exits: Sequence[int] = (),
        glance_widths: Sequence[int] = (),
        glance_strides: Sequence[int] = (),
        summary_groups: int = 0,
        whitened: bool = False,
    ) -> None:
        check_groups(style, groups, widths)
        self.style, self.groups, self.reads_prev_sub_path = style, groups, style == "vgg"
        own = {"style": style, "groups": groups}
        super().__init__(image_shape, classes, widths, blocks, exits, glance_widths, glance_strides, summary_groups, whitened, own)

    def _layer(self, place: LayerSpec, head: PooledHead | None) -> Layer:
        return (PrunedConvLayer if self.style == "vgg" else PrunedResidualLayer)(place, self.groups, head)

    @torch.no_grad()
    def plain(self) -> nn.Sequential:
        return nn.Sequential(self.stem, *(layer.plain() for layer in self.layers), self.head).to(self.image_mean).train(self.training)


def check_groups(style: str, groups: int, widths: Sequence[int]) -> None:
    """Refuse an unknown style, and groups that are not whole multiples of 8 channels."""
    if style not in ("residual", "vgg"):
        raise ValueError(f'`style` must be "residual" or "vgg", got {style!r}')
    if groups < 2 or any(width % (8 * groups) for width in widths):
        raise ValueError(f"`widths` must be multiples of 8 * `groups` and `groups` at least 2, got {list(widths)} and {groups}")
