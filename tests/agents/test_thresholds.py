"""One threshold for each exit: what is solved on `route`, against a recount image by image."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from rnr_gym.agents import FitConfig, confidence, thresholds
from rnr_gym.agents.confidence import GRID, NEVER, Trail, along_uniform_path
from rnr_gym.agents.thresholds import SHARES, ThresholdsRouter, solve_trail
from rnr_gym.backbones import zoo
from rnr_gym.experiments.evaluation import evaluate, evaluate_paths
from rnr_gym.routing.live import Live
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small
from tests.fixtures.paper_problem import drawn, paper
from tests.fixtures.profiles import profile_of
from tests.fixtures.returns import evaluated_return, threshold_return

SEEDS = pytest.mark.parametrize("seed", range(4))


def fitted(table):
    """The router that is fitted to a route table."""
    return thresholds.fit(FitConfig("RNR-v0", {"backend": table}))


def solutions(router):
    """Trade-off, thresholds and sub-path of each row of a router."""
    rows = zip(
        router.tradeoffs_fitted.tolist(),
        router.thresholds.tolist(),
        router.sub_paths.tolist(),
        strict=True,
    )
    return list(rows)


def candidates(table, sub_path):
    """For each layer, all thresholds that make a difference."""
    trail = along_uniform_path(table, sub_path)
    by_layer = []
    for confidence_of_layer in trail.confidence[:-1]:
        finite = confidence_of_layer[np.isfinite(confidence_of_layer)]
        by_layer.append(np.append(np.unique(finite), NEVER).tolist())
    return by_layer


def return_of(table, router, tradeoff):
    """Mean return of routing all images of a table."""
    evaluation = evaluate(table, router, tradeoff)
    return evaluated_return(table.spec, evaluation, tradeoff)


def test_thresholds_are_those_of_what_is_charged(some_digits):
    profile = profile_of(zoo.named("rnr-digits", None))
    # Whoever stays past the glance has paid for nearly all, unlike where MACs are charged.
    layers = np.minimum(profile.times.layers, 1)
    times = profile.times._replace(stem=1000, layers=layers, exits=np.ones((4, 4), np.int64))
    profile = replace(profile, times=times)
    kwargs = {"dataset": some_digits, "backend": "table"}
    timed = FitConfig("RNR-v0", {**kwargs, "cost": profile})
    router = thresholds.fit(timed)
    other = thresholds.fit(FitConfig("RNR-v0", kwargs))
    source = timed.source("route")
    counting = FitConfig("RNR-v0", kwargs).source("route")

    gains = []
    for tradeoff in (0.03, 0.1, 0.3, 1.0):
        # Both are charged time; the second was fitted as if MACs were charged.
        fitted_to_time = return_of(source, router, tradeoff)
        paths = evaluate(counting, other, tradeoff).path
        fitted_to_macs = evaluated_return(source.spec, evaluate_paths(source, paths), tradeoff)
        gains.append(fitted_to_time - fitted_to_macs)
    assert min(gains) > -1e-9
    assert max(gains) > 0.01


@SEEDS
def test_no_other_single_threshold_is_better(seed):
    table = drawn(seed)
    for tradeoff, levels, sub_path in solutions(fitted(table))[::4]:
        solved = threshold_return(table, levels, sub_path, tradeoff)
        for layer, options in enumerate(candidates(table, sub_path)):
            for option in options:
                others = [*levels]
                others[layer] = option
                assert threshold_return(table, others, sub_path, tradeoff) <= solved + 1e-12


@SEEDS
def test_solution_is_close_to_exhaustive_search(seed):
    table = drawn(seed, images=12)
    for tradeoff, levels, sub_path in solutions(fitted(table))[::6]:
        returns = []
        for other in (1, 2):
            for pair in itertools.product(*candidates(table, other)):
                returns.append(threshold_return(table, pair, other, tradeoff))

        # Coordinate ascent may stop short of the best pair of thresholds, by an image or so.
        best = max(returns)
        solved = threshold_return(table, levels, sub_path, tradeoff)
        assert best - 1 / 12 <= solved <= best + 1e-12


@SEEDS
def test_never_worse_than_a_single_threshold(seed):
    table = drawn(seed)
    router = fitted(table)
    single = confidence.fit(FitConfig("RNR-v0", {"backend": table}))
    gains = []
    for tradeoff in GRID:
        gain = return_of(table, router, tradeoff) - return_of(table, single, tradeoff)
        gains.append(gain)
    assert min(gains) >= -1e-12
    assert max(gains) > 0.01


def test_each_exit_has_its_own_threshold():
    # Exit 0 is right from .95 on, exit 1 from .55 on; all other images need the end.
    trail = Trail(
        confidence=np.array(
            [
                [0.99, 0.95, 0.9, 0.9, 0.9, 0.9],
                [0.5, 0.5, 0.6, 0.55, 0.5, 0.5],
                [np.inf] * 6,
            ]
        ),
        correct=np.array(
            [
                [True, True, False, False, False, False],
                [False, False, True, True, False, False],
                [True] * 6,
            ]
        ),
        compute=np.array(
            [
                [0.1] * 6,
                [0.4] * 6,
                [1.0] * 6,
            ]
        ),
        probabilities=np.zeros((3, 6, 2), np.float32),
    )

    solution = solve_trail(trail, np.array([0.2]))
    assert 0.9 < solution.thresholds[0, 0] <= 0.95
    assert 0.5 < solution.thresholds[0, 1] <= 0.55
    # A third of the images leaves at each exit, and a third stays to the end.
    mean_compute = (0.1 + 0.4 + 1.0) / 3
    assert solution.returns == pytest.approx([1 - 0.2 * mean_compute])


@SEEDS
def test_no_member_of_geometric_family_is_better(seed):
    trail = along_uniform_path(drawn(seed, images=80), 2)
    tradeoffs = (0.05, 0.5, 1.5)
    solution = solve_trail(trail, np.array(tradeoffs))

    for share in SHARES:
        first = np.quantile(trail.confidence[0], 1 - share)
        stays = trail.confidence[0] < first
        second = np.quantile(trail.confidence[1][stays], 1 - share)
        leave = np.where(trail.confidence[1] >= second, 1, 2)
        leave[~stays] = 0
        for solved, tradeoff in zip(solution.returns, tradeoffs, strict=True):
            returns = trail.correct - tradeoff * trail.compute  # (T + 1, N)
            mean = returns[leave, np.arange(80)].mean()
            assert solved >= mean - 1e-12


@SEEDS
def test_routing_returns_what_solution_promises(seed):
    table = drawn(seed)
    router = fitted(table)
    for tradeoff, levels, sub_path in solutions(router):
        expected = threshold_return(table, levels, sub_path, tradeoff)
        actual = return_of(table, router, tradeoff)
        assert actual == pytest.approx(expected, abs=1e-9)
        path = evaluate(table, router, tradeoff).path
        assert set(path[path > 0].tolist()) <= {sub_path}


@pytest.mark.parametrize(
    ("tradeoff", "row"),
    [
        (0.0, 0),
        (0.01, 0),
        (0.031, 0),
        (0.033, 1),
        (0.1, 1),
        (0.31, 1),
        (0.32, 2),
        (4.0, 2),
    ],
)
def test_nearest_tradeoff_by_ratio_is_used(tradeoff, row):
    spec = paper().spec
    levels = np.array(
        [
            [0.9, 0.8],
            [0.6, 0.5],
            [0.3, 0.2],
        ]
    )
    sub_paths = np.array([2, 1, 2])
    router = ThresholdsRouter(
        spec,
        tradeoffs=np.array([0.01, 0.1, 1.0]),
        thresholds=levels,
        sub_paths=sub_paths,
    )

    # Two observations at each layer, one just below and one just above its threshold.
    layout = spec.layout
    obs = np.zeros((4, layout.size), np.float32)
    obs[:, layout.tradeoff] = tradeoff
    layers = [0, 0, 1, 1]
    obs[:, layout.layer] = np.eye(2)[layers]
    nearby = [-0.01, 0.01, -0.01, 0.01]
    obs[:, layout.summary.confidence.start] = levels[row, layers] + nearby

    actions, state = router.predict(obs, "kept")
    assert actions.tolist() == [sub_paths[row], 0, sub_paths[row], 0]
    assert state == "kept"


def test_without_exits_only_sub_path_is_chosen():
    table = drawn(0, exits=False)
    router = fitted(table)
    assert (router.thresholds == NEVER).all()
    for tradeoff, levels, sub_path in solutions(router):
        solved = threshold_return(table, levels, sub_path, tradeoff)
        for other in (1, 2):
            assert threshold_return(table, levels, other, tradeoff) <= solved
        assert (evaluate(table, router, tradeoff).path == sub_path).all()
    assert router.sub_paths[-1] == 1


@pytest.mark.parametrize(
    ("exits", "exit_layers"),
    [
        ("bare", []),
        ("one exit", [2]),
        ("glance and exits", [0, 1, 2]),
    ],
)
def test_layers_without_an_exit_never_exit(exits, exit_layers):
    backbone = small.backbone("multipath", exits)
    images = small.images()
    kwargs = {"dataset": images, "backbone": backbone, "backend": "live"}
    router = thresholds.fit(FitConfig("RNR-v0", kwargs))
    offered = np.isin(np.arange(3), exit_layers)
    assert (router.thresholds[:, ~offered] == NEVER).all()

    spec = RoutingSpec.of(backbone)
    for tradeoff in (0.01, 4.0):
        path = evaluate(Live(backbone, images, spec), router, tradeoff).path
        # In a backbone without exits 0 is a sub-path like any other.
        exited_at = np.nonzero((path == 0) & spec.has_exits)[1]
        assert set(exited_at.tolist()) <= set(exit_layers)


@pytest.mark.parametrize("sub_path", [1, 2, 3])
def test_trail_of_uniform_path_matches_network(sub_path):
    backbone = small.backbone("multipath")
    images = small.images()
    pixels = small.pixels(24)
    live = Live(backbone, images, RoutingSpec.of(backbone))
    trail = along_uniform_path(live, sub_path)

    paths = np.full((24, 3), sub_path)
    logits = small.travel(backbone, pixels, paths).logits
    correct = logits.argmax(1).numpy() == images.labels
    assert trail.correct[-1].tolist() == correct.tolist()

    # The last entry but one answers by the exit of layer 2.
    paths[:, 2] = 0
    state = small.travel(backbone, pixels, paths)
    correct = state.logits.argmax(1).numpy() == images.labels
    assert trail.correct[2].tolist() == correct.tolist()
    np.testing.assert_allclose(trail.compute[2], state.macs / backbone.mac_table.plain)
