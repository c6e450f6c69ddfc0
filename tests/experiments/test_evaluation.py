"""What a router does with a whole split: every image once, whatever the batches."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rnr_gym.agents.confidence import ConfidenceRouter
from rnr_gym.agents.static import StaticRouter
from rnr_gym.agents.uniform import UniformRouter
from rnr_gym.experiments import evaluation
from rnr_gym.experiments.evaluation import (
    EVAL_TRADEOFFS,
    evaluate,
    evaluate_paths,
    measure_curve,
    static_macs,
    sweep,
)
from rnr_gym.routing import route_table
from rnr_gym.routing.sources import open_source
from tests.fixtures import small
from tests.fixtures.paper_problem import drawn, paper, spec


class Counting:
    """A source that notes which images are asked for."""

    def __init__(self, source):
        self.source, self.spec, self.labels, self.asked = source, source.spec, source.labels, []

    def start(self, indices):
        self.asked.append(np.array(indices))
        return self.source.start(indices)

    def outcome(self, walk, indices, rows):
        return self.source.outcome(walk, indices, rows)


class Thinker:
    """A router that is one matrix, so that deciding costs something: `own` MACs."""

    def __init__(self, problem):
        generator = torch.Generator().manual_seed(1)
        self.weights = torch.randn(problem.layout.size, problem.num_paths, generator=generator)
        self.own = problem.layout.size * problem.num_paths

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return (torch.from_numpy(observation) @ self.weights).argmax(1).numpy(), state


def wary(problem):
    return ConfidenceRouter(problem, np.array([0.01, 1.0]), np.array([0.9, 0.3]))


@pytest.fixture(scope="module")
def sources(some_digits):
    """The shipped network and its table over 40 digits."""
    live = open_source(some_digits)
    return live, route_table.build(live.backbone, some_digits, live.spec, progress=False)


@pytest.mark.parametrize("batch", [1, 7, 8, 40, 100])
def test_every_image_is_visited_once(monkeypatch, sources, batch):
    wanted = evaluate(sources[1], wary(sources[1].spec), 0.2)
    monkeypatch.setattr(evaluation, "BATCH", batch)
    counting = Counting(sources[1])
    found = evaluate(counting, wary(counting.spec), 0.2)
    assert np.concatenate(counting.asked).tolist() == list(range(40))
    assert max(map(len, counting.asked)) == min(batch, 40)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("batch", [7, 100])
def test_every_image_goes_down_its_own_path_once(monkeypatch, sources, batch):
    monkeypatch.setattr(evaluation, "BATCH", batch)
    counting, paths = Counting(sources[1]), small.paths(sources[1].spec, 40)
    found = evaluate_paths(counting, paths)
    assert np.concatenate(counting.asked).tolist() == list(range(40))
    assert found.path.tolist() == paths.tolist()
    numbers = sources[1].answers(paths)
    assert found.prediction.tolist() == sources[1].prediction[numbers, np.arange(40)].tolist()
    assert (found.macs / sources[1].spec.plain_macs).tolist() == sources[1].compute[
        numbers
    ].tolist()


def test_images_may_be_named_and_come_more_than_once(sources):
    indices, paths = np.array([5, 5, 39, 0, 5]), small.paths(sources[1].spec, 5, seed=1)
    found = evaluate_paths(sources[1], paths, indices=indices)
    for row, index in enumerate(indices):
        alone = evaluate_paths(sources[1], paths[[row]], indices=np.array([index]))
        assert [part[row].tolist() for part in found] == [part[0].tolist() for part in alone]


def test_the_default_batch_is_less_than_a_split_and_fits_together():
    table = paper().take(np.arange(2 * evaluation.BATCH + 3) % 8)
    counting = Counting(table)
    found = evaluate(counting, UniformRouter(table.spec, 0), 0.3)
    assert [len(part) for part in counting.asked] == [evaluation.BATCH, evaluation.BATCH, 3]
    assert len(found.path) == len(found.correct) == len(found.macs) == 2 * evaluation.BATCH + 3


@pytest.mark.parametrize("tradeoff", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("make", [wary, Thinker])
def test_a_table_and_the_live_network_are_evaluated_alike(sources, make, tradeoff):
    live, table = (evaluate(source, make(source.spec), tradeoff) for source in sources)
    assert len(np.unique(live.path, axis=0)) > 2
    assert 0 < live.correct.mean() < 1
    for name in ("path", "prediction", "correct", "macs", "router_macs"):
        np.testing.assert_array_equal(getattr(live, name), getattr(table, name))
        assert getattr(live, name).dtype == getattr(table, name).dtype
    np.testing.assert_allclose(live.loss, table.loss, atol=1e-4)


def test_paths_on_a_table_and_on_the_live_network_are_evaluated_alike(sources):
    paths = small.paths(sources[0].spec, 40, seed=3)
    live, table = (evaluate_paths(source, paths, static=True) for source in sources)
    for name in ("path", "prediction", "correct", "macs", "router_macs"):
        np.testing.assert_array_equal(getattr(live, name), getattr(table, name))


def test_losses_and_answers_are_those_of_the_network(sources):
    live, paths = sources[0], small.paths(sources[0].spec, 40, seed=3)
    found = evaluate_paths(live, paths)
    walk = small.travel(
        live.backbone, torch.from_numpy(np.array(live.images.images)), np.maximum(paths, 0)
    )
    labels = torch.from_numpy(np.array(live.labels))
    np.testing.assert_array_equal(found.prediction, walk.logits.argmax(1))
    np.testing.assert_array_equal(found.correct, found.prediction == live.labels)
    np.testing.assert_allclose(
        found.loss, F.cross_entropy(walk.logits, labels, reduction="none").detach(), atol=1e-5
    )
    np.testing.assert_array_equal(found.macs, walk.macs)


def test_the_routers_own_macs_are_counted_for_each_decision(sources):
    table = sources[1]
    router = Thinker(table.spec)
    found = evaluate(table, router, 0.3)
    decisions = (found.path >= 0).sum(1)
    assert len(set(decisions.tolist())) > 1
    np.testing.assert_array_equal(found.router_macs, router.own * decisions)
    np.testing.assert_array_equal(
        found.macs - found.router_macs, evaluate_paths(table, found.path).macs
    )
    again = evaluate_paths(table, found.path, decision_macs=router.own)
    np.testing.assert_array_equal(again.macs, found.macs)
    np.testing.assert_array_equal(again.router_macs, found.router_macs)


@pytest.mark.parametrize(
    ("path", "macs"),
    [
        ([0, -1], 2),
        ([1, 0], 23),
        ([2, 0], 53),
        ([1, 1], 40),
        ([1, 2], 70),
        ([2, 1], 70),
        ([2, 2], 100),
    ],
    ids=str,
)
def test_a_static_router_is_charged_as_a_static_network(path, macs):
    """Stem 10, cheap 10, full 40, head 10, glance 2, exit head 3: only the exit that answers is paid, and before the glance nothing."""
    router = StaticRouter(spec(), np.array([path], np.int8), np.zeros(0))
    found = evaluate(paper(), router, 0.3)
    assert found.path.tolist() == [path] * 8
    assert found.macs.tolist() == [macs] * 8
    assert found.router_macs.tolist() == [0] * 8


def test_the_same_paths_cost_more_where_a_router_chose_them():
    paths = np.array([[0, -1], [1, 0], [2, 0], [1, 1], [1, 2], [2, 1], [2, 2], [0, -1]], np.int8)
    static, routed = (
        evaluate_paths(paper(), paths, static=True),
        evaluate_paths(paper(), paths, decision_macs=7),
    )
    assert (
        static.macs.tolist()
        == static_macs(spec(), paths).tolist()
        == [2, 23, 53, 40, 70, 70, 100, 2]
    )
    assert routed.macs.tolist() == [
        2 + 7,
        25 + 14,
        55 + 14,
        45 + 14,
        75 + 14,
        75 + 14,
        105 + 14,
        2 + 7,
    ]
    assert routed.router_macs.tolist() == [7, 14, 14, 14, 14, 14, 14, 7]
    assert (
        static.correct.tolist()
        == routed.correct.tolist()
        == [True, True, True, True, True, True, True, False]
    )


def test_a_static_router_takes_the_path_of_the_tradeoff():
    router = StaticRouter(spec(), np.array([[2, 1], [0, -1]], np.int8), np.array([0.5]))
    assert evaluate(paper(), router, 0.4).path.tolist() == [[2, 1]] * 8
    assert evaluate(paper(), router, 0.6).path.tolist() == [[0, -1]] * 8


def test_the_sweep_holds_its_own_tradeoffs_and_the_routers():
    assert sweep(wary(spec())) == EVAL_TRADEOFFS
    assert EVAL_TRADEOFFS[0] == pytest.approx(0.003)
    assert EVAL_TRADEOFFS[-1] == pytest.approx(2.0)
    assert np.diff(np.log(EVAL_TRADEOFFS)) == pytest.approx(np.log(2 / 0.003) / 15)
    static = StaticRouter(spec(), np.array([[2, 1], [0, -1]], np.int8), np.array([0.5]))
    assert sweep(static) == tuple(sorted([*EVAL_TRADEOFFS, 0.25, 1.0]))


def test_the_curve_is_the_mean_compute_at_each_tradeoff():
    table = drawn(2)
    router = Thinker(table.spec)
    curve = measure_curve(table, router)
    assert tuple(curve.tradeoff) == EVAL_TRADEOFFS
    for tradeoff, compute in zip(*curve, strict=True):
        found = evaluate(table, router, tradeoff)
        assert compute == found.macs.mean() / 100
        assert compute > (found.macs - found.router_macs).mean() / 100
    falling = measure_curve(table, wary(table.spec)).compute
    assert (np.diff(falling) <= 0).all()
    assert falling[-1] < falling[0]
