"""Parts of an ordinary network as they run: from one tensor to another, and as layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from rnr_gym.backbones.blocks import PooledHead
from rnr_gym.backbones.fused_conv import RELU, Activation, FusedConv
from rnr_gym.backbones.layer import Layer

RELU6 = Activation("hardtanh", (0.0, 6.0))
HARDSWISH = Activation("hardswish")
SILU = Activation("swish")
SIGMOID = Activation("sigmoid")
MODULES: dict[type, Activation] = {
    nn.ReLU: RELU,
    nn.ReLU6: RELU6,
    nn.Hardswish: HARDSWISH,
    nn.SiLU: SILU,
    nn.Sigmoid: SIGMOID,
}
"""Activations that a convolution can do as well."""
FUNCTIONS: dict[Any, Activation] = {
    F.relu: RELU,
    F.relu6: RELU6,
    F.hardswish: HARDSWISH,
    F.silu: SILU,
    F.sigmoid: SIGMOID,
    torch.relu: RELU,
    torch.relu_: RELU,
    torch.sigmoid: SIGMOID,
    "relu": RELU,
    "relu_": RELU,
    "sigmoid": SIGMOID,
}
"""The same as functions and methods."""


class Segment(nn.Module):
    """A part of a network, from one tensor to another.

    Args:
        network: what runs.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__()
        self.network = network

    def fold(self) -> None:
        """From now on, run convolutions that have their norm in them."""
        network = self.network
        for node in network.graph.nodes:
            source = node.args[0] if node.args else None
            if not isinstance(source, fx.Node) or len(source.users) > 1:
                continue
            conv = getattr(network, str(source.target), None)
            norm = getattr(network, str(node.target), None)
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            # Without statistics a norm depends on the batch.
            if norm.running_mean is None:
                continue
            fused = fuse_conv_bn_eval(conv, norm).requires_grad_(False)
            if _is_same(nn.Sequential(conv, norm), fused, conv.in_channels):
                setattr(network, str(source.target), fused)
                setattr(network, str(node.target), nn.Identity())
        # As images arrive.
        network.to(memory_format=torch.channels_last)

    def fuse(self) -> None:
        """From now on, run convolutions with the activations after them, where that is possible.

        Sums of residual blocks are left as they are: in the same operation they took longer.
        """
        network = self.network
        graph = network.graph
        # What was a norm before folding does nothing.
        for node in list(graph.nodes):
            if type(_module_of(network, node)) is nn.Identity:
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph.erase_node(node)

        for node in list(graph.nodes):
            conv = _module_of(network, node)
            if not FusedConv.takes(conv) or node.kwargs:
                continue
            fused = FusedConv(conv)
            setattr(network, str(node.target), fused)
            user = _only_user(node)
            activation = _activation(network, user)
            if user is not None and activation is not None:
                fused.activation = activation
                user.replace_all_uses_with(node)
                graph.erase_node(user)
        network.recompile()

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.network(features)
        return output


def _module_of(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that an operation runs; None for functions and methods."""
    if node.op != "call_module":
        return None
    return network.get_submodule(str(node.target))


def _only_user(node: fx.Node) -> fx.Node | None:
    """The operation that reads a tensor, if there is just one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(network: fx.GraphModule, node: fx.Node | None) -> Activation | None:
    """What an operation does, if a convolution can do it as well."""
    if node is None or len(node.all_input_nodes) != 1:
        return None
    module = _module_of(network, node)
    if module is None:
        # Nothing but whether it writes into what it reads may be said in addition.
        has_options = len(node.args) > 1 or bool(node.kwargs.keys() - {"inplace"})
        return None if has_options else FUNCTIONS.get(node.target)
    if type(module) is nn.Hardtanh:
        return Activation("hardtanh", (module.min_val, module.max_val))
    return MODULES.get(type(module))


class RoutableLayer(Layer):
    """One block of a network, and what lies between it and the block before.

    Args:
        paths: what runs, by number of the sub-path; numbers may be missing.
        macs: their MACs.
        num_paths: how many numbers there are.
        width: channels of the output.
        head: the exit's head, or None.
    """

    def __init__(
        self,
        paths: dict[int, Segment],
        macs: dict[int, int],
        num_paths: int,
        width: int,
        head: PooledHead | None,
    ) -> None:
        super().__init__()
        self.paths = nn.ModuleDict({str(number): path for number, path in paths.items()})
        self.path_macs = macs
        self.num_paths = num_paths
        self.widths = [width] * num_paths
        self.head = head

    def forward(self, x: Tensor, sub_path: int, prev_sub_path: int | None = None) -> Tensor:
        features: Tensor = self.paths[str(sub_path)](x)
        return features

    def macs(self, sub_path: int, in_width: int) -> int:
        return self.path_macs[sub_path]


def counted(network: nn.Module, features: Tensor) -> int:
    """MACs of a network on one image's features."""
    with FlopCounterMode(display=False) as counter:
        network(features)
    # torch counts a multiply and an add as two.
    return counter.get_total_flops() // 2


def _is_same(pair: nn.Module, fused: nn.Conv2d, channels: int) -> bool:
    """Whether two convolutions agree; subclasses may do more than convolve and normalise."""
    pattern = torch.linspace(-9.0, 9.0, channels * 32 * 32).sin()
    x = pattern.view(1, channels, 32, 32).to(fused.weight)
    expected = pair(x)
    scale = float(expected.abs().max()) + 1e-6
    return torch.allclose(fused(x), expected, rtol=1e-3, atol=1e-3 * scale)
