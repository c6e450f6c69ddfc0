"""Replay of whole episodes: what is kept of each, and for how long."""

import numpy as np
import torch

from rnr_gym.agents.rnr_dqn_replay import Replay


def record(replay, layer, number, terminated):
    """Record a step of every environment, all of whose entries are `number` plus its position."""
    num_envs = len(replay.env_idx)
    values = number + np.arange(num_envs)
    replay.record(
        np.array(layer),
        torch.from_numpy(values)[:, None].float(),
        tradeoff=values.astype(np.float32),
        action=values,
        task=values.astype(np.float64),
        charge=values.astype(np.float64),
        terminated=np.array(terminated),
    )


def test_episodes_are_kept_when_they_end():
    replay = Replay(num_envs=2, capacity=4, num_layers=3, num_inputs=1)
    record(replay, [0, 0], 10, [False, True])
    record(replay, [1, 0], 20, [False, False])
    record(replay, [2, 1], 30, [True, False])

    assert replay.size == 2
    assert replay.ended.length.tolist() == [1, 3, 0, 0]
    actions = [[11, 0, 0], [10, 20, 30], [0, 0, 0], [0, 0, 0]]
    assert replay.ended.action.tolist() == actions
    for field in (replay.ended.tradeoff, replay.ended.task, replay.ended.charge):
        assert field.tolist() == actions
    assert replay.ended.inputs[..., 0].tolist() == actions


def test_next_episode_keeps_nothing_of_the_last():
    replay = Replay(num_envs=1, capacity=4, num_layers=2, num_inputs=1)
    record(replay, [0], 10, [False])
    record(replay, [1], 20, [True])
    record(replay, [0], 30, [True])
    assert replay.ended.action[:2].tolist() == [[10, 20], [30, 0]]
    assert replay.ended.length[:2].tolist() == [2, 1]


def test_oldest_episodes_are_replaced():
    replay = Replay(num_envs=2, capacity=3, num_layers=1, num_inputs=1)
    for number in (10, 20):
        record(replay, [0, 0], number, [True, True])
    assert replay.size == 3
    # The fourth took the place of the first.
    assert replay.ended.action[:, 0].tolist() == [21, 11, 20]


def test_only_ended_episodes_are_drawn():
    replay = Replay(num_envs=1, capacity=100, num_layers=1, num_inputs=1)
    record(replay, [0], 10, [True])
    record(replay, [0], 20, [True])
    batch = replay.sample(50, torch.Generator().manual_seed(0))
    assert batch.inputs.shape == (50, 1, 1)
    assert set(batch.action[:, 0].tolist()) == {10, 20}
