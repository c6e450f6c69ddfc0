"""An ordinary network with images of the user's own, through everything that routes."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from numpy.testing import assert_allclose

import rnr_gym as rnr
from rnr_gym.agents import AGENTS, FitConfig
from rnr_gym.routing.sources import open_source
from tests.fixtures import offshelf, small

SHAPE = (1, 12, 12)


@pytest.fixture(scope="module")
def images():
    """Random images of three classes."""
    return small.images(40, SHAPE)


@pytest.fixture(scope="module")
def backbone(images):
    """A small network of a class that was never seen, made routable and calibrated."""
    torch.manual_seed(0)
    network = offshelf.NeverSeen(SHAPE, classes=3).eval().requires_grad_(False)
    made = rnr.routable(network, small.pixels_of(images)[:8], groups=2)
    rnr.calibrate_paths(made, images)
    return made


@pytest.fixture
def env_kwargs(backbone, images):
    """What `gym.make` is given."""
    return {"backbone": backbone, "dataset": images}


def test_scalar_environment_passes_the_check(env_kwargs):
    env = gym.make("RNR-v0", **env_kwargs)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.action_space.n == 3


def test_sub_path_that_is_not_offered_becomes_the_nearest(env_kwargs):
    env = gym.make("RNR-v0", **env_kwargs)
    for layer, valid in enumerate(env.unwrapped.source.spec.valid):
        for action in range(3):
            env.reset(seed=0, options={"index": 1})
            for _ in range(layer):
                env.step(2)
            _, _, _, _, info = env.step(action)
            assert (info["executed"] == action) == valid[action]


@pytest.mark.parametrize("backend", ["live", "table"])
def test_vector_environment_agrees_with_scalar(env_kwargs, backend):
    envs = gym.make_vec("RNR-v0", 4, **env_kwargs, backend=backend)
    env = gym.make("RNR-v0", **env_kwargs)
    rng = np.random.default_rng(0)
    num_layers = env_kwargs["backbone"].num_layers
    actions = rng.integers(0, 3, (num_layers, 4))
    observations, infos = envs.reset(seed=3)
    idx = infos["index"]
    for number in range(4):
        observation, _ = env.reset(options={"index": int(idx[number])})
        assert_allclose(observation, observations[number], atol=1e-4)

    rewards = np.zeros(4)
    for step in actions:
        _, reward, _, _, _ = envs.step(step)
        rewards += reward
    for number in range(4):
        env.reset(options={"index": int(idx[number])})
        total = 0.0
        for action in actions[:, number]:
            _, reward, _, _, _ = env.step(int(action))
            total += reward
        assert total == pytest.approx(rewards[number], abs=1e-4)


@pytest.mark.parametrize("agent", ["static", "confidence", "thresholds"])
def test_routers_are_fitted_and_evaluated(env_kwargs, agent):
    router = AGENTS[agent].fit(FitConfig(env="RNR-v0", kwargs=env_kwargs, progress=False))
    outcome = rnr.evaluate(open_source(**env_kwargs, backend="table"), router, 0.3)
    assert len(outcome.macs) == 40
    assert (outcome.macs <= env_kwargs["backbone"].mac_table.plain).all()


def test_classifier_runs_the_plain_network_and_routes(backbone, images):
    config = FitConfig(env="RNR-v0", kwargs={"backbone": backbone, "dataset": images})
    classifier = rnr.RoutedClassifier(backbone, AGENTS["static"].fit(config), agent="static")
    pixels = small.pixels_of(images)
    routed = classifier(pixels)
    expected = backbone.plain()(backbone.prepare(pixels))
    assert_allclose(routed.logits, expected, atol=1e-4)
    assert (routed.compute == 1.0).all()
    cheap = classifier(pixels, tradeoff=4.0)
    assert (cheap.compute < 1.0).all()


def test_classifier_is_not_saved(backbone, images, tmp_path):
    config = FitConfig(env="RNR-v0", kwargs={"backbone": backbone, "dataset": images})
    classifier = rnr.RoutedClassifier(backbone, AGENTS["static"].fit(config), agent="static")
    with pytest.raises(ValueError, match="call `routable` again"):
        classifier.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("dataset", "match"),
    [
        (small.images(8, (3, 12, 12)), r"the backbone's shape \(1, 12, 12\), got \(3, 12, 12\)"),
        (small.images(8, (1, 16, 16)), r"the backbone's shape \(1, 12, 12\), got \(1, 16, 16\)"),
        (small.images(8, SHAPE, classes=4), "the backbone's 3 classes, got 4"),
    ],
)
def test_images_have_to_fit_the_network(backbone, dataset, match):
    with pytest.raises(ValueError, match=match):
        gym.make("RNR-v0", backbone=backbone, dataset=dataset)


def test_exits_end_episodes(images):
    torch.manual_seed(0)
    network = offshelf.NeverSeen(SHAPE, classes=3).eval()
    backbone = rnr.routable(network, small.pixels_of(images)[:8], groups=2, exits=[2])
    rnr.fit_exits(backbone, images)
    env = gym.make("RNR-v0", backbone=backbone, dataset=images)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.action_space.n == 4

    env.reset(seed=0)
    # There is no exit at layer 0: the nearest sub-path skips the block.
    _, _, terminated, _, info = env.step(0)
    assert (terminated, info["executed"]) == (False, 1)
    env.step(3)
    _, _, terminated, _, info = env.step(0)
    assert (terminated, info["executed"]) == (True, 0)
    # What an environment without exits routes is not charged for them.
    bare = gym.make("RNR-v0", backbone=backbone, dataset=images, exits=False)
    assert not bare.unwrapped.source.spec.mac_table.exits.any()
