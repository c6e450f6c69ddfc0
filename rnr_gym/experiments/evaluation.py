"""What a router, or given paths, do with every image of a split, each visited exactly once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnr_gym import checks
from rnr_gym.agents.static import StaticRouter
from rnr_gym.classifier import BudgetCurve
from rnr_gym.routing import rollout
from rnr_gym.routing.protocols import Indices, Router, RoutingSource
from rnr_gym.routing.rewards import check_one_tradeoff, tradeoff_grid
from rnr_gym.routing.spec import RoutingSpec

EVAL_TRADEOFFS = tradeoff_grid(16)
"""Trade-offs at which routers are evaluated."""


class Evaluation(NamedTuple):
    """Outcomes of N images.

    Attributes:
        path: int8 `(N, T)`, executed sub-paths, -1 after an exit.
        prediction: int64 `(N,)`, the top class.
        correct: bool `(N,)`.
        loss: float64 `(N,)`, cross-entropy in nats.
        macs: int64 `(N,)`, the router's own included.
        router_macs: int64 `(N,)`, the router's own.
        cost: int64 `(N,)`, what is charged, the router's own included: the MACs, or nanoseconds
            where time is charged.
    """

    path: NDArray[np.int8]
    prediction: NDArray[np.int64]
    correct: NDArray[np.bool_]
    loss: NDArray[np.float64]
    macs: NDArray[np.int64]
    router_macs: NDArray[np.int64]
    cost: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: list[Evaluation]) -> Evaluation:
        """The images of several evaluations, in order."""
        return cls._make(np.concatenate(field) for field in zip(*parts, strict=True))

    def take(self, image_idx: Indices) -> Evaluation:
        """The chosen images, in the order given."""
        return Evaluation._make(field[image_idx] for field in self)

    def exit_rate(self, spec: RoutingSpec) -> float:
        """The share of the images that an exit answered."""
        if not spec.has_exits:
            return 0.0
        return float((self.path == 0).any(1).mean())


def evaluate(source: RoutingSource, router: Router, tradeoff: float) -> Evaluation:
    """Route every image at one trade-off.

    The path of a `StaticRouter` is charged as that of a static network.
    """
    # A static network is evaluated at any trade-off; others observe it.
    checks.number("tradeoff", tradeoff, 0.0)
    num_images = len(source.labels)
    spec = source.spec
    if isinstance(router, StaticRouter):
        # Its path is known beforehand, so it decides nothing and pays for no decisions.
        paths = np.broadcast_to(router.path(tradeoff), (num_images, spec.num_layers))
        return evaluate_paths(source, paths, static=True)

    tradeoff = check_one_tradeoff(tradeoff)
    router_macs = rollout.decision_macs(router, spec)
    parts = []
    image_idx = np.arange(num_images)
    for batch, start in rollout.started(source, image_idx):
        state = rollout.route(start, spec, router, tradeoff)
        charged = Charge(state.macs, spec.charged(state))
        parts.append(_evaluation(source, state, image_idx[batch], charged, router_macs))
    return Evaluation.joined(parts)


def evaluate_paths(
    source: RoutingSource,
    paths: NDArray[np.integer],
    static: bool = False,
    decision_macs: int = 0,
    image_idx: Indices | None = None,
) -> Evaluation:
    """Send every image down its own path.

    Args:
        source: the images.
        paths: int `(N, T)`, whole paths, -1 after an exit.
        static: charge no glance or exit but the one that answers, as for a static network.
        decision_macs: MACs that the router which chose the paths spends on one decision.
        image_idx: int64 `(N,)`, images of the source; None for all of them in order.

    Raises `ValueError` for a path that is not valid.
    """
    if image_idx is None:
        image_idx = np.arange(len(source.labels))
    last = len(source.labels) - 1
    image_idx = checks.whole_numbers("image_idx", image_idx, (None,), 0, last)
    shape = (len(image_idx), source.spec.num_layers)
    paths = checks.whole_numbers("paths", paths, shape, -1, source.spec.full_path)
    checks.flag("static", static)
    checks.integer("decision_macs", decision_macs, 0)

    parts = []
    for batch, start in rollout.started(source, image_idx):
        state = rollout.follow(start, paths[batch])
        charged = Charge(state.macs, source.spec.charged(state))
        if static:
            charged = static_charge(source.spec, paths[batch])
        parts.append(_evaluation(source, state, image_idx[batch], charged, decision_macs))
    return Evaluation.joined(parts)


def eval_tradeoffs(router: Router) -> tuple[float, ...]:
    """The trade-offs to evaluate a router at: `EVAL_TRADEOFFS`, and one for each static path."""
    if not isinstance(router, StaticRouter):
        return EVAL_TRADEOFFS
    return tuple(sorted({*EVAL_TRADEOFFS, *router.tradeoffs}))


def measure_curve(source: RoutingSource, router: Router) -> BudgetCurve:
    """Mean compute at each of `EVAL_TRADEOFFS` on the source's images (use `route`)."""
    compute = []
    for tradeoff in EVAL_TRADEOFFS:
        evaluation = evaluate(source, router, tradeoff)
        compute.append(float(source.spec.compute(evaluation.cost.mean())))
    return BudgetCurve(list(EVAL_TRADEOFFS), compute)


class Charge(NamedTuple):
    """What N images cost without the router's own, int64 `(N,)` each.

    Attributes:
        macs: MACs.
        cost: what is charged: the MACs, or nanoseconds where time is charged.
    """

    macs: NDArray[np.int64]
    cost: NDArray[np.int64]


def static_charge(spec: RoutingSpec, paths: NDArray[np.integer]) -> Charge:
    """What a static network would be charged for each path `(N, T)`."""
    # Many images share a path, so each path is counted once.
    unique, which = np.unique(paths, axis=0, return_inverse=True)
    macs = np.array([spec.static_macs(path) for path in unique])
    cost = np.array([spec.static_cost(path) for path in unique])
    return Charge(macs[which.ravel()], cost[which.ravel()])


def _evaluation(
    source: RoutingSource,
    state: Any,
    image_idx: Indices,
    charged: Charge,
    decision_macs: int,
) -> Evaluation:
    """The outcomes of a batch that has been answered."""
    outcome = source.outcome(state, image_idx, np.arange(len(image_idx)))
    # To take an exit is a decision, too.
    decisions = (state.path >= 0).sum(1)
    router_macs = decision_macs * decisions
    return Evaluation(
        path=state.path,
        prediction=outcome.prediction,
        correct=outcome.prediction == source.labels[image_idx],
        loss=outcome.loss,
        macs=charged.macs + router_macs,
        router_macs=router_macs,
        cost=charged.cost + source.spec.router_cost(router_macs),
    )
