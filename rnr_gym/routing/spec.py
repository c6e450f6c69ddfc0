"""The routing problem that a backbone poses, apart from its weights and images."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnr_gym.backbones.macs import MacTable
from rnr_gym.routing.observations import ObservationLayout, layout


class RoutingSpec:
    """Which decisions there are, what they cost, and what an observation looks like.

    Args:
        facts: `pooled`, `glance`, `classes`, `has_exits` and `loss_scale`, `quantised` where summaries are, and
            `exits_read_glance` where exit heads do, as JSON holds them.
        valid: bool `(T, K)`, the sub-paths that may be taken.
        mac_table: MACs, with the exits' rows zeroed where they are switched off.
    """

    def __init__(self, facts: dict[str, Any], valid: NDArray[np.bool_], mac_table: MacTable) -> None:
        self.facts, self.valid, self.mac_table = facts, valid, mac_table
        self.num_layers, self.num_paths = valid.shape
        self.has_exits: bool = facts["has_exits"]
        self.loss_scale: float = facts["loss_scale"]
        self.full_path = self.num_paths - 1
        self.plain_macs, self.ceiling = mac_table.plain, mac_table.ceiling

    @cached_property
    def layout(self) -> ObservationLayout:
        """Where the parts of an observation stand."""
        glance_classes = 0 if self.quantised else self.facts["classes"]
        return layout(self.facts["pooled"], self.facts["glance"], self.facts["classes"], self.num_layers, self.num_paths, glance_classes)

    @property
    def quantised(self) -> bool:
        """Whether summaries come in whole steps of `summaries.steps`, without what the glance said once it is past."""
        return bool(self.facts.get("quantised"))

    @property
    def stem_waits(self) -> bool:
        """Whether layer 0's exit is the glance, so that the stem runs only for images that continue."""
        return self.has_exits and bool(self.valid[0, 0])

    @cached_property
    def nearest(self) -> NDArray[np.int64]:
        """int64 `(T, K)`: what is executed for an action; itself where valid, else the nearest valid one, cheaper first."""
        return _nearest(self.valid)

    @cached_property
    def onward(self) -> NDArray[np.int64]:
        """int64 `(T, K)`: as `nearest`, among the sub-paths that go on to the next layer; never an exit."""
        going = self.valid.copy()
        going[:, 0] &= not self.has_exits
        return _nearest(going)

    @cached_property
    def masks(self) -> NDArray[np.int8]:
        """int8 `(T + 1, K)`: the valid actions at each layer; none once answered."""
        return np.vstack([self.valid, np.zeros(self.num_paths, np.bool_)]).astype(np.int8)

    def static_macs(self, path: NDArray[np.int8]) -> int:
        """MACs of a path `(T,)` taken by a static network, which runs no exit or glance but the one it answers with.

        A head that reads the glance needs it to run, so it is charged as well.
        """
        exits = np.flatnonzero(path == 0) if self.has_exits else np.zeros(0, np.int64)
        end = int(exits[0]) if len(exits) else self.num_layers
        if end == 0:
            return int(self.mac_table.exits[0, -1])
        prev_sub_path = np.concatenate([[self.full_path], path[:end]])
        spent = self.mac_table.stem + self.mac_table.layers[np.arange(end), prev_sub_path[:end], path[:end]].sum()
        answer = self.mac_table.exits[end] if end < self.num_layers else self.mac_table.head
        if end < self.num_layers and self.facts.get("exits_read_glance"):
            spent += self.mac_table.exits[0, -1]
        return int(spent + answer[prev_sub_path[end]])

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with decisions, costs or observation layout (not with weights)."""
        shape = {name: value for name, value in self.facts.items() if name != "loss_scale"}
        parts = [shape, self.valid.tolist(), self.mac_table.stem, *(part.tolist() for part in self.mac_table[1:])]
        if self.stem_waits:
            parts.append("stem after glance")
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _nearest(valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 `(T, K)`: for each layer and sub-path the nearest one that is `valid`, cheaper first."""
    nearest = np.zeros(valid.shape, np.int64)
    for layer, row in enumerate(valid):
        offered = np.flatnonzero(row)
        for action in range(valid.shape[1]):
            nearest[layer, action] = min(offered, key=lambda other: (abs(other - action), other))
    return nearest
