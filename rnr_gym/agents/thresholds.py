"""The confidence rule as in the literature: one threshold for each exit.

Huang et al., *Multi-Scale Dense Networks for Resource Efficient Image Classification* (ICLR 2018),
budgeted batch classification. Images that leave at no exit take one uniform sub-path, which is
chosen together with the thresholds.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym import checks
from rnr_gym.agents.base import FitConfig, RouterBase
from rnr_gym.agents.confidence import GRID, NEVER, Trail, along_uniform_path, best_thresholds
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.protocols import RoutingSource
from rnr_gym.routing.spec import RoutingSpec

Floats = NDArray[np.float64]
QUANTILES = np.linspace(0.0, 1.0, 60)
"""Quantiles of the confidences at an exit that are tried as thresholds, in addition to `NEVER`."""
SHARES = np.linspace(0.02, 0.98, 25)
"""Shares of the images reaching an exit that leave there; each gives one candidate, in which the
share is the same at every exit."""


class ThresholdsRouter(RouterBase):
    """For each trade-off of a grid a threshold for each exit, and the sub-path taken otherwise.

    The thresholds of the nearest trade-off (on a logarithmic scale) are used. Nothing is
    interpolated: neighbours may take different sub-paths, and thresholds along one sub-path mean
    nothing along another.

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
        super().__init__(spec)
        self.tradeoffs_fitted = tradeoffs
        self.thresholds = thresholds
        self.sub_paths = sub_paths

    def actions(
        self,
        observation: NDArray[np.float32],
        deterministic: bool,
    ) -> NDArray[np.int64]:
        """Exit where confidence reaches the layer's threshold, else the trade-off's sub-path."""
        layout = self.spec.layout
        layers = layers_of(layout, observation)
        nearest = self.nearest(observation[:, layout.tradeoff.start])
        confidence = observation[:, layout.summary.confidence.start]

        leave = confidence >= self.thresholds[nearest, layers]
        onward = self.spec.onward[layers, self.sub_paths[nearest]]
        return np.where(leave, 0, onward)

    def nearest(self, tradeoff: NDArray[np.floating]) -> NDArray[np.int64]:
        """int64 `(N,)`: the index of the fitted trade-off nearest to each λ `(N,)`, as a ratio."""
        edges = np.sqrt(self.tradeoffs_fitted[:-1] * self.tradeoffs_fitted[1:])
        return np.searchsorted(edges, tradeoff)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """No tensors; trade-offs, thresholds and sub-paths as lists."""
        config = {
            "tradeoffs": self.tradeoffs_fitted.tolist(),
            "thresholds": self.thresholds.tolist(),
            "sub_paths": self.sub_paths.tolist(),
        }
        return {}, config

    @classmethod
    def from_state_dict(
        cls,
        spec: RoutingSpec,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
    ) -> Self:
        """The router with the trade-offs, thresholds and sub-paths in `config`."""
        tradeoffs = checks.ascending("tradeoffs", config["tradeoffs"], 0.0)
        shape = (len(tradeoffs), spec.num_layers)
        sub_paths = checks.whole_numbers(
            "sub_paths", config["sub_paths"], shape[:1], spec.first_sub_path, spec.full_path
        )
        thresholds = checks.numbers("thresholds", config["thresholds"], shape, 0.0, NEVER)
        return cls(spec, tradeoffs, thresholds, sub_paths)


def fit(fit_config: FitConfig) -> ThresholdsRouter:
    """For each trade-off the sub-path and thresholds with the best mean return on `route`."""
    return solve(fit_config.source("route"))


def solve(source: RoutingSource) -> ThresholdsRouter:
    """Solve for every sub-path except the exit, and keep the best solution at each trade-off."""
    return best_of_trails(source.spec, uniform_trails(source))


def uniform_trails(source: RoutingSource) -> dict[int, Trail]:
    """The trails of every sub-path except the exit, the most expensive one first."""
    spec = source.spec
    trails = {}
    for sub_path in range(spec.full_path, spec.first_sub_path - 1, -1):
        trails[sub_path] = along_uniform_path(source, sub_path)
    return trails


def best_of_trails(spec: RoutingSpec, trails: dict[int, Trail]) -> ThresholdsRouter:
    """At each trade-off the best solution of all trails, the first one of equally good ones."""
    tradeoffs = np.array(GRID)
    sub_paths = np.array(list(trails))
    solutions = [solve_trail(trail, tradeoffs) for trail in trails.values()]
    returns = np.array([solution.returns for solution in solutions])  # (U, G)
    thresholds = np.array([solution.thresholds for solution in solutions])  # (U, G, T)
    best = returns.argmax(0)  # (G,)
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
    num_layers = len(trail.confidence) - 1
    single = best_thresholds(trail, tradeoffs)  # (G,)
    starts = [
        np.repeat(single[:, None], num_layers, axis=1),
        _best_of_family(trail, tradeoffs),
    ]

    thresholds = np.array([_ascend(trail, tradeoffs, start) for start in starts])  # (2, G, T)
    returns = np.array([_mean_returns(trail, tradeoffs, part) for part in thresholds])  # (2, G)
    best = returns.argmax(0)  # (G,)
    grid_idx = np.arange(len(tradeoffs))
    best_of_both = thresholds[best, grid_idx]
    # The single threshold was repeated for every layer, also for those without an exit.
    without_exit = np.setdiff1d(np.arange(num_layers), _exits(trail))
    best_of_both[:, without_exit] = NEVER
    return Solution(best_of_both, returns[best, grid_idx])


def _best_of_family(trail: Trail, tradeoffs: Floats) -> Floats:
    """float64 `(G, T)`: the best thresholds by which the same share leaves at every exit.

    The share counts the images that reach an exit, so their numbers fall geometrically.
    """
    num_layers = len(trail.confidence) - 1
    num_images = trail.confidence.shape[1]
    family = np.full((len(SHARES), num_layers), NEVER)
    for member, share in enumerate(SHARES):
        reached = np.ones(num_images, np.bool_)
        for layer in _exits(trail):
            confidence = trail.confidence[layer]
            family[member, layer] = np.quantile(confidence[reached], 1.0 - share)
            reached &= confidence < family[member, layer]
            # Of no images there is no quantile: later exits keep `NEVER`.
            if not reached.any():
                break

    returns = []
    for thresholds in family:
        repeated = np.tile(thresholds, (len(tradeoffs), 1))  # (G, T)
        returns.append(_mean_returns(trail, tradeoffs, repeated))
    return family[np.array(returns).argmax(0)]


def _ascend(trail: Trail, tradeoffs: Floats, start: Floats) -> Floats:
    """Improve one exit's threshold at a time, for all trade-offs at once, until none changes."""
    thresholds = start.copy()  # (G, T)
    exits = _exits(trail)
    # At each exit, which images would leave at each candidate: they stay the same all along.
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
            # With the other exits fixed, a threshold is worth the gains of the images that leave.
            gain = _gain_of_leaving(trail, tradeoffs, thresholds, layer)  # (G, N)
            current = trail.confidence[layer] >= thresholds[:, layer, None]
            before = (gain * current).sum(1)
            after = gain @ leaves[layer]  # (G, N) @ (N, candidates)

            best = after.argmax(1)
            # Rounding must not keep the loop alive.
            better = after.max(1) > before + 1e-9
            thresholds[better, layer] = candidates[layer][best[better]]
            changed |= bool(better.any())
    return thresholds


def _gain_of_leaving(trail: Trail, tradeoffs: Floats, thresholds: Floats, layer: int) -> Floats:
    """float64 `(G, N)`: return of leaving at a layer less that of continuing.

    It is 0 for images that have left at an earlier exit.
    """
    # What an image gets if it continues: this exit and those before it are closed.
    later = thresholds.copy()
    later[:, : layer + 1] = NEVER
    reached = (trail.confidence[:layer] < thresholds[:, :layer, None]).all(1)  # (G, N)
    here = trail.correct[layer] - tradeoffs[:, None] * trail.compute[layer]
    return reached * (here - _returns(trail, tradeoffs, later))


def _returns(trail: Trail, tradeoffs: Floats, thresholds: Floats) -> Floats:
    """float64 `(G, N)`: each image's return if it leaves at the first exit confident enough."""
    # From the last exit to the first, since an earlier one takes precedence.
    returns = trail.correct[-1] - tradeoffs[:, None] * trail.compute[-1]
    for layer in reversed(_exits(trail)):
        leave = trail.confidence[layer] >= thresholds[:, layer, None]
        here = trail.correct[layer] - tradeoffs[:, None] * trail.compute[layer]
        returns = np.where(leave, here, returns)
    return returns


def _mean_returns(trail: Trail, tradeoffs: Floats, thresholds: Floats) -> Floats:
    """float64 `(G,)`: `_returns`, averaged over the images."""
    return _returns(trail, tradeoffs, thresholds).mean(1)


def _exits(trail: Trail) -> list[int]:
    """The layers at which an image may leave."""
    return np.flatnonzero(np.isfinite(trail.confidence[:-1, 0])).tolist()
