"""The confidence rule: a threshold for each trade-off, and nothing else."""

import numpy as np
import pytest

from rnr_gym.agents import FitConfig, confidence
from rnr_gym.agents.confidence import GRID, ConfidenceRouter, along_uniform_path
from rnr_gym.envs.routing import observation_space
from rnr_gym.experiments.evaluation import evaluate
from rnr_gym.routing import route_table
from rnr_gym.routing.live import Live
from tests import small
from tests.agents import drawn, paper

SEEDS = pytest.mark.parametrize("seed", range(4))


def fitted(table):
    return confidence.fit(FitConfig("RNR-v0", {"backend": table}))


def mean_return(table, threshold, tradeoff):
    """What a threshold brings, image by image: leave at the first layer that is sure enough, else take the full path."""
    spec, total = table.spec, 0.0
    numbers = {tuple(path): number for number, path in enumerate(table.paths.tolist())}
    for image in range(len(table.labels)):
        place, path = 0, []
        for layer in range(spec.num_layers):
            sure = table.summary[place, image, spec.layout.summary.confidence.start]
            if spec.valid[layer, 0] and sure >= threshold:
                path.append(0)
                break
            path.append(spec.full_path)
            place = table.tree.child[place, spec.full_path]
        answer = numbers[tuple(path + [-1] * (spec.num_layers - len(path)))]
        total += float(table.prediction[answer, image] == table.labels[image]) - tradeoff * table.compute[answer]
    return total / len(table.labels)


def every_threshold(table):
    """Each confidence that occurs, and more than there can be."""
    return [*np.unique(table.summary[..., table.spec.layout.summary.confidence.start]).astype(float).tolist(), 2.0]


@SEEDS
def test_each_threshold_is_the_best_of_all(seed):
    table = drawn(seed)
    router = fitted(table)
    assert router.tradeoffs_fitted.tolist() == list(GRID)
    for tradeoff, threshold in zip(GRID, router.thresholds.tolist(), strict=True):
        best = max(mean_return(table, candidate, tradeoff) for candidate in every_threshold(table))
        assert mean_return(table, threshold, tradeoff) == pytest.approx(best, abs=1e-12)


@SEEDS
def test_the_dearer_compute_is_the_less_confidence_will_do(seed):
    """A higher threshold leaves later and so costs more; the dearer compute is the less of it is worth buying."""
    thresholds = fitted(drawn(seed)).thresholds
    assert (np.diff(thresholds) <= 0).all()
    assert thresholds[-1] < thresholds[0]


@pytest.mark.parametrize("exits", ["glance and exits", "one exit"])
def test_it_exits_exactly_where_it_is_sure_enough_and_an_exit_is_offered(exits):
    spec = small.backbone("multipath", exits).spec()
    router, where = ConfidenceRouter(spec, np.array([0.01, 1.0]), np.array([0.5, 0.5])), spec.layout
    rng, box = np.random.default_rng(0), observation_space(spec)
    seen = rng.uniform(box.low, box.high, (300, where.size)).astype(np.float32)
    layers = rng.integers(0, 3, 300)
    seen[:, where.layer] = np.eye(3)[layers]
    seen[:20, where.summary.confidence.start] = 0.5  # just enough
    actions, state = router.predict(seen, "kept")
    for row, action in enumerate(actions.tolist()):
        leave = float(seen[row, where.summary.confidence.start]) >= 0.5 and spec.valid[layers[row], 0]
        assert action == (0 if leave else spec.full_path)
    assert state == "kept"
    assert {0, spec.full_path} == set(actions.tolist())


def test_only_the_largest_probability_counts():
    spec = paper().spec
    router, where = ConfidenceRouter(spec, np.array([0.01, 1.0]), np.array([0.6, 0.6])), spec.layout
    rng, box = np.random.default_rng(0), observation_space(spec)
    seen = rng.uniform(box.low, box.high, (100, where.size)).astype(np.float32)
    seen[:, where.layer] = np.eye(2)[rng.integers(0, 2, 100)]
    other = rng.uniform(box.low, box.high, (100, where.size)).astype(np.float32)
    other[:, where.summary.confidence.start] = seen[:, where.summary.confidence.start]
    assert router.predict(seen)[0].tolist() == router.predict(other)[0].tolist()


@pytest.mark.parametrize(("tradeoff", "threshold"), [(0.0, 0.9), (0.01, 0.9), (0.1, 0.6), (1.0, 0.3), (4.0, 0.3), (10**-1.5, 0.75)])
def test_between_fitted_tradeoffs_the_threshold_is_interpolated_over_their_logarithm(tradeoff, threshold):
    spec = paper().spec
    router, where = ConfidenceRouter(spec, np.array([0.01, 0.1, 1.0]), np.array([0.9, 0.6, 0.3])), spec.layout
    seen = np.zeros((2, where.size), np.float32)
    seen[:, where.tradeoff.start], seen[:, where.layer.start] = tradeoff, 1.0
    seen[:, where.summary.confidence.start] = threshold - 1e-4, threshold + 1e-4
    assert router.predict(seen)[0].tolist() == [spec.full_path, 0]


@SEEDS
def test_routing_by_the_thresholds_brings_what_they_promise(seed):
    table = drawn(seed)
    router = fitted(table)
    for tradeoff, threshold in zip(GRID, router.thresholds.tolist(), strict=True):
        found = evaluate(table, router, tradeoff)
        gained = (found.correct - tradeoff * found.macs / table.spec.plain_macs).mean()
        assert gained == pytest.approx(mean_return(table, threshold, tradeoff), abs=1e-9)


@pytest.mark.parametrize("kind", small.KINDS)
@pytest.mark.parametrize("exits", ["one exit", "glance and exits"])
def test_a_live_network_and_its_table_are_fitted_alike(kind, exits):
    backbone, images = small.backbone(kind, exits), small.images()
    spec = backbone.spec()
    table = route_table.build(backbone, images, spec, progress=False)
    ours = along_uniform_path(Live(backbone, images, spec), backbone.full_path)
    theirs = along_uniform_path(table, backbone.full_path)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    sure, right, compute = ours
    assert np.isfinite(sure).tolist() == [[bool(offered)] * 24 for offered in [*spec.valid[:, 0], False]]
    logits = small.travel(backbone, small.pixels(24), np.full((24, 3), backbone.full_path)).logits
    assert right[-1].tolist() == (logits.argmax(1).numpy() == images.labels).tolist()
    assert (np.diff(compute, axis=0) > 0).all()


@pytest.mark.parametrize("exits", ["bare", "glance and exits"])
def test_without_exits_every_image_takes_the_full_path(exits):
    backbone, images = small.backbone("multipath", exits), small.images()
    arguments = {"dataset": images, "backbone": backbone, "backend": "live", "exits": False}
    router = confidence.fit(FitConfig("RNR-v0", arguments))
    for tradeoff in (0.01, 0.5, 4.0):
        found = evaluate(Live(backbone, images, backbone.spec(False)), router, tradeoff)
        assert (found.path == backbone.full_path).all()
        assert (found.macs == backbone.mac_table.plain).all()


def test_with_exits_switched_off_a_table_is_fitted_too():
    table = drawn(0, exits=False)
    assert (evaluate(table, fitted(table), 2.0).path == 2).all()


def test_a_router_comes_back_from_what_it_says_of_itself():
    router = fitted(drawn(1))
    again = ConfidenceRouter.restore(router.spec, *router.state())
    assert again.thresholds.tolist() == router.thresholds.tolist()
    assert again.tradeoffs_fitted.tolist() == router.tradeoffs_fitted.tolist()
