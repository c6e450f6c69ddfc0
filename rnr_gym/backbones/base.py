"""What every routable network has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rnr_gym import checks
from rnr_gym.backbones.blocks import (
    Glance,
    PooledHead,
    ResidualGlance,
    WhitenedStem,
    pooled_channels,
    strided,
)
from rnr_gym.backbones.layer import Layer, LayerSpec
from rnr_gym.backbones.macs import MacTable, conv_macs


class Backbone(nn.Module):
    """A routable network: `stem`, `layers`, `head` and, optionally, `glance`.

    Sub-path numbers grow with cost and the last is the full path. With exits, number 0 is the exit
    at every layer. A subclass gives `kind`, the layers (`_layer`) and the plain network (`plain`),
    and, where they are not False, `has_identity` and `reads_prev_sub_path`. Stages, stem, heads and
    glance are built here.

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

    Attributes:
        config: JSON-able constructor arguments and `kind`, from which the same architecture can be
            built again.
        image_shape: `(C, H, W)`.
        num_classes: number of classes.
        num_layers: T.
        num_paths: K.
        full_path: the number of the full path, K - 1.
        has_exits: whether number 0 is the exit.
        exits_read_glance: whether exit heads read the glance, which then has to run for them.
        has_identity: whether the cheapest sub-path apart from the exit computes nothing.
        summary_groups: as the argument.
        reads_prev_sub_path: whether what a layer does depends on the previous sub-path: its norms
            and, if the stream is pruned, its cost.
        mac_table: the MACs of every decision.
        valid: bool `(T, K)`, which sub-paths a layer has when exits are on.
        stem: prepared images `(N, C, H, W)` -> features.
        layers: the T layers.
        head: features `(N, C, H, W)` -> logits `(N, classes)`.
        glance: prepared images -> pooled `(N, G)` and logits `(N, classes)`; None if there is none.
        image_mean: float `(C, 1, 1)`, of the training images scaled to 0..1; likewise `image_std`.
        summary_mean: float `(T, pooled_width)`, of pooled features; likewise `summary_std`.
        glance_mean: float `(G,)`, of the glance's pooled features; likewise `glance_std`.
        loss_scale: float `()`, 1 / mean cross-entropy of the full path on the split `route`.
    """

    kind: str
    has_identity: bool = False
    reads_prev_sub_path: bool = False

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

        self.config: dict[str, Any] = {
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

        self.num_layers = len(self.layers)
        self.num_paths: int = self.layers[0].num_paths
        self.full_path = self.num_paths - 1
        self._check_summary_groups()
        self.valid = self._valid()
        self.mac_table = self._count_macs(stem_macs)
        self._register_statistics()

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

    def _check_summary_groups(self) -> None:
        """Raise `ValueError` if the channels of some feature map cannot be grouped evenly."""
        # Not the full widths alone: a pruned layer passes on any number of its channel groups.
        arriving = {self.stem_width}
        for layer in self.layers:
            arriving.update(width for width in layer.widths if width)

        groups = self.summary_groups
        if groups and any(width % groups for width in arriving):
            raise ValueError(
                "`summary_groups` must be 0 or divide every width at which features arrive, "
                f"{sorted(arriving)}, got {groups}"
            )

    def _valid(self) -> NDArray[np.bool_]:
        # Every layer has every sub-path; only the exits, number 0, need not be there.
        valid = np.ones((self.num_layers, self.num_paths), np.bool_)
        if self.has_exits:
            valid[0, 0] = self.glance is not None
            valid[1:, 0] = [layer.head is not None for layer in list(self.layers)[1:]]
        return valid

    def _count_macs(self, stem_macs: int) -> MacTable:
        num_layers = self.num_layers
        num_paths = self.num_paths
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

    def _register_statistics(self) -> None:
        """Make the buffers that calibration fills."""
        channels = self.image_shape[0]
        self.register_buffer("image_mean", torch.full((channels, 1, 1), 0.5))
        self.register_buffer("image_std", torch.full((channels, 1, 1), 0.5))

        self.register_buffer("summary_mean", torch.zeros(self.num_layers, self.pooled_width))
        self.register_buffer("summary_std", torch.ones(self.num_layers, self.pooled_width))

        # Not `self.glance_width`, which is 0 if summaries leave the glance out.
        glance_width = 0
        if self.glance is not None:
            glance_width = self.glance.width
        self.register_buffer("glance_mean", torch.zeros(glance_width))
        self.register_buffer("glance_std", torch.ones(glance_width))
        self.register_buffer("loss_scale", torch.ones(()))

    @property
    def device(self) -> torch.device:
        """The device that images have to be on."""
        return self.image_mean.device

    @property
    def dtype(self) -> torch.dtype:
        """In which features are computed; pooled features, logits and statistics stay float32."""
        for weight in self.stem.parameters():
            return weight.dtype
        return self.image_mean.dtype

    @property
    def first_sub_path(self) -> int:
        """The cheapest sub-path that is not an exit."""
        return int(self.has_exits)

    @property
    def narrowest(self) -> int:
        """The cheapest sub-path that computes something: neither exit nor identity."""
        return self.first_sub_path + int(self.has_identity)

    @property
    def exit_layers(self) -> frozenset[int]:
        """The layers that have an exit; 0 stands for the glance."""
        if not self.has_exits:
            return frozenset()
        return frozenset(np.flatnonzero(self.valid[:, 0]).tolist())

    @cached_property
    def pooled_width(self) -> int:
        """Pooled features in a summary: channels of the widest feature map that arrives at a layer.

        With `summary_groups`, the number of groups.
        """
        if self.summary_groups:
            return self.summary_groups
        return max(self.in_width(layer, self.full_path) for layer in range(self.num_layers))

    @property
    def glance_width(self) -> int:
        """Pooled features that the glance adds to the summary; 0 if it adds none."""
        if self.glance is None or self.summary_groups:
            return 0
        return self.glance.width

    def in_width(self, layer: int, prev_sub_path: int) -> int:
        """Channels that arrive at `layer`, or at the head for `layer = T`."""
        # Nothing is pruned before layer 0.
        if layer == 0:
            return self.stem_width
        return int(self.layers[layer - 1].widths[prev_sub_path])

    def check_images(self, images: Any) -> None:
        """Raise `ValueError` unless these are images of the backbone's shape: uint8, or float 0..1.

        Images in another range, such as floats in 0..255, would be classified all the same.
        """
        shape = ", ".join(map(str, self.image_shape))
        if not isinstance(images, Tensor):
            raise ValueError(
                f"`images` must be a torch tensor (N, {shape}), got {type(images).__name__}"
            )
        dtype_fits = images.dtype == torch.uint8 or images.is_floating_point()
        if not dtype_fits or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"`images` must be uint8 or float (N, {shape}), got {images.dtype} "
                f"{tuple(images.shape)}"
            )
        if images.is_floating_point() and len(images):
            low = float(images.detach().min())
            high = float(images.detach().max())
            # NaN compares as false.
            if not 0.0 <= low <= high <= 1.0:
                raise ValueError(f"`images` must lie in 0..1 if they are float, got {low}..{high}")

    def prepare(self, images: Tensor) -> Tensor:
        """Normalise images `(N, C, H, W)` by the backbone's own pixel mean and standard deviation.

        uint8 images are scaled to 0..1 first; float images have to be. Returns them in `dtype`.
        """
        # Channels last, as convolutions of few channels run fastest.
        images = images.contiguous(memory_format=torch.channels_last)
        if images.dtype == torch.uint8:
            images = images.to(self.image_mean.dtype).div_(255.0)
        return (images - self.image_mean).div_(self.image_std).to(self.dtype)

    def pool(self, features: Tensor) -> Tensor:
        """What a summary holds of features `(N, C, H, W)`, before it is z-scored.

        Returns float32 `(N, C)`, or `(N, summary_groups)` if there are groups.
        """
        return self.condense(pooled_channels(features).float())

    def condense(self, pooled: Tensor) -> Tensor:
        """The same from the mean of each channel, `(N, C)`."""
        if not self.summary_groups:
            return pooled
        return pooled.unflatten(1, (self.summary_groups, -1)).mean(2)

    def plain(self) -> nn.Sequential:
        """The full path as an ordinary network without routing; prepared images -> logits.

        It shares this backbone's weights or, where a layer has to be converted, copies them.
        """
        raise NotImplementedError


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
