"""Which channels inside a block belong together, so that they can be left out together.

A convolution that reads all channels makes new ones. Activations, norms, pooling, depth-wise
convolutions and the gates of squeeze-and-excitation keep them apart. So channels can be followed
from where they are made to where they are read, and left out at both ends.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import lcm, prod
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional as F

from rnr_gym.backbones.graphs import NetworkGraph

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid),
    *(nn.Identity, nn.Dropout, nn.Dropout2d),
)
"""Modules that treat each value by itself."""
ACTIVATION_FUNCTIONS = (
    *(torch.relu, torch.relu_, torch.sigmoid, torch.tanh, F.relu, F.relu_, F.relu6, F.gelu),
    *(F.silu, F.hardswish, F.hardsigmoid, F.sigmoid, F.tanh, F.leaky_relu, F.elu, F.mish),
    *(F.dropout, "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "contiguous", "clone"),
    *("stochastic_depth", "drop_connect", "drop_path"),
)
"""The same of functions, and of methods and functions of other libraries by name."""
DROPPING = ("StochasticDepth", "DropPath")
"""Class names of modules that drop whole branches while a network learns."""
MAPS = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(nn.ZeroPad2d, nn.Upsample),
)
"""Other modules that treat each channel by itself, and all alike."""
MAP_FUNCTIONS = (
    *(operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, operator.isub),
    *(torch.add, torch.mul, torch.sub, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d),
    *("add", "add_", "mul", "mul_", "expand_as"),
)
NORM_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
POOLING_FUNCTIONS = (F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.mean, "mean")


class ChannelSet:
    """Channels that can only be left out together, wherever they appear.

    Attributes:
        size: how many there are.
        unit: how many consecutive ones stand and fall together, in grouped convolutions.
        fixed: whether something needs all of them.
        has_pixels: whether they are made of a feature map. The few that squeeze-and-excitation
            makes of pooled features are left alone, since they cost next to nothing.
        writers: convolutions and linear layers that make them.
        readers: those that read them and make others.
        carriers: norms and grouped convolutions that keep them apart.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.unit = 1
        self.fixed = False
        self.has_pixels = False
        self.writers: list[Node] = []
        self.readers: list[Node] = []
        self.carriers: list[Node] = []

    @property
    def is_prunable(self) -> bool:
        """Whether some can be left out."""
        is_inside = bool(self.writers and self.readers) and not self.fixed
        return is_inside and self.has_pixels and self.size > self.unit

    def absorb(self, other: ChannelSet) -> None:
        """Make two sets one."""
        self.unit = lcm(self.unit, other.unit)
        self.fixed = self.fixed or other.fixed or self.size != other.size
        self.has_pixels = self.has_pixels or other.has_pixels
        self.writers += other.writers
        self.readers += other.readers
        self.carriers += other.carriers


class Channels:
    """The channels inside one block.

    Args:
        network: the network.
        start: what the block reads.
        end: what it returns.
    """

    def __init__(self, network: NetworkGraph, start: Node, end: Node) -> None:
        self.network = network
        self._sets: dict[Node, ChannelSet] = {}
        self._axes: dict[Node, int] = {}
        self._pooled: set[Node] = set()
        self._begin(start, 1)
        for node in network.between(start, end):
            if network.shape(node) is not None and network.inputs(node):
                self._follow(node)
        # The stream between blocks keeps its width.
        for node in (start, end):
            self._sets[node].fixed = True

    def prunable(self) -> list[ChannelSet]:
        """The sets that can be narrowed, in the order in which the block makes them."""
        sets = {id(channels): channels for channels in self._sets.values()}
        return [channels for channels in sets.values() if channels.is_prunable]

    def _follow(self, node: Node) -> None:
        """Find out where the channels of an operation's tensor come from."""
        module = self.network.module(node)
        first = self.network.inputs(node)[0]
        if module is not None and not _has_only_known_tensors(module):
            self._mix(node)
        elif isinstance(module, nn.Conv2d):
            self._follow_conv(node, module, first)
        elif isinstance(module, nn.Linear):
            self._follow_linear(node, first)
        elif isinstance(module, nn.BatchNorm2d):
            self._keep(node, [first])
            self._sets[node].carriers.append(node)
            self._sets[node].fixed |= module.running_mean is None
        elif is_activation(node, module) or _is_map(node, module):
            self._keep(node, self.network.inputs(node))
        elif is_pooling(node, module) or _name(node) in ("view", "reshape", "flatten"):
            self._reshape(node, first)
        elif _name(node) == "permute":
            self._permute(node, first)
        else:
            self._mix(node)
        if is_pooling(node, module) or self._pooled.issuperset(self.network.inputs(node)):
            self._pooled.add(node)

    def _follow_conv(self, node: Node, conv: nn.Conv2d, source: Node) -> None:
        if self._axes[source] != 1:
            self._mix(node)
        elif conv.groups == 1:
            self._make(node, 1, source)
        elif conv.in_channels == conv.out_channels:
            self._keep(node, [source])
            channels = self._sets[node]
            channels.unit = lcm(channels.unit, conv.in_channels // conv.groups)
            channels.carriers.append(node)
        else:
            self._mix(node)

    def _follow_linear(self, node: Node, source: Node) -> None:
        last = len(self.network.shape(node) or ()) - 1
        if self._axes[source] == last:
            self._make(node, last, source)
        else:
            self._mix(node)

    def _begin(self, node: Node, axis: int) -> ChannelSet:
        """New channels."""
        sizes = self.network.shape(node) or ()
        channels = ChannelSet(sizes[axis] if axis < len(sizes) else 1)
        self._sets[node] = channels
        self._axes[node] = axis
        return channels

    def _make(self, node: Node, axis: int, source: Node) -> None:
        """Channels that a convolution or linear layer makes of others."""
        self._sets[source].readers.append(node)
        channels = self._begin(node, axis)
        channels.writers.append(node)
        channels.has_pixels = source not in self._pooled

    def _keep(self, node: Node, sources: Sequence[Node]) -> None:
        """Channels that are those of all sources."""
        axis = self._axes[sources[0]]
        sizes = self.network.shape(node) or ()
        fits = axis < len(sizes)
        for source in sources:
            shape = self.network.shape(source) or ()
            fits = fits and self._axes[source] == axis and len(shape) == len(sizes)
        # A parameter with a value for each channel would have to be narrowed, too.
        for other in node.all_input_nodes:
            if other not in sources:
                fits = fits and prod(self.network.shape(other) or ()) == 1
        if not fits:
            self._mix(node)
            return

        self._begin(node, axis)
        for source in sources:
            # One map for all channels, such as spatial attention, belongs to none.
            if (self.network.shape(source) or ())[axis] == sizes[axis]:
                self._join(node, source)

    def _join(self, node: Node, source: Node) -> None:
        kept = self._sets[source]
        absorbed = self._sets[node]
        if kept is absorbed:
            return
        kept.absorb(absorbed)
        for other, channels in self._sets.items():
            if channels is absorbed:
                self._sets[other] = kept

    def _reshape(self, node: Node, source: Node) -> None:
        """Pooling over pixels, or another shape for features of one pixel."""
        sizes = self.network.shape(node) or ()
        count = self._sets[source].size
        places = [axis for axis in range(1, len(sizes)) if sizes[axis] == count]
        # A number that is written down would be wrong for fewer channels.
        is_fixed = count in node.args
        before = prod((self.network.shape(source) or ())[1:])
        keeps_pixels = is_pooling(node, self.network.module(node)) and self._axes[source] == 1
        is_one_pixel = before == count or keeps_pixels
        if len(places) == 1 and prod(sizes[1:]) == count and is_one_pixel and not is_fixed:
            self._begin(node, places[0])
            self._join(node, source)
        else:
            self._mix(node)

    def _permute(self, node: Node, source: Node) -> None:
        order: Any = node.args[1:] if node.op == "call_method" else node.args[1]
        if len(order) == 1 and not isinstance(order[0], int):
            order = order[0]
        count = len(self.network.shape(source) or ())
        axes = [axis % count for axis in order]
        self._begin(node, axes.index(self._axes[source]))
        self._join(node, source)

    def _mix(self, node: Node) -> None:
        """Channels of an operation that may need all channels of what it reads."""
        sources = self.network.inputs(node)
        for source in sources:
            self._sets[source].fixed = True
        # A norm over channels that come last leaves them there.
        axis = 1
        if self.network.shape(node) == self.network.shape(sources[0]):
            axis = self._axes[sources[0]]
        self._begin(node, axis).fixed = True


def _has_only_known_tensors(module: nn.Module) -> bool:
    """Whether a module can be narrowed, or has nothing to be narrowed.

    Subclasses and parametrizations may have more, which depends on the number of channels.
    """
    tensors = {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    if isinstance(module, nn.LayerNorm | nn.Conv2d | nn.Linear):
        return tensors <= {"weight", "bias"} and not module._forward_pre_hooks
    if isinstance(module, nn.BatchNorm2d):
        return tensors <= NORM_TENSORS
    return not tensors


def is_activation(node: Node, module: nn.Module | None) -> bool:
    """Whether an operation treats each value by itself."""
    if module is not None:
        return isinstance(module, ACTIVATIONS) or type(module).__name__ in DROPPING
    return node.target in ACTIVATION_FUNCTIONS or _name(node) in ACTIVATION_FUNCTIONS


def _is_map(node: Node, module: nn.Module | None) -> bool:
    """Whether an operation of one or more tensors treats each channel by itself."""
    if module is not None:
        return isinstance(module, MAPS)
    return node.target in MAP_FUNCTIONS or _name(node) in MAP_FUNCTIONS


def is_pooling(node: Node, module: nn.Module | None) -> bool:
    """Whether an operation averages over all pixels."""
    if module is not None:
        return isinstance(module, POOLING)
    return node.target in POOLING_FUNCTIONS


def _name(node: Node) -> str:
    """The name of a function or method; empty for a module."""
    if node.op == "call_module":
        return ""
    return str(getattr(node.target, "__name__", node.target))
