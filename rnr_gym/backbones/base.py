"""The contract that every routable network fulfils."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rnr_gym.backbones.blocks import Glance, PooledHead, ResidualGlance, WhitenedStem
from rnr_gym.backbones.macs import MacTable, conv_macs
from rnr_gym.routing.spec import RoutingSpec


class LayerSpec(NamedTuple):
    """Where a layer stands.

    Attributes:
        in_width, width: channels that come and go at full width.
        halve: whether it halves the resolution.
        side: `(height, width)` of its output, in pixels.
        first: the number of its cheapest sub-path that is no exit.
    """

    in_width: int
    width: int
    halve: bool
    side: tuple[int, int]
    first: int


class Layer(nn.Module):
    """One routing decision.

    `layer(features, sub_path, prev_sub_path)` moves a batch that shares its sub-path; `layer.exit(features)` answers at once.

    Attributes:
        num_paths: how many sub-path numbers there are, the exit included where the backbone has exits.
        head: the exit's head, or None. (Layer 0 exits by the backbone's glance.)
        widths: channels of this layer's output, by sub-path.
    """

    num_paths: int
    head: PooledHead | None
    widths: list[int]

    def exit(self, features: Tensor, glanced: Tensor | None = None) -> Tensor:
        """Features `(N, C, H, W)` as they arrive at this layer -> logits `(N, classes)`.

        `glanced` is what the glance said, `(N, G + classes)`, where exit heads read it.
        """
        if self.head is None:
            raise ValueError("`exit` was called at a layer that has no exit head")
        logits: Tensor = self.head(features, glanced)
        return logits

    def macs(self, sub_path: int, in_width: int) -> int:
        """MACs of an image that arrives with `in_width` channels and takes `sub_path`."""
        raise NotImplementedError


class Backbone(nn.Module):
    """A routable network: `stem`, `layers`, `head` and, optionally, `glance`.

    Sub-path numbers grow with cost and the last is the full path. With exits, number 0 is the exit at every layer.
    A subclass says what its layers are (`_layer`); stages, stem, heads and glance are built here.

    Args:
        image_shape: `(C, H, W)`.
        classes: number of classes.
        widths: channels of each stage, ascending multiples of 8; every stage but the first halves the resolution.
        blocks: layers of each stage; their sum is T, the number of decisions.
        exits: the layers (1 and above) with an exit head; empty, and no glance, for a backbone without exits.
        glance_widths: output channels of the glance's convolutions; empty for none. The glance is layer 0's exit.
        glance_strides: their strides; empty where the stem is whitened.
        summary_groups: 0 for a summary of all pooled features in full precision; else they are averaged over so many groups of
            channels, the glance's are left out, and every value is quantised to 8 bits: what a route table can be shipped with.
        whitened: False for a convolutional stem at full resolution and a glance of plain convolutions. True for a whitened stem at
            half the resolution (`WhitenedStem`), a `ResidualGlance`, and exit heads that read the glance's pooled features and
            class probabilities, so that no exit is worse than the glance.
        own: what else the subclass was made with, JSON-able.

    Attributes:
        config: JSON-able constructor arguments and `kind`; what is needed to build the same architecture again.
        image_shape: `(C, H, W)`.
        num_classes: how many classes `head` answers with.
        num_layers, num_paths, full_path: T, K and K - 1.
        reads_prev_sub_path: whether what a layer does depends on the previous sub-path: its norms and, where the stream is pruned, its cost.
        has_exits: whether number 0 is the exit.
        exits_read_glance: whether exit heads read the glance, which then has to run for them.
        has_identity: whether the cheapest sub-path beside the exit computes nothing.
        mac_table: the MACs of every decision.
        valid: bool `(T, K)`, which sub-paths a layer has when exits are on.
    """

    kind: str
    config: dict[str, Any]
    image_shape: tuple[int, ...]
    num_classes: int
    num_layers: int
    num_paths: int
    full_path: int
    has_exits: bool
    exits_read_glance: bool
    has_identity: bool = False
    summary_groups: int
    reads_prev_sub_path: bool = False
    stem_width: int
    mac_table: MacTable
    valid: NDArray[np.bool_]
    stem: nn.Module
    layers: Any  # an `nn.ModuleList` of `Layer`, whose items type checkers take for mere modules
    head: PooledHead
    glance: Glance | ResidualGlance | None
    image_mean: Tensor
    image_std: Tensor
    summary_mean: Tensor
    summary_std: Tensor
    glance_mean: Tensor
    glance_std: Tensor
    loss_scale: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        classes: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        exits: Sequence[int],
        glance_widths: Sequence[int],
        glance_strides: Sequence[int],
        summary_groups: int,
        whitened: bool,
        own: dict[str, Any],
    ) -> None:
        super().__init__()
        check_shape(image_shape, widths, blocks, exits)
        if classes < 2:
            raise ValueError(f"`classes` must be at least 2, got {classes}")
        shape = {"image_shape": list(image_shape), "classes": classes, "widths": list(widths), "blocks": list(blocks)}
        answers = {"exits": sorted(exits), "glance_widths": list(glance_widths), "glance_strides": list(glance_strides)}
        self.summary_groups = summary_groups
        self.config = {"kind": self.kind, **shape, **answers, **own}
        if summary_groups:
            self.config["summary_groups"] = summary_groups
        if whitened:
            self.config["whitened"] = True

        self.image_shape, self.num_classes, self.stem_width = tuple(image_shape), classes, widths[0]
        self.has_exits = bool(exits) or bool(glance_widths)
        self.exits_read_glance = whitened and bool(exits) and bool(glance_widths)
        side, stem_macs = self._build_stem(whitened)
        self.glance = self._build_glance(whitened, glance_widths, glance_strides)
        self.layers = nn.ModuleList(self._stages(widths, blocks, exits, side))
        self.head = PooledHead(widths[-1], classes)
        self.num_layers, self.num_paths = len(self.layers), self.layers[0].num_paths
        arriving = sorted({widths[0], *(width for layer in self.layers for width in layer.widths if width)})
        if summary_groups < 0 or (summary_groups and any(width % summary_groups for width in arriving)):
            raise ValueError(f"`summary_groups` must be 0 or divide every width at which features come, {arriving}, got {summary_groups}")
        self.full_path = self.num_paths - 1
        self.valid = self._valid()
        self.mac_table = self._count(stem_macs)
        self._buffers_for_preprocessing()

    def _build_stem(self, whitened: bool) -> tuple[tuple[int, int], int]:
        """Make `stem`; returns the side of its output in pixels, and its MACs."""
        channels, height, width_px = self.image_shape
        if whitened:
            self.stem = stem = WhitenedStem(self.image_shape, self.stem_width)
            return (-(-height // 2), -(-width_px // 2)), stem.macs

        self.stem = nn.Sequential(
            nn.Conv2d(channels, self.stem_width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(self.stem_width),
            nn.ReLU(inplace=True),
        )
        return (height, width_px), conv_macs(channels, self.stem_width, (height, width_px))

    def _build_glance(self, whitened: bool, widths: Sequence[int], strides: Sequence[int]) -> Glance | ResidualGlance | None:
        if whitened and strides:
            raise ValueError(f"`glance_strides` must be empty where the stem is whitened, got {list(strides)}")
        if not widths:
            return None
        if whitened:
            return ResidualGlance(self.image_shape, self.num_classes, widths)
        return Glance(self.image_shape, self.num_classes, widths, strides)

    def _stages(self, widths: Sequence[int], blocks: Sequence[int], exits: Sequence[int], side: tuple[int, int]) -> list[Layer]:
        layers: list[Layer] = []
        in_width = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                halve = stage > 0 and block == 0
                side = (-(-side[0] // 2), -(-side[1] // 2)) if halve else side
                head = self._exit_head(in_width) if len(layers) in exits else None
                layers.append(self._layer(LayerSpec(in_width, width, halve, side, int(self.has_exits)), head))
                in_width = width
        return layers

    def _exit_head(self, in_width: int) -> PooledHead:
        context = 0
        if self.exits_read_glance and self.glance is not None:
            context = self.glance.width + self.num_classes
        return PooledHead(in_width, self.num_classes, context)

    def _layer(self, place: LayerSpec, head: PooledHead | None) -> Layer:
        """The layer that belongs in a place."""
        raise NotImplementedError

    def _buffers_for_preprocessing(self) -> None:
        channels = self.image_shape[0]
        self.register_buffer("image_mean", torch.full((channels, 1, 1), 0.5))
        self.register_buffer("image_std", torch.full((channels, 1, 1), 0.5))
        self.register_buffer("summary_mean", torch.zeros(self.num_layers, self.pooled_width))
        self.register_buffer("summary_std", torch.ones(self.num_layers, self.pooled_width))
        glance_width = self.glance.width if self.glance is not None else 0
        self.register_buffer("glance_mean", torch.zeros(glance_width))
        self.register_buffer("glance_std", torch.ones(glance_width))
        self.register_buffer("loss_scale", torch.ones(()))

    @property
    def pooled_width(self) -> int:
        """Pooled features in a summary: channels of the widest feature map that arrives at a layer, or groups of them."""
        return self.summary_groups or max(self.in_width(layer, self.full_path) for layer in range(self.num_layers))

    @property
    def glance_width(self) -> int:
        """Pooled features that the glance adds to the summary; 0 without one."""
        return self.glance.width if self.glance is not None and not self.summary_groups else 0

    @property
    def narrowest(self) -> int:
        """The cheapest sub-path that computes something: neither exit nor identity."""
        return int(self.has_exits) + int(self.has_identity)

    @property
    def exit_layers(self) -> frozenset[int]:
        """The layers that can answer at once."""
        return frozenset(np.flatnonzero(self.valid[:, 0]).tolist()) if self.has_exits else frozenset()

    def prepare(self, images: Tensor) -> Tensor:
        """Scale uint8 images `(N, C, H, W)` to 0..1, then apply the backbone's own mean and standard deviation."""
        scaled = images.to(self.image_mean.dtype) / 255.0 if images.dtype == torch.uint8 else images
        return (scaled - self.image_mean) / self.image_std

    def pool(self, features: Tensor) -> Tensor:
        """Features `(N, C, H, W)` -> what a summary holds of them, before it is z-scored: float32 `(N, C)`, or `(N, summary_groups)`."""
        pooled = features.float().mean((2, 3))
        return pooled.unflatten(1, (self.summary_groups, -1)).mean(2) if self.summary_groups else pooled

    def in_width(self, layer: int, prev_sub_path: int) -> int:
        """Channels that arrive at `layer`, or at the head for `layer = T`."""
        return int(self.stem_width if layer == 0 else self.layers[layer - 1].widths[prev_sub_path])

    def plain(self) -> nn.Sequential:
        """The full path as an ordinary network without routing, sharing this backbone's weights; prepared images -> logits."""
        raise NotImplementedError

    def _valid(self) -> NDArray[np.bool_]:
        valid = np.ones((self.num_layers, self.num_paths), np.bool_)
        if self.has_exits:
            valid[0, 0] = self.glance is not None
            valid[1:, 0] = [layer.head is not None for layer in list(self.layers)[1:]]
        return valid

    def _count(self, stem_macs: int) -> MacTable:
        size = (self.num_layers, self.num_paths)
        layers, exits = np.zeros((*size, self.num_paths), np.int64), np.zeros(size, np.int64)
        head = np.zeros(self.num_paths, np.int64)
        first = int(self.has_exits)
        for prev_sub_path in range(first, self.num_paths):
            for t, layer in enumerate(self.layers):
                width = self.in_width(t, prev_sub_path)
                layers[t, prev_sub_path, first:] = [layer.macs(sub_path, width) for sub_path in range(first, self.num_paths)]
                exits[t, prev_sub_path] = layer.head.macs(width) if layer.head is not None else 0
            head[prev_sub_path] = self.head.macs(self.in_width(self.num_layers, prev_sub_path))
        exits[0] = self.glance.macs if self.glance is not None else 0
        return MacTable(stem_macs, layers, exits, head)

    def spec(self, exits: bool = True) -> RoutingSpec:
        """The routing problem this backbone poses; `exits=False` masks, and does not charge for, exits and glance."""
        valid, table = self.valid.copy(), self.mac_table
        if not exits and self.has_exits:
            valid[:, 0] = False
            table = table._replace(exits=np.zeros_like(table.exits))
        facts: dict[str, Any] = {"pooled": self.pooled_width, "glance": self.glance_width, "classes": self.num_classes}
        facts |= {"has_exits": self.has_exits, "loss_scale": float(self.loss_scale), **({"quantised": True} if self.summary_groups else {})}
        if self.exits_read_glance and exits:
            facts["exits_read_glance"] = True
        return RoutingSpec(facts, valid, table)


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
