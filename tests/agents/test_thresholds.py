"""One threshold for each exit: solved on `route`, held to a recount image by image."""

import itertools

import numpy as np
import pytest

from rnr_gym.agents import FitConfig, confidence, thresholds
from rnr_gym.agents.confidence import GRID, NEVER, Trail, along_uniform_path
from rnr_gym.agents.thresholds import SHARES, ThresholdsRouter, solve_trail
from rnr_gym.experiments.evaluation import evaluate
from rnr_gym.routing.live import Live
from tests import small
from tests.agents import drawn, paper

SEEDS = pytest.mark.parametrize("seed", range(4))


def fitted(table):
    return thresholds.fit(FitConfig("RNR-v0", {"backend": table}))


def recount(table, levels, sub_path, tradeoff):
    """Mean return of leaving at the first exit whose own level is reached, image by image."""
    spec = table.spec
    numbers = {tuple(path): number for number, path in enumerate(table.paths.tolist())}
    total = 0.0
    for image in range(len(table.labels)):
        place, path = 0, []
        for layer in range(spec.num_layers):
            sure = table.summary[place, image, spec.layout.summary.confidence.start]
            if spec.valid[layer, 0] and sure >= levels[layer]:
                path.append(0)
                break
            path.append(sub_path)
            place = table.tree.child[place, sub_path]
        answer = numbers[tuple(path + [-1] * (spec.num_layers - len(path)))]
        total += float(table.correct[answer, image]) - tradeoff * table.compute[answer]
    return total / len(table.labels)


def cuts(table, sub_path):
    """For each layer all levels that tell images apart: every confidence that occurs, and never."""
    sure = along_uniform_path(table, sub_path).confidence[:-1]
    return [[*np.unique(row[np.isfinite(row)]).tolist(), NEVER] for row in sure]


def solved(router):
    """Trade-off, levels and sub-path of each row of a router."""
    return zip(
        router.tradeoffs_fitted.tolist(),
        router.thresholds.tolist(),
        router.sub_paths.tolist(),
        strict=True,
    )


@SEEDS
def test_no_other_single_threshold_is_better(seed):
    table = drawn(seed)
    for tradeoff, levels, sub_path in list(solved(fitted(table)))[::4]:
        value = recount(table, levels, sub_path, tradeoff)
        for layer, candidates in enumerate(cuts(table, sub_path)):
            for level in candidates:
                other = [*levels[:layer], level, *levels[layer + 1 :]]
                assert recount(table, other, sub_path, tradeoff) <= value + 1e-12


@SEEDS
def test_solution_is_close_to_exhaustive_search(seed):
    """Coordinate ascent may stop short of the best pair of thresholds, by an image or so."""
    table = drawn(seed, images=12)
    for tradeoff, levels, sub_path in list(solved(fitted(table)))[::6]:
        values = [
            recount(table, pair, other, tradeoff)
            for other in (1, 2)
            for pair in itertools.product(*cuts(table, other))
        ]  # fmt: skip
        best = max(values)
        found = recount(table, levels, sub_path, tradeoff)
        assert best - 1 / 12 <= found <= best + 1e-12


@SEEDS
def test_never_worse_than_a_single_threshold(seed):
    table = drawn(seed)
    ours, single = fitted(table), confidence.fit(FitConfig("RNR-v0", {"backend": table}))
    gains = []
    for tradeoff in GRID:
        one, other = evaluate(table, ours, tradeoff), evaluate(table, single, tradeoff)
        returns = [part.correct.mean() - tradeoff * part.macs.mean() / 100 for part in (one, other)]
        gains.append(returns[0] - returns[1])
    assert min(gains) >= -1e-12
    assert max(gains) > 0.01


def test_exits_of_different_scale_get_their_own_thresholds():
    """Exit 0 is right from .95 on, exit 1 from .55 on; what is less sure needs the end."""
    sure = np.array([[0.99, 0.95, 0.9, 0.9, 0.9, 0.9], [0.5, 0.5, 0.6, 0.55, 0.5, 0.5]])
    right = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], np.bool_)
    trail = Trail(
        confidence=np.vstack([sure, np.full(6, np.inf)]),
        correct=right,
        compute=np.repeat([[0.1], [0.4], [1.0]], 6, axis=1),
    )
    found = solve_trail(trail, np.array([0.2]))
    assert 0.9 < found.thresholds[0, 0] <= 0.95
    assert 0.5 < found.thresholds[0, 1] <= 0.55
    assert found.returns == pytest.approx([1 - 0.2 * (0.1 + 0.4 + 1.0) / 3])


@SEEDS
def test_no_member_of_the_geometric_family_is_better(seed):
    trail = along_uniform_path(drawn(seed, images=80), 2)
    found = solve_trail(trail, np.array([0.05, 0.5, 1.5]))
    for share in SHARES:
        first = np.quantile(trail.confidence[0], 1 - share)
        going = trail.confidence[0] < first
        second = np.quantile(trail.confidence[1][going], 1 - share)
        leave = np.select([~going, trail.confidence[1] >= second], [0, 1], 2)
        for value, tradeoff in zip(found.returns, (0.05, 0.5, 1.5), strict=True):
            returns = (trail.correct - tradeoff * trail.compute)[leave, np.arange(80)]
            assert value >= returns.mean() - 1e-12


@SEEDS
def test_routing_returns_what_the_solution_promises(seed):
    table = drawn(seed)
    router = fitted(table)
    for tradeoff, levels, sub_path in solved(router):
        found = evaluate(table, router, tradeoff)
        value = (found.correct - tradeoff * found.macs / table.spec.plain_macs).mean()
        assert value == pytest.approx(recount(table, levels, sub_path, tradeoff), abs=1e-9)
        assert set(found.path[found.path > 0].tolist()) <= {sub_path}


@pytest.mark.parametrize(
    ("tradeoff", "row"),
    [(0.0, 0), (0.01, 0), (0.031, 0), (0.033, 1), (0.1, 1), (0.31, 1), (0.32, 2), (4.0, 2)],
)
def test_nearest_fitted_tradeoff_by_ratio_is_used(tradeoff, row):
    spec = paper().spec
    levels = np.array([[0.9, 0.8], [0.6, 0.5], [0.3, 0.2]])
    router = ThresholdsRouter(spec, np.array([0.01, 0.1, 1.0]), levels, np.array([2, 1, 2]))
    layout = spec.layout
    seen = np.zeros((4, layout.size), np.float32)
    seen[:, layout.tradeoff] = tradeoff
    seen[:, layout.layer] = np.eye(2)[[0, 0, 1, 1]]
    seen[:, layout.summary.confidence.start] = np.repeat(levels[row], 2) + [-0.01, 0.01] * 2
    onward = [2, 1, 2][row]
    actions, state = router.predict(seen, "kept")
    assert actions.tolist() == [onward, 0, onward, 0]
    assert state == "kept"


def test_without_exits_only_the_sub_path_is_chosen():
    table = drawn(0, exits=False)
    router = fitted(table)
    assert (router.thresholds == NEVER).all()
    for tradeoff, _, sub_path in solved(router):
        values = {other: recount(table, [NEVER, NEVER], other, tradeoff) for other in (1, 2)}
        assert values[sub_path] == max(values.values())
        assert (evaluate(table, router, tradeoff).path == sub_path).all()
    assert router.sub_paths[-1] == 1


@pytest.mark.parametrize("exits", ["bare", "one exit", "glance and exits"])
def test_layers_without_an_exit_never_exit(exits):
    backbone, images = small.backbone("multipath", exits), small.images()
    arguments = {"dataset": images, "backbone": backbone, "backend": "live"}
    router = thresholds.fit(FitConfig("RNR-v0", arguments))
    spec = backbone.spec()
    offered = spec.valid[:, 0] if spec.has_exits else np.zeros(3, np.bool_)
    assert (router.thresholds[:, ~offered] == NEVER).all()
    for tradeoff in (0.01, 4.0):
        found = evaluate(Live(backbone, images, spec), router, tradeoff)
        left = {int((path >= 0).sum()) - 1 for path in found.path if 0 in path and spec.has_exits}
        assert left <= set(np.flatnonzero(offered).tolist())


@pytest.mark.parametrize("sub_path", [1, 2, 3])
def test_trail_of_any_uniform_path_is_what_the_network_does(sub_path):
    backbone, images = small.backbone("multipath"), small.images()
    trail = along_uniform_path(Live(backbone, images, backbone.spec()), sub_path)
    ways = np.full((24, 3), sub_path)
    logits = small.travel(backbone, small.pixels(24), ways).logits
    assert trail.correct[-1].tolist() == (logits.argmax(1).numpy() == images.labels).tolist()
    ways[:, 2] = 0
    walk = small.travel(backbone, small.pixels(24), ways)
    assert trail.correct[2].tolist() == (walk.logits.argmax(1).numpy() == images.labels).tolist()
    np.testing.assert_allclose(trail.compute[2], walk.macs / backbone.mac_table.plain)
