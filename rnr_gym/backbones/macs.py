"""Multiply-accumulates: counted by formula. And costs as a table over every decision.

One MAC is one multiply and one add, half of what `torch.utils.flop_counter` reports. As there,
convolutions and matrix products count; pooling, normalisation, activations and additions do not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnr_gym import checks

MOST = 2**48
"""The most that a stored entry may cost; sums of them do not overflow."""


def conv_macs(in_channels: int, out_channels: int, side: tuple[int, int], kernel: int = 3) -> int:
    """MACs of a dense square convolution whose *output* is `side = (height, width)` pixels."""
    height, width = side
    return in_channels * out_channels * kernel * kernel * height * width


def linear_macs(in_features: int, out_features: int) -> int:
    """MACs of a fully connected layer."""
    return in_features * out_features


class CostTable(NamedTuple):
    """What one image costs, in MACs or in nanoseconds, for T layers and K sub-paths.

    `prev_sub_path` is the sub-path executed one layer earlier; at layer 0, where nothing has been
    pruned yet, it is the full path's number, K - 1. Entries for sub-paths or exits that a layer
    does not have are zero.

    Attributes:
        stem: the stem.
        layers: int64 `(T, K, K)`, indexed `[layer, prev_sub_path, sub_path]`.
        exits: int64 `(T, K)`, indexed `[layer, prev_sub_path]`; row 0 is the glance.
        head: int64 `(K,)`, indexed `[prev_sub_path]`.
    """

    stem: int
    layers: NDArray[np.int64]
    exits: NDArray[np.int64]
    head: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """The entries by name, as JSON holds them."""
        return {
            "stem": self.stem,
            "layers": self.layers.tolist(),
            "exits": self.exits.tolist(),
            "head": self.head.tolist(),
        }

    @classmethod
    def from_json(cls, name: str, content: Any) -> CostTable:
        """Undo `to_json`; raises `ValueError`, with the name, if it is something else."""
        if not isinstance(content, dict) or content.keys() != set(cls._fields):
            raise ValueError(f"`{name}` must hold {', '.join(cls._fields)}, got {content!r:.100}")
        # Shapes follow from the number of layers and sub-paths, those of `layers`.
        head = checks.whole_numbers(f"{name}.head", content["head"], (None,), 0, MOST)
        pairs = (None, len(head), len(head))
        layers = checks.whole_numbers(f"{name}.layers", content["layers"], pairs, 0, MOST)
        arrivals = (len(layers), len(head))
        exits = checks.whole_numbers(f"{name}.exits", content["exits"], arrivals, 0, MOST)
        stem = checks.integer(f"{name}.stem", content["stem"], 0, MOST)
        table = cls(stem=stem, layers=layers, exits=exits, head=head)
        if len(head) == 0 or len(layers) == 0 or table.plain <= 0:
            raise ValueError(f"`{name}` must have layers that cost something")
        return table

    @property
    def plain(self) -> int:
        """The plain network: the full path without glance and exits."""
        return self.stem + int(self.layers[:, -1, -1].sum() + self.head[-1])

    @property
    def ceiling(self) -> float:
        """The highest compute one image can be charged: full path, glance and every exit head.

        As everywhere, compute is measured in the cost of the plain network.
        """
        layers = self.layers.max(axis=(1, 2)).sum()
        exits = self.exits.max(axis=1).sum()
        head = self.head.max()
        return float(self.stem + exits + layers + head) / self.plain


MacTable = CostTable
"""A `CostTable` in MACs."""
TimeTable = CostTable
"""A `CostTable` in nanoseconds."""
