"""Static paths: all of them are compared, and at every trade-off the best is taken."""

import itertools

import numpy as np
import pytest

from rnr_gym import data
from rnr_gym.agents import FitConfig, static
from rnr_gym.agents.static import SEARCH_GRID, StaticRouter
from rnr_gym.routing import route_table
from rnr_gym.routing.rollout import route
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.sources import open_source
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small
from tests.fixtures.paper_problem import BEST_STATIC, drawn, paper, spec

TRADEOFFS = np.geomspace(1e-3, 4.0, 60).tolist()


def problems():
    """Every small backbone, with its exits on and, where it has any, off."""
    params = []
    for kind, exits in itertools.product(small.KINDS, small.EXITS):
        params.append((kind, exits, True))
        if exits != "bare":
            params.append((kind, exits, False))
    return params


EVERY_PROBLEM = pytest.mark.parametrize(("kind", "exits", "use_exits"), problems())
SEEDS = pytest.mark.parametrize("seed", range(4))


def fitted(table, fit=static.fit):
    """The router that is fitted to a table."""
    return fit(FitConfig("RNR-v0", {"backend": table}))


def table_of(kind, exits="glance and exits", use_exits=True, count=24):
    """The route table of a small backbone and random images."""
    backbone = small.backbone(kind, exits)
    images = small.images(count)
    problem = RoutingSpec.of(backbone, use_exits)
    return route_table.build(backbone, images, problem, progress=False)


def whole_paths(problem):
    """Every whole path, by trying all strings of sub-paths."""
    paths = set()
    for path in itertools.product(range(problem.num_paths), repeat=problem.num_layers):
        end = problem.num_layers
        if problem.has_exits and 0 in path:
            end = path.index(0) + 1
        valid = [problem.valid[layer, path[layer]] for layer in range(end)]
        if all(valid):
            skipped = problem.num_layers - end
            paths.add(path[:end] + (-1,) * skipped)
    return paths


def compute_of(problem, path):
    """What a static network is charged for a path."""
    return problem.static_macs(np.array(path, np.int8)) / problem.plain_macs


def return_of(problem, accuracies, path, tradeoff):
    """The mean return of a path."""
    return accuracies[path] - tradeoff * compute_of(problem, path)


def best_return(problem, accuracies, tradeoff):
    """The highest mean return of all paths."""
    return max(return_of(problem, accuracies, path, tradeoff) for path in accuracies)


def check_best_at(router, accuracies, tradeoffs):
    """Check that no path is better than the router's, at any of the trade-offs."""
    for tradeoff in tradeoffs:
        path = tuple(router.path(tradeoff).tolist())
        expected = best_return(router.spec, accuracies, tradeoff)
        actual = return_of(router.spec, accuracies, path, tradeoff)
        assert actual == pytest.approx(expected, abs=1e-12)


def test_static_path_pays_only_for_its_exit():
    # No glance, and no exit head at layer 1, unless they give the answer.
    macs = {
        (0, -1): 2,
        (1, 0): 10 + 10 + 3,
        (2, 0): 10 + 40 + 3,
        (1, 1): 10 + 10 + 10 + 10,
        (1, 2): 10 + 10 + 40 + 10,
        (2, 1): 10 + 40 + 10 + 10,
        (2, 2): 10 + 40 + 40 + 10,
    }
    for path, expected in macs.items():
        assert compute_of(spec(), path) == expected / 100


@EVERY_PROBLEM
def test_all_paths_have_the_networks_accuracy(kind, exits, use_exits):
    backbone = small.backbone(kind, exits)
    images = small.images(12)
    pixels = small.pixels(12)
    table = table_of(kind, exits, use_exits, count=12)
    accuracies = static.all_paths(table)
    assert accuracies.keys() == whole_paths(table.spec)

    exit_layers = None if use_exits else ()
    for path, accuracy in accuracies.items():
        paths = np.tile(np.maximum(path, 0), (12, 1))
        state = small.travel(backbone, pixels, paths, exit_layers)
        predictions = state.logits.argmax(1).numpy()
        assert accuracy == (predictions == images.labels).mean()


@SEEDS
def test_path_is_the_best_at_every_tradeoff(seed):
    table = drawn(seed)
    router = fitted(table)
    edges = router.edges
    assert len(edges) == len(router.paths) - 1
    assert len(edges) > 0
    assert (np.diff(edges) >= 0).all()

    # Where the path changes, both are best.
    just_below = edges * (1 - 1e-9)
    just_above = edges * (1 + 1e-9)
    tradeoffs = np.concatenate([TRADEOFFS, edges, just_below, just_above])
    check_best_at(router, static.all_paths(table), tradeoffs.tolist())


@EVERY_PROBLEM
def test_path_is_the_best_for_networks(kind, exits, use_exits):
    table = table_of(kind, exits, use_exits)
    router = fitted(table)
    check_best_at(router, static.all_paths(table), TRADEOFFS)


def test_hull_has_edges_where_returns_are_equal():
    accuracies = {
        (0, -1): 0.2,
        (1, 0): 0.6,
        (1, 1): 0.62,
        (2, 1): 0.55,
        (2, 2): 0.9,
    }
    router = static.of_hull(spec(), accuracies)
    # Their compute is .02, .23, .40, .70 and 1. (1, 1) lies below the line from (1, 0) to (2, 2),
    # whose slope is .3 / .77.
    assert router.paths.tolist() == [[2, 2], [1, 0], [0, -1]]
    assert router.edges.tolist() == pytest.approx([0.3 / 0.77, 0.4 / 0.21])

    path_at = {
        0.0: [2, 2],
        0.38: [2, 2],
        0.4: [1, 0],
        1.9: [1, 0],
        1.91: [0, -1],
        4.0: [0, -1],
    }
    for tradeoff, path in path_at.items():
        assert router.path(tradeoff).tolist() == path


def test_hull_drops_paths_that_gain_nothing():
    # (1, 2) costs as much as (2, 1), and (2, 2) more, neither of them for more accuracy.
    accuracies = {
        (0, -1): 0.5,
        (1, 2): 0.6,
        (2, 1): 0.7,
        (2, 2): 0.7,
    }
    router = static.of_hull(spec(), accuracies)
    assert router.paths.tolist() == [[2, 1], [0, -1]]


def test_best_static_paths_on_paper():
    router = fitted(paper())
    # Their compute is .02, .23 and .70, with 2, 5 and 7 of 8 right.
    assert router.paths.tolist() == [[2, 1], [1, 0], [0, -1]]
    assert router.edges.tolist() == pytest.approx([0.25 / 0.47, 0.375 / 0.21])
    for tradeoff, (_, path) in BEST_STATIC.items():
        assert router.path(tradeoff).tolist() == path


@SEEDS
def test_tradeoffs_visit_each_path_once(seed):
    router = fitted(drawn(seed))
    visited = [router.path(tradeoff) for tradeoff in router.tradeoffs]
    assert np.array(visited).tolist() == router.paths.tolist()


def test_router_of_one_path_has_one_tradeoff():
    router = fitted(paper(), static.fit_full)
    assert router.tradeoffs == [0.0]
    for tradeoff in TRADEOFFS:
        assert router.path(tradeoff).tolist() == [2, 2]


@pytest.mark.parametrize("kind", small.KINDS)
def test_predict_takes_every_image_down_the_path(kind):
    table = table_of(kind)
    router = fitted(table)
    start = table.start(np.arange(24))
    for tradeoff in [*router.tradeoffs, *TRADEOFFS]:
        state = route(start, table.spec, router, tradeoff)
        assert (state.path == router.path(tradeoff)).all()


def test_predict_mixes_tradeoffs_and_layers():
    router = StaticRouter(
        spec(),
        paths=np.array(
            [
                [2, 1],
                [1, 0],
                [0, -1],
            ],
            np.int8,
        ),
        edges=np.array([0.5, 1.5]),
    )
    layout = spec().layout
    tradeoffs = [0.1, 0.1, 1.0, 1.0, 2.0, 2.0]
    layers = [0, 1, 0, 1, 0, 1]
    obs = np.zeros((6, layout.size), np.float32)
    obs[:, layout.tradeoff.start] = tradeoffs
    obs[:, layout.layer] = np.eye(2)[layers]

    actions, state = router.predict(obs, "kept")
    assert actions.tolist() == [2, 1, 1, 0, 0, 0]
    assert actions.dtype == np.int64
    assert state == "kept"


@EVERY_PROBLEM
def test_full_is_plain_and_cheapest_costs_least(kind, exits, use_exits):
    table = table_of(kind, exits, use_exits, count=4)
    problem = table.spec
    full = fitted(table, static.fit_full).path(0.3)
    assert full.tolist() == [problem.full_path] * problem.num_layers
    assert compute_of(problem, full) == 1.0

    cheapest = fitted(table, static.fit_cheapest).path(0.3)
    paths = whole_paths(problem)
    assert tuple(cheapest.tolist()) in paths
    least = min(compute_of(problem, path) for path in paths)
    assert compute_of(problem, cheapest) == least


@pytest.fixture(scope="module")
def digits():
    """The bundled network's table over 250 digits."""
    images = data.load("digits", "route")
    last = len(images) - 1
    idx = np.linspace(0, last, 250).astype(np.int64)
    return open_source(images.take(idx), backend="table")


@pytest.mark.parametrize("seed", range(3))
def test_local_search_comes_close_to_the_best(digits, seed):
    accuracies = static.all_paths(digits)
    searched = static.searched_paths(digits, np.random.default_rng(seed))
    assert len(searched) < len(accuracies)
    assert searched.items() <= accuracies.items()
    for tradeoff in SEARCH_GRID:
        best = best_return(digits.spec, accuracies, tradeoff)
        assert best_return(digits.spec, searched, tradeoff) >= best - 0.005


def test_local_search_limits_its_images(digits):
    few = static.searched_paths(digits, np.random.default_rng(0), images=16)
    many = static.searched_paths(digits, np.random.default_rng(0))
    # Of 16 images, accuracies are whole sixteenths.
    assert all((accuracy * 16).is_integer() for accuracy in few.values())
    assert not all((accuracy * 16).is_integer() for accuracy in many.values())


def test_live_router_is_found_by_local_search(images, backbone):
    live = {"dataset": images, "backbone": backbone, "backend": "live"}
    router = static.fit(FitConfig("RNR-v0", live))
    table = FitConfig("RNR-v0", {**live, "backend": "table"}).table("route")
    assert isinstance(table, RouteTable)
    accuracies = static.all_paths(table)
    assert {tuple(path) for path in router.paths.tolist()} <= accuracies.keys()

    # The search starts from the full path, so it ends no lower.
    full_path = (backbone.full_path,) * 3
    for tradeoff in SEARCH_GRID:
        path = tuple(router.path(tradeoff).tolist())
        full_return = return_of(table.spec, accuracies, full_path, tradeoff)
        assert return_of(table.spec, accuracies, path, tradeoff) >= full_return


def test_state_dict_restores_the_router():
    router = fitted(drawn(1))
    restored = StaticRouter.from_state_dict(router.spec, *router.state_dict())
    assert restored.paths.dtype == np.int8
    assert restored.edges.dtype == np.float64
    assert restored.paths.tolist() == router.paths.tolist()
    assert restored.edges.tolist() == router.edges.tolist()
