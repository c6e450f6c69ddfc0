"""Which channels matter most to what reads them, and how well they predict the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from rnr_gym.backbones.channel_groups import ChannelSet

MOST_PIXELS = 4096
"""Pixels from which covariances are estimated, spread over all images."""
RIDGE = 0.01
"""Added to variances, as a share of their mean: there may be fewer pixels than channels."""


class Reading(NamedTuple):
    """What a convolution or linear layer reads, over images and pixels.

    Attributes:
        mean: of each channel, `(C,)`.
        covariance: of the channels, `(C, C)`.
    """

    mean: Tensor
    covariance: Tensor

    def prediction(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """How the other channels follow from those that are kept, at the same pixel.

        Takes indices `(K,)`. Returns a matrix `(C - K, K)` and a constant `(C - K,)`; the other
        channels are in ascending order.
        """
        others = other_channels(len(self.mean), kept)
        among_kept = self.covariance[kept][:, kept]
        ridge = RIDGE * float(among_kept.diagonal().mean()) + 1e-12
        regular = among_kept + ridge * torch.eye(len(kept)).to(among_kept)
        matrix = torch.linalg.solve(regular, self.covariance[kept][:, others]).T  # (C - K, K)
        return matrix, self.mean[others] - matrix @ self.mean[kept]


def other_channels(count: int, kept: Tensor) -> Tensor:
    """The channels of `count` that are not among those, ascending."""
    is_other = torch.ones(count, dtype=torch.bool, device=kept.device)
    is_other[kept] = False
    return is_other.nonzero().flatten()


def readings_of(
    network: fx.GraphModule, readers: Iterable[Node], features: Tensor
) -> dict[Node, Reading]:
    """What some modules of a network, named as operations are, read of features `(N, C, H, W)`."""
    readings: dict[Node, Reading] = {}
    hooks = []
    for reader in readers:

        def record(module: nn.Module, args: tuple[Tensor], reader: Node = reader) -> None:
            axis = 1 if isinstance(module, nn.Conv2d) else -1
            readings[reader] = _reading(args[0].movedim(axis, -1).flatten(0, -2).float())

        hooks.append(network.get_submodule(reader.name).register_forward_pre_hook(record))
    network(features)
    for hook in hooks:
        hook.remove()
    return readings


def _reading(pixels: Tensor) -> Reading:
    """Mean and covariance of `(N, C)`."""
    if len(pixels) > MOST_PIXELS:
        spread = torch.linspace(0, len(pixels) - 1, MOST_PIXELS, device=pixels.device)
        pixels = pixels[spread.round().long()]
    mean = pixels.mean(0)
    centred = pixels - mean
    return Reading(mean, centred.T @ centred / len(pixels))


def importance(
    network: fx.GraphModule, channels: ChannelSet, readings: dict[Node, Reading]
) -> Tensor:
    """How much the readers of a set would miss each of its units, `(size / unit,)`.

    For every reader, the variance of a channel times the squared norm of the weights that read it:
    how much of what the reader makes varies with the channel. Its mean can be replaced.
    """
    total = torch.zeros(channels.size)
    for reader in channels.readers:
        module = network.get_submodule(reader.name)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        squares = module.weight.float().square()  # (out, in) or (out, in, H, W)
        read = squares.sum([axis for axis in range(squares.ndim) if axis != 1])
        total += (readings[reader].covariance.diagonal() * read).cpu()
    return total.unflatten(0, (-1, channels.unit)).sum(1)


def kept_channels(channels: ChannelSet, scores: Tensor, groups: int) -> list[Tensor]:
    """For 1, 2, ..., all `groups` groups, the channels that they hold, int64 `(n,)`, ascending.

    Groups are formed by the scores of the units, the highest first, and hold a multiple of 8
    channels where there are enough.
    """
    unit = channels.unit
    step = unit
    if unit < 8 and 8 % unit == 0 and channels.size >= 8 * groups:
        step = 8
    order = scores.argsort(descending=True, stable=True)
    kept = []
    for group in range(1, groups + 1):
        count = channels.size
        if group < groups:
            count = min(count, max(step, step * round(count * group / (groups * step))))
        units = order[: count // unit].sort().values
        kept.append((units[:, None] * unit + torch.arange(unit)).flatten())
    return kept
