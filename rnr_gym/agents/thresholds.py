"""The confidence rule as the literature has it: one threshold for each exit.

Huang et al., *Multi-Scale Dense Networks for Resource Efficient Image Classification* (ICLR 2018),
budgeted batch classification. Images that leave nowhere take one uniform sub-path, which is chosen
along with the thresholds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym.agents.confidence import GRID, NEVER, Trail, along_uniform_path, best_thresholds
from rnr_gym.agents.base import FitConfig
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.protocols import Source
from rnr_gym.routing.spec import RoutingSpec

Floats = NDArray[np.float64]
QUANTILES = np.linspace(0.0, 1.0, 60)
"""Of the confidences at an exit: the thresholds that are tried there, beside `NEVER`."""
SHARES = np.linspace(0.02, 0.98, 25)
"""Of the images that reach an exit, how many leave there: the geometric family."""


class ThresholdsRouter:
    """For each trade-off of a grid a threshold for each exit, and the sub-path taken otherwise.

    The thresholds of the nearest trade-off (of its logarithm) are used: neighbours may take
    different sub-paths, and the thresholds of one say nothing of another's, so nothing is
    interpolated.

    Attributes:
        tradeoffs_fitted: float64 `(G,)`, ascending.
        thresholds: float64 `(G, T)`, 0..1, or `NEVER`.
        sub_paths: int64 `(G,)`.
    """

    def __init__(
        self,
        spec: RoutingSpec,
        tradeoffs: Floats,
        thresholds: Floats,
        sub_paths: NDArray[np.int64],
    ) -> None:
        self.spec = spec
        self.tradeoffs_fitted = tradeoffs
        self.thresholds = thresholds
        self.sub_paths = sub_paths

    def predict(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], Any]:
        """Exit where confidence reaches the layer's threshold, else the trade-off's sub-path."""
        layout = self.spec.layout
        layers = layers_of(layout, observation)
        nearest = self.nearest(observation[:, layout.tradeoff.start])
        confidence = observation[:, layout.summary.confidence.start]
        leave = confidence >= self.thresholds[nearest, layers]
        return np.where(leave, 0, self.spec.onward[layers, self.sub_paths[nearest]]), state

    def nearest(self, tradeoff: NDArray[np.floating]) -> NDArray[np.int64]:
        """int64 `(N,)`: which trade-off of the grid is nearest to each λ `(N,)`, as a ratio."""
        edges = np.sqrt(self.tradeoffs_fitted[:-1] * self.tradeoffs_fitted[1:])
        return np.searchsorted(edges, tradeoff)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        facts = {
            "tradeoffs": self.tradeoffs_fitted.tolist(),
            "thresholds": self.thresholds.tolist(),
            "sub_paths": self.sub_paths.tolist(),
        }
        return {}, facts

    @classmethod
    def restore(
        cls,
        spec: RoutingSpec,
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
    ) -> ThresholdsRouter:
        return cls(
            spec,
            tradeoffs=np.array(facts["tradeoffs"]),
            thresholds=np.array(facts["thresholds"]),
            sub_paths=np.array(facts["sub_paths"], np.int64),
        )


def fit(fit_config: FitConfig) -> ThresholdsRouter:
    """For each trade-off the sub-path and thresholds with the best mean return found on `route`."""
    return solve(fit_config.source("route"))


def solve(source: Source) -> ThresholdsRouter:
    """Solve for every sub-path that goes on, and keep the best of them at each trade-off."""
    spec = source.spec
    tradeoffs = np.array(GRID)
    sub_paths = np.arange(spec.num_paths - 1, int(spec.has_exits) - 1, -1)  # of equals the full one
    trails = [along_uniform_path(source, int(sub_path)) for sub_path in sub_paths]
    found = [solve_trail(trail, tradeoffs) for trail in trails]

    best = np.array([solution.returns for solution in found]).argmax(0)  # (G,)
    thresholds = np.array([solution.thresholds for solution in found])  # (U, G, T)
    return ThresholdsRouter(
        spec,
        tradeoffs=tradeoffs,
        thresholds=thresholds[best, np.arange(len(tradeoffs))],
        sub_paths=sub_paths[best],
    )


class Solution(NamedTuple):
    """Thresholds float64 `(G, T)` for G trade-offs, and the mean return `(G,)` of each row."""

    thresholds: Floats
    returns: Floats


def solve_trail(trail: Trail, tradeoffs: Floats) -> Solution:
    """The best thresholds along one path that coordinate ascent finds from two starts.

    The starts are the best single threshold and the best of the geometric family, so neither can be
    better than the solution.
    """
    single = best_thresholds(trail, tradeoffs)
    starts = [np.repeat(single[:, None], len(trail.confidence) - 1, axis=1)]
    starts.append(_best_of_family(trail, tradeoffs))

    found = [_ascend(trail, tradeoffs, start) for start in starts]
    returns = np.array([_mean_returns(trail, tradeoffs, thresholds) for thresholds in found])
    best = returns.argmax(0)  # (G,)
    rows = np.arange(len(tradeoffs))
    thresholds = np.array(found)[best, rows]
    thresholds[:, ~np.isfinite(trail.confidence[:-1, 0])] = NEVER  # layers without an exit
    return Solution(thresholds, returns[best, rows])


def _best_of_family(trail: Trail, tradeoffs: Floats) -> Floats:
    """float64 `(G, T)`: the same share of the images that reach an exit leaves at each of them."""
    family = np.full((len(SHARES), len(trail.confidence) - 1), NEVER)
    for row, share in enumerate(SHARES):
        reached = np.ones(trail.confidence.shape[1], np.bool_)
        for layer in _exits(trail):
            confidence = trail.confidence[layer]
            family[row, layer] = np.quantile(confidence[reached], 1.0 - share)
            reached &= confidence < family[row, layer]
            if not reached.any():
                break

    returns = [_mean_returns(trail, tradeoffs, np.tile(row, (len(tradeoffs), 1))) for row in family]
    return family[np.array(returns).argmax(0)]


def _ascend(trail: Trail, tradeoffs: Floats, start: Floats) -> Floats:
    """Improve one exit's threshold at a time, for all trade-offs at once, until none changes."""
    thresholds = start.copy()  # (G, T)
    exits = _exits(trail)
    candidates = {}
    leaves = {}
    for layer in exits:
        confidence = trail.confidence[layer]
        candidates[layer] = np.append(np.quantile(confidence, QUANTILES), NEVER)
        leaves[layer] = (confidence[:, None] >= candidates[layer]).astype(np.float64)

    changed = True
    while changed:
        changed = False
        for layer in exits:
            gain = _gain_of_leaving(trail, tradeoffs, thresholds, layer)  # (G, N)
            current = trail.confidence[layer] >= thresholds[:, layer, None]
            before = (gain * current).sum(1)
            after = gain @ leaves[layer]  # (G, N) @ (N, candidates)
            best = after.argmax(1)
            better = after.max(1) > before + 1e-9  # rounding must not keep the loop alive
            thresholds[better, layer] = candidates[layer][best[better]]
            changed |= bool(better.any())
    return thresholds


def _gain_of_leaving(trail: Trail, tradeoffs: Floats, thresholds: Floats, layer: int) -> Floats:
    """float64 `(G, N)`: return of leaving here less that of going on; 0 once an image has left."""
    later = thresholds.copy()
    later[:, : layer + 1] = NEVER
    reached = (trail.confidence[:layer] < thresholds[:, :layer, None]).all(1)  # (G, N)
    here = trail.correct[layer] - tradeoffs[:, None] * trail.compute[layer]
    return reached * (here - _returns(trail, tradeoffs, later))


def _returns(trail: Trail, tradeoffs: Floats, thresholds: Floats) -> Floats:
    """float64 `(G, N)`: each image's return if it leaves at the first exit that is sure enough."""
    returns = trail.correct[-1] - tradeoffs[:, None] * trail.compute[-1]
    for layer in reversed(_exits(trail)):
        leave = trail.confidence[layer] >= thresholds[:, layer, None]
        here = trail.correct[layer] - tradeoffs[:, None] * trail.compute[layer]
        returns = np.where(leave, here, returns)
    return returns


def _mean_returns(trail: Trail, tradeoffs: Floats, thresholds: Floats) -> Floats:
    return _returns(trail, tradeoffs, thresholds).mean(1)


def _exits(trail: Trail) -> list[int]:
    """The layers at which an image may leave."""
    return np.flatnonzero(np.isfinite(trail.confidence[:-1, 0])).tolist()
