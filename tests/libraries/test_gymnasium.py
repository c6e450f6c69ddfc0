"""Gymnasium's own vector environments, which run ours in other processes."""

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from tests.fixtures.yardstick import ENV_ID

NUM_ENVS = 2
NUM_STEPS = 1_000


def test_async_vector_env_loses_no_step_to_resets(record_property):
    envs = gym.make_vec(
        ENV_ID,
        num_envs=NUM_ENVS,
        vectorization_mode="async",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )
    assert isinstance(envs, AsyncVectorEnv)
    envs.action_space.seed(0)
    envs.reset(seed=0)
    compute = np.zeros(NUM_ENVS)
    num_episodes = 0
    for _ in range(NUM_STEPS):
        obs, reward, terminated, truncated, infos = envs.step(envs.action_space.sample())
        assert obs in envs.observation_space
        assert not truncated.any()
        # Every step executes a sub-path and has its price, as the next one of an image or the last.
        now = infos["compute"]
        if terminated.any():
            now = np.where(terminated, infos["final_info"]["compute"], now)
        assert (now >= compute).all()
        assert (reward[~terminated] <= 0).all()
        compute = np.where(terminated, infos["compute"], now)
        num_episodes += terminated.sum()
    envs.close()

    steps = NUM_STEPS * NUM_ENVS
    # One to three steps each.
    assert steps / 3 <= num_episodes <= steps
    record_property("steps", steps)
