"""The routing problem that a backbone poses, apart from its weights and images."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rnr_gym import storage
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.macs import CostTable, MacTable, TimeTable
from rnr_gym.routing.observations import ObservationLayout, layout
from rnr_gym.routing.protocols import Indices, RoutingState


@dataclass(frozen=True, eq=False)
class RoutingSpec:
    """Decisions, costs and observation layout of a backbone with T layers and K sub-paths.

    Attributes:
        valid: bool `(T, K)`, the sub-paths that may be taken.
        mac_table: MACs; its exits are zero where exits are switched off.
        num_classes: number of classes.
        pooled_width: pooled features in a summary.
        glance_width: pooled features of the glance in a summary; 0 for none.
        has_exits: whether sub-path 0 is the exit.
        loss_scale: 1 / the full path's mean loss on `route`.
        quantised: whether summaries are rounded to `observations.quantisation_steps` and leave out
            what the glance said once it is past.
        exits_read_glance: whether exit heads read the glance, which then has to run for them.
        time_table: nanoseconds, in the form of `mac_table`, where time is charged; else None.
    """

    valid: NDArray[np.bool_]
    mac_table: MacTable
    num_classes: int
    pooled_width: int
    glance_width: int
    has_exits: bool
    loss_scale: float = 1.0
    quantised: bool = False
    exits_read_glance: bool = False
    time_table: TimeTable | None = None

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        exits: bool = True,
        time_table: TimeTable | None = None,
    ) -> RoutingSpec:
        """The problem that a backbone poses.

        Args:
            backbone: the network.
            exits: False masks, and does not charge for, exits and glance.
            time_table: what is charged instead of MACs.

        Raises `ValueError` if the time table is that of another backbone.
        """
        valid = backbone.valid.copy()
        mac_table = backbone.mac_table
        if backbone.has_exits and not exits:
            # Exit heads that do not run are not charged, and neither is the glance.
            valid[:, 0] = False
            mac_table = mac_table._replace(exits=np.zeros_like(mac_table.exits))

        spec = cls(
            valid=valid,
            mac_table=mac_table,
            num_classes=backbone.num_classes,
            pooled_width=backbone.pooled_width,
            glance_width=backbone.glance_width,
            has_exits=backbone.has_exits,
            loss_scale=float(backbone.loss_scale),
            quantised=bool(backbone.summary_groups),
            exits_read_glance=backbone.exits_read_glance and exits,
        )
        if time_table is None:
            return spec
        return spec.timed(time_table)

    def timed(self, time_table: TimeTable) -> RoutingSpec:
        """The same problem, where time is charged instead of MACs.

        What is charged no MACs, such as exits that are off, is charged no time.

        Raises `ValueError` if the time table is that of another backbone.
        """
        expected = self.mac_table.layers.shape
        if time_table.layers.shape != expected:
            raise ValueError(
                f"`time_table` must have layers {expected} as the backbone, got "
                f"{time_table.layers.shape}"
            )
        exits = np.where(self.mac_table.exits > 0, time_table.exits, 0)
        return replace(self, time_table=time_table._replace(exits=exits))

    @property
    def num_layers(self) -> int:
        """T, the number of decisions."""
        return len(self.valid)

    @property
    def num_paths(self) -> int:
        """K, the number of sub-paths, the exit included."""
        return self.valid.shape[1]

    @property
    def full_path(self) -> int:
        """The number of the sub-path that costs most, K - 1."""
        return self.num_paths - 1

    @property
    def first_sub_path(self) -> int:
        """The number of the cheapest sub-path that is not an exit."""
        return int(self.has_exits)

    @cached_property
    def exit_layers(self) -> tuple[int, ...]:
        """The layers at which an image can be answered at once; 0 stands for the glance."""
        if not self.has_exits:
            return ()
        return tuple(np.flatnonzero(self.valid[:, 0]).tolist())

    @property
    def stem_waits(self) -> bool:
        """Whether layer 0 exits by the glance, so that the stem runs only for images that stay."""
        return 0 in self.exit_layers

    @cached_property
    def plain_macs(self) -> int:
        """MACs of the plain network."""
        return self.mac_table.plain

    @property
    def costs(self) -> CostTable:
        """What is charged: the time table where there is one, else the MAC table."""
        return self.mac_table if self.time_table is None else self.time_table

    @cached_property
    def plain_cost(self) -> int:
        """What the plain network costs, in MACs, or in nanoseconds where time is charged."""
        return self.costs.plain

    @cached_property
    def ceiling(self) -> float:
        """The most compute that one image can be charged."""
        return self.costs.ceiling

    def compute(self, cost: NDArray[np.int64]) -> NDArray[np.float64]:
        """A cost as a share of that of the plain network."""
        return cost / self.plain_cost

    def charged(self, state: RoutingState) -> Indices:
        """int64 `(N,)`: what images have been charged so far, in MACs or nanoseconds."""
        if self.time_table is None:
            return state.macs
        return self.path_cost(state.path, self.time_table)

    def path_cost(self, paths: NDArray[np.integer], table: CostTable) -> Indices:
        """int64 `(N,)`: what a table says of paths `(N, T)` or their beginnings, -1 after the end.

        As states count it: with the glance, and every exit head that ran on arrival.
        """
        cost = np.full(len(paths), table.exits[0, -1] if self.stem_waits else table.stem)
        prev_sub_path = np.full(len(paths), self.full_path)
        for layer, sub_paths in enumerate(paths.T.astype(np.int64)):
            # An exit costs nothing, since its head ran on arrival.
            moving = np.flatnonzero(sub_paths >= self.first_sub_path)
            sub_path = sub_paths[moving]
            cost[moving] += table.layers[layer, prev_sub_path[moving], sub_path]
            if layer == 0 and self.stem_waits:
                cost[moving] += table.stem

            # On arrival the network's head, or the next layer's exit head, runs.
            arrival = table.head if layer + 1 == self.num_layers else table.exits[layer + 1]
            cost[moving] += arrival[sub_path]
            prev_sub_path[moving] = sub_path
        return cost

    def router_cost(self, macs: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64: what the MACs of a router's own decisions cost.

        Where time is charged, they run at the rate of the plain network, which is a lower bound:
        small matrix products run at a lower rate.
        """
        if self.time_table is None:
            return macs
        # Rounded up, so that no decision is free.
        return -(-macs * self.plain_cost // self.plain_macs)

    @cached_property
    def layout(self) -> ObservationLayout:
        """The slices of an observation."""
        return layout(
            pooled=self.pooled_width,
            glance=self.glance_width,
            classes=self.num_classes,
            layers=self.num_layers,
            paths=self.num_paths,
            glance_classes=0 if self.quantised else self.num_classes,
        )

    @cached_property
    def nearest(self) -> NDArray[np.int64]:
        """int64 `(T, K)`: the nearest valid sub-path to each action, the cheaper one of two."""
        return _nearest(self.valid)

    @cached_property
    def onward(self) -> NDArray[np.int64]:
        """int64 `(T, K)`: as `nearest`, among sub-paths that continue to the next layer."""
        continuing = self.valid.copy()
        if self.has_exits:
            continuing[:, 0] = False
        return _nearest(continuing)

    def executable(self, layer: NDArray[np.int64], actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 `(N,)`: what is executed for actions at layers `(N,)`; meaningless for layer T."""
        return self.nearest[np.minimum(layer, self.num_layers - 1), actions]

    @cached_property
    def masks(self) -> NDArray[np.int8]:
        """int8 `(T + 1, K)`: the valid actions at each layer; all of them once answered."""
        # No action is taken after an answer, but distributions and targets over none are undefined.
        answered = np.ones(self.num_paths, np.bool_)
        return np.vstack([self.valid, answered]).astype(np.int8)

    def static_macs(self, path: NDArray[np.integer]) -> int:
        """MACs of a path `(T,)` taken by a static network.

        Such a network runs no exit or glance but the one that answers. An exit head that reads the
        glance needs it to run, so the glance is charged as well.
        """
        return self._static(path, self.mac_table)

    def static_cost(self, path: NDArray[np.integer]) -> int:
        """What such a network is charged, in MACs, or in nanoseconds where time is charged."""
        return self._static(path, self.costs)

    def _static(self, path: NDArray[np.integer], table: CostTable) -> int:
        # A -1 follows the exit, so the first zero is the only one.
        exits = np.flatnonzero(path == 0) if self.has_exits else np.zeros(0, np.int64)
        end = int(exits[0]) if len(exits) else self.num_layers
        if end == 0:
            return int(table.exits[0, -1])

        # Nothing pruned precedes layer 0, so it counts as reached by the full path.
        prev_sub_path = np.concatenate([[self.full_path], path[:end]])
        layers = table.layers[np.arange(end), prev_sub_path[:end], path[:end]]
        cost = table.stem + layers.sum()
        if end == self.num_layers:
            return int(cost + table.head[prev_sub_path[end]])

        if self.exits_read_glance:
            cost += table.exits[0, -1]
        return int(cost + table.exits[end, prev_sub_path[end]])

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with decisions, costs or observation layout.

        Weights and `loss_scale` do not change it.
        """
        shape: dict[str, int | bool] = {
            "pooled": self.pooled_width,
            "glance": self.glance_width,
            "classes": self.num_classes,
            "has_exits": self.has_exits,
        }
        # Named only where they hold, so that problems without them keep their digests.
        if self.quantised:
            shape["quantised"] = True
        if self.exits_read_glance:
            shape["exits_read_glance"] = True

        table = self.mac_table
        costs = [table.layers.tolist(), table.exits.tolist(), table.head.tolist()]
        parts = [shape, self.valid.tolist(), table.stem, *costs]
        if self.stem_waits:
            parts.append("stem after glance")
        if self.time_table is not None:
            parts.append(["nanoseconds", *self.time_table.to_json().values()])
        return storage.short_hash(json.dumps(parts, sort_keys=True).encode())


def _nearest(valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 `(T, K)`: the nearest `valid` sub-path to each, the cheaper one of two."""
    nearest = np.zeros(valid.shape, np.int64)
    for layer, offered in enumerate(valid):
        sub_paths = np.flatnonzero(offered)
        for action in range(valid.shape[1]):
            # Sub-paths ascend in cost and argmin takes the first, so of two the cheaper one wins.
            distance = np.abs(sub_paths - action)
            nearest[layer, action] = sub_paths[distance.argmin()]
    return nearest
