"""Static paths: all of them are weighed, and at every trade-off the best is taken."""

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
from tests import small
from tests.agents import BEST_STATIC, drawn, paper, spec

EVERY = pytest.mark.parametrize(
    ("kind", "exits", "on"),
    [(kind, exits, on) for kind in small.KINDS for exits in small.EXITS for on in ((True, False) if exits != "bare" else (True,))],
)
TRADEOFF_RANGE = np.geomspace(1e-3, 4.0, 60).tolist()


def fit_config(table):
    return FitConfig("RNR-v0", {"backend": table})


def table_of(kind="multipath", exits="glance and exits", on=True, count=24):
    backbone = small.backbone(kind, exits)
    return route_table.build(backbone, small.images(count), backbone.spec(on), progress=False)


def whole_paths(problem):
    """Every whole path, by brute force over all strings of sub-paths."""
    found = set()
    for path in itertools.product(range(problem.num_paths), repeat=problem.num_layers):
        end = path.index(0) + 1 if problem.has_exits and 0 in path else problem.num_layers
        if all(problem.valid[layer, path[layer]] for layer in range(end)):
            found.add(path[:end] + (-1,) * (problem.num_layers - end))
    return found


def cost(problem, path):
    return problem.static_macs(np.array(path, np.int8)) / problem.plain_macs


def best_value(problem, accuracies, tradeoff):
    """The most that a static path is worth."""
    return max(accuracy - tradeoff * cost(problem, path) for path, accuracy in accuracies.items())


def test_a_static_path_pays_for_no_glance_and_no_exit_but_the_one_that_answers():
    macs = {(0, -1): 2, (1, 0): 10 + 10 + 3, (2, 0): 10 + 40 + 3, (1, 1): 40, (1, 2): 70, (2, 1): 70, (2, 2): 100}
    assert {path: cost(spec(), path) for path in macs} == {path: spent / 100 for path, spent in macs.items()}


@EVERY
def test_all_paths_are_weighed_by_what_the_network_answers(kind, exits, on):
    backbone, images = small.backbone(kind, exits), small.images(12)
    table = route_table.build(backbone, images, backbone.spec(on), progress=False)
    found = static.all_paths(table)
    assert found.keys() == whole_paths(table.spec)
    for path, accuracy in found.items():
        ways = np.maximum(np.tile(np.array(path, np.int8), (12, 1)), 0)
        logits = small.travel(backbone, small.pixels(12), ways, None if on else ()).logits
        assert accuracy == (logits.argmax(1).numpy() == images.labels).mean()


@pytest.mark.parametrize("seed", range(4))
def test_at_every_tradeoff_the_path_is_the_best_of_all(seed):
    table = drawn(seed)
    accuracies = static.all_paths(table)
    router = static.fit(fit_config(table))
    edges = router.edges.tolist()
    assert len(edges) == len(router.paths) - 1 > 0
    assert edges == sorted(edges)
    for tradeoff in [*TRADEOFF_RANGE, *edges, *(edge * (1 - 1e-9) for edge in edges), *(edge * (1 + 1e-9) for edge in edges)]:
        path = tuple(router.path(tradeoff).tolist())
        assert accuracies[path] - tradeoff * cost(table.spec, path) == pytest.approx(best_value(table.spec, accuracies, tradeoff), abs=1e-12)


@EVERY
def test_so_it_is_on_networks(kind, exits, on):
    table = table_of(kind, exits, on)
    accuracies, router = static.all_paths(table), static.fit(fit_config(table))
    for tradeoff in TRADEOFF_RANGE:
        path = tuple(router.path(tradeoff).tolist())
        assert accuracies[path] - tradeoff * cost(table.spec, path) == pytest.approx(best_value(table.spec, accuracies, tradeoff), abs=1e-12)


def test_an_edge_is_where_two_paths_are_worth_the_same():
    accuracies = {(0, -1): 0.2, (1, 0): 0.6, (1, 1): 0.62, (2, 1): 0.55, (2, 2): 0.9}
    router = static.of_hull(spec(), accuracies)
    # compute .02, .23, .40, .70, 1; (1, 1) lies below the line from (1, 0) to (2, 2), whose slope is .3 / .77
    assert router.paths.tolist() == [[2, 2], [1, 0], [0, -1]]
    assert router.edges.tolist() == pytest.approx([0.3 / 0.77, 0.4 / 0.21])
    for tradeoff, path in ((0.0, [2, 2]), (0.38, [2, 2]), (0.4, [1, 0]), (1.9, [1, 0]), (1.91, [0, -1]), (4.0, [0, -1])):
        assert router.path(tradeoff).tolist() == path


def test_of_two_paths_with_one_cost_only_the_better_stays_and_dear_ones_that_gain_nothing_go():
    router = static.of_hull(spec(), {(0, -1): 0.5, (1, 2): 0.6, (2, 1): 0.7, (2, 2): 0.7})
    assert router.paths.tolist() == [[2, 1], [0, -1]]


def test_the_best_static_paths_on_paper_are_found():
    table = paper()
    router = static.fit(fit_config(table))
    # static compute .02, .23, .70 with 2, 5 and 7 of 8 right: slopes (2/8) / .47 and (3/8) / .21
    assert router.paths.tolist() == [[2, 1], [1, 0], [0, -1]]
    assert router.edges.tolist() == pytest.approx([0.25 / 0.47, 0.375 / 0.21])
    assert router.path(0.2).tolist() == BEST_STATIC[0.2][1]


@pytest.mark.parametrize("seed", range(4))
def test_its_own_tradeoffs_visit_each_path_once(seed):
    router = static.fit(fit_config(drawn(seed)))
    visited = [router.path(tradeoff).tolist() for tradeoff in router.tradeoffs]
    assert visited == router.paths.tolist()


def test_a_router_of_one_path_has_one_tradeoff():
    router = static.fit_full(fit_config(paper()))
    assert router.tradeoffs == [0.0]
    assert all(router.path(tradeoff).tolist() == [2, 2] for tradeoff in TRADEOFF_RANGE)


@pytest.mark.parametrize("kind", small.KINDS)
def test_predict_sends_every_image_down_the_path(kind):
    table = table_of(kind)
    router = static.fit(fit_config(table))
    for tradeoff in [*router.tradeoffs, *TRADEOFF_RANGE]:
        walk = route(table.start(np.arange(24)), table.spec, router, tradeoff)
        assert (walk.path == router.path(tradeoff)).all()


def test_images_at_different_tradeoffs_and_layers_are_each_served():
    router = StaticRouter(spec(), np.array([[2, 1], [1, 0], [0, -1]], np.int8), np.array([0.5, 1.5]))
    where = spec().layout
    seen = np.zeros((6, where.size), np.float32)
    for row, (tradeoff, layer) in enumerate(itertools.product((0.1, 1.0, 2.0), (0, 1))):
        seen[row, where.tradeoff.start], seen[row, where.layer.start + layer] = tradeoff, 1.0
    actions, state = router.predict(seen, "kept")
    assert actions.tolist() == [2, 1, 1, 0, 0, 0]
    assert actions.dtype == np.int64
    assert state == "kept"


@EVERY
def test_full_is_the_plain_network_and_cheapest_costs_least(kind, exits, on):
    table = table_of(kind, exits, on, 4)
    problem = table.spec
    full, cheapest = static.fit_full(fit_config(table)).path(0.3), static.fit_cheapest(fit_config(table)).path(0.3)
    assert full.tolist() == [problem.full_path] * problem.num_layers
    assert cost(problem, full) == 1.0
    assert tuple(cheapest.tolist()) in whole_paths(problem)
    assert cost(problem, cheapest) == min(cost(problem, path) for path in whole_paths(problem))


@pytest.fixture(scope="module")
def digits():
    """The shipped network's table over 250 digits."""
    images = data.load("digits", "route")
    chosen = images.take(np.linspace(0, len(images) - 1, 250).astype(np.int64))
    return open_source(chosen, backend="table")


@pytest.mark.parametrize("seed", range(3))
def test_local_search_comes_close_to_the_best_of_all(digits, seed):
    everything, met = static.all_paths(digits), static.searched_paths(digits, np.random.default_rng(seed))
    assert len(met) < len(everything)
    assert met.items() <= everything.items()
    for tradeoff in SEARCH_GRID:
        assert best_value(digits.spec, met, tradeoff) >= best_value(digits.spec, everything, tradeoff) - 0.005


def test_local_search_weighs_no_more_images_than_it_is_told_to(digits):
    met = static.searched_paths(digits, np.random.default_rng(0), images=16)
    assert all(float(accuracy * 16).is_integer() for accuracy in met.values())
    assert not all(float(accuracy * 16).is_integer() for accuracy in static.searched_paths(digits, np.random.default_rng(0)).values())


def test_a_router_is_searched_for_where_there_is_no_table(images, backbone):
    arguments = {"dataset": images, "backbone": backbone, "backend": "live"}
    live = static.fit(FitConfig("RNR-v0", arguments))
    table = FitConfig("RNR-v0", {**arguments, "backend": "table"}).table("route")
    assert isinstance(table, RouteTable)
    accuracies = static.all_paths(table)
    assert {tuple(path) for path in live.paths.tolist()} <= accuracies.keys()
    full = (backbone.full_path,) * 3
    for tradeoff in SEARCH_GRID:  # it starts from the full path, so it ends no lower
        path = tuple(live.path(tradeoff).tolist())
        assert accuracies[path] - tradeoff * cost(table.spec, path) >= accuracies[full] - tradeoff


def test_a_router_comes_back_from_what_it_says_of_itself():
    router = static.fit(fit_config(drawn(1)))
    again = StaticRouter.restore(router.spec, *router.state())
    assert (again.paths.dtype, again.edges.dtype) == (np.int8, np.float64)
    assert again.paths.tolist() == router.paths.tolist()
    assert again.edges.tolist() == router.edges.tolist()
