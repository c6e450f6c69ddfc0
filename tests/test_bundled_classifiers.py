"""Classifiers by name: bundled ones first, then folders, then the hub."""

import huggingface_hub
import numpy as np
import pytest
import torch

from rnr_gym import agents
from rnr_gym.agents import RECIPES
from rnr_gym.backbones import weights, zoo
from rnr_gym.classifier import BudgetCurve, RoutedClassifier, bundled_classifiers
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small
from tests.fixtures.routers import confidence_router, untrained_router

NAME = "rnr-cifar10"
OTHER = "rnr-cifar100"
CURVE = BudgetCurve(tradeoff=[0.01, 0.1, 1.0], compute=[0.9, 0.5, 0.1])


def bundle(backbone, router, agent, name=NAME):
    """Put a router next to its backbone, as benchmarks/cifar10/ship.py does."""
    metadata = {
        "agent": agent,
        "problem": RoutingSpec.of(backbone).digest,
        "exits": True,
        "curve": CURVE._asdict(),
        "seed": 0,
        "weights and images": "0123456789ab",
    }
    agents.save(router, weights.router_file(name, agent), metadata)


@pytest.fixture
def weights_dir(tmp_path, monkeypatch):
    """An empty folder of bundled files."""
    monkeypatch.setattr(weights, "WEIGHTS_DIR", tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def backbone():
    """The backbone that is bundled under both names."""
    return small.backbone("multipath", summary_groups=8)


@pytest.fixture
def routers(weights_dir, backbone):
    """The routers that are bundled under the first name; the other one has none."""
    for name in (NAME, OTHER):
        weights.save(backbone, weights.backbone_file(name))

    routers = {}
    for agent in ("ppo", "dqn"):
        routers[agent] = untrained_router(
            agent,
            RECIPES[agent],
            RoutingSpec.of(backbone),
            seed=3,
            dataset=small.images(6),
            backbone=backbone,
        )
        bundle(backbone, routers[agent], agent)
    return routers


@pytest.fixture
def offline(monkeypatch):
    """No network: the hub's client says so at once."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def saved(tmp_path):
    """A classifier of another backbone, in a folder with the name of a bundled one."""
    backbone = small.backbone("vgg")
    router = confidence_router(RoutingSpec.of(backbone))
    classifier = RoutedClassifier(backbone, router, curve=CURVE, agent="confidence")
    classifier.save_pretrained(tmp_path / NAME)
    return classifier


@pytest.mark.parametrize(
    ("kwargs", "agent"),
    [
        ({}, "ppo"),
        ({"agent": "ppo"}, "ppo"),
        ({"agent": "dqn"}, "dqn"),
    ],
    ids=["default", "ppo", "dqn"],
)
def test_name_gives_the_bundled_classifier(backbone, routers, offline, kwargs, agent):
    loaded = RoutedClassifier.from_pretrained(NAME, **kwargs)
    assert loaded.agent == agent
    assert loaded.exits is True
    assert loaded.curve == CURVE
    assert not loaded.backbone.training

    original = RoutedClassifier(backbone, routers[agent], curve=CURVE, agent=agent)
    pixels = small.pixels(8)
    for budget in ({}, {"tradeoff": 0.3}, {"compute": 0.4}):
        expected = original(pixels, **budget)
        actual = loaded(pixels, **budget)
        torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(actual.path, expected.path)
        np.testing.assert_array_equal(actual.macs, expected.macs)


def test_bundled_name_precedes_folder(routers, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert RoutedClassifier.from_pretrained(NAME).agent == "ppo"
    # What is written as a path is a path.
    assert RoutedClassifier.from_pretrained(f"./{NAME}").agent == "confidence"
    assert RoutedClassifier.from_pretrained(str(tmp_path / NAME)).agent == "confidence"


@pytest.mark.parametrize("path_type", [str, lambda path: path], ids=["str", "path"])
def test_folder_gives_the_saved_classifier(routers, saved, tmp_path, path_type):
    loaded = RoutedClassifier.from_pretrained(path_type(tmp_path / NAME))
    assert loaded.agent == "confidence"
    assert loaded.curve == CURVE
    pixels = small.pixels(4)
    expected = saved(pixels, tradeoff=0.3).path
    np.testing.assert_array_equal(loaded(pixels, tradeoff=0.3).path, expected)


@pytest.mark.parametrize(
    ("name", "agent"),
    [
        (NAME, "a2c"),
        (NAME, "nosuch"),
        (NAME, "route"),
        (OTHER, "ppo"),
        ("nosuch", "dqn"),
    ],
)
def test_agent_without_bundled_router_is_rejected(routers, name, agent):
    message = (
        rf"`agent` must be that of a bundled classifier, {NAME} \(dqn, ppo\), "
        rf"got '{agent}' for '{name}'"
    )
    with pytest.raises(ValueError, match=message):
        RoutedClassifier.from_pretrained(name, agent=agent)


def test_unknown_or_unbundled_weights_are_rejected(routers):
    with pytest.raises(ValueError, match="`weights` must be one of pretrained, finetuned, got 'x'"):
        RoutedClassifier.from_pretrained(NAME, weights="x")
    with pytest.raises(ValueError, match=f"got None for '{NAME}', finetuned"):
        RoutedClassifier.from_pretrained(NAME, weights="finetuned")


def test_finetuned_classifier_has_finetuned_backbone():
    classifier = RoutedClassifier.from_pretrained("rnr-cifar10", weights="finetuned")
    assert small.same_weights(classifier.backbone, zoo.named("rnr-cifar10", "finetuned"))
    assert not small.same_weights(classifier.backbone, zoo.named("rnr-cifar10"))
    assert classifier.agent == "ppo"
    assert classifier.curve.tradeoff_for(0.3) > 0.0


def test_route_table_is_not_taken_for_a_router(routers):
    # Its file has a name of the same form, with the split where a router has its agent.
    weights.table_file(NAME, "route").write_bytes(b"a table")
    with pytest.raises(ValueError, match="`agent` must be that of a bundled classifier"):
        RoutedClassifier.from_pretrained(NAME, agent="route")


def test_agent_is_rejected_for_a_folder(routers, saved, tmp_path):
    with pytest.raises(ValueError, match="`agent` must be that of a bundled classifier"):
        RoutedClassifier.from_pretrained(str(tmp_path / NAME), agent="confidence")


@pytest.mark.parametrize("name", ["nosuch", "no/such-model", OTHER])
def test_unknown_name_without_network_is_an_error(routers, offline, tmp_path, name):
    message = r"(?i)offline|cannot find|locate|outgoing traffic"
    with pytest.raises((OSError, ValueError), match=message):
        RoutedClassifier.from_pretrained(name, cache_dir=tmp_path / "cache")


def test_folder_without_classifier_is_an_error(routers, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"backbone\.safetensors"):
        RoutedClassifier.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("device", ["xpu9z", "cuda:99"])
@pytest.mark.parametrize("bundled", [True, False], ids=["bundled", "folder"])
def test_unusable_device_is_rejected(routers, saved, tmp_path, device, bundled):
    name = NAME if bundled else str(tmp_path / NAME)
    message = f"`device` must be one that torch can use here, got '{device}'"
    with pytest.raises(ValueError, match=message):
        RoutedClassifier.from_pretrained(name, device=device)


def test_bundled_router_must_fit_backbone(routers):
    other = small.backbone("residual", summary_groups=8)
    weights.save(other, weights.backbone_file(NAME))
    with pytest.raises(ValueError, match="must be a router for this backbone"):
        RoutedClassifier.from_pretrained(NAME)


def test_bundled_backbone_is_not_shared(routers):
    changed = RoutedClassifier.from_pretrained(NAME)
    untouched = RoutedClassifier.from_pretrained(NAME)
    with torch.no_grad():
        changed.backbone.head.linear.bias += 1.0
    pixels = small.pixels(2)
    again = RoutedClassifier(untouched.backbone, untouched.router)
    assert torch.equal(again(pixels).logits, untouched(pixels).logits)

    # What runs is a copy, so a change needs another classifier.
    assert torch.equal(changed(pixels).logits, untouched(pixels).logits)
    other = RoutedClassifier(changed.backbone, changed.router)
    assert not torch.equal(other(pixels).logits, untouched(pixels).logits)


def test_bundled_classifiers_list_their_agents(backbone, routers):
    assert bundled_classifiers() == {NAME: ["dqn", "ppo"]}
    router = confidence_router(RoutingSpec.of(backbone))
    bundle(backbone, router, "confidence", OTHER)
    # A route table has a name of the same form, but is no router.
    weights.table_file(OTHER, "route").write_bytes(b"a table")
    assert bundled_classifiers() == {NAME: ["dqn", "ppo"], OTHER: ["confidence"]}


def test_bundled_classifiers_may_be_none(weights_dir):
    assert bundled_classifiers() == {}
