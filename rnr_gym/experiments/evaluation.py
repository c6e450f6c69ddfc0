"""What a router, or given paths, do with every image of a split, each visited exactly once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnr_gym.agents.base import TRADEOFF_RANGE
from rnr_gym.agents.static import StaticRouter
from rnr_gym.classifier import BudgetCurve
from rnr_gym.routing.protocols import Router, Source
from rnr_gym.routing.rollout import decision_macs, route
from rnr_gym.routing.spec import RoutingSpec

EVAL_TRADEOFFS = tuple(np.geomspace(*TRADEOFF_RANGE, 16).tolist())
"""Trade-offs at which routers are evaluated."""
BATCH = 512


class Evaluation(NamedTuple):
    """Outcomes of N images.

    Attributes:
        path: int8 `(N, T)`.
        prediction: int64 `(N,)`.
        correct: bool `(N,)`.
        loss: float64 `(N,)`, cross-entropy in nats.
        macs: int64 `(N,)`, the router's own included.
        router_macs: int64 `(N,)`, the router's own.
    """

    path: NDArray[np.int8]
    prediction: NDArray[np.int64]
    correct: NDArray[np.bool_]
    loss: NDArray[np.float64]
    macs: NDArray[np.int64]
    router_macs: NDArray[np.int64]


def evaluate(source: Source, router: Router, tradeoff: float) -> Evaluation:
    """Route every image at one trade-off. A static router's path is charged as a static network's."""
    if isinstance(router, StaticRouter):
        count = len(source.labels)
        return evaluate_paths(source, np.broadcast_to(router.path(tradeoff), (count, source.spec.num_layers)), static=True)
    spent = decision_macs(router, source.spec)
    parts = []
    for low in range(0, len(source.labels), BATCH):
        rows = np.arange(low, min(low + BATCH, len(source.labels)))
        walk = route(source.start(rows), source.spec, router, tradeoff)
        parts.append(_evaluation(source, walk, rows, walk.macs, spent))
    return _joined(parts)


def evaluate_paths(
    source: Source, paths: NDArray[np.int8], static: bool = False, decision_macs: int = 0, indices: NDArray[np.int64] | None = None
) -> Evaluation:
    """Send every image down its own path `(N, T)`, -1 after an exit.

    Args:
        source: the images.
        paths: whole paths.
        indices: the images' numbers, int64 `(N,)`, where they are not all of them in order.
        static: charge no glance or exit but the one that answers, as for a static network.
        decision_macs: of the router that chose the paths, for each decision.
    """
    numbers, parts = np.arange(len(source.labels)) if indices is None else indices, []
    for low in range(0, len(numbers), BATCH):
        rows, taken = numbers[low : low + BATCH], paths[low : low + BATCH]
        walk = source.start(rows)
        for layer in range(source.spec.num_layers):
            walk = walk.step(np.maximum(taken[:, layer], 0).astype(np.int64))
        parts.append(_evaluation(source, walk, rows, static_macs(source.spec, taken) if static else walk.macs, decision_macs))
    return _joined(parts)


def sweep(router: Router) -> tuple[float, ...]:
    """The trade-offs at which a router is to be evaluated: `EVAL_TRADEOFFS`, and one for each path of a static one."""
    return tuple(sorted({*EVAL_TRADEOFFS, *router.tradeoffs})) if isinstance(router, StaticRouter) else EVAL_TRADEOFFS


def measure_curve(source: Source, router: Router) -> BudgetCurve:
    """Mean compute at every trade-off of the sweep, on the source's images (use `route`)."""
    return BudgetCurve(list(EVAL_TRADEOFFS), [float(evaluate(source, router, tradeoff).macs.mean() / source.spec.plain_macs) for tradeoff in EVAL_TRADEOFFS])


def static_macs(spec: RoutingSpec, paths: NDArray[np.int8]) -> NDArray[np.int64]:
    """int64 `(N,)`: what a static network would be charged for each path `(N, T)`."""
    unique, which = np.unique(paths, axis=0, return_inverse=True)
    return np.array([spec.static_macs(path) for path in unique])[which.ravel()]


def _evaluation(source: Source, walk: Any, rows: NDArray[np.int64], macs: NDArray[np.int64], decision_macs: int) -> Evaluation:
    outcome, path = source.outcome(walk, rows, np.arange(len(rows))), walk.path
    own = decision_macs * (path >= 0).sum(1)
    return Evaluation(path, outcome.prediction, outcome.prediction == source.labels[rows], outcome.loss, macs + own, own)


def _joined(parts: list[Evaluation]) -> Evaluation:
    return Evaluation(*(np.concatenate(field) for field in zip(*parts, strict=True)))
