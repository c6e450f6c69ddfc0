"""A routable backbone from an ordinary network, whose weights stay as they are."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.testing import assert_close

from rnr_gym import checks
from rnr_gym.backbones.base import Backbone, normalised
from rnr_gym.backbones.blocks import Glance, PooledHead
from rnr_gym.backbones.carving import carved
from rnr_gym.backbones.discovery import Block, find_blocks, named_blocks
from rnr_gym.backbones.graphs import NetworkGraph
from rnr_gym.backbones.macs import MacTable
from rnr_gym.backbones.report import BlockReport, Report
from rnr_gym.backbones.segments import RoutableLayer, Segment, counted
from rnr_gym.backbones.slicing import Choice

GLANCE_SHARE = 0.02
"""Most of a network's MACs that its glance may cost, unless the narrowest one costs more."""


def routable(
    model: nn.Module,
    example: Tensor,
    blocks: Sequence[str] | None = None,
    groups: int = 4,
    skip: bool = True,
    exits: Sequence[int] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    transforms: Any = None,
    summary_groups: int = 0,
) -> Routable:
    """Make an ordinary classification network routable; its weights stay as they are.

    >>> backbone = rnr.routable(model, example=images, transforms=weights.transforms())
    >>> print(backbone.report)

    The sub-paths of a block are: skipping it, where it is residual and keeps its shape; the most
    important quarter, half and three quarters of its inner channels; all of it. Sub-paths that a
    block does not have are not valid there. `rnr_gym.calibrate_paths` fits the narrow ones to
    images, which need no labels.

    Args:
        model: images -> logits `(N, classes)`. It is copied.
        example: images `(N, C, H, W)`, uint8 or float 0..1, as they will be classified. Channels
            are ordered by what they contribute on these images, and those that are left out are
            predicted from the others, so that some dozens of real ones are best.
        blocks: names of the modules that become layers, in order; None to find them.
        groups: how many groups the inner channels of a block form; 1 for no narrow sub-paths.
        skip: whether residual blocks may be skipped.
        exits: layers that get an exit head, by the numbers of the report; sub-path 0 is then the
            exit. 0 stands for a glance: a very small network over the whole image, run first, which
            is as wide as `GLANCE_SHARE` of the network's MACs allow. `rnr_gym.fit_exits` has to fit
            both.
        mean: of each channel of images in 0..1, subtracted before the network sees them; None
            for 0. Likewise `std`, by which they are divided; None for 1.
        transforms: what torchvision's `Weights.transforms()` returns, in place of `mean` and `std`.
        summary_groups: as for `StagedNet`.

    Raises `ValueError`, which names the module where there is one, if there are no such blocks, the
    network cannot run on the images or has weights that are not finite, or an argument does not
    fit.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"`model` must be a torch module, got {type(model).__name__}")
    if not isinstance(example, Tensor) or example.ndim != 4 or len(example) == 0:
        shown = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ValueError(f"`example` must be a batch of images (N, C, H, W), got {shown}")
    checks.integer("groups", groups, 1)
    checks.flag("skip", skip)
    if isinstance(blocks, str):
        raise ValueError(f"`blocks` must be a sequence of names, got {blocks!r}")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.isfinite().all():
            raise ValueError(f"`{name}` of `model` must be finite, got NaN or infinity")

    channels = example.shape[1]
    if transforms is not None:
        mean, std = transforms.mean, transforms.std
    return Routable(
        model=model,
        example=example,
        blocks=blocks,
        groups=groups,
        skip=skip,
        exits=checks.integers("exits", exits, 0),
        mean=_per_channel("mean", [0.0] * channels if mean is None else mean, channels),
        std=_per_channel("std", [1.0] * channels if std is None else std, channels),
        summary_groups=checks.integer("summary_groups", summary_groups, 0),
    )


class Routable(Backbone):
    """An ordinary classification network that `routable` has made routable.

    Each layer is a block. The full path runs the network's own operations in their own order, so
    its logits are those of the network. Narrow sub-paths have weights of their own, copies of those
    of the most important channels, corrected for the others: training them changes nothing on the
    full path.

    Args:
        model, example, blocks, groups, skip, exits, summary_groups: as for `routable`.
        mean: one number per channel; likewise `std`.

    Attributes:
        report: what was found; a table when printed.
    """

    kind = "routable"

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        blocks: Sequence[str] | None,
        groups: int,
        skip: bool,
        exits: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        summary_groups: int,
    ) -> None:
        super().__init__()
        title = type(model).__name__
        self.config = {"kind": self.kind, "model": title}
        self.image_shape = tuple(example.shape[1:])
        self.summary_groups = summary_groups
        self.has_exits = bool(exits)
        self.check_images(example)

        model = copy.deepcopy(model).eval()
        like = next(model.parameters(), example.float())
        example = example.to(like.device)
        statistics = [torch.tensor(values).to(like)[:, None, None] for values in (mean, std)]
        prepared = normalised(example, *statistics)
        with torch.no_grad():
            network = NetworkGraph(model, prepared)
            logits = network.shape(network.output)
            if logits is None or len(logits) != 2:
                raise ValueError(f"`model` must return logits (N, classes), got {logits}")
            self.num_classes = logits[1]
            found = find_blocks(network) if blocks is None else named_blocks(network, blocks)
            choices = [Choice.of(network, block, groups, skip) for block in found]
            choices = [choice for choice in choices if choice.has_several]
            if not choices:
                raise ValueError(
                    "`model` must have blocks that can be skipped or narrowed, got "
                    f"{title} ({_listed(found)})"
                )
            if any(layer >= len(choices) for layer in exits):
                raise ValueError(
                    f"`exits` must name layers 0..{len(choices) - 1}, got {sorted(exits)}"
                )
            self._build(network, choices, groups, exits, prepared)
            self.image_mean, self.image_std = statistics
            self.to(like.device, like.dtype).eval()
            self._check_logits(model, prepared)

    def _build(
        self,
        network: NetworkGraph,
        choices: Sequence[Choice],
        groups: int,
        exits: Sequence[int],
        images: Tensor,
    ) -> None:
        """Make stem, layers and head from what they do on prepared images `(N, C, H, W)`."""
        self.has_identity = any(choice.skips for choice in choices)
        # Skipping comes after the exit; where no block can be skipped, the narrowest does.
        offset = self.first_sub_path - 1 + int(self.has_identity)
        num_paths = groups + 1 + offset

        start = choices[0].block.start
        self.stem = Segment(carved(network, network.input, start))
        self.stem_width = (network.shape(start) or ())[1]
        stem_macs = counted(self.stem, images[:1])
        features = self.stem(images)

        layers: list[RoutableLayer] = []
        reports = []
        for choice in choices:
            paths = {}
            macs = {}
            ways = choice.ways(network, start, features)
            for number, part in ways.parts.items():
                paths[number + offset] = Segment(part)
                macs[number + offset] = counted(part, features[:1])
            for number in _wasteful(macs):
                del paths[number], macs[number]
            head = None
            # The glance is layer 0's exit.
            if layers and len(layers) in exits:
                head = PooledHead(features.shape[1], self.num_classes)
                _without_opinion(head.linear)
            features = paths[num_paths - 1](features)
            layers.append(RoutableLayer(paths, macs, num_paths, features.shape[1], head))
            block = choice.block
            reports.append(BlockReport(block.name, block.kind, ways.widths, macs))
            start = block.end

        self.layers = nn.ModuleList(layers)
        self.head = Segment(carved(network, start, network.output))
        head_macs = counted(self.head, features[:1])
        self.report = Report(self.config["model"], stem_macs, reports, head_macs)
        self.glance = None
        if 0 in exits:
            most = GLANCE_SHARE * self.report.macs
            self.glance = Glance.within(self.image_shape, self.num_classes, most)
            _without_opinion(self.glance.linear)
            self.report = replace(self.report, glance=self.glance.macs)
        self._complete(self._valid(num_paths), self._mac_table(stem_macs, head_macs, num_paths))

    def _valid(self, num_paths: int) -> NDArray[np.bool_]:
        valid = np.zeros((len(self.layers), num_paths), np.bool_)
        for layer_idx, layer in enumerate(self.layers):
            valid[layer_idx, list(layer.path_macs)] = True
            if layer.head is not None:
                valid[layer_idx, 0] = True
        if self.glance is not None:
            valid[0, 0] = True
        return valid

    def _mac_table(self, stem_macs: int, head_macs: int, num_paths: int) -> MacTable:
        layers = np.zeros((len(self.layers), num_paths, num_paths), np.int64)
        exits = np.zeros((len(self.layers), num_paths), np.int64)
        # Whatever came before, because the stream between blocks keeps its width.
        for layer_idx, layer in enumerate(self.layers):
            for sub_path, macs in layer.path_macs.items():
                layers[layer_idx, :, sub_path] = macs
            if layer.head is not None:
                exits[layer_idx] = layer.head.macs(layer.head.linear.in_features)
        if self.glance is not None:
            exits[0] = self.glance.macs
        head = np.full(num_paths, head_macs)

        # No image comes from an exit.
        for costs in (layers.swapaxes(0, 1), exits.T, head):
            costs[: self.first_sub_path] = 0
        return MacTable(stem=stem_macs, layers=layers, exits=exits, head=head)

    def _check_logits(self, model: nn.Module, prepared: Tensor) -> None:
        """Raise `ValueError` unless the full path answers as the network does."""
        try:
            assert_close(self.plain()(prepared), model(prepared))
        except AssertionError as error:
            raise ValueError(
                "`model` must give the same logits whenever it sees the same images, got "
                f"{type(model).__name__}, whose full path differs ({error})"
            ) from error

    def plain(self) -> nn.Sequential:
        wholes = [layer.paths[str(self.full_path)] for layer in self.layers]
        return nn.Sequential(self.stem, *wholes, self.head).train(self.training)


def _without_opinion(linear: nn.Linear) -> None:
    """Let all classes be equally likely, until the weights are fitted."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


def _wasteful(macs: dict[int, int]) -> list[int]:
    """The sub-paths that cost no less than the next one."""
    numbers = sorted(macs, reverse=True)
    cheapest = macs[numbers[0]]
    wasteful = []
    for number in numbers[1:]:
        if macs[number] >= cheapest:
            wasteful.append(number)
        else:
            cheapest = macs[number]
    return wasteful


def _per_channel(name: str, values: Any, channels: int) -> list[float]:
    """One number for each channel; those of `std` are above 0."""
    low = 0.0 if name == "mean" else 1e-6
    return checks.numbers(name, values, (channels,), low).tolist()


def _listed(blocks: Sequence[Block]) -> str:
    if not blocks:
        return "no blocks were found"
    return "blocks: " + ", ".join(block.name for block in blocks)
