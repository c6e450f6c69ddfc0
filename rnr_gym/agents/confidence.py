"""The confidence rule: answer at the first exit that is confident enough, else run everything."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym import checks
from rnr_gym.agents.base import FitConfig, RouterBase
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.protocols import RoutingSource
from rnr_gym.routing.rewards import tradeoff_grid
from rnr_gym.routing.rollout import started
from rnr_gym.routing.spec import RoutingSpec

GRID = tradeoff_grid(28)
"""Trade-offs for which thresholds are solved."""
NEVER = 1.1
"""A threshold above every probability: no image leaves at that exit."""
NUM_QUANTILES = 200
"""Quantiles of the observed confidences that are tried as thresholds, in addition to `NEVER`."""


class ConfidenceRouter(RouterBase):
    """For each trade-off one threshold on the largest exit probability; nothing else is learned.

    Attributes:
        tradeoffs_fitted: float64 `(G,)`, ascending.
        thresholds: float64 `(G,)`, 0..1 or `NEVER`; interpolated over log λ between trade-offs.
        can_exit: bool `(T,)`, the layers that have an exit.
    """

    def __init__(
        self,
        spec: RoutingSpec,
        tradeoffs: NDArray[np.float64],
        thresholds: NDArray[np.float64],
    ) -> None:
        super().__init__(spec)
        self.tradeoffs_fitted = tradeoffs
        self.thresholds = thresholds
        self.can_exit = np.zeros(spec.num_layers, np.bool_)
        self.can_exit[list(spec.exit_layers)] = True

    def actions(
        self,
        observation: NDArray[np.float32],
        deterministic: bool,
    ) -> NDArray[np.int64]:
        """Exit where confidence reaches the threshold at the observed λ, else the full sub-path."""
        layout = self.spec.layout
        # λ may be 0, which has no logarithm; below the grid the first threshold holds.
        log_tradeoff = np.log(np.maximum(observation[:, layout.tradeoff.start], 1e-9))
        log_fitted = np.log(self.tradeoffs_fitted)
        threshold = np.interp(log_tradeoff, log_fitted, self.thresholds)

        confident = observation[:, layout.summary.confidence.start] >= threshold
        leave = confident & self.can_exit[layers_of(layout, observation)]
        return np.where(leave, 0, self.spec.full_path)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """No tensors; trade-offs and thresholds as lists."""
        config = {
            "tradeoffs": self.tradeoffs_fitted.tolist(),
            "thresholds": self.thresholds.tolist(),
        }
        return {}, config

    @classmethod
    def from_state_dict(
        cls,
        spec: RoutingSpec,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
    ) -> Self:
        """The router with the trade-offs and thresholds in `config`."""
        tradeoffs = checks.ascending("tradeoffs", config["tradeoffs"], 0.0)
        shape = (len(tradeoffs),)
        thresholds = checks.numbers("thresholds", config["thresholds"], shape, 0.0, NEVER)
        return cls(spec, tradeoffs, thresholds)


def fit(fit_config: FitConfig) -> ConfidenceRouter:
    """For each trade-off the threshold with the best mean return on `route`."""
    source = fit_config.source("route")
    trail = along_uniform_path(source, source.spec.full_path)
    tradeoffs = np.array(GRID)
    return ConfidenceRouter(source.spec, tradeoffs, best_thresholds(trail, tradeoffs))


class Trail(NamedTuple):
    """What answering at each layer, and at the end, of one path gives; arrays `(T + 1, N)`.

    Attributes:
        confidence: float64, the largest exit probability; -inf where there is no exit, +inf at the
            end.
        correct: bool, whether that answer is right.
        compute: float64, charged up to that answer.
        probabilities: float32 `(T + 1, N, classes)`, of the exits; zero where there is none.
    """

    confidence: NDArray[np.float64]
    correct: NDArray[np.bool_]
    compute: NDArray[np.float64]
    probabilities: NDArray[np.float32]


def along_uniform_path(source: RoutingSource, sub_path: int) -> Trail:
    """Send every image down one sub-path at all layers, and note what each exit would answer.

    Where a layer lacks the sub-path, the images take `spec.onward` instead.
    """
    spec = source.spec
    layout = spec.layout.summary
    all_images = np.arange(len(source.labels))
    shape = (spec.num_layers + 1, len(all_images))
    trail = Trail(
        # Below every threshold, so that no image leaves where there is no exit.
        confidence=np.full(shape, -np.inf),
        correct=np.zeros(shape, np.bool_),
        compute=np.zeros(shape),
        probabilities=np.zeros((*shape, spec.num_classes), np.float32),
    )

    # At the end every threshold is reached: images that left at no exit are answered there.
    trail.confidence[-1] = np.inf
    for batch, state in started(source, all_images):
        image_idx = all_images[batch]
        batch_idx = np.arange(len(image_idx))
        for layer in range(spec.num_layers):
            trail.compute[layer, batch] = spec.compute(spec.charged(state))
            if layer in spec.exit_layers:
                # States are immutable, so the images can take the exit and still continue.
                exited = state.step(np.zeros(len(image_idx), np.int64))
                outcome = source.outcome(exited, image_idx, batch_idx)
                summary = state.summary()
                trail.confidence[layer, batch] = summary[:, layout.confidence.start]
                trail.probabilities[layer, batch] = summary[:, layout.exit_probabilities]
                trail.correct[layer, batch] = outcome.prediction == source.labels[image_idx]
            state = state.step(np.full(len(image_idx), spec.onward[layer, sub_path]))

        outcome = source.outcome(state, image_idx, batch_idx)
        trail.correct[-1, batch] = outcome.prediction == source.labels[image_idx]
        trail.compute[-1, batch] = spec.compute(spec.charged(state))
    return trail


def best_thresholds(trail: Trail, tradeoffs: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 `(G,)`: for each trade-off the threshold, one for all exits, with the best return."""
    confidences = trail.confidence[np.isfinite(trail.confidence)]
    # Without exits there is nothing to choose from.
    candidates = np.array([NEVER])
    if len(confidences):
        quantiles = np.quantile(confidences, np.linspace(0.0, 1.0, NUM_QUANTILES))
        candidates = np.unique(np.append(quantiles, NEVER))

    # Accuracy and compute do not depend on λ, so one pass over the candidates serves all of them.
    outcomes = [_mean_outcome(trail, float(threshold)) for threshold in candidates]
    accuracy, compute = np.array(outcomes).T
    returns = accuracy - tradeoffs[:, None] * compute  # (G, candidates)
    return candidates[returns.argmax(1)]


def _mean_outcome(trail: Trail, threshold: float) -> tuple[float, float]:
    """Mean accuracy and compute if images leave at the first layer that is confident enough."""
    leave = (trail.confidence >= threshold).argmax(0)  # (N,)
    image_idx = np.arange(len(leave))
    accuracy = trail.correct[leave, image_idx].mean()
    compute = trail.compute[leave, image_idx].mean()
    return float(accuracy), float(compute)
