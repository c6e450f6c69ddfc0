"""MO-Gymnasium's wrappers and vector environments take vector rewards as they are."""

import gymnasium as gym
import numpy as np
import pytest
from numpy.testing import assert_allclose

import rnr_gym  # noqa: F401
from tests.fixtures.yardstick import DEFAULT_TRADEOFF, ENV_ID

mo_gym = pytest.importorskip("mo_gymnasium", reason="MO-Gymnasium is not installed")
wrappers = pytest.importorskip("mo_gymnasium.wrappers")
vector = pytest.importorskip("mo_gymnasium.wrappers.vector")

pytestmark = pytest.mark.filterwarnings("ignore")
NUM_ENVS = 4
NUM_STEPS = 2_000


def played(env):
    """Vector returns `(N, 2)` of random episodes, as the wrapper counts them, and their infos."""
    returns = []
    infos = []
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(NUM_STEPS):
        _, _, terminated, _, info = env.step(env.action_space.sample())
        if terminated:
            returns.append(info["episode"]["r"])
            infos.append(info)
            env.reset()
    return np.array(returns), infos


def test_returns_are_right_answers_and_compute(record_property):
    env = mo_gym.make(ENV_ID, vector_reward=True)
    returns, infos = played(wrappers.MORecordEpisodeStatistics(env, gamma=1.0))
    assert_allclose(returns[:, 0], [info["is_success"] for info in infos], atol=1e-6)
    assert_allclose(-returns[:, 1], [info["compute"] for info in infos], atol=1e-6)
    record_property("steps", NUM_STEPS)


def test_linear_reward_is_the_scalar_one():
    weight = np.array([1.0, DEFAULT_TRADEOFF])
    weighted = wrappers.LinearReward(mo_gym.make(ENV_ID, vector_reward=True), weight=weight)
    scalar = mo_gym.make(ENV_ID)
    rewards = []
    for env in (weighted, scalar):
        env.action_space.seed(0)
        env.reset(seed=0)
        earned = []
        for _ in range(NUM_STEPS):
            _, reward, terminated, _, _ = env.step(env.action_space.sample())
            earned.append(reward)
            if terminated:
                env.reset()
        rewards.append(earned)
    assert_allclose(rewards[0], rewards[1], atol=1e-9)


def sync():
    return vector.MOSyncVectorEnv([lambda: mo_gym.make(ENV_ID, vector_reward=True)] * NUM_ENVS)


def native():
    return gym.make_vec(ENV_ID, num_envs=NUM_ENVS, vector_reward=True)


@pytest.mark.parametrize("make", [sync, native])
def test_vector_statistics_count_vector_returns(make):
    env = vector.MORecordEpisodeStatistics(make(), gamma=1.0)
    env.action_space.seed(0)
    env.reset(seed=0)
    num_episodes = 0
    for _ in range(NUM_STEPS // NUM_ENVS):
        _, rewards, terminated, _, infos = env.step(env.action_space.sample())
        assert rewards.shape == (NUM_ENVS, 2)
        if terminated.any():
            returns = infos["episode"]["r"][terminated]
            # Gymnasium's own vector environments keep NumPy's booleans as objects.
            is_success = infos["is_success"][terminated].astype(float)
            assert_allclose(returns[:, 0], is_success, atol=1e-6)
            assert_allclose(-returns[:, 1], infos["compute"][terminated], atol=1e-6)
            num_episodes += terminated.sum()
    assert num_episodes > NUM_STEPS / 5
