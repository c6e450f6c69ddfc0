"""What the environment for one image at a time rejects, and what it accepts."""

import gymnasium as gym
import numpy as np
import pytest

from tests.fixtures import small
from tests.fixtures.episodes import make_env, play

BAD_ACTIONS = [
    -1,
    4,
    1.0,
    np.float32(1),
    "1",
    None,
    np.array([1]),
    np.array([[1]]),
    [1],
]
GOOD_ACTIONS = [
    1,
    np.int64(1),
    np.int8(1),
    np.array(1),
]
BAD_INDICES = [
    -1,
    24,
    1.0,
    "3",
    None,
    True,
    np.float64(2),
]
BAD_TRADEOFFS = [
    -0.1,
    4.5,
    float("nan"),
    "0.3",
    None,
    (0.1, 1.0),
]


@pytest.mark.parametrize("action", BAD_ACTIONS, ids=repr)
def test_step_rejects_actions_outside_the_space(action):
    env = make_env()
    env.reset()
    with pytest.raises(ValueError, match=r"`action` must be a whole number in 0\.\.3"):
        env.step(action)
    # The episode has not moved.
    _, _, _, _, info = env.step(1)
    assert info["layer"] == 1


@pytest.mark.parametrize("action", GOOD_ACTIONS, ids=repr)
def test_step_accepts_whole_numbers_of_any_kind(action):
    env = make_env()
    env.reset()
    _, _, _, _, info = env.step(action)
    assert info["executed"] == 1


def test_step_needs_an_active_episode():
    env = make_env()
    with pytest.raises(gym.error.ResetNeeded, match="call `reset` before `step`"):
        env.step(1)
    play(env, [0])
    with pytest.raises(gym.error.ResetNeeded, match="call `reset` before `step`"):
        env.step(1)


@pytest.mark.parametrize("index", BAD_INDICES, ids=repr)
def test_reset_rejects_indices_of_no_image(index):
    message = r'`options\["index"\]` must be a whole number in 0\.\.23'
    with pytest.raises(ValueError, match=message):
        make_env().reset(options={"index": index})


@pytest.mark.parametrize("tradeoff", BAD_TRADEOFFS, ids=repr)
def test_reset_rejects_bad_tradeoffs(tradeoff):
    with pytest.raises(ValueError, match="`tradeoff`"):
        make_env().reset(options={"tradeoff": tradeoff})


def test_reset_rejects_unknown_options():
    options = {"label": 1, "image": 2, "index": 3}
    message = "`options` may hold index, tradeoff, got image, label"
    with pytest.raises(ValueError, match=message):
        make_env().reset(options=options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("render_mode", "depth"),
        ("render_mode", "rgb"),
        ("render_mode", True),
        ("reward", "top5"),
        ("reward", None),
    ],
)
def test_env_rejects_unknown_modes(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .*got {value!r}"):
        make_env(**{name: value})


def test_env_rejects_unknown_keywords():
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'tradeof'"):
        make_env(tradeof=0.1)


def test_env_rejects_too_large_tables(monkeypatch):
    monkeypatch.setattr("rnr_gym.routing.route_table.LIMIT", 100)
    # Images of no other test, whose table may be in the cache.
    images = small.images(seed=99)
    with pytest.raises(ValueError, match='`backend="table"` holds at most'):
        make_env(backend="table", images=images)
