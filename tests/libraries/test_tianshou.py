"""Tianshou collects with its own vector environments and trains a DQN."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.fixtures.yardstick import ENV_ID, MARGIN, TRADEOFF, beats_random, random_return

algorithm = pytest.importorskip("tianshou.algorithm", reason="Tianshou is not installed")
dqn = pytest.importorskip("tianshou.algorithm.modelfree.dqn")
optim = pytest.importorskip("tianshou.algorithm.optim")
data = pytest.importorskip("tianshou.data")
env = pytest.importorskip("tianshou.env")
trainer = pytest.importorskip("tianshou.trainer")
nets = pytest.importorskip("tianshou.utils.net.common")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
NUM_ENVS = 4
FIRST_STEPS = 1_000
EPOCH_STEPS = 2_000


def make(split):
    return lambda: gym.make(ENV_ID, split=split, tradeoff=TRADEOFF)


def test_dqn_trains_with_collectors(record_property):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    train = env.DummyVectorEnv([make("route")] * NUM_ENVS)
    test = env.SubprocVectorEnv([make("test")] * 2)
    train.seed(0)
    test.seed(1)
    obs_space = train.observation_space[0]
    action_space = train.action_space[0]
    net = nets.Net(state_shape=obs_space.shape, action_shape=action_space.n, hidden_sizes=[64, 64])
    policy = dqn.DiscreteQLearningPolicy(
        model=net, action_space=action_space, eps_training=0.2, eps_inference=0.0
    )
    learner = algorithm.DQN(
        policy=policy,
        optim=optim.AdamOptimizerFactory(lr=1e-3),
        gamma=1.0,
        target_update_freq=200,
    )
    buffer = data.VectorReplayBuffer(10_000, NUM_ENVS)
    collector = data.Collector(learner, train, buffer)
    collector.reset()

    # Random actions earn what they earn, and no step is a reset.
    collected = collector.collect(n_step=FIRST_STEPS, random=True)
    assert collected.n_collected_steps == FIRST_STEPS
    assert collected.returns_stat.mean == pytest.approx(random_return(), abs=0.1)
    assert collected.lens_stat.min >= 1
    assert collected.lens_stat.max <= 3
    assert set(buffer.info["executed"][: len(buffer)].tolist()) <= {0, 1, 2, 3}

    result = learner.run_training(
        trainer.OffPolicyTrainerParams(
            max_epochs=2,
            epoch_num_steps=EPOCH_STEPS,
            training_collector=collector,
            test_collector=data.Collector(learner, test),
            test_step_num_episodes=300,
            collection_step_num_env_steps=40,
            update_step_num_gradient_steps_per_sample=0.25,
            batch_size=64,
            show_progress=False,
            verbose=False,
        )
    )
    train.close()
    test.close()
    assert result.train_step == 2 * EPOCH_STEPS
    assert result.best_reward > random_return() + MARGIN / 2
    with torch.no_grad():
        assert beats_random(lambda obs: net(obs)[0].argmax(1))
    record_property("steps", FIRST_STEPS + result.train_step)
