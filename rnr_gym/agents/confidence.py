"""The confidence rule: answer at the first exit that is sure enough, else go the full path."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym.agents.setting import Setting
from rnr_gym.spec import RoutingSpec
from rnr_gym.summaries import layers_of
from rnr_gym.types import Source

GRID = tuple(np.geomspace(0.01, 2.0, 24).tolist())


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


def fit(setting: Setting) -> ConfidenceRouter:
    """For each trade-off the threshold with the best mean return on `route`."""
    source = setting.source("route")
    sure, right, compute = along_full_path(source)
    candidates = np.unique([*np.quantile(sure[np.isfinite(sure)], np.linspace(0.0, 1.0, 200)).tolist(), 1.1]) if np.isfinite(sure).any() else [1.1]
    accuracy, spent = zip(*(_result(sure, right, compute, float(threshold)) for threshold in candidates), strict=True)
    best = [int(np.argmax(np.array(accuracy) - tradeoff * np.array(spent))) for tradeoff in GRID]
    return ConfidenceRouter(source.spec, np.array(GRID), np.array(candidates)[best])


def along_full_path(source: Source) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Confidence, correctness and compute of answering at each layer, and at the end, of the full path.

    Returns arrays `(T + 1, N)`; confidence is -inf where there is no exit and +inf at the end.
    """
    spec, rows = source.spec, np.arange(len(source.labels))
    shape = (spec.num_layers + 1, len(rows))
    sure, right, compute = np.full(shape, -np.inf), np.zeros(shape, np.bool_), np.zeros(shape)
    walk = source.start(rows)
    for layer in range(spec.num_layers):
        compute[layer] = walk.macs / spec.plain_macs
        if spec.has_exits and spec.valid[layer, 0]:
            sure[layer] = walk.summary()[:, spec.layout.summary.confidence.start]
            outcome = source.outcome(walk.step(np.zeros(len(rows), np.int64)), rows, rows)
            right[layer] = outcome.prediction == source.labels
        walk = walk.step(np.full(len(rows), spec.full_path))
    sure[-1], compute[-1] = np.inf, walk.macs / spec.plain_macs
    right[-1] = source.outcome(walk, rows, rows).prediction == source.labels
    return sure, right, compute


def _result(sure: NDArray[np.float64], right: NDArray[np.bool_], compute: NDArray[np.float64], threshold: float) -> tuple[float, float]:
    """Mean accuracy and compute of leaving at the first layer that is sure enough."""
    leave, rows = (sure >= threshold).argmax(0), np.arange(sure.shape[1])
    return float(right[leave, rows].mean()), float(compute[leave, rows].mean())
