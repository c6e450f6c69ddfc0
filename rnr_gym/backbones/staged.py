"""Networks built in stages: what multi-path and channel-pruned networks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rnr_gym import checks
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.blocks import Glance, PooledHead, ResidualGlance, WhitenedStem, strided
from rnr_gym.backbones.layer import Layer, LayerSpec
from rnr_gym.backbones.macs import MacTable, conv_macs


class StagedNet(Backbone):
    """A network whose stages each halve the resolution.

    Stem, stages, exit heads, head and glance are built here. A subclass gives `kind`, the layers
    (`_layer`) and the plain network (`plain`), and, where they are not False, `has_identity` and
    `reads_prev_sub_path`.

    Args:
        image_shape: `(C, H, W)`.
        classes: number of classes.
        widths: channels of each stage, ascending multiples of 8; every stage but the first halves
            the resolution.
        blocks: layers of each stage; their sum is T, the number of decisions.
        exits: the layers (1 and above) with an exit head; empty, and no glance, for a backbone
            without exits.
        glance_widths: output channels of the glance's convolutions; empty for no glance. The glance
            is layer 0's exit.
        glance_strides: their strides; empty if the stem is whitened.
        summary_groups: 0 for a summary of all pooled features in full precision. Otherwise they are
            averaged over that many groups of channels, the glance's are left out, and every value
            is quantised to 8 bits, which makes a route table small enough to be bundled.
        whitened: False for a convolutional stem at full resolution and a glance of plain
            convolutions. True for a whitened stem at half the resolution (`WhitenedStem`), a
            `ResidualGlance`, and exit heads that read the glance's pooled features and class
            probabilities, so that no exit is worse than the glance.
        own_config: the subclass's own constructor arguments, JSON-able, for `config`.

    Raises `ValueError` if the arguments do not fit together.
    """

    head: PooledHead

    def __init__(
        self,
        *,
        image_shape: Sequence[int],
        classes: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        exits: Sequence[int],
        glance_widths: Sequence[int],
        glance_strides: Sequence[int],
        summary_groups: int,
        whitened: bool,
        own_config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        check_shape(image_shape, widths, blocks, exits)
        check_glance(glance_widths, glance_strides, checks.flag("whitened", whitened))
        # As lists, because arrays are neither true nor false.
        widths, blocks, exits = list(widths), list(blocks), list(exits)
        glance_widths, glance_strides = list(glance_widths), list(glance_strides)
        checks.integer("classes", classes, 2)
        checks.integer("summary_groups", summary_groups, 0)

        self.config = {
            "kind": self.kind,
            "image_shape": list(image_shape),
            "classes": classes,
            "widths": list(widths),
            "blocks": list(blocks),
            "exits": sorted(exits),
            "glance_widths": list(glance_widths),
            "glance_strides": list(glance_strides),
            **own_config,
        }
        # Defaults are left out, so that configs in older files compare equal.
        if summary_groups:
            self.config["summary_groups"] = summary_groups
        if whitened:
            self.config["whitened"] = True

        self.image_shape = tuple(image_shape)
        self.num_classes = classes
        self.stem_width = widths[0]
        self.summary_groups = summary_groups
        self.has_exits = bool(exits) or bool(glance_widths)
        # Without a glance there is nothing for exit heads to read.
        self.exits_read_glance = whitened and bool(exits) and bool(glance_widths)

        # In this order: exit heads need the glance's width, and the order in which modules are made
        # decides which random weights a seed gives.
        side, stem_macs = self._build_stem(whitened)
        self.glance = self._build_glance(whitened, glance_widths, glance_strides)
        self.layers = nn.ModuleList(self._build_layers(widths, blocks, exits, side))
        self.head = PooledHead(widths[-1], classes)

        self._complete(self._valid(), self._count_macs(stem_macs))

    def _build_stem(self, whitened: bool) -> tuple[tuple[int, int], int]:
        """Make `stem`; returns `(height, width)` of its output in pixels, and its MACs."""
        if whitened:
            stem = WhitenedStem(self.image_shape, self.stem_width)
            self.stem = stem
            return stem.side, stem.macs

        channels, height, width_px = self.image_shape
        self.stem = nn.Sequential(
            nn.Conv2d(channels, self.stem_width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(self.stem_width),
            nn.ReLU(inplace=True),
        )
        side = (height, width_px)
        return side, conv_macs(channels, self.stem_width, side)

    def _build_glance(
        self, whitened: bool, widths: Sequence[int], strides: Sequence[int]
    ) -> Glance | ResidualGlance | None:
        if not widths:
            return None
        if whitened:
            return ResidualGlance(self.image_shape, self.num_classes, widths)
        return Glance(self.image_shape, self.num_classes, widths, strides)

    def _build_layers(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        exits: Sequence[int],
        side: tuple[int, int],
    ) -> list[Layer]:
        layers: list[Layer] = []
        in_width = widths[0]
        for stage, (width, num_blocks) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(num_blocks):
                # A stage changes resolution and width at once, in its first block.
                halve = stage > 0 and block == 0
                if halve:
                    side = strided(side, 2)

                head = None
                if len(layers) in exits:
                    head = self._exit_head(in_width)

                layer_spec = LayerSpec(
                    in_width=in_width,
                    width=width,
                    halve=halve,
                    side=side,
                    first_sub_path=self.first_sub_path,
                )
                layers.append(self._layer(layer_spec, head))
                in_width = width
        return layers

    def _exit_head(self, in_width: int) -> PooledHead:
        context = 0
        if self.exits_read_glance and self.glance is not None:
            context = self.glance.width + self.num_classes
        return PooledHead(in_width, self.num_classes, context)

    def _layer(self, layer_spec: LayerSpec, head: PooledHead | None) -> Layer:
        """The layer that fits `layer_spec`."""
        raise NotImplementedError

    def _valid(self) -> NDArray[np.bool_]:
        # Every layer has every sub-path; only the exits, number 0, need not be there.
        valid = np.ones((len(self.layers), self.layers[0].num_paths), np.bool_)
        if self.has_exits:
            valid[0, 0] = self.glance is not None
            valid[1:, 0] = [layer.head is not None for layer in list(self.layers)[1:]]
        return valid

    def _count_macs(self, stem_macs: int) -> MacTable:
        num_layers = len(self.layers)
        num_paths = self.layers[0].num_paths
        layers = np.zeros((num_layers, num_paths, num_paths), np.int64)
        exits = np.zeros((num_layers, num_paths), np.int64)
        head = np.zeros(num_paths, np.int64)

        # No image comes from an exit or pays for one as a layer: those entries stay zero.
        for prev_sub_path in range(self.first_sub_path, num_paths):
            for layer_idx, layer in enumerate(self.layers):
                in_width = self.in_width(layer_idx, prev_sub_path)
                for sub_path in range(self.first_sub_path, num_paths):
                    layers[layer_idx, prev_sub_path, sub_path] = layer.macs(sub_path, in_width)
                if layer.head is not None:
                    exits[layer_idx, prev_sub_path] = layer.head.macs(in_width)
            head[prev_sub_path] = self.head.macs(self.in_width(num_layers, prev_sub_path))

        # The glance reads the image itself, whatever `prev_sub_path` is said to be.
        if self.glance is not None:
            exits[0] = self.glance.macs
        return MacTable(stem=stem_macs, layers=layers, exits=exits, head=head)


def check_shape(
    image_shape: Sequence[int],
    widths: Sequence[int],
    blocks: Sequence[int],
    exits: Sequence[int],
) -> None:
    """Raise `ValueError` if image shape, stages and exits do not fit together."""
    if len(checks.integers("image_shape", image_shape, 1)) != 3:
        raise ValueError(f"`image_shape` must be (channels, height, width), got {image_shape!r}")
    checks.integers("widths", widths, 8)
    checks.integers("blocks", blocks, 1)
    if len(widths) != len(blocks) or not len(widths):
        raise ValueError(
            "`widths` and `blocks` must have one entry per stage, "
            f"got {list(widths)} and {list(blocks)}"
        )
    if any(width % 8 for width in widths) or list(widths) != sorted(widths):
        raise ValueError(f"`widths` must be ascending multiples of 8, got {list(widths)}")

    num_layers = sum(blocks)
    checks.integers("exits", exits, 0)
    if any(not 1 <= layer < num_layers for layer in exits):
        raise ValueError(
            f"`exits` must name layers 1..{num_layers - 1} (layer 0 exits by the glance), "
            f"got {sorted(exits)}"
        )


def check_glance(widths: Sequence[int], strides: Sequence[int], whitened: bool) -> None:
    """Raise `ValueError` if widths and strides of the glance do not fit together."""
    checks.integers("glance_widths", widths, 1)
    checks.integers("glance_strides", strides, 1)
    if whitened and len(strides):
        raise ValueError(
            f"`glance_strides` must be empty if the stem is whitened, got {list(strides)}"
        )
    if not whitened and len(widths) != len(strides):
        raise ValueError(
            "`glance_widths` and `glance_strides` must have one entry per convolution, "
            f"got {list(widths)} and {list(strides)}"
        )
