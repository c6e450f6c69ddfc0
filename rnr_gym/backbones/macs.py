"""Multiply-accumulates: counted by formula, kept as a table over every decision.

One MAC is one multiply and one add, half of what `torch.utils.flop_counter` reports. As there,
convolutions and matrix products count; pooling, normalisation, activations and additions do not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


def conv_macs(in_channels: int, out_channels: int, side: tuple[int, int], kernel: int = 3) -> int:
    """MACs of a dense square convolution whose *output* is `side = (height, width)` pixels."""
    height, width = side
    return in_channels * out_channels * kernel * kernel * height * width


def linear_macs(in_features: int, out_features: int) -> int:
    """MACs of a fully connected layer."""
    return in_features * out_features


class MacTable(NamedTuple):
    """MACs of one image, for T layers and K sub-paths.

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

    @property
    def plain(self) -> int:
        """MACs of the plain network: the full path without glance and exits."""
        return self.stem + int(self.layers[:, -1, -1].sum() + self.head[-1])

    @property
    def ceiling(self) -> float:
        """The highest compute one image can be charged: full path, glance and every exit head.

        As everywhere, compute is measured in MACs of the plain network.
        """
        layers = self.layers.max(axis=(1, 2)).sum()
        exits = self.exits.max(axis=1).sum()
        head = self.head.max()
        return float(self.stem + exits + layers + head) / self.plain
