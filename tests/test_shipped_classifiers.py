"""Classifiers by name: those that ship first, then folders, then the hub."""

import huggingface_hub
import numpy as np
import pytest
import torch

from rnr_gym import agents, classifier
from rnr_gym.agents import RECIPES
from rnr_gym.agents.confidence import ConfidenceRouter
from rnr_gym.agents.sb3_router import Sb3Router, learner
from rnr_gym.backbones import zoo
from rnr_gym.classifier import BudgetCurve, RoutedClassifier
from rnr_gym.sb3 import vec_env
from tests import small

NAME, OTHER = "rnr-cifar10", "rnr-cifar100"
CURVE = BudgetCurve([0.01, 0.1, 1.0], [0.9, 0.5, 0.1])


def untrained(backbone, name):
    """A learner's router that has learnt nothing: it decides by its first weights."""
    env = vec_env("RNR-v0", 32, 3, dataset=small.images(6), backbone=backbone)
    return Sb3Router(backbone.spec(), learner(RECIPES[name], env, backbone.spec().layout, 3).policy, name, RECIPES[name])


def ship(backbone, router, agent, name=NAME):
    """Put a router beside its backbone, as benchmarks/cifar10/ship.py does."""
    facts = {"agent": agent, "problem": backbone.spec().digest, "exits": True, "curve": CURVE._asdict(), "seed": 0}
    agents.save(router, zoo.bundled(name, f"frozen.{agent}"), {**facts, "weights and images": "0123456789ab"})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of weights."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def shipped(folder):
    """A backbone with two routers, and one with none."""
    backbone = small.backbone("multipath", summary_groups=8)
    routers = {name: untrained(backbone, name) for name in ("ppo", "dqn")}
    for name in (NAME, OTHER):
        zoo.save(backbone, zoo.bundled(name))
    for name, router in routers.items():
        ship(backbone, router, name)
    return backbone, routers


@pytest.fixture
def offline(monkeypatch):
    """No network: the hub's client says so at once."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(("given", "agent"), [({}, "ppo"), ({"agent": "ppo"}, "ppo"), ({"agent": "dqn"}, "dqn")], ids=str)
def test_a_name_gives_the_router_that_ships_ppo_unless_told_otherwise(shipped, offline, given, agent):
    backbone, routers = shipped
    routed = RoutedClassifier.from_pretrained(NAME, **given)
    assert (routed.agent, routed.exits, routed.curve) == (agent, True, CURVE)
    assert not routed.backbone.training
    wanted = RoutedClassifier(backbone, routers[agent], True, CURVE, agent)
    for budget in ({}, {"tradeoff": 0.3}, {"compute": 0.4}):
        one, other = routed(small.pixels(8), **budget), wanted(small.pixels(8), **budget)
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(one.path, other.path)
        np.testing.assert_array_equal(one.macs, other.macs)


def test_what_ships_comes_before_a_folder_of_the_same_name(shipped, tmp_path, monkeypatch):
    other = small.backbone("vgg")
    RoutedClassifier(other, wary(other), agent="confidence").save_pretrained(tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert RoutedClassifier.from_pretrained(NAME).agent == "ppo"
    assert RoutedClassifier.from_pretrained(str(tmp_path / NAME)).agent == "confidence"


def test_what_is_written_as_a_path_is_one(shipped, tmp_path, monkeypatch):
    other = small.backbone("vgg")
    RoutedClassifier(other, wary(other), agent="confidence").save_pretrained(tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert RoutedClassifier.from_pretrained(f"./{NAME}").agent == "confidence"


def wary(backbone):
    return ConfidenceRouter(backbone.spec(), np.array([0.01, 1.0]), np.array([0.9, 0.4]))


@pytest.mark.parametrize("as_path", [True, False])
def test_a_folder_is_taken_as_before(shipped, tmp_path, as_path):
    backbone = small.backbone("multipath")
    ours = RoutedClassifier(backbone, wary(backbone), True, CURVE, "confidence")
    ours.save_pretrained(tmp_path / "mine")
    again = RoutedClassifier.from_pretrained(tmp_path / "mine" if as_path else str(tmp_path / "mine"))
    assert (again.agent, again.curve) == ("confidence", CURVE)
    np.testing.assert_array_equal(ours(small.pixels(4), tradeoff=0.3).path, again(small.pixels(4), tradeoff=0.3).path)


@pytest.mark.parametrize(("name", "agent"), [(NAME, "a2c"), (NAME, "nosuch"), (NAME, "route"), (OTHER, "ppo"), ("nosuch", "dqn")])
def test_a_router_that_does_not_ship_is_refused_and_those_that_do_are_named(shipped, name, agent):
    with pytest.raises(ValueError, match=rf"`agent` must be that of a classifier that ships, {NAME} \(dqn, ppo\), got '{agent}' of '{name}'"):
        RoutedClassifier.from_pretrained(name, agent=agent)


def test_an_agent_goes_with_no_folder(shipped, tmp_path):
    backbone = small.backbone("multipath")
    RoutedClassifier(backbone, wary(backbone), agent="confidence").save_pretrained(tmp_path / "mine")
    with pytest.raises(ValueError, match="`agent` must be that of a classifier that ships"):
        RoutedClassifier.from_pretrained(str(tmp_path / "mine"), agent="confidence")


@pytest.mark.parametrize("name", ["nosuch", "no/such-model", OTHER])
def test_an_unknown_name_is_an_error_where_there_is_no_network(shipped, offline, tmp_path, name):
    with pytest.raises((OSError, ValueError), match=r"(?i)offline|cannot find|locate|outgoing traffic"):
        RoutedClassifier.from_pretrained(name, cache_dir=tmp_path / "cache")


def test_a_folder_without_a_classifier_is_an_error(shipped, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"backbone\.safetensors"):
        RoutedClassifier.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("device", ["xpu9z", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(shipped, tmp_path, device):
    backbone = small.backbone("multipath")
    RoutedClassifier(backbone, wary(backbone), agent="confidence").save_pretrained(tmp_path / "mine")
    for name in (NAME, str(tmp_path / "mine")):
        with pytest.raises(ValueError, match=f"`device` must be one that torch can use here, got '{device}'"):
            RoutedClassifier.from_pretrained(name, device=device)


def test_a_router_of_another_problem_is_refused(shipped):
    zoo.save(small.backbone("residual", summary_groups=8), zoo.bundled(NAME))
    with pytest.raises(ValueError, match="must be a router for this backbone"):
        RoutedClassifier.from_pretrained(NAME)


def test_a_backbone_is_not_shared_with_whoever_asks_next(shipped):
    one, other = (RoutedClassifier.from_pretrained(NAME) for _ in range(2))
    with torch.no_grad():
        one.backbone.head.linear.bias += 1.0
    assert not torch.equal(one(small.pixels(2)).logits, other(small.pixels(2)).logits)


def test_what_ships_is_listed_with_its_agents(shipped):
    backbone, _ = shipped
    assert classifier.shipped() == [f"{NAME} (dqn, ppo)"]
    ship(backbone, wary(backbone), "confidence", OTHER)
    zoo.bundled(OTHER, "frozen.route").write_bytes(b"a table, no router")
    assert sorted(classifier.shipped()) == [f"{NAME} (dqn, ppo)", f"{OTHER} (confidence)"]


def test_where_nothing_ships_nothing_is_listed(folder):
    assert classifier.shipped() == []
