"""Incremental channel pruning: channels in ordered groups, sub-path i computes groups 1 to i.

Two forms. *Residual*: the channels inside each block are pruned, so the stream between blocks keeps
its width. *VGG-like*: the stream itself is pruned, and what a layer costs depends on the channels
that arrive, that is, on `prev_sub_path`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym import checks
from rnr_gym.backbones.blocks import PlainBlock, PooledHead, Shortcut, residual_branch
from rnr_gym.backbones.folding import fused
from rnr_gym.backbones.layer import Layer, LayerSpec
from rnr_gym.backbones.macs import conv_macs
from rnr_gym.backbones.staged import StagedNet


class PrefixBatchNorm(nn.BatchNorm2d):
    """Batch-norm over the first channels only, as many as arrive; the others keep their statistics.

    As in `nn.BatchNorm2d`, `momentum=None` keeps plain averages, here of the batches that each
    channel was in.
    """

    num_batches: Tensor  # (C,): how many batches each channel was in

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("num_batches", torch.zeros(channels), persistent=False)

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        # The parent's constructor calls this before the buffer is there.
        if hasattr(self, "num_batches"):
            self.num_batches.zero_()

    def forward(self, x: Tensor) -> Tensor:  # (N, c <= C, H, W) -> the same
        assert self.running_mean is not None
        assert self.running_var is not None
        # Views, so that `F.batch_norm` and `_average` update the buffers in place.
        arriving = slice(0, x.shape[1])
        mean = self.running_mean[arriving]
        var = self.running_var[arriving]

        momentum = self.momentum
        if momentum is None:
            momentum = 0.0
            # `F.batch_norm` knows no plain averages, so it is told to leave the statistics alone.
            if self.training:
                self._average(x, mean, var, self.num_batches[arriving])
        return F.batch_norm(
            x,
            mean,
            var,
            self.weight[arriving],
            self.bias[arriving],
            self.training,
            momentum,
            self.eps,
        )

    @torch.no_grad()
    def _average(self, x: Tensor, mean: Tensor, var: Tensor, num_batches: Tensor) -> None:
        """Add a batch to the averages, in place."""
        num_batches += 1.0
        mean += (x.mean((0, 2, 3)) - mean) / num_batches
        var += (x.var((0, 2, 3)) - var) / num_batches


def group_widths(width: int, groups: int) -> list[int]:
    """Channels of the first group, of the first two groups, ..., of all."""
    return [width * group // groups for group in range(1, groups + 1)]


class PrunedResidualLayer(Layer):
    """A residual block whose inner channels are computed up to group i.

    The first norm is shared, because its input always has its full width; the second has separate
    statistics, scale and shift per sub-path.
    """

    def __init__(self, layer_spec: LayerSpec, groups: int, head: PooledHead | None) -> None:
        super().__init__()
        self.first_sub_path = layer_spec.first_sub_path
        self.side = layer_spec.side
        self.stride = 1 + layer_spec.halve
        self.head = head

        in_width = layer_spec.in_width
        width = layer_spec.width
        self.inner = group_widths(width, groups)
        self.shortcut = Shortcut(in_width, width, self.stride)
        self.conv1 = nn.Conv2d(in_width, width, 3, self.stride, 1, bias=False)
        self.norm1 = PrefixBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.ModuleList(nn.BatchNorm2d(width) for _ in self.inner)
        self.folded = nn.ModuleList()

        self.num_paths = self.first_sub_path + groups
        self.widths = [width] * self.num_paths

    def fold(self) -> None:
        """From now on, run convolutions that have their norm in them."""
        for inner, norm2 in zip(self.inner, self.norm2, strict=True):
            first = fused(self.conv1.weight[:inner], self.norm1, self.stride)
            second = fused(self.conv2.weight[:, :inner], norm2)
            self.folded.append(nn.Sequential(first, nn.ReLU(inplace=True), second))

    def forward(self, x: Tensor, sub_path: int, prev_sub_path: int | None = None) -> Tensor:
        group_idx = sub_path - self.first_sub_path
        if self.folded:
            return self.shortcut.rectified_sum(x, self.folded[group_idx](x))

        inner = self.inner[group_idx]
        # Weights are sliced, not masked: channels that are left out cost no time.
        y = F.conv2d(x, self.conv1.weight[:inner], stride=self.stride, padding=1)
        y = F.relu(self.norm1(y), inplace=True)
        y = F.conv2d(y, self.conv2.weight[:, :inner], padding=1)
        return self.shortcut.rectified_sum(x, self.norm2[group_idx](y))

    def macs(self, sub_path: int, in_width: int) -> int:
        inner = self.inner[sub_path - self.first_sub_path]
        return conv_macs(in_width, inner, self.side) + conv_macs(inner, self.widths[-1], self.side)

    def plain(self) -> PlainBlock:
        """This block at full width, of ordinary modules with copied weights."""
        branch = residual_branch(
            in_width=self.conv1.in_channels,
            inner=self.conv1.out_channels,
            width=self.conv2.out_channels,
            stride=self.stride,
        )
        # The full path is the last sub-path, so it runs the last of the second norms.
        conv1, norm1, _, conv2, norm2 = branch
        conv1.load_state_dict(self.conv1.state_dict())
        norm1.load_state_dict(self.norm1.state_dict())
        conv2.load_state_dict(self.conv2.state_dict())
        norm2.load_state_dict(self.norm2[-1].state_dict())
        return PlainBlock(self.shortcut, branch)


class PrunedConvLayer(Layer):
    """A convolution that reads the channels that arrive and computes its own up to group i.

    It has one batch-norm per `prev_sub_path`, because the features depend on it.
    """

    def __init__(self, layer_spec: LayerSpec, groups: int, head: PooledHead | None) -> None:
        super().__init__()
        self.first_sub_path = layer_spec.first_sub_path
        self.side = layer_spec.side
        self.pool = layer_spec.halve
        self.head = head

        width = layer_spec.width
        self.conv = nn.Conv2d(layer_spec.in_width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(PrefixBatchNorm(width) for _ in range(groups))

        self.num_paths = self.first_sub_path + groups
        # No features leave an exit.
        self.widths = [0] * self.first_sub_path + group_widths(width, groups)

    def forward(self, x: Tensor, sub_path: int, prev_sub_path: int | None = None) -> Tensor:
        if self.pool:
            x = F.max_pool2d(x, 2, ceil_mode=True)
        y = F.conv2d(x, self.conv.weight[: self.widths[sub_path], : x.shape[1]], padding=1)

        # Without a previous sub-path, as at the full path: the last norm.
        prev_idx = -1
        if prev_sub_path is not None:
            prev_idx = prev_sub_path - self.first_sub_path
        return F.relu(self.norms[prev_idx](y), inplace=True)

    def macs(self, sub_path: int, in_width: int) -> int:
        return conv_macs(in_width, self.widths[sub_path], self.side)

    def plain(self) -> nn.Sequential:
        """This layer at full width, of ordinary modules with copied weights."""
        width = self.conv.out_channels
        conv = nn.Conv2d(self.conv.in_channels, width, 3, 1, 1, bias=False)
        norm = nn.BatchNorm2d(width)
        conv.load_state_dict(self.conv.state_dict())
        norm.load_state_dict(self.norms[-1].state_dict())

        modules = [conv, norm, nn.ReLU(inplace=True)]
        if self.pool:
            modules.insert(0, nn.MaxPool2d(2, ceil_mode=True))
        return nn.Sequential(*modules)


class ChannelPrunedNet(StagedNet):
    """A network whose layers can each stop after any of k ordered channel groups.

    Args:
        style: `"residual"` (blocks of two convolutions, inner channels pruned) or `"vgg"` (single
            convolutions, stream pruned).
        groups: k, the channel groups of a layer; widths must be multiples of 8 * k.
        image_shape, classes, widths, blocks, exits: as for `StagedNet`.
        glance_widths, glance_strides, summary_groups, whitened: as for `StagedNet`.
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
        # Before `StagedNet` builds the layers, which read them.
        self.style = style
        self.groups = groups
        self.reads_prev_sub_path = style == "vgg"
        super().__init__(
            image_shape=image_shape,
            classes=classes,
            widths=widths,
            blocks=blocks,
            exits=exits,
            glance_widths=glance_widths,
            glance_strides=glance_strides,
            summary_groups=summary_groups,
            whitened=whitened,
            own_config={"style": style, "groups": groups},
        )

    def _layer(self, layer_spec: LayerSpec, head: PooledHead | None) -> Layer:
        if self.style == "vgg":
            return PrunedConvLayer(layer_spec, self.groups, head)
        return PrunedResidualLayer(layer_spec, self.groups, head)

    @torch.no_grad()
    def plain(self) -> nn.Sequential:
        blocks = [layer.plain() for layer in self.layers]
        network = nn.Sequential(self.stem, *blocks, self.head)
        # The copies are made on the CPU in float32: take over device and type, then the mode.
        return network.to(self.image_mean).train(self.training)


def check_groups(style: str, groups: int, widths: Sequence[int]) -> None:
    """Raise `ValueError` for an unknown style, or groups that are not multiples of 8 channels."""
    checks.choice("style", style, ("residual", "vgg"))
    checks.integer("groups", groups, 2)
    checks.integers("widths", widths, 8)
    if any(width % (8 * groups) for width in widths):
        raise ValueError(
            f"`widths` must be multiples of 8 * `groups`, got {list(widths)} and {groups}"
        )
