"""A router takes images to their answers, and what its decisions cost."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch.utils.flop_counter import FlopCounterMode

from rnr_gym.routing.observations import observe
from rnr_gym.routing.protocols import Router, RoutingState
from rnr_gym.routing.spec import RoutingSpec

AnyState = TypeVar("AnyState", bound=RoutingState)


def route(walk: AnyState, spec: RoutingSpec, router: Router, tradeoff: float) -> AnyState:
    """Let a router decide until every image of a walk has been answered."""
    count, state = len(walk.layer), None
    start, weights = np.ones(count, np.bool_), np.full(count, tradeoff)
    while not walk.done.all():
        seen = observe(spec.layout, walk.summary(), walk.layer, walk.prev_sub_path, walk.macs / spec.plain_macs, weights)
        actions, state = router.predict(seen, state, start, deterministic=True)
        start = np.zeros(count, np.bool_)
        walk = walk.step(spec.nearest[np.minimum(walk.layer, spec.num_layers - 1), actions])
    return walk


def decision_macs(router: Router, spec: RoutingSpec) -> int:
    """MACs that a router spends on one decision: convolutions and matrix products that run in its `predict`."""
    with FlopCounterMode(display=False) as counter:
        router.predict(np.zeros((1, spec.layout.size), np.float32), None, np.ones(1, np.bool_), deterministic=True)
    return int(counter.get_total_flops()) // 2
