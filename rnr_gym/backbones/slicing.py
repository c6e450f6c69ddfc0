"""Blocks with fewer inner channels: copies of their modules with some of the weights."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from rnr_gym.backbones.carving import carved
from rnr_gym.backbones.channel_groups import Channels, ChannelSet
from rnr_gym.backbones.discovery import Block
from rnr_gym.backbones.graphs import NetworkGraph
from rnr_gym.backbones.importance import (
    Reading,
    importance,
    kept_channels,
    other_channels,
    readings_of,
)


class Choice(NamedTuple):
    """The ways through a block.

    Attributes:
        block: the block.
        groups: how many groups of channels there are.
        skips: the sums that end its branches, each with what is left without the branch; empty if
            the block cannot be skipped.
        sets: the channels that can be narrowed.
    """

    block: Block
    groups: int
    skips: dict[Node, Node]
    sets: list[ChannelSet]

    @classmethod
    def of(cls, network: NetworkGraph, block: Block, groups: int, skip: bool) -> Choice:
        """Find the ways through a block; see `routable` for `groups` and `skip`."""
        same_shape = network.shape(block.start) == network.shape(block.end)
        skips = block.skips if skip and same_shape and block.kind == "residual" else {}
        sets = []
        if groups > 1:
            sets = Channels(network, block.start, block.end).prunable()
        return cls(block, groups, skips, sets)

    @property
    def has_several(self) -> bool:
        """Whether there is more than one way."""
        return bool(self.skips or self.sets)

    def ways(self, network: NetworkGraph, start: Node, features: Tensor) -> Ways:
        """What runs for each way.

        Args:
            network: the network.
            start: where it begins: before the block, or what the block reads.
            features: of some images there, `(N, C, H, W)`, from which channels are ordered.
        """
        block = self.block
        whole = carved(network, start, block.end)
        readers = [reader for channels in self.sets for reader in channels.readers]
        readings = readings_of(whole, readers, features)
        kept = []
        for channels in self.sets:
            scores = importance(whole, channels, readings)
            kept.append(kept_channels(channels, scores, self.groups))

        parts = {}
        if self.skips:
            parts[0] = carved(network, start, block.end, instead=self.skips)
        for group in range(self.groups - 1 if self.sets else 0):
            remaining = [(self.sets[number], idx[group]) for number, idx in enumerate(kept)]
            modules = narrowed_modules(network, block, remaining, readings)
            parts[group + 1] = carved(network, start, block.end, modules=modules)
        parts[self.groups] = whole
        return Ways(parts, kept)


class Ways(NamedTuple):
    """What runs for each way through a block.

    Attributes:
        parts: by number: 0 skips, 1, 2, ... compute so many groups of channels, the last all.
        kept: for each set of channels, those that remain, `(n,)`, with 1, 2, ..., all groups.
    """

    parts: dict[int, fx.GraphModule]
    kept: list[list[Tensor]]

    @property
    def widths(self) -> list[list[int]]:
        """Inner channels of each narrow way and, last, of the whole block."""
        by_set = [map(len, idx) for idx in self.kept]
        return [list(widths) for widths in zip(*by_set, strict=True)]


def narrowed_modules(
    network: NetworkGraph,
    block: Block,
    kept: list[tuple[ChannelSet, Tensor]],
    readings: dict[Node, Reading],
) -> dict[Node, nn.Module]:
    """The modules that a block runs if it keeps only some of its inner channels.

    Batch-norms that follow a narrowed convolution are among them: what they read has other
    statistics than on the full path.

    Args:
        network: the network.
        block: the block.
        kept: sets of channels, each with the channels `(n,)` of it that remain.
        readings: what the readers of these sets read in the whole block.
    """
    made: dict[Node, Tensor] = {}
    read: dict[Node, Tensor] = {}
    for channels, idx in kept:
        made.update(dict.fromkeys(channels.writers + channels.carriers, idx))
        read.update(dict.fromkeys(channels.readers, idx))

    modules: dict[Node, nn.Module] = {}
    changed: set[Node] = set()
    for node in network.between(block.start, block.end):
        module = network.module(node)
        if node in made or node in read:
            assert module is not None
            modules[node] = narrowed(module, made.get(node), read.get(node), readings.get(node))
        elif isinstance(module, nn.BatchNorm2d) and not changed.isdisjoint(network.inputs(node)):
            modules[node] = copy.deepcopy(module)
        if node in modules or not changed.isdisjoint(network.inputs(node)):
            changed.add(node)
    return modules


@torch.no_grad()
def narrowed(
    module: nn.Module,
    made: Tensor | None = None,
    read: Tensor | None = None,
    reading: Reading | None = None,
) -> nn.Module:
    """A copy of a convolution, linear layer or batch-norm with some of its channels.

    Channels that it no longer reads are predicted from those that it does: what they would have
    contributed moves to the weights of the others, and to the bias.

    Args:
        module: is left as it is.
        made: the channels that it gives, `(n,)`; None for all.
        read: the channels that it reads; None for all, and for modules that keep channels apart.
        reading: what `module` reads; needed with `read`.
    """
    narrow = copy.deepcopy(module)
    if isinstance(narrow, nn.BatchNorm2d):
        assert made is not None
        _take(narrow, ("weight", "bias", "running_mean", "running_var"), made)
        narrow.num_features = len(made)
        return narrow

    if read is not None and reading is not None:
        assert isinstance(narrow, nn.Conv2d | nn.Linear)
        weight = narrow.weight
        read = read.to(weight.device)
        matrix, constant = (part.to(weight) for part in reading.prediction(read))
        others = weight[:, other_channels(weight.shape[1], read)]
        moved = (others.movedim(1, -1) @ matrix).movedim(-1, 1)
        bias = others.flatten(2).sum(2) @ constant if weight.ndim == 4 else others @ constant
        if narrow.bias is not None:
            bias += narrow.bias
        narrow.bias = _parameter(weight, bias)
        narrow.weight = _parameter(weight, weight[:, read] + moved)
    if made is not None:
        _take(narrow, ("weight", "bias"), made)

    if isinstance(narrow, nn.Linear):
        narrow.out_features, narrow.in_features = narrow.weight.shape
    elif isinstance(narrow, nn.Conv2d):
        # Each filter of a grouped convolution reads as many channels as before.
        if narrow.groups > 1:
            narrow.groups = narrow.groups * len(narrow.weight) // narrow.out_channels
        narrow.out_channels = len(narrow.weight)
        narrow.in_channels = narrow.groups * narrow.weight.shape[1]
    return narrow


def _take(module: nn.Module, names: tuple[str, ...], idx: Tensor) -> None:
    """Keep some rows of a module's tensors."""
    for name in names:
        tensor = getattr(module, name)
        if tensor is None:
            continue
        rows = tensor[idx.to(tensor.device)]
        if isinstance(tensor, nn.Parameter):
            rows = _parameter(tensor, rows)
        setattr(module, name, rows)


def _parameter(old: Tensor, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.contiguous(), requires_grad=old.requires_grad)
