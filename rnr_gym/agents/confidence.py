"""The confidence rule: answer at the first exit that is sure enough, else go the full path."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym.agents.base import TRADEOFF_RANGE, FitConfig
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.protocols import Source
from rnr_gym.routing.spec import RoutingSpec

GRID = tuple(np.geomspace(*TRADEOFF_RANGE, 28).tolist())
"""Trade-offs that thresholds are solved for."""
NEVER = 1.1
"""A threshold above every probability: no image leaves at that exit."""


class ConfidenceRouter:
    """A threshold on the largest exit probability for each trade-off; no learning beyond that.

    Attributes:
        tradeoffs_fitted: float64 `(G,)`, ascending.
        thresholds: float64 `(G,)`, 0..1; in between, interpolated over log λ.
    """

    def __init__(self, spec: RoutingSpec, tradeoffs: NDArray[np.float64], thresholds: NDArray[np.float64]) -> None:
        self.spec, self.tradeoffs_fitted, self.thresholds = spec, tradeoffs, thresholds
        self.can_exit = spec.valid[:, 0] if spec.has_exits else np.zeros(spec.num_layers, np.bool_)

    def predict(
        self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[np.int64], Any]:
        """Exit where confidence reaches the threshold of the trade-off observed, else the full sub-path."""
        where = self.spec.layout
        tradeoff = np.log(np.maximum(observation[:, where.tradeoff.start], 1e-9))
        threshold = np.interp(tradeoff, np.log(self.tradeoffs_fitted), self.thresholds)
        sure = observation[:, where.summary.confidence.start] >= threshold
        leave = sure & self.can_exit[layers_of(where, observation)]
        return np.where(leave, 0, self.spec.full_path), state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"tradeoffs": self.tradeoffs_fitted.tolist(), "thresholds": self.thresholds.tolist()}

    @classmethod
    def restore(cls, spec: RoutingSpec, tensors: dict[str, Tensor], facts: dict[str, Any]) -> ConfidenceRouter:
        return cls(spec, np.array(facts["tradeoffs"]), np.array(facts["thresholds"]))


def fit(fit_config: FitConfig) -> ConfidenceRouter:
    """For each trade-off the threshold with the best mean return on `route`."""
    source = fit_config.source("route")
    trail = along_uniform_path(source, source.spec.full_path)
    return ConfidenceRouter(source.spec, np.array(GRID), best_thresholds(trail, np.array(GRID)))


class Trail(NamedTuple):
    """What answering at each layer, and at the end, of one path gives; arrays `(T + 1, N)`.

    Attributes:
        confidence: float64, the largest exit probability; -inf where there is no exit, +inf at the end.
        correct: bool, whether that answer is right.
        compute: float64, charged up to that answer.
    """

    confidence: NDArray[np.float64]
    correct: NDArray[np.bool_]
    compute: NDArray[np.float64]


def along_uniform_path(source: Source, sub_path: int) -> Trail:
    """Send every image down one sub-path at all layers; where a layer lacks it, down `spec.onward`."""
    spec = source.spec
    rows = np.arange(len(source.labels))
    shape = (spec.num_layers + 1, len(rows))
    trail = Trail(
        confidence=np.full(shape, -np.inf),
        correct=np.zeros(shape, np.bool_),
        compute=np.zeros(shape),
    )

    walk = source.start(rows)
    for layer in range(spec.num_layers):
        trail.compute[layer] = walk.macs / spec.plain_macs
        if spec.has_exits and spec.valid[layer, 0]:
            trail.confidence[layer] = walk.summary()[:, spec.layout.summary.confidence.start]
            outcome = source.outcome(walk.step(np.zeros(len(rows), np.int64)), rows, rows)
            trail.correct[layer] = outcome.prediction == source.labels
        walk = walk.step(np.full(len(rows), spec.onward[layer, sub_path]))

    trail.confidence[-1] = np.inf
    trail.correct[-1] = source.outcome(walk, rows, rows).prediction == source.labels
    trail.compute[-1] = walk.macs / spec.plain_macs
    return trail


def best_thresholds(trail: Trail, tradeoffs: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 `(G,)`: for each trade-off the one threshold for all exits with the best mean return."""
    offered = trail.confidence[np.isfinite(trail.confidence)]
    candidates = np.array([NEVER])
    if len(offered):
        quantiles = np.quantile(offered, np.linspace(0.0, 1.0, 200))
        candidates = np.unique(np.append(quantiles, NEVER))

    results = [_result(trail, float(threshold)) for threshold in candidates]
    accuracy, compute = np.array(results).T
    returns = accuracy - tradeoffs[:, None] * compute  # (G, candidates)
    return candidates[returns.argmax(1)]


def _result(trail: Trail, threshold: float) -> tuple[float, float]:
    """Mean accuracy and compute of leaving at the first layer that is sure enough."""
    leave = (trail.confidence >= threshold).argmax(0)
    rows = np.arange(len(leave))
    return float(trail.correct[leave, rows].mean()), float(trail.compute[leave, rows].mean())
