"""Rendering the environment for one image at a time."""

import gymnasium as gym
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rnr_gym.routing.preferences import Preferences
from tests.fixtures.episodes import make_env
from tests.fixtures.routers import confidence_router
from tests.fixtures.routing import assert_near

BACKENDS = pytest.mark.parametrize("backend", ["live", "table"])


@BACKENDS
def test_text_follows_the_episode(backend):
    env = make_env(render_mode="ansi", backend=backend)
    _, info = env.reset(seed=0)
    assert env.render().startswith(f"layer 0   λ = 0.3   compute {info['compute']:.3f}")

    _, _, _, _, info = env.step(np.int64(2))
    assert env.render().startswith(f"layer 1   λ = 0.3   compute {info['compute']:.3f}")
    assert "       2  @  o  o" in env.render().splitlines()

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
        assert env.render().shape == (540, 960, 3)
        obs, _, _, _, _ = env.step(np.int64(action))

    # By exiting, the image is answered as was believed before.
    belief = env.scene().belief
    env.step(np.int64(0))
    assert_near(env.scene().belief, belief, atol=1e-5)


@BACKENDS
def test_scene_shows_probabilities_of_the_answer_where_known(backend):
    env = make_env(render_mode="rgb_array", backend=backend)
    env.reset(seed=0)
    for _ in range(3):
        _, _, terminated, _, info = env.step(np.int64(3))
    assert terminated

    scene = env.scene()
    if backend == "table":
        assert scene.believer == "last exit"
    else:
        assert scene.believer == "answer"
        assert scene.belief.argmax() == info["prediction"]
        assert_near(scene.belief[info["label"]], np.exp(-info["loss"]), atol=1e-5)


class CountingRouter:
    """Prefers the sub-path whose number is that of its call since the episode started."""

    def preferences(self, observation, state=None, episode_start=None):
        calls = 0 if episode_start[0] else state
        values = np.zeros((1, 4))
        values[0, calls] = 1.0
        return Preferences("Q-value", values)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        calls = 0 if episode_start[0] else state
        return np.zeros(1, np.int64), calls + 1


@BACKENDS
def test_watched_router_is_asked_at_every_layer_reached(backend):
    env = make_env(render_mode="rgb_array", backend=backend)
    env.watch(CountingRouter())
    env.reset(seed=0)
    env.step(np.int64(2))
    values = env.scene().preferences.values
    valid = env.routing_spec.valid
    assert_array_equal(np.isnan(values), ~valid | (np.arange(3) > 1)[:, None])
    assert values[1, 1] == 1.0

    # After an exit it is not asked any more.
    env.step(np.int64(0))
    assert_array_equal(env.scene().preferences.values, values)
    assert env.render().shape == (540, 960, 3)

    env.watch(None)
    assert env.scene().preferences is None


def test_watched_rule_without_numbers_is_drawn_without():
    env = make_env(render_mode="rgb_array")
    env.watch(confidence_router(env.routing_spec))
    env.reset(seed=0)
    assert env.scene().preferences is None


def test_watch_rejects_what_is_no_router():
    with pytest.raises(ValueError, match="`router` must have a method `predict`, got 3"):
        make_env().watch(3)


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
