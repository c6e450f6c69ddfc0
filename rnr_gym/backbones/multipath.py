"""Multi-path residual networks: identity beside parallel residual branches of growing width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym.backbones.base import Backbone, Glance, Layer, PooledHead, Shortcut, round_to_eight
from rnr_gym.macs import conv_macs


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


class MultiPathLayer(Layer):
    """Sub-paths, after the exit where there is one: identity, then one residual branch of each inner width."""

    def __init__(
        self, in_width: int, width: int, stride: int, inner: Sequence[int], side: tuple[int, int], head: PooledHead | None, first: int
    ) -> None:
        super().__init__()
        self.first, self.side = first, side
        self.shortcut = Shortcut(in_width, width, stride)
        self.branches = nn.ModuleList(residual_branch(in_width, part, width, stride) for part in inner)
        self.head = head
        self.inner, self.num_paths = list(inner), first + 1 + len(inner)
        self.widths = [width] * self.num_paths

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
        image_shape: `(C, H, W)`.
        classes: number of classes.
        widths: channels of each stage; every stage but the first halves the resolution.
        blocks: blocks of each stage; their sum is T, the number of decisions.
        inner: inner widths as fractions of the stage's, ascending, the last 1; each is rounded to a multiple of 8.
        exits: the layers (1 and above) with an exit head; empty, and no glance, for a backbone without exits.
        glance_widths: output channels of the glance's convolutions; empty for none. The glance is layer 0's exit.
        glance_strides: their strides.
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
    ) -> None:
        super().__init__()
        check_shape(image_shape, widths, blocks, exits)
        check_fractions(inner)
        channels, height, width_px = image_shape
        first = int(bool(exits) or bool(glance_widths))
        self.stem_width = widths[0]
        self.stem = nn.Sequential(nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True))
        self.glance = Glance(image_shape, classes, glance_widths, glance_strides) if glance_widths else None
        layers: list[Layer] = []
        side, in_width = (height, width_px), widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                stride = 2 if stage and not block else 1
                side = (-(-side[0] // stride), -(-side[1] // stride))
                head = PooledHead(in_width, classes) if len(layers) in exits else None
                layers.append(MultiPathLayer(in_width, width, stride, branch_widths(width, inner), side, head, first))
                in_width = width
        self.layers, self.head = nn.ModuleList(layers), PooledHead(in_width, classes)
        config = {"image_shape": list(image_shape), "classes": classes, "widths": list(widths), "blocks": list(blocks), "inner": list(inner)}
        config |= {"exits": sorted(exits), "glance_widths": list(glance_widths), "glance_strides": list(glance_strides)}
        self._finish(config, image_shape, conv_macs(channels, widths[0], (height, width_px)), bool(first))

    def plain(self) -> nn.Sequential:
        blocks = [PlainBlock(layer.shortcut, layer.branches[-1]) for layer in self.layers]
        return nn.Sequential(self.stem, *blocks, self.head)


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


def check_shape(image_shape: Sequence[int], widths: Sequence[int], blocks: Sequence[int], exits: Sequence[int]) -> None:
    """Refuse stage and exit lists that do not fit together."""
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"`image_shape` must be (channels, height, width), got {tuple(image_shape)}")
    if len(widths) != len(blocks) or not widths or min(blocks) < 1:
        raise ValueError(f"`widths` and `blocks` must have one positive entry a stage, got {list(widths)} and {list(blocks)}")
    if any(width % 8 for width in widths) or list(widths) != sorted(widths):
        raise ValueError(f"`widths` must be ascending multiples of 8, got {list(widths)}")
    if any(not 1 <= layer < sum(blocks) for layer in exits):
        raise ValueError(f"`exits` must name layers 1..{sum(blocks) - 1} (layer 0 exits by the glance), got {sorted(exits)}")
