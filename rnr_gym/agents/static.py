"""Static paths: the same for every image. The best of them at each compute is what routing has to beat."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym.agents.base import TRADEOFF_RANGE, FitConfig
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.protocols import Source
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.spec import RoutingSpec

Path = tuple[int, ...]
SEARCH_GRID = tuple(np.geomspace(*TRADEOFF_RANGE, 14).tolist())


class StaticRouter:
    """One path for each interval of trade-offs. Being static, it is charged for no glance or exit but the one it answers with.

    Attributes:
        paths: int8 `(P, T)`, dearest first, -1 after an exit.
        edges: float64 `(P - 1,)`, ascending trade-offs at which the next, cheaper path takes over.
    """

    def __init__(self, spec: RoutingSpec, paths: NDArray[np.int8], edges: NDArray[np.float64]) -> None:
        self.spec, self.paths, self.edges = spec, paths, edges

    @property
    def tradeoffs(self) -> list[float]:
        """One trade-off for each path: what a sweep has to visit."""
        if not len(self.edges):
            return [0.0]
        inner = np.sqrt(self.edges[:-1] * self.edges[1:])
        return [float(edge) for edge in (self.edges[0] / 2, *inner, self.edges[-1] * 2)]

    def path(self, tradeoff: float) -> NDArray[np.int8]:
        """int8 `(T,)`: the path at that trade-off."""
        found: NDArray[np.int8] = self.paths[np.searchsorted(self.edges, tradeoff, side="right")]
        return found

    def predict(
        self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[np.int64], Any]:
        """The path's sub-path at each observation's layer and trade-off."""
        tradeoff = observation[:, self.spec.layout.tradeoff.start].astype(np.float64)
        chosen = self.paths[np.searchsorted(self.edges, tradeoff, side="right")]
        layers = layers_of(self.spec.layout, observation)
        return np.maximum(chosen[np.arange(len(layers)), layers], 0).astype(np.int64), state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"paths": self.paths.tolist(), "edges": self.edges.tolist()}

    @classmethod
    def restore(cls, spec: RoutingSpec, tensors: dict[str, Tensor], facts: dict[str, Any]) -> StaticRouter:
        return cls(spec, np.array(facts["paths"], np.int8), np.array(facts["edges"], np.float64))


def fit_full(fit_config: FitConfig) -> StaticRouter:
    """The plain network."""
    spec = fit_config.source("route").spec
    return StaticRouter(spec, np.full((1, spec.num_layers), spec.full_path, np.int8), np.zeros(0))


def fit_cheapest(fit_config: FitConfig) -> StaticRouter:
    """The path that costs least: the first valid sub-path at every layer, or the first exit."""
    spec = fit_config.source("route").spec
    going = tuple(int(np.flatnonzero(row[int(spec.has_exits) :])[0]) + int(spec.has_exits) for row in spec.valid)
    exits = np.flatnonzero(spec.valid[:, 0]).tolist() if spec.has_exits else []
    ways = [going, *(_whole(spec, (*going[:layer], 0, *going[layer + 1 :])) for layer in exits)]
    return StaticRouter(spec, np.array([min(ways, key=partial(_compute, spec))], np.int8), np.zeros(0))


def fit(fit_config: FitConfig) -> StaticRouter:
    """The best static path at every trade-off, by accuracy on `route`: all of them in a table, else by local search."""
    source = fit_config.source("route")
    found = all_paths(source) if isinstance(source, RouteTable) else searched_paths(source, np.random.default_rng(fit_config.seed))
    return of_hull(source.spec, found)


def all_paths(table: RouteTable) -> dict[Path, float]:
    """Every static path of a table, with its accuracy."""
    return {tuple(path.tolist()): float(right.mean()) for path, right in zip(table.paths, table.correct, strict=True)}


def searched_paths(source: Source, random: np.random.Generator, starts: int = 2, images: int = 2000) -> dict[Path, float]:
    """Paths met by coordinate ascent from uniform paths and from `starts` random ones, at each of twelve trade-offs."""
    spec = source.spec
    rows = np.sort(random.permutation(len(source.labels))[:images])

    met: dict[Path, float] = {}

    def accuracy(path: Path) -> float:
        if path not in met:
            met[path] = _accuracy(source, rows, path)
        return met[path]

    # From a mixed path a uniform one may be several steps away, each of them for the worse.
    uniform = [tuple([sub_path] * spec.num_layers) for sub_path in range(int(spec.has_exits), spec.num_paths)]
    for tradeoff in SEARCH_GRID:
        drawn = [tuple(int(random.choice(np.flatnonzero(row))) for row in spec.valid) for _ in range(starts)]
        for start in [*uniform, *drawn]:
            _climb(spec, _whole(spec, start), partial(_value, spec, accuracy, tradeoff))
    return met


def _value(spec: RoutingSpec, accuracy: Callable[[Path], float], tradeoff: float, path: Path) -> float:
    return accuracy(path) - tradeoff * _compute(spec, path)


def of_hull(spec: RoutingSpec, accuracies: dict[Path, float]) -> StaticRouter:
    """The router of the paths on the upper concave hull of (compute, accuracy): for each trade-off the best of them all."""
    points = sorted(((_compute(spec, path), -value, path) for path, value in accuracies.items()))
    hull: list[tuple[float, float, Path]] = []
    for compute, negative, path in points:
        if hull and -negative <= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-1], (compute, -negative)) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append((compute, -negative, path))
    edges = [_slope(low, high) for low, high in itertools.pairwise(hull)]
    paths = np.array([path for *_, path in reversed(hull)], np.int8)
    return StaticRouter(spec, paths, np.array(edges[::-1], np.float64))


def _slope(low: tuple[Any, ...], high: tuple[Any, ...]) -> float:
    return (high[1] - low[1]) / (high[0] - low[0])


def _compute(spec: RoutingSpec, path: Path) -> float:
    return spec.static_macs(np.array(path, np.int8)) / spec.plain_macs


def _whole(spec: RoutingSpec, path: Path) -> Path:
    """The path with -1 after its exit."""
    end = path.index(0) + 1 if spec.has_exits and 0 in path else len(path)
    return path[:end] + (-1,) * (len(path) - end)


def _accuracy(source: Source, rows: NDArray[np.int64], path: Path) -> float:
    walk = source.start(rows)
    for sub_path in path:
        walk = walk.step(np.full(len(rows), sub_path))
    outcome = source.outcome(walk, rows, np.arange(len(rows)))
    return float((outcome.prediction == source.labels[rows]).mean())


def _climb(spec: RoutingSpec, path: Path, value: Callable[[Path], float]) -> None:
    """Change one decision at a time while that helps; the values met are remembered by whoever supplies `value`."""
    best = value(path)
    improved = True
    while improved:
        improved = False
        for layer in range(spec.num_layers):
            for sub_path in np.flatnonzero(spec.valid[layer]).tolist():
                filled = tuple(part if part >= 0 else spec.full_path for part in path)
                other = _whole(spec, (*filled[:layer], sub_path, *filled[layer + 1 :]))
                if value(other) > best + 1e-12:
                    path, best, improved = other, value(other), True
