"""Rendering the environment for one image at a time."""

import gymnasium as gym
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.fixtures.episodes import make_env
from tests.fixtures.routing import assert_near

BACKENDS = pytest.mark.parametrize("backend", ["live", "table"])


@BACKENDS
def test_text_follows_the_episode(backend):
    env = make_env(render_mode="ansi", backend=backend)
    _, info = env.reset(seed=0)
    assert env.render().startswith(f"layer 0   λ = 0.3   compute {info['compute']:.3f}")

    _, _, _, _, info = env.step(np.int64(2))
    assert env.render().startswith(f"layer 1   λ = 0.3   compute {info['compute']:.3f}")
    assert "   2  @  o  o" in env.render().splitlines()

    _, _, _, _, info = env.step(np.int64(0))
    name = "abc"[info["prediction"]]
    verdict = "wrong"
    if info["is_success"]:
        verdict = "right"
    assert env.render().startswith(f"answer: {name} ({verdict}")


@BACKENDS
def test_scene_shows_belief_of_the_last_exit(backend):
    env = make_env(render_mode="rgb_array", backend=backend)
    part = env.routing_spec.layout.summary.exit_probabilities
    obs, _ = env.reset(seed=0)
    for action in (2, 3):
        assert_near(env.scene().belief, obs[part], atol=1e-5)
        assert env.render().shape == (270, 720, 3)
        obs, _, _, _, _ = env.step(np.int64(action))

    # By exiting, the image is answered as was believed before.
    belief = env.scene().belief
    env.step(np.int64(0))
    assert_near(env.scene().belief, belief, atol=1e-5)


def test_human_mode_prints_without_a_screen(capsys):
    env = make_env(render_mode="human")
    env.reset(seed=0)
    env.step(np.int64(0))
    assert env.render() is None
    env.close()
    env.close()

    printed = capsys.readouterr().out
    assert "layer 0   λ = 0.3" in printed
    assert "answer: " in printed


def test_render_needs_an_episode():
    env = make_env(render_mode="ansi")
    with pytest.raises(gym.error.ResetNeeded, match="`render`"):
        env.render()


def test_render_without_a_mode_warns():
    env = make_env()
    env.reset()
    with pytest.warns(UserWarning, match="`render_mode`"):
        assert env.render() is None


def test_render_changes_no_episode():
    silent = make_env(tradeoff=(0.1, 1.0))
    shown = make_env(tradeoff=(0.1, 1.0), render_mode="rgb_array")
    silent.reset(seed=0)
    shown.reset(seed=0)
    for action in (2, 3, 1):
        shown.render()
        obs, reward, _, _, _ = silent.step(np.int64(action))
        shown_obs, shown_reward, _, _, _ = shown.step(np.int64(action))
        assert_array_equal(obs, shown_obs)
        assert reward == shown_reward

    shown.render()
    _, info = silent.reset()
    _, shown_info = shown.reset()
    assert info["index"] == shown_info["index"]
