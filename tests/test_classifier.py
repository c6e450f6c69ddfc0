"""A router and a backbone as one thing: what it answers, and what it costs."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from rnr_gym import classifier
from rnr_gym.agents.uniform import UniformRouter
from rnr_gym.backbones import base, inference, zoo
from rnr_gym.classifier import BudgetCurve, RoutedClassifier
from rnr_gym.routing.rollout import decision_macs, route
from rnr_gym.routing.route_table import build
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from tests.fixtures import small
from tests.fixtures.paper_problem import opinionated, paper
from tests.fixtures.routers import confidence_router, fit_agent, fit_with

KINDS = pytest.mark.parametrize("kind", small.KINDS)
CURVE = BudgetCurve(tradeoff=[0.01, 0.1, 1.0], compute=[0.9, 0.5, 0.1])


class TwoLayerRouter(nn.Module):
    """A router of two matrices, which keeps the arguments of every call."""

    def __init__(self, spec, width=8, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Linear(spec.layout.size, width),
            nn.Tanh(),
            nn.Linear(width, spec.num_paths),
        )
        self.calls = []

    @torch.no_grad()
    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.calls.append((observation.copy(), state, episode_start.copy(), deterministic))
        logits = self.net(torch.from_numpy(observation))
        actions = logits.argmax(1).numpy()
        # The state counts the calls.
        return actions, (state or 0) + 1


class ForbiddenRouter:
    """A router that must not be asked."""

    def predict(self, *_, **__):
        raise AssertionError("the router was asked")


class ExitingRouter:
    """A router that always asks for the exit."""

    def predict(self, observation, *_, **__):
        return np.zeros(len(observation), np.int64), None


def classifier_of(backbone, **kwargs):
    """A classifier with the confidence rule."""
    return RoutedClassifier(backbone, confidence_router(RoutingSpec.of(backbone)), **kwargs)


def pixels_of(images):
    """The pixels of an image set as a tensor."""
    return torch.from_numpy(np.array(images.images))


@pytest.fixture
def exit_runs():
    """Registers hooks on the glance and all exit heads of a backbone; a list of what ran."""
    runs = []
    handles = []

    def watch(backbone):
        heads = [layer.head for layer in backbone.layers if layer.head is not None]
        for part in (backbone.glance, *heads):
            handle = part.register_forward_hook(lambda module, *_: runs.append(module))
            handles.append(handle)
        return runs

    yield watch
    for handle in handles:
        handle.remove()


@KINDS
def test_classifier_runs_plain_without_budget(kind, monkeypatch, exit_runs):
    # A router's cost is measured by asking it.
    monkeypatch.setattr(classifier, "decision_macs", lambda *_: 5)
    backbone = small.backbone(kind)
    pixels = small.pixels(6)
    runs = exit_runs(backbone)
    routed = RoutedClassifier(backbone, ForbiddenRouter())(pixels)
    assert runs == []

    expected = backbone.plain()(backbone.prepare(pixels))
    torch.testing.assert_close(routed.logits, expected, rtol=1e-4, atol=1e-4)
    assert routed.path.shape == (6, 3)
    assert (routed.path == backbone.full_path).all()
    assert routed.macs.tolist() == [backbone.mac_table.plain] * 6
    assert routed.compute.tolist() == [1.0] * 6

    # The hooks do notice exits that run.
    classifier_of(backbone)(pixels, tradeoff=0.1)
    assert len(runs) > 0


@KINDS
def test_half_precision_gives_single_precision_logits(kind):
    backbone = small.backbone(kind)
    half = classifier_of(backbone, dtype="bfloat16")
    assert half.dtype == "bfloat16"
    pixels = small.pixels(12)
    logits = half(pixels).logits
    assert logits.dtype == torch.float32
    expected = classifier_of(backbone)(pixels).logits
    assert 0.0 < (logits - expected).abs().max() < 0.05 * expected.abs().max().clamp(min=1.0)


def test_auto_dtype_is_the_one_that_was_chosen(monkeypatch):
    monkeypatch.setattr(inference, "_faster", lambda backbone: "bfloat16")
    assert classifier_of(small.backbone("multipath"), dtype="auto").dtype == "bfloat16"


@KINDS
@pytest.mark.parametrize("exits", [True, False])
def test_classifier_with_tradeoff_routes(kind, exits):
    backbone = small.backbone(kind)
    pixels = small.pixels(12)
    spec = RoutingSpec.of(backbone, exits)
    router = TwoLayerRouter(spec)
    routed = RoutedClassifier(backbone, router, exits)(pixels, tradeoff=0.7)

    start = Traversal.start(backbone, pixels, None if exits else ())
    state = route(start, spec, router, 0.7)
    torch.testing.assert_close(routed.logits, state.logits)
    np.testing.assert_array_equal(routed.path, state.path)
    assert routed.path.dtype == np.int8
    assert routed.macs.dtype == np.int64
    assert routed.compute.dtype == np.float64
    assert routed.logits.dtype == torch.float32
    assert not routed.logits.requires_grad


def test_classifier_without_exits_runs_none(exit_runs):
    backbone = small.backbone("multipath")
    runs = exit_runs(backbone)
    router = UniformRouter(RoutingSpec.of(backbone, exits=False))
    without_exits = RoutedClassifier(backbone, router, exits=False)
    routed = without_exits(small.pixels(6), tradeoff=0.7)
    assert runs == []
    assert (routed.path > 0).all()


@KINDS
def test_macs_include_those_of_each_decision(kind):
    backbone = small.backbone(kind)
    spec = RoutingSpec.of(backbone)
    pixels = small.pixels(12)
    routed = RoutedClassifier(backbone, TwoLayerRouter(spec))(pixels, tradeoff=0.7)

    router_macs = spec.layout.size * 8 + 8 * backbone.num_paths
    decisions = (routed.path >= 0).sum(1)
    assert decisions.min() >= 1
    assert decisions.max() <= 3
    paths = np.maximum(routed.path, 0)
    state = small.travel(backbone, pixels, paths)
    np.testing.assert_array_equal(routed.macs, state.macs + router_macs * decisions)
    np.testing.assert_array_equal(routed.compute, routed.macs / backbone.mac_table.plain)


def test_decision_macs_are_matrix_products():
    spec = RoutingSpec.of(small.backbone("multipath"))
    size = spec.layout.size
    paths = spec.num_paths
    assert decision_macs(TwoLayerRouter(spec, 8), spec) == size * 8 + 8 * paths
    assert decision_macs(TwoLayerRouter(spec, 24), spec) == size * 24 + 24 * paths
    assert decision_macs(UniformRouter(spec), spec) == 0
    assert decision_macs(confidence_router(spec), spec) == 0


def test_decision_macs_of_ppo_omit_value_network():
    table = paper()
    router = fit_agent("ppo", table)
    # 4 features, 2 + 2 probabilities, 3 of confidence, 2 layers, compute, 3 sub-paths, trade-off.
    assert table.spec.layout.size == 4 + 2 + 2 + 3 + 2 + 1 + 3 + 1
    # 2 ordered probabilities, 2 log doubts, 5 of glance and exit, all but λ, and λ twice.
    inputs = 2 + 2 + 5 + 17 + 2
    assert decision_macs(router, table.spec) == inputs * 16 + 16 * 3


@pytest.mark.parametrize(
    ("compute", "tradeoff"),
    [
        (0.9, 0.01),
        (0.5, 0.1),
        (0.1, 1.0),
        (0.7, 10**-1.5),
        (0.2, 10**-0.25),
    ],
)
def test_budget_becomes_tradeoff_of_the_curve(compute, tradeoff):
    backbone = small.backbone("multipath")
    spec = RoutingSpec.of(backbone)
    router = TwoLayerRouter(spec)
    routed_classifier = RoutedClassifier(backbone, router, curve=CURVE)

    # Without the call that measured the cost of a decision.
    router.calls.clear()
    routed_classifier(small.pixels(4), compute=compute)
    assert len(router.calls) > 0
    for observation, *_ in router.calls:
        observed = observation[:, spec.layout.tradeoff]
        np.testing.assert_allclose(observed, tradeoff, rtol=1e-6)


@pytest.mark.parametrize("compute", [0.0999, 1.0001, 0.0, -1.0, 2.0])
def test_budget_outside_curve_is_rejected(compute):
    routed_classifier = classifier_of(small.backbone("multipath"), curve=CURVE)
    message = (
        r"`compute` must lie in 0\.100 \(the cheapest that this router was measured at\) to 1, got"
    )
    with pytest.raises(ValueError, match=message):
        routed_classifier(small.pixels(2), compute=compute)


@pytest.mark.parametrize("compute", [0.9, 0.9001, 0.95, 1.0])
def test_budget_above_curve_gets_lowest_tradeoff(compute):
    assert CURVE.tradeoff_for(compute) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("computes", "budget", "tradeoff", "budgets"),
    [
        ([0.9, 0.2, 0.3], 0.2, 0.1, [0.2, 0.5, 0.9]),
        ([0.6, 0.8, 0.2], 0.6, 0.01, [0.2, 0.4, 0.6]),
    ],
    ids=["rises at the end", "rises at the start"],
)
def test_noisy_curve_meets_budgets_where_measured(computes, budget, tradeoff, budgets):
    curve = BudgetCurve(tradeoff=[0.01, 0.1, 1.0], compute=computes)
    assert curve.tradeoff_for(budget) == pytest.approx(tradeoff)
    tradeoffs = [curve.tradeoff_for(compute) for compute in budgets]
    assert tradeoffs == sorted(tradeoffs, reverse=True)


def test_budget_without_curve_is_rejected():
    routed_classifier = classifier_of(small.backbone("multipath"))
    with pytest.raises(ValueError, match="`compute` needs a router whose curve was measured"):
        routed_classifier(small.pixels(2), compute=0.5)


def test_budget_and_tradeoff_exclude_each_other():
    routed_classifier = classifier_of(small.backbone("multipath"), curve=CURVE)
    message = r"`compute` and `tradeoff` exclude each other, got 0\.5 and 0\.3"
    with pytest.raises(ValueError, match=message):
        routed_classifier(small.pixels(2), compute=0.5, tradeoff=0.3)


@pytest.mark.parametrize("tradeoff", [-0.1, 4.5, np.nan, "much"])
def test_tradeoff_outside_its_range_is_rejected(tradeoff):
    routed_classifier = classifier_of(small.backbone("multipath"))
    with pytest.raises(ValueError, match="`tradeoff`"):
        routed_classifier(small.pixels(2), tradeoff=tradeoff)


def test_tradeoff_zero_is_routed():
    backbone = small.backbone("multipath")
    router = TwoLayerRouter(RoutingSpec.of(backbone))
    routed_classifier = RoutedClassifier(backbone, router)
    router.calls.clear()
    routed_classifier(small.pixels(2), tradeoff=0.0)
    assert len(router.calls) > 0


@pytest.mark.parametrize("budget", [{}, {"tradeoff": 0.1}], ids=["plain", "routed"])
def test_uint8_and_float_images_route_alike(budget):
    pixels = small.pixels(6)
    routed_classifier = classifier_of(small.backbone("multipath"))
    routed = routed_classifier(pixels, **budget)
    routed_float = routed_classifier(pixels.float() / 255.0, **budget)
    torch.testing.assert_close(routed.logits, routed_float.logits)
    assert routed.path.tolist() == routed_float.path.tolist()


@pytest.mark.parametrize("budget", [{}, {"tradeoff": 0.1}], ids=["plain", "routed"])
def test_many_images_run_in_batches(budget, monkeypatch):
    pixels = small.pixels(10)
    backbone = small.backbone("multipath")
    router = TwoLayerRouter(RoutingSpec.of(backbone))
    routed_classifier = RoutedClassifier(backbone, router)
    whole = routed_classifier(pixels, **budget)

    router.calls.clear()
    monkeypatch.setattr(base, "BATCH_SIZE", 4)
    routed = routed_classifier(pixels, **budget)
    assert {len(observation) for observation, *_ in router.calls} <= {4, 2}
    torch.testing.assert_close(routed.logits, whole.logits)
    for name in ("path", "macs", "compute"):
        assert getattr(routed, name).tolist() == getattr(whole, name).tolist()


@pytest.mark.parametrize("network", ["rnr-digits", "rnr-digits-channels"])
@pytest.mark.parametrize("name", ["confidence", "ppo", "two layers"])
def test_classifier_matches_the_environment(network, name, some_digits):
    backbone = zoo.named(network)
    spec = RoutingSpec.of(backbone)
    if name == "confidence":
        router = confidence_router(spec)
    elif name == "ppo":
        kwargs = {"dataset": some_digits, "backbone": backbone, "backend": "table"}
        router = opinionated(fit_with("ppo", kwargs))
    else:
        router = TwoLayerRouter(spec, seed=3)

    routed = RoutedClassifier(backbone, router)(pixels_of(some_digits), tradeoff=0.1)
    assert len(np.unique(routed.path, axis=0)) > 2

    env = gym.make(
        "RNR-v0",
        dataset=some_digits,
        backbone=backbone,
        tradeoff=0.1,
    )
    macs_of_decision = decision_macs(router, spec)
    episode_start = np.ones(1, np.bool_)
    for index in range(40):
        obs, _ = env.reset(options={"index": index})
        terminated = False
        decisions = 0
        while not terminated:
            actions, _ = router.predict(obs[None], None, episode_start)
            obs, _, terminated, _, info = env.step(actions[0])
            decisions += 1

        assert (info["path"] == routed.path[index]).all()
        assert info["macs"] + macs_of_decision * decisions == routed.macs[index]
        assert info["prediction"] == routed.logits[index].argmax()


def test_router_gets_episode_starts_and_its_state():
    backbone = small.backbone("multipath")
    spec = RoutingSpec.of(backbone, exits=False)
    router = TwoLayerRouter(spec)
    start = Traversal.start(backbone, small.pixels(4), ())
    route(start, spec, router, 0.3)

    _, states, starts, deterministic = zip(*router.calls, strict=True)
    assert states == (None, 1, 2)
    assert starts[0].all()
    assert not np.any(starts[1:])
    assert deterministic == (True, True, True)


def test_masked_action_becomes_nearest_valid_one():
    # Only layer 2 has an exit.
    backbone = small.backbone("multipath", "one exit")
    exiting = RoutedClassifier(backbone, ExitingRouter())
    routed = exiting(small.pixels(4), tradeoff=0.3)
    assert (routed.path == [1, 1, 0]).all()


def test_route_is_the_same_live_and_by_table(some_digits):
    backbone = zoo.named("rnr-digits")
    spec = RoutingSpec.of(backbone)
    router = TwoLayerRouter(spec, seed=5)
    table = build(backbone, some_digits, spec, progress=False)

    table_start = table.start(np.arange(40))
    by_table = route(table_start, spec, router, 0.4)
    live_start = Traversal.start(backbone, pixels_of(some_digits))
    live = route(live_start, spec, router, 0.4)
    assert len(np.unique(by_table.path, axis=0)) > 2
    assert by_table.path.tolist() == live.path.tolist()
    assert by_table.macs.tolist() == live.macs.tolist()


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 13, 13),
        torch.zeros(2, 1, 8, 8, dtype=torch.int64),
    ],
    ids=["size", "dtype"],
)
def test_unsuitable_images_are_rejected(images):
    routed_classifier = classifier_of(small.backbone("multipath"))
    with pytest.raises(ValueError, match=r"`images` must be uint8 or float \(N, 1, 8, 8\), got"):
        routed_classifier(images)
