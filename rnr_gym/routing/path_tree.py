"""Every prefix and every whole path of a routing problem, as a tree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnr_gym.routing.protocols import Rows
from rnr_gym.routing.spec import RoutingSpec


class PathTree(NamedTuple):
    """The tree of paths. PathTree 0..M-1 are prefixes that wait for a decision, M.. are answers; `(P, ...)` arrays.

    Attributes:
        child: int64 `(M, K)`, the place a sub-path leads to, -1 where it is not valid.
        layer, prev_sub_path, macs: int64 `(P,)`, what a walk in that place would say.
        path: int8 `(P, T)`.
    """

    child: NDArray[np.int64]
    layer: NDArray[np.int64]
    prev_sub_path: NDArray[np.int64]
    macs: NDArray[np.int64]
    path: NDArray[np.int8]

    def reached(self, place: Rows, sub_paths: NDArray[np.integer]) -> Rows:
        """int64 `(n,)`: where each sub-path leads, -1 where it is not there."""
        known = (sub_paths >= 0) & (sub_paths < self.child.shape[1])
        return np.where(known, self.child[place, np.where(known, sub_paths, 0)], -1)


def num_prefixes(spec: RoutingSpec) -> int:
    """How many prefixes wait for a decision, the empty one included."""
    going = spec.valid[:, int(spec.has_exits) :].sum(1)
    return int(1 + np.cumprod(going[:-1]).sum())


def places(spec: RoutingSpec) -> PathTree:
    """Enumerate the tree, layer by layer, cheaper sub-paths first."""
    table, first = spec.mac_table, int(spec.has_exits)
    start = np.full(spec.num_layers, -1, np.int8)
    glanced = int(table.exits[0, -1]) if spec.stem_waits else table.stem
    waiting = [(0, spec.full_path, glanced, start)]
    inner: list[tuple[int, int, int, NDArray[np.int8]]] = []
    answered: list[tuple[int, int, int, NDArray[np.int8]]] = []
    links: list[tuple[int, int, bool, int]] = []
    for number, (layer, prev_sub_path, macs, path) in enumerate(waiting):  # grows as it is read
        inner.append((layer, prev_sub_path, macs, path))
        for sub_path in np.flatnonzero(spec.valid[layer]).tolist():
            further = path.copy()
            further[layer] = sub_path
            if first and sub_path == 0:
                links.append((number, sub_path, True, len(answered)))
                answered.append((spec.num_layers, sub_path, macs, further))
                continue
            spent, last = macs + int(table.layers[layer, prev_sub_path, sub_path]), layer + 1 == spec.num_layers
            if layer == 0 and spec.stem_waits:
                spent += table.stem
            spent += int(table.head[sub_path] if last else table.exits[layer + 1, sub_path])
            links.append((number, sub_path, last, len(answered) if last else len(waiting)))
            (answered if last else waiting).append((layer + 1, sub_path, spent, further))
    child = np.full((len(inner), spec.num_paths), -1)
    for number, sub_path, last, target in links:
        child[number, sub_path] = target + last * len(inner)
    layers, came, macs_, paths_ = zip(*inner, *answered, strict=True)
    return PathTree(child, np.array(layers), np.array(came), np.array(macs_), np.array(paths_))
