"""Batch-norms folded into the convolutions before them, for inference."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def folded(network: Network) -> Network:
    """A copy for inference that gives the same answers but for rounding, without batch-norms.

    A norm in evaluation mode scales and shifts each channel, which the convolution before it can
    do as well. Where a norm depends on the previous sub-path, there is a convolution for each.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            _fold_sequence(module)
        elif hasattr(module, "fold"):
            module.fold()  # type: ignore[operator]
    return network


def fused(weight: Tensor, norm: nn.Module, stride: int = 1) -> nn.Conv2d:
    """A convolution with `weight` `(C', C, 3, 3)` and the first C' channels of a norm after it."""
    width, in_width = weight.shape[:2]
    scale, shift = affine(norm)
    # Without weights of its own, which would be drawn from torch's global generator.
    conv = nn.Conv2d(in_width, width, 3, stride, 1, device="meta")
    return with_parameters(conv, weight * scale[:width, None, None, None], shift[:width])


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift `(C,)` of each channel by a batch-norm in evaluation mode."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def _fold_sequence(sequence: nn.Sequential) -> None:
    """Fold each norm of a sequence that follows a convolution, of whatever form."""
    for (position, conv), (next_position, norm) in pairwise(enumerate(sequence)):
        # No subclasses, which may do more than their names say.
        if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
            continue
        # Without statistics a norm depends on the batch. All of ours scale and shift, too.
        if norm.running_mean is None or not norm.affine:
            continue
        scale, bias = affine(norm)
        if conv.bias is not None:
            bias = bias + conv.bias * scale
        weight = conv.weight * scale[:, None, None, None]
        sequence[position] = with_parameters(copy.deepcopy(conv), weight, bias)
        sequence[next_position] = nn.Identity()


def with_parameters(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """The convolution with another weight and bias, which do not learn."""
    # Cut out of larger weights, it would be copied at every call.
    whole = weight.contiguous(memory_format=torch.channels_last)
    conv.weight = nn.Parameter(whole.detach(), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return conv
