"""The confidence rule: one threshold for each trade-off."""

import numpy as np
import pytest

from rnr_gym.agents import FitConfig, confidence
from rnr_gym.agents.confidence import GRID, ConfidenceRouter, along_uniform_path
from rnr_gym.backbones import base
from rnr_gym.experiments.evaluation import evaluate
from rnr_gym.routing import route_table
from rnr_gym.routing.live import Live
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small
from tests.fixtures.observations import random_observations
from tests.fixtures.paper_problem import drawn, paper
from tests.fixtures.returns import evaluated_return, threshold_return

SEEDS = pytest.mark.parametrize("seed", range(4))


def fitted(table):
    """The router that is fitted to a route table."""
    return confidence.fit(FitConfig("RNR-v0", {"backend": table}))


def router_of(spec, tradeoffs, thresholds):
    """The router with given thresholds."""
    return ConfidenceRouter(
        spec,
        tradeoffs=np.array(tradeoffs),
        thresholds=np.array(thresholds),
    )


def solutions(router):
    """Each trade-off with its threshold."""
    return list(zip(GRID, router.thresholds.tolist(), strict=True))


def return_of(table, threshold, tradeoff):
    """Mean return of one threshold for all exits, and the full path for images that stay."""
    thresholds = [threshold] * table.spec.num_layers
    return threshold_return(table, thresholds, table.spec.full_path, tradeoff)


def every_threshold(table):
    """Each confidence that occurs, and one that no image can have."""
    confidence_column = table.spec.layout.summary.confidence.start
    confidences = np.unique(table.summary[..., confidence_column])
    return [*confidences.astype(np.float64).tolist(), 2.0]


@SEEDS
def test_thresholds_are_the_best_of_all(seed):
    table = drawn(seed)
    router = fitted(table)
    assert router.tradeoffs_fitted.tolist() == list(GRID)
    for tradeoff, threshold in solutions(router):
        actual = return_of(table, threshold, tradeoff)
        best = max(return_of(table, other, tradeoff) for other in every_threshold(table))
        assert actual == pytest.approx(best, abs=1e-12)


@SEEDS
def test_thresholds_fall_as_tradeoffs_rise(seed):
    # Images leave earlier at a lower threshold, which saves compute where it is expensive.
    thresholds = fitted(drawn(seed)).thresholds
    assert (np.diff(thresholds) <= 0).all()
    assert thresholds[-1] < thresholds[0]


@pytest.mark.parametrize("exits", ["glance and exits", "one exit"])
def test_router_exits_where_confident_and_offered(exits):
    spec = RoutingSpec.of(small.backbone("multipath", exits))
    router = router_of(spec, tradeoffs=[0.01, 1.0], thresholds=[0.5, 0.5])
    obs = random_observations(spec, 300)
    confidence_column = spec.layout.summary.confidence.start
    # Exactly at the threshold is enough.
    obs[:20, confidence_column] = 0.5
    actions, state = router.predict(obs, "kept")

    offered = spec.valid[layers_of(spec.layout, obs), 0]
    for row, action in enumerate(actions.tolist()):
        leaves = obs[row, confidence_column] >= 0.5 and offered[row]
        assert action == (0 if leaves else spec.full_path)
    assert set(actions.tolist()) == {0, spec.full_path}
    assert state == "kept"


def test_router_reads_only_largest_probability():
    spec = paper().spec
    router = router_of(spec, tradeoffs=[0.01, 1.0], thresholds=[0.6, 0.6])
    obs = random_observations(spec, 100)
    other = random_observations(spec, 100, seed=1)
    confidence_column = spec.layout.summary.confidence.start
    other[:, confidence_column] = obs[:, confidence_column]

    actions, _ = router.predict(obs)
    other_actions, _ = router.predict(other)
    assert actions.tolist() == other_actions.tolist()


@pytest.mark.parametrize(
    ("tradeoff", "threshold"),
    [
        (0.0, 0.9),
        (0.01, 0.9),
        (0.1, 0.6),
        (1.0, 0.3),
        (4.0, 0.3),
        (10**-1.5, 0.75),
    ],
)
def test_thresholds_interpolate_in_log_tradeoff(tradeoff, threshold):
    spec = paper().spec
    router = router_of(spec, tradeoffs=[0.01, 0.1, 1.0], thresholds=[0.9, 0.6, 0.3])
    obs = np.zeros((2, spec.layout.size), np.float32)
    obs[:, spec.layout.tradeoff] = tradeoff
    obs[:, spec.layout.layer.start] = 1.0
    nearby = np.array([-1e-4, 1e-4])
    obs[:, spec.layout.summary.confidence.start] = threshold + nearby
    actions, _ = router.predict(obs)
    assert actions.tolist() == [spec.full_path, 0]


@SEEDS
def test_routing_returns_what_thresholds_promise(seed):
    table = drawn(seed)
    router = fitted(table)
    for tradeoff, threshold in solutions(router):
        evaluation = evaluate(table, router, tradeoff)
        actual = evaluated_return(table.spec, evaluation, tradeoff)
        expected = return_of(table, threshold, tradeoff)
        assert actual == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", small.KINDS)
@pytest.mark.parametrize("exits", ["one exit", "glance and exits"])
def test_trail_is_the_same_live_and_by_table(kind, exits):
    backbone = small.backbone(kind, exits)
    images = small.images()
    spec = RoutingSpec.of(backbone)
    table = route_table.build(backbone, images, spec, progress=False)
    live = Live(backbone, images, spec)
    trail = along_uniform_path(live, backbone.full_path)
    table_trail = along_uniform_path(table, backbone.full_path)
    for live_array, table_array in zip(trail, table_trail, strict=True):
        np.testing.assert_allclose(live_array, table_array, atol=1e-5)

    # Of infinite confidence are the end, and layers without an exit.
    offered = np.append(spec.valid[:, 0], False)
    finite = np.isfinite(trail.confidence)
    assert finite.shape == (4, 24)
    assert (finite == offered[:, None]).all()
    increases = np.diff(trail.compute, axis=0)
    assert (increases > 0).all()

    full_path = np.full((24, 3), backbone.full_path)
    state = small.travel(backbone, small.pixels(24), full_path)
    correct = state.logits.argmax(1).numpy() == images.labels
    assert trail.correct[-1].tolist() == correct.tolist()


@pytest.mark.parametrize("exits", ["bare", "glance and exits"])
def test_without_exits_all_take_the_full_path(exits):
    backbone = small.backbone("multipath", exits)
    images = small.images()
    kwargs = {
        "dataset": images,
        "backbone": backbone,
        "backend": "live",
        "exits": False,
    }
    router = confidence.fit(FitConfig("RNR-v0", kwargs))

    live = Live(backbone, images, RoutingSpec.of(backbone, exits=False))
    for tradeoff in (0.01, 0.5, 4.0):
        evaluation = evaluate(live, router, tradeoff)
        assert (evaluation.path == backbone.full_path).all()
        assert (evaluation.macs == backbone.mac_table.plain).all()


def test_table_without_exits_gives_the_full_path():
    table = drawn(0, exits=False)
    evaluation = evaluate(table, fitted(table), 2.0)
    assert (evaluation.path == 2).all()


def test_state_dict_restores_the_router():
    router = fitted(drawn(1))
    restored = ConfidenceRouter.from_state_dict(router.spec, *router.state_dict())
    assert restored.thresholds.tolist() == router.thresholds.tolist()
    assert restored.tradeoffs_fitted.tolist() == router.tradeoffs_fitted.tolist()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_trail_does_not_depend_on_batches(monkeypatch, batch_size):
    backbone = small.backbone("multipath")
    live = Live(backbone, small.images(), RoutingSpec.of(backbone))
    expected = along_uniform_path(live, backbone.full_path)
    monkeypatch.setattr(base, "BATCH_SIZE", batch_size)
    actual = along_uniform_path(live, backbone.full_path)
    np.testing.assert_array_equal(actual.correct, expected.correct)
    np.testing.assert_array_equal(actual.compute, expected.compute)
    np.testing.assert_allclose(actual.probabilities, expected.probabilities, atol=1e-5)
