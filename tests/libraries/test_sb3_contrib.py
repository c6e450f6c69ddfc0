"""sb3-contrib: MaskablePPO takes valid actions only, and its callback evaluates it meanwhile."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor

import rnr_gym as rnr
from tests.fixtures import small
from tests.fixtures.yardstick import ENV_ID, MARGIN, TRADEOFF, beats_random, random_return

contrib = pytest.importorskip("sb3_contrib", reason="MaskablePPO needs the extra `contrib`")
callbacks = pytest.importorskip("sb3_contrib.common.maskable.callbacks")
evaluation = pytest.importorskip("sb3_contrib.common.maskable.evaluation")
NUM_ENVS = 4
STEPS = 4_096


class MaskRecorder(BaseCallback):
    """Keeps whether the actions that a learner took were valid."""

    def __init__(self):
        super().__init__()
        self.were_valid = []

    def _masks(self):
        return np.array(self.training_env.env_method("action_masks"))

    def _on_rollout_start(self):
        self.masks = self._masks()

    def _on_step(self):
        actions = np.asarray(self.locals["actions"]).ravel()
        valid = self.masks[np.arange(NUM_ENVS), actions]
        self.were_valid += valid.tolist()
        self.masks = self._masks()
        return True


def small_env(seed, exits):
    return rnr.make_vec_env(
        "RNR-v0",
        NUM_ENVS,
        seed,
        env_kwargs={
            "dataset": small.images(),
            "backbone": small.backbone("multipath", exits),
            "backend": "table",
        },
    )


def test_maskable_ppo_takes_only_valid_actions():
    were_valid = {}
    for learner in (contrib.MaskablePPO, PPO):
        env = small_env(0, "one exit")
        model = learner("MlpPolicy", env, n_steps=16, batch_size=32, seed=0, device="cpu")
        recorder = MaskRecorder()
        model.learn(256, recorder)
        assert len(recorder.were_valid) == 256
        were_valid[learner] = recorder.were_valid

    assert all(were_valid[contrib.MaskablePPO])
    # Without masks, some actions are replaced.
    assert not all(were_valid[PPO])


def test_maskable_ppo_is_evaluated_on_a_new_environment():
    """What sb3-contrib's callback does: it asks for masks before anything else."""
    env = small_env(0, "glance and exits")
    model = contrib.MaskablePPO("MlpPolicy", env, n_steps=16, batch_size=32, seed=0, device="cpu")
    returns, lengths = evaluation.evaluate_policy(
        model, small_env(1, "glance and exits"), n_eval_episodes=24, return_episode_rewards=True
    )
    assert len(returns) == 24
    assert max(lengths) <= 3


def native(split):
    kwargs = {"tradeoff": TRADEOFF, "split": split}
    return rnr.make_vec_env("RNR-CIFAR10-Table-v0", 16, seed=0, env_kwargs=kwargs)


def monitored(split):
    return Monitor(gym.make(ENV_ID, tradeoff=TRADEOFF, split=split))


@pytest.mark.parametrize("make", [native, monitored])
def test_maskable_ppo_trains_with_its_callback(make, record_property):
    train = make("route")
    num_envs = getattr(train, "num_envs", 1)
    model = contrib.MaskablePPO(
        "MlpPolicy",
        train,
        n_steps=1_024 // num_envs,
        batch_size=256,
        gamma=1.0,
        learning_rate=1e-3,
        seed=0,
        device="cpu",
    )
    callback = callbacks.MaskableEvalCallback(
        make("test"), eval_freq=2_048 // num_envs, n_eval_episodes=300, verbose=0
    )
    model.learn(STEPS, callback)
    assert model.num_timesteps == STEPS
    assert callback.best_mean_reward > random_return() + MARGIN / 2
    assert beats_random(lambda obs: model.predict(obs, deterministic=True)[0])
    record_property("steps", STEPS)
