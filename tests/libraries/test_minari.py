"""Minari collects episodes of the environment. `tests/experiments/test_offline.py` tests export."""

import gc

import gymnasium as gym
import pytest
from numpy.testing import assert_array_equal

from tests.fixtures.yardstick import ENV_ID

minari = pytest.importorskip("minari", reason="offline data sets need the extra `minari`")
pytest.importorskip("jax", reason="Minari collects episodes with its extra `create` only")

# What other libraries warn of is their own affair.
pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 2_000


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Random episodes with their infos, in a folder that ends with the test."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = minari.DataCollector(gym.make(ENV_ID), record_infos=True)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(STEPS):
        _, _, terminated, _, _ = env.step(env.action_space.sample())
        if terminated:
            env.reset()
    yield env.create_dataset("test/collected-v0")

    # Its folder for episodes is removed where its last reference is, and warned of.
    env.close()
    del env
    gc.collect()


def test_collected_episodes_are_played_again(dataset, record_property):
    # An episode that has just begun is not kept.
    assert STEPS - 3 <= dataset.total_steps <= STEPS
    env = dataset.recover_environment()
    for episode in dataset.iterate_episodes(range(0, dataset.total_episodes, 8)):
        infos = episode.infos
        obs, _ = env.reset(options={"index": infos["index"][0], "tradeoff": infos["tradeoff"][0]})
        for step, action in enumerate(episode.actions):
            assert_array_equal(obs, episode.observations[step])
            obs, reward, terminated, _, info = env.step(action)
            assert reward == episode.rewards[step]
            assert terminated == episode.terminations[step]
            assert info["executed"] == infos["executed"][step + 1]
    record_property("steps", STEPS)
