"""Taking a batch of images to their answers, by a router or along given paths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from rnr_gym.routing.observations import observe
from rnr_gym.routing.protocols import Indices, Router, RoutingSource, RoutingState
from rnr_gym.routing.spec import RoutingSpec

State = TypeVar("State", bound=RoutingState)


def started(source: RoutingSource, image_idx: Indices) -> Iterator[tuple[slice, Any]]:
    """Start images `(N,)` of a source in batches that fit into memory.

    The next batch is prepared meanwhile. Gives the positions of each batch, and its state.
    """
    size = source.batch_size
    for start in range(0, len(image_idx), size):
        batch = slice(start, min(start + size, len(image_idx)))
        state = source.start(image_idx[batch])
        source.prefetch(image_idx[batch.stop : batch.stop + size])
        yield batch, state


def observation(
    state: RoutingState,
    spec: RoutingSpec,
    tradeoff: NDArray[np.float64],
    features: bool = True,
) -> NDArray[np.float32]:
    """float32 `(N, D)`: what a router sees of N images at trade-offs `(N,)`.

    Without `features`, for a router that does not read them, pooled features may be zeros.
    """
    return observe(
        spec.layout,
        summary=state.summary(features),
        layer=state.layer,
        prev_sub_path=state.prev_sub_path,
        compute=spec.compute(spec.charged(state)),
        tradeoff=tradeoff,
    )


def route(
    state: State,
    spec: RoutingSpec,
    router: Router,
    tradeoff: float | NDArray[np.float64],
) -> State:
    """Let a router decide until every image has been answered.

    The trade-off is one number, or `(N,)` of them.
    """
    batch_size = len(state.layer)
    tradeoffs = np.broadcast_to(tradeoff, batch_size)
    episode_start = np.ones(batch_size, np.bool_)
    memory: Any = None
    features = getattr(router, "reads_features", True)
    # Images that exit early wait for the others; their actions are ignored.
    while not state.done.all():
        obs = observation(state, spec, tradeoffs, features)
        actions, memory = router.predict(obs, memory, episode_start, deterministic=True)
        state = state.step(spec.executable(state.layer, actions))
        episode_start = np.zeros(batch_size, np.bool_)
    return state


def follow(state: State, paths: NDArray[np.integer]) -> State:
    """Send each image down its path `(N, T)`, or all down one path `(T,)`; -1 after an exit.

    Raises `ValueError` for a sub-path that is not valid.
    """
    batch_size = len(state.layer)
    for sub_paths in np.broadcast_to(paths, (batch_size, paths.shape[-1])).T:
        # Entries of answered images are ignored; those of the others must not be -1.
        state = state.step(sub_paths.astype(np.int64))
    return state


def decision_macs(router: Router, spec: RoutingSpec) -> int:
    """MACs of one decision: the convolutions and matrix products that run in `predict`."""
    obs = np.zeros((1, spec.layout.size), np.float32)
    # The counter reports a multiply and an add as two operations.
    with FlopCounterMode(display=False) as counter:
        router.predict(obs, None, np.ones(1, np.bool_), deterministic=True)
    return int(counter.get_total_flops()) // 2
