"""One routing decision: the contract of a backbone's layers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from rnr_gym.backbones.blocks import PooledHead


class LayerSpec(NamedTuple):
    """What a layer has to fit: its position in the network.

    Attributes:
        in_width: channels that arrive at full width.
        width: channels of its output at full width.
        halve: whether it halves the resolution.
        side: `(height, width)` of its output, in pixels.
        first_sub_path: the number of its cheapest sub-path that is not an exit.
    """

    in_width: int
    width: int
    halve: bool
    side: tuple[int, int]
    first_sub_path: int


class Layer(nn.Module):
    """One routing decision.

    A subclass defines `forward` and `macs`.

    Attributes:
        num_paths: how many sub-path numbers there are, the exit included if the backbone has exits.
        head: the exit's head, or None. (Layer 0 exits by the backbone's glance.)
        widths: channels of this layer's output, by sub-path.
    """

    num_paths: int
    head: PooledHead | None
    widths: list[int]

    def forward(self, features: Tensor, sub_path: int, prev_sub_path: int | None) -> Tensor:
        """Run one sub-path on features `(N, C, H, W)` -> `(N, C', H', W')`.

        `prev_sub_path` is the one executed before, None where the backbone does not read it.
        """
        raise NotImplementedError

    def exit(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        """Features as they arrive at this layer, see `PooledHead` -> logits `(N, classes)`.

        `context`, `(N, G + classes)`, holds the glance's pooled features and class probabilities,
        for exit heads that read them.

        Raises `ValueError` if the layer has no exit head.
        """
        if self.head is None:
            raise ValueError("`exit` was called at a layer that has no exit head")
        logits: Tensor = self.head(features, context)
        return logits

    def macs(self, sub_path: int, in_width: int) -> int:
        """MACs of an image that arrives with `in_width` channels and takes `sub_path`."""
        raise NotImplementedError
