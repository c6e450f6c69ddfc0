"""A router and a backbone as one thing: what it answers, what it costs, and how it is kept."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from rnr_gym import classifier
from rnr_gym.agents import FitConfig, sb3_router
from rnr_gym.agents.confidence import ConfidenceRouter
from rnr_gym.agents.static import StaticRouter
from rnr_gym.agents.uniform import UniformRouter
from rnr_gym.backbones import zoo
from rnr_gym.classifier import BACKBONE, ROUTER, BudgetCurve, RoutedClassifier
from rnr_gym.routing.rollout import decision_macs, route
from rnr_gym.routing.route_table import build
from rnr_gym.routing.traversal import Traversal
from tests import small
from tests.agents import opinionated, paper

KINDS = pytest.mark.parametrize("kind", small.KINDS)
CURVE = BudgetCurve([0.01, 0.1, 1.0], [0.9, 0.5, 0.1])


class Small(nn.Module):
    """A router that is a network of two matrices, and remembers what it was shown."""

    def __init__(self, spec, width=8, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(spec.layout.size, width), nn.Tanh(), nn.Linear(width, spec.num_paths))
        self.shown = []

    @torch.no_grad()
    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.shown.append((observation.copy(), state, episode_start.copy(), deterministic))
        return self.net(torch.from_numpy(observation)).argmax(1).numpy(), (state or 0) + 1


def learnt(backbone, images, name="ppo", exits=True):
    """A router of a learner; PPO's takes many sub-paths."""
    arguments = {"dataset": images, "backbone": backbone, "backend": "table", "exits": exits}
    router = sb3_router.fit(FitConfig("RNR-v0", arguments, 0, 1024, progress=False), name)
    return opinionated(router) if name == "ppo" else router


def wary(spec):
    """Confident images leave early, at a threshold that falls with the trade-off."""
    return ConfidenceRouter(spec, np.array([0.01, 1.0]), np.array([0.9, 0.4]))


class Never:
    """A router that must not be asked."""

    def predict(self, *_, **__):
        raise AssertionError("the router was asked")


@pytest.fixture
def forbid(monkeypatch):
    """Make the router's cost known beforehand, since asking for it asks the router."""
    monkeypatch.setattr(classifier, "decision_macs", lambda *_: 5)


@KINDS
def test_without_a_budget_it_is_the_plain_network_and_nothing_else_runs(kind, forbid):
    backbone, pixels, ran = small.backbone(kind), small.pixels(6), []
    extras = [backbone.glance, *(layer.head for layer in backbone.layers if layer.head is not None)]
    hooks = [part.register_forward_hook(lambda *_: ran.append(1)) for part in extras]
    found = RoutedClassifier(backbone, Never())(pixels)
    assert ran == []
    torch.testing.assert_close(found.logits, backbone.plain()(backbone.prepare(pixels)), rtol=1e-4, atol=1e-4)
    assert (found.path == backbone.full_path).all()
    assert found.path.shape == (6, 3)
    assert found.macs.tolist() == [backbone.mac_table.plain] * 6
    assert found.compute.tolist() == [1.0] * 6
    RoutedClassifier(backbone, wary(backbone.spec()))(pixels, tradeoff=0.1)
    assert ran  # the hooks do hear what runs
    for hook in hooks:
        hook.remove()


@KINDS
@pytest.mark.parametrize("exits", [True, False])
def test_with_a_tradeoff_the_router_decides(kind, exits):
    backbone, pixels = small.backbone(kind), small.pixels(12)
    router = Small(backbone.spec(exits))
    found = RoutedClassifier(backbone, router, exits)(pixels, tradeoff=0.7)
    walk = Traversal.start(backbone, pixels, None if exits else ())
    wanted = route(walk, backbone.spec(exits), router, 0.7)
    torch.testing.assert_close(found.logits, wanted.logits)
    np.testing.assert_array_equal(found.path, wanted.path)
    assert (found.path.dtype, found.macs.dtype, found.compute.dtype) == (np.int8, np.int64, np.float64)
    assert found.logits.dtype == torch.float32
    assert not found.logits.requires_grad


def test_without_exits_neither_glance_nor_exit_runs():
    backbone, ran = small.backbone("multipath"), []
    for part in (backbone.glance, *(layer.head for layer in backbone.layers if layer.head is not None)):
        part.register_forward_hook(lambda *_: ran.append(1))
    found = RoutedClassifier(backbone, UniformRouter(backbone.spec(False)), exits=False)(small.pixels(6), tradeoff=0.7)
    assert ran == []
    assert (found.path > 0).all()


@KINDS
def test_macs_include_the_routers_own_for_each_decision(kind):
    backbone = small.backbone(kind)
    router = Small(backbone.spec())
    found = RoutedClassifier(backbone, router)(small.pixels(12), tradeoff=0.7)
    own = backbone.spec().layout.size * 8 + 8 * backbone.num_paths
    walk = small.travel(backbone, small.pixels(12), np.maximum(found.path, 0))
    decisions = (found.path >= 0).sum(1)
    assert (decisions == decisions.clip(1, 3)).all()
    np.testing.assert_array_equal(found.macs, walk.macs + own * decisions)
    np.testing.assert_array_equal(found.compute, found.macs / backbone.mac_table.plain)


def test_a_decision_costs_its_matrix_products():
    spec = small.backbone("multipath").spec()
    size, paths = spec.layout.size, spec.num_paths
    assert decision_macs(Small(spec, 8), spec) == size * 8 + 8 * paths
    assert decision_macs(Small(spec, 24), spec) == size * 24 + 24 * paths
    assert decision_macs(UniformRouter(spec), spec) == 0
    assert decision_macs(wary(spec), spec) == 0


def test_a_ppo_routers_decision_costs_its_policy_and_not_its_value_network():
    table = paper()
    router = sb3_router.fit(FitConfig("RNR-v0", {"backend": table}, 0, 1024, progress=False), "ppo")
    size = table.spec.layout.size  # 4 features, 2 + 2 probabilities, 3 of confidence, 2 layers, compute, 3 sub-paths, trade-off
    assert size == 18
    read = 2 + 2 + 5 + 17 + 2  # ordered probabilities, log doubt, glance and exit, all but the trade-off, λ twice
    assert decision_macs(router, table.spec) == read * 16 + 16 * 3


def test_a_budget_becomes_the_tradeoff_that_the_curve_says():
    backbone = small.backbone("multipath")
    router = Small(backbone.spec())
    routed = RoutedClassifier(backbone, router, curve=CURVE)
    where = backbone.spec().layout.tradeoff.start
    for compute, tradeoff in ((0.9, 0.01), (0.5, 0.1), (0.1, 1.0), (0.7, 10**-1.5), (0.2, 10**-0.25)):
        router.shown.clear()
        routed(small.pixels(4), compute=compute)
        for observation, *_ in router.shown:
            np.testing.assert_allclose(observation[:, where], tradeoff, rtol=1e-6)


@pytest.mark.parametrize("compute", [0.0999, 1.0001, 0.0, -1.0, 2.0, float("nan")])
def test_a_budget_below_the_cheapest_or_above_the_plain_network_is_refused_with_the_range(compute):
    backbone = small.backbone("multipath")
    routed = RoutedClassifier(backbone, wary(backbone.spec()), curve=CURVE)
    with pytest.raises(ValueError, match=r"`compute` must lie in 0\.100 \(the cheapest that this router was measured at\) to 1, got"):
        routed(small.pixels(2), compute=compute)


@pytest.mark.parametrize("compute", [0.9001, 0.95, 1.0])
def test_of_a_budget_above_the_dearest_that_was_measured_the_rest_is_left(compute):
    assert CURVE.tradeoff_for(compute) == pytest.approx(CURVE.tradeoff_for(0.9)) == pytest.approx(0.01)


def test_where_a_curve_is_noisy_a_budget_is_met_where_it_was_measured():
    noisy = BudgetCurve([0.01, 0.1, 1.0], [0.9, 0.2, 0.3])  # at trade-off 1 the router spent more than at 0.1
    assert noisy.tradeoff_for(0.2) == pytest.approx(0.1)
    rising = BudgetCurve([0.01, 0.1, 1.0], [0.6, 0.8, 0.2])
    assert rising.tradeoff_for(0.6) == pytest.approx(0.01)
    for curve, budgets in ((noisy, [0.2, 0.5, 0.9]), (rising, [0.2, 0.4, 0.6])):
        tradeoffs = [curve.tradeoff_for(budget) for budget in budgets]
        assert tradeoffs == sorted(tradeoffs, reverse=True)


def test_a_budget_needs_a_curve_and_excludes_a_tradeoff():
    backbone = small.backbone("multipath")
    routed = RoutedClassifier(backbone, wary(backbone.spec()))
    with pytest.raises(ValueError, match="`compute` needs a router whose curve was measured"):
        routed(small.pixels(2), compute=0.5)
    with pytest.raises(ValueError, match=r"`compute` and `tradeoff` exclude each other, got 0\.5 and 0\.3"):
        RoutedClassifier(backbone, wary(backbone.spec()), curve=CURVE)(small.pixels(2), compute=0.5, tradeoff=0.3)


@pytest.mark.parametrize("tradeoff", [-0.1, 4.5, float("nan"), "much"])
def test_a_tradeoff_outside_its_range_is_refused(tradeoff):
    backbone = small.backbone("multipath")
    with pytest.raises(ValueError, match="`tradeoff`"):
        RoutedClassifier(backbone, wary(backbone.spec()))(small.pixels(2), tradeoff=tradeoff)


def test_free_compute_is_a_tradeoff_too():
    backbone = small.backbone("multipath")
    router = Small(backbone.spec())
    RoutedClassifier(backbone, router)(small.pixels(2), tradeoff=0.0)
    assert len(router.shown) > 1  # decision_macs asked once


def test_whole_numbers_and_fractions_are_one_image():
    backbone, pixels = small.backbone("multipath"), small.pixels(6)
    routed = RoutedClassifier(backbone, wary(backbone.spec()))
    for budget in ({}, {"tradeoff": 0.1}):
        one, other = routed(pixels, **budget), routed(pixels.float() / 255.0, **budget)
        torch.testing.assert_close(one.logits, other.logits)
        assert one.path.tolist() == other.path.tolist()


@pytest.mark.parametrize("network", ["rnr-digits", "rnr-digits-channels"])
@pytest.mark.parametrize("name", ["wary", "ppo", "small"])
def test_rows_are_what_the_environment_does_with_each_image(network, name, some_digits):
    backbone = zoo.named(network)
    spec = backbone.spec()
    router = {"wary": lambda: wary(spec), "ppo": lambda: learnt(backbone, some_digits), "small": lambda: Small(spec, seed=3)}[name]()
    found = RoutedClassifier(backbone, router)(torch.from_numpy(np.array(some_digits.images)), tradeoff=0.1)
    env, own = gym.make("RNR-v0", dataset=some_digits, backbone=backbone, tradeoff=0.1), decision_macs(router, spec)
    for index in range(40):
        (observation, _), ended, decisions = env.reset(options={"index": index}), False, 0
        while not ended:
            action, _ = router.predict(observation[None], None, np.ones(1, np.bool_))
            observation, _, ended, _, info = env.step(action[0])
            decisions += 1
        assert info["path"].tolist() == found.path[index].tolist()
        assert info["macs"] + own * decisions == found.macs[index]
        assert info["prediction"] == found.logits[index].argmax()
    assert len(np.unique(found.path, axis=0)) > 2


def test_a_router_is_told_where_episodes_begin_and_handed_its_state():
    backbone = small.backbone("multipath")
    router = Small(backbone.spec(False))
    route(Traversal.start(backbone, small.pixels(4), ()), backbone.spec(False), router, 0.3)
    assert [state for _, state, _, _ in router.shown] == [None, 1, 2]
    assert [start.tolist() for _, _, start, _ in router.shown] == [[True] * 4, [False] * 4, [False] * 4]
    assert all(deterministic is True for *_, deterministic in router.shown)


def test_a_masked_action_becomes_the_nearest_valid_one():
    backbone = small.backbone("multipath", "one exit")

    class Leave:
        def predict(self, observation, *_, **__):
            return np.zeros(len(observation), np.int64), None

    found = RoutedClassifier(backbone, Leave())(small.pixels(4), tradeoff=0.3)
    assert found.path.tolist() == [[1, 1, 0]] * 4  # only layer 2 has an exit


@pytest.mark.parametrize("name", ["ppo", "dqn", "confidence"])
@pytest.mark.parametrize("exits", [True, False])
def test_it_comes_back_from_a_folder(tmp_path, name, exits):
    backbone, images = small.backbone("multipath"), small.images(12)
    router = wary(backbone.spec(exits)) if name == "confidence" else learnt(backbone, images, name, exits)
    routed = RoutedClassifier(backbone, router, exits, CURVE, name)
    routed.save_pretrained(tmp_path / "folder")
    again = RoutedClassifier.from_pretrained(str(tmp_path / "folder"))
    assert {BACKBONE, ROUTER} <= {file.name for file in (tmp_path / "folder").iterdir()}
    assert (again.agent, again.exits, again.curve, again.decision_macs) == (name, exits, CURVE, routed.decision_macs)
    assert not again.backbone.training
    pixels = torch.from_numpy(np.array(images.images))
    for budget in ({}, {"compute": 0.4}, {"tradeoff": 1.0}):
        one, other = routed(pixels, **budget), again(pixels, **budget)
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-5, atol=1e-5)
        assert one.path.tolist() == other.path.tolist()
        assert one.macs.tolist() == other.macs.tolist()


def test_it_comes_back_without_a_curve_too(tmp_path):
    backbone = small.backbone("multipath")
    router = StaticRouter(backbone.spec(), np.array([[2, 0, -1]], np.int8), np.zeros(0))
    RoutedClassifier(backbone, router, agent="static").save_pretrained(tmp_path)
    again = RoutedClassifier.from_pretrained(str(tmp_path))
    assert again.curve is None
    assert again(small.pixels(3), tradeoff=0.3).path.tolist() == [[2, 0, -1]] * 3


def test_what_it_cannot_name_it_does_not_save(tmp_path):
    backbone = small.backbone("multipath")
    with pytest.raises(ValueError, match="`agent` must name how the router was fitted"):
        RoutedClassifier(backbone, wary(backbone.spec())).save_pretrained(tmp_path)


def test_a_router_put_to_another_backbone_is_refused(tmp_path):
    one, other = small.backbone("multipath"), small.backbone("vgg")
    RoutedClassifier(one, wary(one.spec()), agent="confidence").save_pretrained(tmp_path / "one")
    RoutedClassifier(other, wary(other.spec()), agent="confidence").save_pretrained(tmp_path / "other")
    (tmp_path / "other" / ROUTER).replace(tmp_path / "one" / ROUTER)
    with pytest.raises(ValueError, match="must be a router for this backbone"):
        RoutedClassifier.from_pretrained(str(tmp_path / "one"))


def test_a_table_and_a_live_network_are_routed_alike(some_digits):
    backbone = zoo.named("rnr-digits")
    spec, router = backbone.spec(), Small(backbone.spec(), seed=5)
    table = build(backbone, some_digits, spec, progress=False)
    one = route(table.start(np.arange(40)), spec, router, 0.4)
    other = route(Traversal.start(backbone, torch.from_numpy(np.array(some_digits.images))), spec, router, 0.4)
    assert len(np.unique(one.path, axis=0)) > 2
    assert one.path.tolist() == other.path.tolist()
    assert one.macs.tolist() == other.macs.tolist()


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 13, 13), torch.zeros(2, 3, 7, 7, dtype=torch.int64)], ids=["size", "dtype"])
def test_images_of_another_size_or_kind_are_refused(images):
    backbone = small.backbone("multipath")
    with pytest.raises(ValueError, match="`images` must be uint8 or float"):
        RoutedClassifier(backbone, wary(backbone.spec()))(images)
