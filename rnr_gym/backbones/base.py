"""What every routable network has in common."""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rnr_gym.backbones.blocks import Glance, ResidualGlance, pooled_channels
from rnr_gym.backbones.macs import MacTable

BATCH_SIZE = 512
"""Most images that run together."""
BATCH_PIXELS = 64 * 224 * 224
"""Most pixels of them, each with all its channels."""


class Backbone(nn.Module):
    """A routable network: `stem`, `layers`, `head` and, optionally, `glance`.

    Sub-path numbers grow with cost and the last is the full path. With exits, number 0 is the exit
    at every layer. This is the contract that traversals, routers and training rely on;
    `rnr_gym.testing.check_backbone` checks it. The constructor of a subclass makes `config`,
    `image_shape`, `num_classes`, `stem_width`, `stem`, `layers`, `head` and `glance`, sets what
    differs from the defaults, and ends with `_complete`.

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
        has_identity: whether the cheapest sub-path apart from the exit skips its block.
        stem_width: channels of the stem's output.
        summary_groups: 0 for a summary of all pooled features in full precision. Otherwise they are
            averaged over that many groups of channels, the glance's are left out, and every value
            is quantised to 8 bits.
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
    has_exits: bool = False
    exits_read_glance: bool = False
    summary_groups: int = 0

    config: dict[str, Any]
    image_shape: tuple[int, ...]
    num_classes: int
    stem_width: int

    stem: nn.Module
    layers: Any  # an `nn.ModuleList` of `Layer`, whose items type checkers take for mere modules
    head: nn.Module
    glance: Glance | ResidualGlance | None

    image_mean: Tensor
    image_std: Tensor
    summary_mean: Tensor
    summary_std: Tensor
    glance_mean: Tensor
    glance_std: Tensor
    loss_scale: Tensor

    def _complete(self, valid: NDArray[np.bool_], mac_table: MacTable) -> None:
        """Finish a constructor that has made the modules: sizes, masks, costs and statistics."""
        self.valid = valid
        self.mac_table = mac_table
        self.num_layers, self.num_paths = valid.shape
        self.full_path = self.num_paths - 1
        self._check_summary_groups()
        self._register_statistics()

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
        for weight in chain(self.stem.parameters(), self.layers.parameters()):
            return weight.dtype
        return self.image_mean.dtype

    @property
    def batch_size(self) -> int:
        """Most images that run together, so that memory for features has a bound."""
        _, height, width = self.image_shape
        return max(1, min(BATCH_SIZE, BATCH_PIXELS // (height * width)))

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
        return normalised(images, self.image_mean, self.image_std).to(self.dtype)

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


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images `(N, C, H, W)`, uint8 or float 0..1, less a mean and over a deviation `(C, 1, 1)`."""
    # Channels last, as convolutions of few channels run fastest.
    images = images.contiguous(memory_format=torch.channels_last)
    if images.dtype == torch.uint8:
        images = images.to(mean.dtype).div_(255.0)
    return (images - mean).div_(std)
