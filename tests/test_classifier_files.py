"""Classifiers on disk: saved to a folder and loaded from it."""

import numpy as np
import pytest
import torch

from rnr_gym.agents.static import StaticRouter
from rnr_gym.classifier import BACKBONE_FILE, ROUTER_FILE, BudgetCurve, RoutedClassifier
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small
from tests.fixtures.paper_problem import opinionated
from tests.fixtures.profiles import profile_of
from tests.fixtures.routers import confidence_router, fit_with

CURVE = BudgetCurve(tradeoff=[0.01, 0.1, 1.0], compute=[0.9, 0.5, 0.1])


def classifier_of(backbone, **kwargs):
    """A classifier with the confidence rule."""
    return RoutedClassifier(backbone, confidence_router(RoutingSpec.of(backbone)), **kwargs)


@pytest.mark.parametrize("name", ["ppo", "dqn", "confidence"])
@pytest.mark.parametrize("exits", [True, False])
def test_classifier_survives_save_and_load(tmp_path, name, exits):
    backbone = small.backbone("multipath")
    images = small.images(12)
    if name == "confidence":
        router = confidence_router(RoutingSpec.of(backbone, exits))
    else:
        kwargs = {
            "dataset": images,
            "backbone": backbone,
            "backend": "table",
            "exits": exits,
        }
        router = fit_with(name, kwargs)
    if name == "ppo":
        opinionated(router)
    saved = RoutedClassifier(
        backbone,
        router,
        exits=exits,
        curve=CURVE,
        agent=name,
    )
    saved.save_pretrained(tmp_path / "saved")
    loaded = RoutedClassifier.from_pretrained(str(tmp_path / "saved"))

    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {BACKBONE_FILE, ROUTER_FILE} <= names
    assert loaded.agent == name
    assert loaded.exits == exits
    assert loaded.curve == CURVE
    assert loaded.decision_macs == saved.decision_macs
    assert not loaded.backbone.training

    pixels = small.pixels(12)
    for budget in ({}, {"compute": 0.4}, {"tradeoff": 1.0}):
        expected = saved(pixels, **budget)
        actual = loaded(pixels, **budget)
        torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
        assert actual.path.tolist() == expected.path.tolist()
        assert actual.macs.tolist() == expected.macs.tolist()


def test_classifier_that_charges_time_keeps_its_profile(tmp_path):
    backbone = small.backbone("multipath")
    profile = profile_of(backbone)
    spec = RoutingSpec.of(backbone).timed(profile.times)
    saved = RoutedClassifier(
        backbone, confidence_router(spec), agent="confidence", time_table=profile.times
    )
    saved.save_pretrained(tmp_path)
    loaded = RoutedClassifier.from_pretrained(str(tmp_path))
    assert loaded.spec.digest == saved.spec.digest

    routed = loaded(small.pixels(12), tradeoff=0.3)
    router_macs = loaded.decision_macs * (routed.path >= 0).sum(1)
    cost = spec.path_cost(routed.path, profile.times) + spec.router_cost(router_macs)
    np.testing.assert_array_equal(routed.compute, cost / profile.times.plain)
    macs = spec.path_cost(routed.path, backbone.mac_table)
    np.testing.assert_array_equal(routed.macs, macs + router_macs)
    # The plain network decides nothing.
    assert (loaded(small.pixels(2)).compute == 1.0).all()


def test_classifier_rejects_times_of_other_backbone():
    times = profile_of(small.backbone("multipath", "bare")).times
    with pytest.raises(ValueError, match="`time_table` must have layers"):
        classifier_of(small.backbone("multipath"), time_table=times)


def test_classifier_without_curve_is_saved_too(tmp_path):
    backbone = small.backbone("multipath")
    router = StaticRouter(
        RoutingSpec.of(backbone),
        paths=np.array([[2, 0, -1]], np.int8),
        edges=np.zeros(0),
    )
    RoutedClassifier(backbone, router, agent="static").save_pretrained(tmp_path)
    loaded = RoutedClassifier.from_pretrained(str(tmp_path))
    assert loaded.curve is None
    routed = loaded(small.pixels(3), tradeoff=0.3)
    assert (routed.path == [2, 0, -1]).all()


def test_save_needs_name_of_the_agent(tmp_path):
    routed_classifier = classifier_of(small.backbone("multipath"))
    with pytest.raises(ValueError, match="`agent` must name how the router was fitted"):
        routed_classifier.save_pretrained(tmp_path)


def test_load_rejects_router_of_other_backbone(tmp_path):
    for kind in ("multipath", "vgg"):
        routed_classifier = classifier_of(small.backbone(kind), agent="confidence")
        routed_classifier.save_pretrained(tmp_path / kind)
    (tmp_path / "vgg" / ROUTER_FILE).replace(tmp_path / "multipath" / ROUTER_FILE)
    with pytest.raises(ValueError, match="must be a router for this backbone"):
        RoutedClassifier.from_pretrained(str(tmp_path / "multipath"))
