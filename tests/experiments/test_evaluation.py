"""What a router does with a whole split: every image once, in batches of any size."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.nn import functional as F

from rnr_gym.agents.confidence import ConfidenceRouter
from rnr_gym.agents.static import StaticRouter
from rnr_gym.agents.uniform import UniformRouter
from rnr_gym.backbones.base import BATCH_SIZE
from rnr_gym.experiments.evaluation import (
    EVAL_TRADEOFFS,
    Evaluation,
    eval_tradeoffs,
    evaluate,
    evaluate_paths,
    measure_curve,
    static_charge,
)
from rnr_gym.routing import route_table
from rnr_gym.routing.sources import open_source
from tests.fixtures import small
from tests.fixtures.paper_problem import drawn, paper, spec
from tests.fixtures.profiles import profile_of

EXACT_FIELDS = ("path", "prediction", "correct", "macs", "router_macs")
"""The fields in which a table and the live network agree to the last bit."""


class RecordingSource:
    """A source that records which images are started."""

    def __init__(self, source, batch_size=512):
        self.source = source
        self.spec = source.spec
        self.labels = source.labels
        self.batch_size = batch_size
        self.started = []

    def prefetch(self, image_idx):
        self.source.prefetch(image_idx)

    def start(self, image_idx):
        self.started.append(np.array(image_idx))
        return self.source.start(image_idx)

    def outcome(self, state, image_idx, batch_idx):
        return self.source.outcome(state, image_idx, batch_idx)


class LinearRouter:
    """A router that is one random matrix, so that a decision costs `decision_macs`."""

    def __init__(self, problem):
        generator = torch.Generator().manual_seed(1)
        self.weights = torch.randn(problem.layout.size, problem.num_paths, generator=generator)
        self.decision_macs = problem.layout.size * problem.num_paths

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        scores = torch.from_numpy(observation) @ self.weights
        return scores.argmax(1).numpy(), state


def confidence_router(problem):
    return ConfidenceRouter(
        problem,
        tradeoffs=np.array([0.01, 1.0]),
        thresholds=np.array([0.9, 0.3]),
    )


def two_path_router():
    """Path 21 below a trade-off of 0.5, the glance alone above."""
    paths = np.array([[2, 1], [0, -1]], np.int8)
    return StaticRouter(spec(), paths, np.array([0.5]))


@pytest.fixture(scope="module")
def live(some_digits):
    """The bundled network with 40 digits."""
    return open_source(some_digits)


@pytest.fixture(scope="module")
def table(live, some_digits):
    """The same as a route table."""
    return route_table.build(live.backbone, some_digits, live.spec, progress=False)


# Batches


@pytest.mark.parametrize("batch", [1, 7, 8, 40, 100])
def test_evaluate_visits_every_image_once(table, batch):
    router = confidence_router(table.spec)
    expected = evaluate(table, router, 0.2)

    source = RecordingSource(table, batch)
    actual = evaluate(source, router, 0.2)
    assert np.concatenate(source.started).tolist() == list(range(40))
    assert max(len(image_idx) for image_idx in source.started) == min(batch, 40)
    for actual_field, expected_field in zip(actual, expected, strict=True):
        assert_array_equal(actual_field, expected_field)


@pytest.mark.parametrize("batch", [7, 100])
def test_evaluate_paths_follows_each_path(table, batch):
    source = RecordingSource(table, batch)
    paths = small.paths(table.spec, 40)
    outcomes = evaluate_paths(source, paths)
    assert np.concatenate(source.started).tolist() == list(range(40))
    assert outcomes.path.tolist() == paths.tolist()

    path_idx = table.path_index(paths)
    assert_array_equal(outcomes.prediction, table.prediction[path_idx, np.arange(40)])
    assert_array_equal(outcomes.macs / table.spec.plain_macs, table.compute[path_idx])


def test_evaluate_paths_of_repeated_images(table):
    image_idx = np.array([5, 5, 39, 0, 5])
    paths = small.paths(table.spec, 5, seed=1)
    outcomes = evaluate_paths(table, paths, image_idx=image_idx)
    for i in range(5):
        alone = evaluate_paths(table, paths[[i]], image_idx=image_idx[[i]])
        for field, expected in zip(outcomes.take(np.array([i])), alone, strict=True):
            assert_array_equal(field, expected)


def test_evaluate_default_batches():
    """The last batch is smaller than the others, and all are joined."""
    num_images = 2 * BATCH_SIZE + 3
    source = paper().take(np.arange(num_images) % 8)
    source = RecordingSource(source, source.batch_size)
    outcomes = evaluate(source, UniformRouter(source.spec, 0), 0.3)
    sizes = [len(image_idx) for image_idx in source.started]
    assert sizes == [BATCH_SIZE, BATCH_SIZE, 3]
    assert all(len(field) == num_images for field in outcomes)


def test_evaluation_take_selects_in_order(table):
    outcomes = evaluate_paths(table, small.paths(table.spec, 40))
    taken = outcomes.take(np.array([3, 0, 3]))
    assert isinstance(taken, Evaluation)
    for field, taken_field in zip(outcomes, taken, strict=True):
        assert_array_equal(taken_field, field[[3, 0, 3]])


# Table and live network


@pytest.mark.parametrize("tradeoff", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("new_router", [confidence_router, LinearRouter])
def test_evaluate_table_matches_live(live, table, new_router, tradeoff):
    actual = evaluate(table, new_router(table.spec), tradeoff)
    expected = evaluate(live, new_router(live.spec), tradeoff)
    assert len(np.unique(expected.path, axis=0)) > 2
    assert 0 < expected.correct.mean() < 1

    for name in EXACT_FIELDS:
        assert_array_equal(getattr(actual, name), getattr(expected, name))
        assert getattr(actual, name).dtype == getattr(expected, name).dtype
    assert_allclose(actual.loss, expected.loss, atol=1e-4)


def test_evaluate_paths_table_matches_live(live, table):
    paths = small.paths(live.spec, 40, seed=3)
    actual = evaluate_paths(table, paths, static=True)
    expected = evaluate_paths(live, paths, static=True)
    for name in EXACT_FIELDS:
        assert_array_equal(getattr(actual, name), getattr(expected, name))


def test_evaluate_paths_matches_network(live):
    paths = small.paths(live.spec, 40, seed=3)
    outcomes = evaluate_paths(live, paths)
    # What follows an exit is not run, so that any sub-path stands for -1.
    whole_paths = np.maximum(paths, 0)
    state = small.travel(live.backbone, small.pixels_of(live.images), whole_paths)

    labels = torch.from_numpy(np.array(live.labels))
    loss = F.cross_entropy(state.logits, labels, reduction="none").detach()
    assert_array_equal(outcomes.prediction, state.logits.argmax(1))
    assert_array_equal(outcomes.correct, outcomes.prediction == live.labels)
    assert_allclose(outcomes.loss, loss, atol=1e-5)
    assert_array_equal(outcomes.macs, state.macs)


# Charges


def test_evaluate_charges_router_per_decision(table):
    router = LinearRouter(table.spec)
    outcomes = evaluate(table, router, 0.3)
    decisions = (outcomes.path >= 0).sum(1)
    assert len(np.unique(decisions)) > 1
    assert_array_equal(outcomes.router_macs, router.decision_macs * decisions)

    network_macs = evaluate_paths(table, outcomes.path).macs
    assert_array_equal(outcomes.macs - outcomes.router_macs, network_macs)


def test_evaluate_paths_charges_decision_macs(table):
    router = LinearRouter(table.spec)
    expected = evaluate(table, router, 0.3)
    actual = evaluate_paths(table, expected.path, decision_macs=router.decision_macs)
    assert_array_equal(actual.macs, expected.macs)
    assert_array_equal(actual.router_macs, expected.router_macs)


STATIC_MACS = {
    (0, -1): 2,
    (1, 0): 23,
    (2, 0): 53,
    (1, 1): 40,
    (1, 2): 70,
    (2, 1): 70,
    (2, 2): 100,
}
"""MACs of a static network by its path: stem 10, cheap 10, full 40, head 10, glance 2, exit head 3.

Only the exit that answers is paid, and the glance only if it answers.
"""
# The last image is hopeless: no path answers it right.
PATHS = np.array([*STATIC_MACS, (0, -1)], np.int8)
"""A path for each of the eight images on paper."""


@pytest.mark.parametrize(("path", "macs"), STATIC_MACS.items(), ids=str)
def test_static_router_charged_as_static_network(path, macs):
    only_path = np.array([path], np.int8)
    router = StaticRouter(spec(), only_path, np.zeros(0))
    outcomes = evaluate(paper(), router, 0.3)
    assert outcomes.path.tolist() == [list(path)] * 8
    assert outcomes.macs.tolist() == [macs] * 8
    assert outcomes.router_macs.tolist() == [0] * 8


def test_cost_is_time_where_time_is_charged(images, backbone):
    profile = profile_of(backbone)
    counting = open_source(images, backbone=backbone, backend="table")
    timed = open_source(images, backbone=backbone, backend="table", cost=profile)
    spec = timed.spec
    router = LinearRouter(spec)
    outcomes = evaluate(timed, router, 0.3)
    router_cost = spec.router_cost(outcomes.router_macs)
    assert (router_cost > 0).all()
    assert_array_equal(outcomes.cost - router_cost, spec.path_cost(outcomes.path, profile.times))
    assert measure_curve(timed, router).compute[0] == pytest.approx(
        spec.compute(evaluate(timed, router, EVAL_TRADEOFFS[0]).cost.mean())
    )

    # MACs are the same, whatever is charged.
    for static in (True, False):
        by_time = evaluate_paths(timed, outcomes.path, static)
        by_macs = evaluate_paths(counting, outcomes.path, static)
        assert_array_equal(by_time.macs, by_macs.macs)
        assert_array_equal(by_macs.cost, by_macs.macs)
        assert (by_time.cost != by_macs.cost).any()


def test_evaluate_paths_static_macs():
    outcomes = evaluate_paths(paper(), PATHS, static=True)
    assert outcomes.macs.tolist() == [*STATIC_MACS.values(), 2]
    assert_array_equal(outcomes.macs, static_charge(spec(), PATHS).macs)
    assert outcomes.correct.tolist() == [True] * 7 + [False]


def test_evaluate_paths_routed_macs():
    """Glance and exits are paid, and the router for one or two decisions."""
    outcomes = evaluate_paths(paper(), PATHS, decision_macs=7)
    router_macs = [7, 14, 14, 14, 14, 14, 14, 7]
    assert outcomes.router_macs.tolist() == router_macs
    network_macs = outcomes.macs - outcomes.router_macs
    assert network_macs.tolist() == [2, 25, 55, 45, 75, 75, 105, 2]
    assert outcomes.correct.tolist() == [True] * 7 + [False]


@pytest.mark.parametrize(("tradeoff", "path"), [(0.4, [2, 1]), (0.6, [0, -1])])
def test_static_router_follows_tradeoff(tradeoff, path):
    outcomes = evaluate(paper(), two_path_router(), tradeoff)
    assert outcomes.path.tolist() == [path] * 8


def test_exit_rate_counts_answers_at_exits():
    assert evaluate_paths(paper(), PATHS).exit_rate(spec()) == 4 / 8


# Trade-offs


def test_eval_tradeoffs_are_evenly_spaced():
    assert len(EVAL_TRADEOFFS) == 16
    assert EVAL_TRADEOFFS[0] == pytest.approx(0.003)
    assert EVAL_TRADEOFFS[-1] == pytest.approx(2.0)
    steps = np.diff(np.log(EVAL_TRADEOFFS))
    assert steps == pytest.approx(np.log(2 / 0.003) / 15)


def test_eval_tradeoffs_of_adaptive_router():
    assert eval_tradeoffs(confidence_router(spec())) == EVAL_TRADEOFFS


def test_eval_tradeoffs_reach_every_static_path():
    """One trade-off for each path is added: half and twice the one where the path changes."""
    expected = sorted([*EVAL_TRADEOFFS, 0.25, 1.0])
    assert eval_tradeoffs(two_path_router()) == tuple(expected)


def test_curve_is_mean_compute_by_tradeoff():
    source = drawn(2)
    router = LinearRouter(source.spec)
    curve = measure_curve(source, router)
    assert tuple(curve.tradeoff) == EVAL_TRADEOFFS
    for tradeoff, compute in zip(*curve, strict=True):
        outcomes = evaluate(source, router, tradeoff)
        assert compute == outcomes.macs.mean() / 100
        assert compute > (outcomes.macs - outcomes.router_macs).mean() / 100


def test_curve_of_confidence_router_falls():
    source = drawn(2)
    compute = measure_curve(source, confidence_router(source.spec)).compute
    assert (np.diff(compute) <= 0).all()
    assert compute[-1] < compute[0]
