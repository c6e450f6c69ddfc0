"""Blocks with fewer inner channels: copies of their modules with some of the weights."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from rnr_gym.backbones.carving import carved
from rnr_gym.backbones.channel_groups import Channels, ChannelSet, kept_channels
from rnr_gym.backbones.discovery import Block
from rnr_gym.backbones.graphs import NetworkGraph


class Choice(NamedTuple):
    """The ways through a block.

    Attributes:
        block: the block.
        groups: how many groups of channels there are.
        skips: the sums that end its branches, each with what is left without the branch; empty if
            the block cannot be skipped.
        kept: the sets of channels that can be narrowed, each with the channels `(n,)` that remain
            with 1, 2, ..., all groups.
    """

    block: Block
    groups: int
    skips: dict[Node, Node]
    kept: list[tuple[ChannelSet, list[Tensor]]]

    @classmethod
    def of(cls, network: NetworkGraph, block: Block, groups: int, skip: bool) -> Choice:
        """Find the ways through a block; see `routable` for `groups` and `skip`."""
        same_shape = network.shape(block.start) == network.shape(block.end)
        skips = block.skips if skip and same_shape and block.kind == "residual" else {}
        kept = []
        if groups > 1:
            for channels in Channels(network, block.start, block.end).prunable():
                kept.append((channels, kept_channels(network, channels, groups)))
        return cls(block, groups, skips, kept)

    @property
    def is_one(self) -> bool:
        """Whether there is more than one way."""
        return bool(self.skips or self.kept)

    @property
    def widths(self) -> list[list[int]]:
        """Inner channels of each narrow way and, last, of the whole block."""
        by_set = [map(len, idx) for _, idx in self.kept]
        return [list(widths) for widths in zip(*by_set, strict=True)]

    def parts(self, network: NetworkGraph, start: Node) -> dict[int, fx.GraphModule]:
        """What runs for each way: 0 skips, 1, 2, ... compute so many groups, the last all.

        Each begins at `start`, which lies before the block or is what the block reads.
        """
        block = self.block
        parts = {}
        if self.skips:
            parts[0] = carved(network, start, block.end, instead=self.skips)
        for group in range(self.groups - 1 if self.kept else 0):
            kept = [(channels, idx[group]) for channels, idx in self.kept]
            modules = narrowed_modules(network, block.start, block.end, kept)
            parts[group + 1] = carved(network, start, block.end, modules=modules)
        parts[self.groups] = carved(network, start, block.end)
        return parts


def narrowed_modules(
    network: NetworkGraph, start: Node, end: Node, kept: list[tuple[ChannelSet, Tensor]]
) -> dict[Node, nn.Module]:
    """The modules that a block runs if it keeps only some of its inner channels.

    Batch-norms that follow a narrowed convolution are among them: what they read has other
    statistics than on the full path.

    Args:
        network: the network.
        start: what the block reads.
        end: what it returns.
        kept: sets of channels, each with the channels `(n,)` of it that remain.
    """
    made: dict[Node, Tensor] = {}
    read: dict[Node, Tensor] = {}
    for channels, idx in kept:
        made.update(dict.fromkeys(channels.writers + channels.carriers, idx))
        read.update(dict.fromkeys(channels.readers, idx))

    modules: dict[Node, nn.Module] = {}
    changed: set[Node] = set()
    for node in network.between(start, end):
        module = network.module(node)
        if node in made or node in read:
            assert module is not None
            modules[node] = narrowed(
                module, made.get(node), read.get(node), network.means.get(node)
            )
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
    means: Tensor | None = None,
) -> nn.Module:
    """A copy of a convolution, linear layer or batch-norm with some of its channels.

    What it would read of the other channels is replaced by a constant, in its bias.

    Args:
        module: is left as it is.
        made: the channels that it gives, `(n,)`; None for all.
        read: the channels that it reads; None for all, and for modules that keep channels apart.
        means: of all channels that `module` reads, `(C,)`.
    """
    narrow = copy.deepcopy(module)
    if isinstance(narrow, nn.BatchNorm2d):
        assert made is not None
        _take(narrow, ("weight", "bias", "running_mean", "running_var"), made)
        narrow.num_features = len(made)
        return narrow

    if read is not None and means is not None:
        assert isinstance(narrow, nn.Conv2d | nn.Linear)
        weight = narrow.weight
        read = read.to(weight.device)
        left_out = means.to(weight).index_fill(0, read, 0.0)
        constant = weight.flatten(1).unflatten(1, (len(means), -1)).sum(2) @ left_out  # (out,)
        if narrow.bias is not None:
            constant += narrow.bias
        narrow.bias = nn.Parameter(constant, requires_grad=weight.requires_grad)
        narrow.weight = _parameter(weight, weight[:, read])
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
