"""Static paths, the same for every image: routing has to beat the best of them at equal compute."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym import checks
from rnr_gym.agents.base import FitConfig, RouterBase
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.protocols import RoutingSource
from rnr_gym.routing.rewards import tradeoff_grid
from rnr_gym.routing.rollout import follow, started
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.spec import RoutingSpec

Path = tuple[int, ...]
SEARCH_GRID = tradeoff_grid(14)
"""Trade-offs at which paths are searched for where there is no route table."""
RANDOM_STARTS = 2
"""Random paths from which the search starts at each trade-off, in addition to the uniform paths."""


class StaticRouter(RouterBase):
    """One path for each interval of trade-offs.

    Being static, it is charged for no glance or exit except the one that answers.

    Attributes:
        paths: int8 `(P, T)`, most expensive first, -1 after an exit.
        edges: float64 `(P - 1,)`, ascending trade-offs at which the next, cheaper path takes over.
    """

    def __init__(
        self,
        spec: RoutingSpec,
        paths: NDArray[np.int8],
        edges: NDArray[np.float64],
    ) -> None:
        super().__init__(spec)
        self.paths = paths
        self.edges = edges

    @property
    def tradeoffs(self) -> list[float]:
        """One trade-off for each path: those at which the router has to be evaluated."""
        if len(self.edges) == 0:
            return [0.0]

        below = self.edges[:1] / 2
        between = np.sqrt(self.edges[:-1] * self.edges[1:])
        above = self.edges[-1:] * 2
        return np.concatenate([below, between, above]).tolist()

    def path(self, tradeoff: float) -> NDArray[np.int8]:
        """int8 `(T,)`: the path at a trade-off."""
        path: NDArray[np.int8] = self.paths[self._interval(tradeoff)]
        return path

    def actions(
        self,
        observation: NDArray[np.float32],
        deterministic: bool,
    ) -> NDArray[np.int64]:
        """The path's sub-path at the layer and trade-off of each observation."""
        layout = self.spec.layout
        tradeoff = observation[:, layout.tradeoff.start].astype(np.float64)
        paths = self.paths[self._interval(tradeoff)]  # (N, T)
        layers = layers_of(layout, observation)
        sub_paths = paths[np.arange(len(layers)), layers]
        # Beyond the path's exit any action does: the episode has ended there.
        return np.maximum(sub_paths, 0).astype(np.int64)

    def _interval(self, tradeoff: NDArray[np.float64] | float) -> Any:
        """The number of the path that is taken at each trade-off."""
        return np.searchsorted(self.edges, tradeoff, side="right")

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """No tensors; paths and edges as lists."""
        return {}, {"paths": self.paths.tolist(), "edges": self.edges.tolist()}

    @classmethod
    def from_state_dict(
        cls,
        spec: RoutingSpec,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
    ) -> Self:
        """The router with the paths and edges in `config`."""
        shape = (None, spec.num_layers)
        paths = checks.whole_numbers("paths", config["paths"], shape, -1, spec.full_path)
        edges = checks.ascending("edges", config["edges"], 0.0)
        if len(edges) != len(paths) - 1:
            raise ValueError(f"`edges` must lie between {len(paths)} paths, got {len(edges)}")
        for path in paths:
            check_path(spec, path)
        return cls(spec, paths.astype(np.int8), edges)


def check_path(spec: RoutingSpec, path: NDArray[np.integer]) -> None:
    """Raise `ValueError` unless a path `(T,)` is whole and valid."""
    end = spec.num_layers
    if spec.has_exits and 0 in path:
        end = int(np.argmin(path != 0)) + 1
    layers = np.arange(end)
    taken = path[:end]
    if (taken < 0).any() or not spec.valid[layers, taken].all() or (path[end:] != -1).any():
        raise ValueError(f"`paths` must be whole, valid paths, got {path.tolist()}")


def fit_full(fit_config: FitConfig) -> StaticRouter:
    """The plain network: the full path at every trade-off."""
    spec = fit_config.source("route").spec
    return _one_path(spec, (spec.full_path,) * spec.num_layers)


def fit_cheapest(fit_config: FitConfig) -> StaticRouter:
    """The path that costs least, at every trade-off: with or without an exit."""
    spec = fit_config.source("route").spec
    without_exit = tuple(spec.onward[:, spec.first_sub_path].tolist())
    # Heads differ in cost, so that the first exit is not always the cheapest.
    candidates = [without_exit]
    for layer in spec.exit_layers:
        candidates.append(_changed(spec, without_exit, layer, 0))
    return _one_path(spec, min(candidates, key=partial(_compute, spec)))


def fit(fit_config: FitConfig) -> StaticRouter:
    """The best static path at every trade-off, by accuracy on `route`.

    With a route table all paths are compared, else those that a local search evaluates.
    """
    source = fit_config.source("route")
    # Live, every accuracy costs a pass over the images, so not all paths can be measured.
    if isinstance(source, RouteTable):
        accuracies = all_paths(source)
    else:
        accuracies = searched_paths(source, np.random.default_rng(fit_config.seed))
    return of_hull(source.spec, accuracies)


def all_paths(table: RouteTable) -> dict[Path, float]:
    """Every static path of a table, with its accuracy."""
    accuracies: dict[Path, float] = {}
    for path, correct in zip(table.paths, table.correct, strict=True):
        accuracies[tuple(path.tolist())] = float(correct.mean())
    return accuracies


def searched_paths(
    source: RoutingSource,
    rng: np.random.Generator,
    images: int = 2000,
) -> dict[Path, float]:
    """The paths that a local search evaluates, each with its accuracy.

    Coordinate ascent starts from all uniform paths, and from some random ones, at each trade-off of
    `SEARCH_GRID`.

    Args:
        source: what is routed.
        rng: draws the images and the random paths.
        images: the most images on which accuracy is measured.
    """
    spec = source.spec
    image_idx = np.sort(rng.permutation(len(source.labels))[:images])
    search = PathSearch(source, image_idx)

    # From a mixed path a uniform one may be several steps away, each of which makes it worse.
    uniform: list[Path] = []
    for sub_path in range(spec.first_sub_path, spec.num_paths):
        uniform.append((sub_path,) * spec.num_layers)

    for tradeoff in SEARCH_GRID:
        drawn = [_random_path(spec, rng) for _ in range(RANDOM_STARTS)]
        for start in [*uniform, *drawn]:
            search.climb(_ended(spec, start), tradeoff)
    return search.accuracies


@dataclass(frozen=True)
class PathSearch:
    """Coordinate ascent over static paths.

    Attributes:
        source: what is routed.
        image_idx: int64 `(n,)`, the images on which accuracy is measured.
        accuracies: of every path evaluated so far; it grows as the search continues.
    """

    source: RoutingSource
    image_idx: NDArray[np.int64]
    accuracies: dict[Path, float] = field(default_factory=dict)

    def climb(self, path: Path, tradeoff: float) -> None:
        """Change one decision of a path at a time, until no change improves its return."""
        spec = self.source.spec
        best = self.value(path, tradeoff)
        improved = True
        while improved:
            improved = False
            for layer in range(spec.num_layers):
                for sub_path in np.flatnonzero(spec.valid[layer]).tolist():
                    other = _changed(spec, path, layer, sub_path)
                    value = self.value(other, tradeoff)
                    # Rounding must not keep the loop alive.
                    if value > best + 1e-12:
                        path = other
                        best = value
                        improved = True

    def value(self, path: Path, tradeoff: float) -> float:
        """The mean return of a path."""
        if path not in self.accuracies:
            self.accuracies[path] = self._accuracy(path)
        return self.accuracies[path] - tradeoff * _compute(self.source.spec, path)

    def _accuracy(self, path: Path) -> float:
        correct = np.zeros(len(self.image_idx), np.bool_)
        for batch, start in started(self.source, self.image_idx):
            image_idx = self.image_idx[batch]
            state = follow(start, np.array(path))
            outcome = self.source.outcome(state, image_idx, np.arange(len(image_idx)))
            correct[batch] = outcome.prediction == self.source.labels[image_idx]
        return float(correct.mean())


class Point(NamedTuple):
    """A static path in the plane of compute and accuracy."""

    compute: float
    accuracy: float
    path: Path


def of_hull(spec: RoutingSpec, accuracies: dict[Path, float]) -> StaticRouter:
    """The router of the paths on the upper concave hull of (compute, accuracy).

    At every trade-off one of these has the best return of all paths.
    """
    points = [Point(_compute(spec, path), value, path) for path, value in accuracies.items()]
    # Cheapest first, and of equally expensive ones the most accurate.
    points.sort(key=lambda point: (point.compute, -point.accuracy, point.path))

    hull: list[Point] = []
    for point in points:
        # More compute for no more accuracy is worth it at no trade-off.
        if hull and point.accuracy <= hull[-1].accuracy:
            continue
        # Nor is a point below the line from the one before it to this one.
        while len(hull) > 1 and _slope(hull[-1], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)

    # The slope between neighbours is the trade-off at which both have the same return.
    edges = [_slope(low, high) for low, high in itertools.pairwise(hull)]
    paths = [point.path for point in hull]
    return StaticRouter(
        spec,
        paths=np.array(paths[::-1], np.int8),
        edges=np.array(edges[::-1], np.float64),
    )


def _slope(low: Point, high: Point) -> float:
    return (high.accuracy - low.accuracy) / (high.compute - low.compute)


def _one_path(spec: RoutingSpec, path: Path) -> StaticRouter:
    """The router that takes one path at every trade-off."""
    return StaticRouter(spec, paths=np.array([path], np.int8), edges=np.zeros(0))


def _compute(spec: RoutingSpec, path: Path) -> float:
    return spec.static_cost(np.array(path, np.int8)) / spec.plain_cost


def _random_path(spec: RoutingSpec, rng: np.random.Generator) -> Path:
    """A valid sub-path at each layer, drawn at random."""
    return tuple(int(rng.choice(np.flatnonzero(valid))) for valid in spec.valid)


def _changed(spec: RoutingSpec, path: Path, layer: int, sub_path: int) -> Path:
    """A path with another decision at one layer.

    Where the path had no decision, after its exit, it takes the full sub-path. The search may
    change these decisions in its turn.
    """
    filled = [spec.full_path if decision < 0 else decision for decision in path]
    filled[layer] = sub_path
    return _ended(spec, tuple(filled))


def _ended(spec: RoutingSpec, path: Path) -> Path:
    """A path with -1 after its exit."""
    if not spec.has_exits or 0 not in path:
        return path
    end = path.index(0) + 1
    return path[:end] + (-1,) * (len(path) - end)
