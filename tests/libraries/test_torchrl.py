"""TorchRL wraps single environments and the native vector environment, and its collectors run."""

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

import rnr_gym  # noqa: F401
from tests.fixtures.yardstick import ENV_ID, TRADEOFF, beats_random

envs = pytest.importorskip("torchrl.envs", reason="TorchRL is not installed")
collectors = pytest.importorskip("torchrl.collectors")
data = pytest.importorskip("torchrl.data")
modules = pytest.importorskip("torchrl.modules")
objectives = pytest.importorskip("torchrl.objectives")
tensordict = pytest.importorskip("tensordict.nn")

pytestmark = pytest.mark.filterwarnings("ignore")
FRAMES = 256
UPDATES = 16


def single():
    return envs.GymWrapper(gym.make(ENV_ID, tradeoff=TRADEOFF))


def by_id():
    return envs.GymEnv(ENV_ID, tradeoff=TRADEOFF)


def native():
    vector = gym.make_vec(
        ENV_ID, num_envs=16, tradeoff=TRADEOFF, autoreset_mode=AutoresetMode.SAME_STEP
    )
    return envs.GymWrapper(vector)


@pytest.mark.parametrize("make", [single, by_id, native])
def test_dqn_trains_with_a_collector(make, record_property):
    torch.manual_seed(0)
    env = make()
    env.set_seed(0)
    width = env.observation_spec["observation"].shape[-1]
    num_actions = env.action_spec.space.n
    network = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, num_actions))
    actor = modules.QValueActor(network, in_keys=["observation"], spec=env.action_spec)
    explore = modules.EGreedyModule(
        spec=env.action_spec, eps_init=1.0, eps_end=0.1, annealing_num_steps=FRAMES * UPDATES // 2
    )
    loss = objectives.DQNLoss(actor, action_space=env.action_spec, delay_value=True)
    loss.make_value_estimator(gamma=1.0)
    update_target = objectives.HardUpdate(loss, value_network_update_interval=50)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    buffer = data.ReplayBuffer(storage=data.LazyTensorStorage(10_000), batch_size=128)

    collector = collectors.Collector(
        env,
        tensordict.TensorDictSequential(actor, explore),
        frames_per_batch=FRAMES,
        total_frames=FRAMES * UPDATES,
        auto_register_policy_transforms=False,
    )
    steps = 0
    for batch in collector:
        rows = batch.reshape(-1)
        steps += len(rows)
        explore.step(len(rows))
        buffer.extend(rows)
        assert not rows["next", "truncated"].any()
        for _ in range(20):
            loss(buffer.sample())["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            update_target.step()
    collector.shutdown()

    assert steps == FRAMES * UPDATES
    with torch.no_grad():
        assert beats_random(lambda obs: network(torch.as_tensor(obs)).argmax(1))
    record_property("steps", steps)


def test_infos_join_the_data():
    env = single().auto_register_info_dict()
    rollout = env.rollout(4)
    assert rollout["next", "is_success"].dtype == torch.bool
    assert (rollout["next", "executed"] >= 0).all()
