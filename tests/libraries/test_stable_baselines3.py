"""Stable-Baselines3 by an id, in processes of its own. `tests/test_sb3.py` tests the adapter."""

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv

from tests.fixtures.yardstick import ENV_ID, MARGIN, TRADEOFF, beats_random, random_return

STEPS = 4_096


def test_ppo_trains_in_worker_processes(record_property):
    train = make_vec_env(
        ENV_ID,
        n_envs=2,
        seed=0,
        env_kwargs={"tradeoff": TRADEOFF},
        vec_env_cls=SubprocVecEnv,
    )
    model = PPO("MlpPolicy", train, n_steps=512, gamma=1.0, seed=0, device="cpu").learn(STEPS)
    train.close()
    assert model.num_timesteps == STEPS
    assert beats_random(lambda obs: model.predict(obs, deterministic=True)[0])

    # By the library's own count, too.
    test = make_vec_env(ENV_ID, env_kwargs={"tradeoff": TRADEOFF, "split": "test"}, seed=0)
    mean, _ = evaluate_policy(model, test, n_eval_episodes=500)
    assert mean > random_return() + MARGIN / 2
    record_property("steps", STEPS)
