"""The paper's Q-network: what it reads, what it remembers, and how it decides."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rnr_gym.agents.recurrent import cleared
from rnr_gym.agents.rnr_dqn import CONFIG, q_network
from rnr_gym.agents.rnr_dqn_network import masked
from rnr_gym.routing.observations import layers_of
from tests.fixtures.observations import random_observations
from tests.fixtures.paper_problem import spec

COUNT = 40


def network(**changes):
    """An untrained network for the problem on paper."""
    return q_network(spec(), replace(CONFIG, **changes), seed=0)


def observations():
    """Float32 `(N, D)`, at any layer."""
    return random_observations(spec(), COUNT)


def values_of(net, obs, layer=0):
    """Values `(N, K, V)` at a layer, without memory."""
    inputs = net.inputs(torch.from_numpy(obs))
    values, _ = net(inputs, layer, torch.zeros(len(obs), net.hidden))
    return values.detach()


@pytest.mark.parametrize(("two_heads", "num_values"), [(False, 1), (True, 2)])
def test_values_for_every_sub_path(two_heads, num_values):
    net = network(two_heads=two_heads)
    inputs = net.inputs(torch.from_numpy(observations()))
    values, memory = net(inputs, 1, torch.zeros(COUNT, net.hidden))
    assert values.shape == (COUNT, 3, num_values)
    assert memory.shape == (COUNT, net.hidden)
    along = net.along(inputs.unflatten(0, (-1, 2)))
    assert along.shape == (COUNT // 2, 2, 3, num_values)


def test_layers_have_encoders_of_their_own_and_share_the_rest():
    names = {name.split(".")[0] for name in network().state_dict()}
    assert names == {"encoders", "cell", "decoder"}
    assert len(network().encoders) == 2
    obs = observations()
    assert not torch.equal(values_of(network(), obs, 0), values_of(network(), obs, 1))


@pytest.mark.parametrize("recurrent", [True, False])
def test_only_recurrent_cell_remembers(recurrent):
    net = network(recurrent=recurrent)
    inputs = net.inputs(torch.from_numpy(observations())).unflatten(0, (-1, 2))
    other = inputs.clone()
    other[:, 0] += 1.0
    same = torch.equal(net.along(inputs)[:, 1], net.along(other)[:, 1])
    assert same is not recurrent


@pytest.mark.parametrize("summary_scale", [0.0, 0.1])
def test_raw_summary_is_left_out_at_scale_zero(summary_scale):
    net = network(summary_scale=summary_scale)
    obs = observations()
    changed = obs.copy()
    changed[:, spec().layout.summary.pooled] += 1.0
    same = torch.equal(values_of(net, obs), values_of(net, changed))
    assert same is (summary_scale == 0.0)


@pytest.mark.parametrize("two_heads", [False, True])
def test_one_head_reads_tradeoff_and_two_are_weighed_by_it(two_heads):
    net = network(two_heads=two_heads)
    obs = observations()
    changed = obs.copy()
    changed[:, spec().layout.tradeoff] = 3.0
    same = torch.equal(values_of(net, obs), values_of(net, changed))
    assert same is two_heads


def test_returns_of_known_values():
    values = torch.tensor([[[1.0, -0.5], [0.25, -0.125]]])
    assert network(two_heads=True).returns(values, torch.tensor([2.0])).tolist() == [[0.0, 0.0]]
    assert network(two_heads=True).returns(values, torch.tensor([0.0])).tolist() == [[1.0, 0.25]]
    assert network().returns(values[..., :1], torch.tensor([2.0])).tolist() == [[1.0, 0.25]]


def test_decisions_are_the_best_valid_ones_at_each_layer():
    net = network()
    obs = observations()
    layers = layers_of(spec().layout, obs)
    assert set(layers.tolist()) == {0, 1}

    memory = np.random.default_rng(0).random((COUNT, net.hidden), np.float32)
    best, next_memory = net.decide(obs, memory)
    for layer in (0, 1):
        at = np.flatnonzero(layers == layer)
        inputs = net.inputs(torch.from_numpy(obs[at]))
        values, after = net(inputs, layer, torch.from_numpy(memory[at]))
        assert best[at].tolist() == values[..., 0].argmax(1).tolist()
        np.testing.assert_allclose(next_memory[at], after.detach().numpy(), atol=1e-6)


def test_sub_paths_that_are_not_valid_are_never_best():
    returns = torch.tensor([[3.0, 2.0, 1.0]])
    valid = np.array([False, True, True])
    assert masked(returns, valid).argmax(1).tolist() == [1]


def test_memory_is_cleared_at_layer_zero_only():
    obs = observations()
    memory = cleared(spec(), obs, np.ones((COUNT, 2), np.float32))
    assert memory[:, 0].tolist() == (layers_of(spec().layout, obs) > 0).tolist()
