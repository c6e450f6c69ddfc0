"""Multi-path residual networks: identity, and parallel residual branches of growing width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym import checks
from rnr_gym.backbones.blocks import PlainBlock, PooledHead, Shortcut, round_to_eight
from rnr_gym.backbones.folding import fused
from rnr_gym.backbones.layer import Layer, LayerSpec
from rnr_gym.backbones.macs import conv_macs
from rnr_gym.backbones.staged import StagedNet


class Branch(nn.Module):
    """Two 3 x 3 convolutions, each with one batch-norm per previous sub-path.

    The features that arrive differ so much with the previous sub-path that statistics over all of
    them would fit none. The norms share scale and shift; only their statistics are separate.
    `(N, in_width, H, W)` -> `(N, width, H / stride, W / stride)`.

    Args:
        in_width: channels that arrive.
        inner: channels between the convolutions.
        width: channels of the output.
        stride: of the first convolution.
        num_prev: number of previous sub-paths, without the exit.
    """

    def __init__(self, in_width: int, inner: int, width: int, stride: int, num_prev: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, inner, 3, stride, 1, bias=False)
        self.norms1 = shared_norms(inner, num_prev)
        self.conv2 = nn.Conv2d(inner, width, 3, 1, 1, bias=False)
        self.norms2 = shared_norms(width, num_prev)
        self.folded = nn.ModuleList()

    def fold(self) -> None:
        """From now on, run convolutions that have their norm in them."""
        stride = self.conv1.stride[0]
        for norm1, norm2 in zip(self.norms1, self.norms2, strict=True):
            first = fused(self.conv1.weight, norm1, stride)
            second = fused(self.conv2.weight, norm2)
            self.folded.append(nn.Sequential(first, nn.ReLU(inplace=True), second))

    def forward(self, x: Tensor, prev_idx: int) -> Tensor:
        if self.folded:
            whole: Tensor = self.folded[prev_idx](x)
            return whole
        x = F.relu(self.norms1[prev_idx](self.conv1(x)), inplace=True)
        y: Tensor = self.norms2[prev_idx](self.conv2(x))
        return y

    def plain(self) -> nn.Sequential:
        """The branch as the full path runs it, of the same modules."""
        return nn.Sequential(
            self.conv1,
            self.norms1[-1],
            nn.ReLU(inplace=True),
            self.conv2,
            self.norms2[-1],
        )


def shared_norms(channels: int, count: int) -> nn.ModuleList:
    """Batch-norms with separate statistics, and one scale and shift for all of them."""
    # The same `Parameter` objects, so that the gradients of all previous sub-paths add up.
    norms = [nn.BatchNorm2d(channels) for _ in range(count)]
    for norm in norms[1:]:
        norm.weight = norms[0].weight
        norm.bias = norms[0].bias
    return nn.ModuleList(norms)


class MultiPathLayer(Layer):
    """Sub-paths in order: the exit if the backbone has exits, identity, branches by inner width.

    Args:
        layer_spec: widths, resolution and the first sub-path that is not an exit.
        inner: inner widths of the branches, in channels.
        head: the exit's head, or None.
    """

    def __init__(
        self, layer_spec: LayerSpec, inner: Sequence[int], head: PooledHead | None
    ) -> None:
        super().__init__()
        self.first_sub_path = layer_spec.first_sub_path
        self.side = layer_spec.side
        self.inner = list(inner)
        self.head = head

        in_width = layer_spec.in_width
        width = layer_spec.width
        stride = 1 + layer_spec.halve
        num_paths = 1 + len(self.inner)  # without the exit
        self.shortcut = Shortcut(in_width, width, stride)
        self.branches = nn.ModuleList(
            Branch(in_width, inner_width, width, stride, num_prev=num_paths)
            for inner_width in self.inner
        )

        self.num_paths = self.first_sub_path + num_paths
        self.widths = [width] * self.num_paths

    def forward(self, x: Tensor, sub_path: int, prev_sub_path: int | None = None) -> Tensor:
        # Identity; the features are rectified already, by the layer before or the stem.
        if sub_path == self.first_sub_path:
            kept: Tensor = self.shortcut(x)
            return kept

        # Without a previous sub-path, as at the full path: the last norm.
        prev_idx = -1
        if prev_sub_path is not None:
            prev_idx = prev_sub_path - self.first_sub_path
        branch = self.branches[sub_path - self.first_sub_path - 1]
        return self.shortcut.rectified_sum(x, branch(x, prev_idx))

    def macs(self, sub_path: int, in_width: int) -> int:
        # Identity computes nothing, and the exit is counted by its head.
        if sub_path <= self.first_sub_path:
            return 0
        inner = self.inner[sub_path - self.first_sub_path - 1]
        return conv_macs(in_width, inner, self.side) + conv_macs(inner, self.widths[-1], self.side)


class MultiPathResNet(StagedNet):
    """A CIFAR-style ResNet whose blocks offer identity and residual branches of growing width.

    The full path (widest branch everywhere) is a ResNet with parameter-free shortcuts (He et al.
    2016, option A).

    Args:
        inner: inner widths as fractions of the stage's, ascending, the last 1; each is rounded to a
            multiple of 8.
        image_shape, classes, widths, blocks, exits: as for `StagedNet`.
        glance_widths, glance_strides, summary_groups, whitened: as for `StagedNet`.
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
        # Before `StagedNet` builds the layers, which read it.
        self.inner = tuple(inner)
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
            own_config={"inner": list(inner)},
        )

    def _layer(self, layer_spec: LayerSpec, head: PooledHead | None) -> Layer:
        return MultiPathLayer(layer_spec, branch_widths(layer_spec.width, self.inner), head)

    def plain(self) -> nn.Sequential:
        blocks = [PlainBlock(layer.shortcut, layer.branches[-1].plain()) for layer in self.layers]
        return nn.Sequential(self.stem, *blocks, self.head).train(self.training)


def branch_widths(width: int, inner: Sequence[float]) -> list[int]:
    """The inner widths in channels, ascending.

    Raises `ValueError` if rounding makes two of them equal.
    """
    rounded = [round_to_eight(width * fraction) for fraction in inner]
    if len(set(rounded)) < len(rounded):
        raise ValueError(
            f"`inner` must give distinct multiples of 8 at width {width}, "
            f"got {list(inner)} -> {rounded}"
        )
    return rounded


def check_fractions(inner: Sequence[float]) -> None:
    """Raise `ValueError` if inner widths are not ascending fractions ending in 1."""
    is_numbers = isinstance(inner, Sequence) and all(map(checks.is_number, inner))
    ascends = is_numbers and len(inner) > 0 and list(inner) == sorted(set(inner))
    if not ascends or inner[0] <= 0 or inner[-1] != 1:
        raise ValueError(
            f"`inner` must be ascending fractions of the width, the last of them 1, got {inner!r}"
        )
