"""A multi-objective algorithm of MORL-Baselines finds a part of the exact front."""

import numpy as np
import pytest
import torch

import rnr_gym as rnr
from tests.fixtures.yardstick import DEFAULT_TRADEOFF, ENV_ID, FunctionRouter, source

mo_gym = pytest.importorskip("mo_gymnasium", reason="MO-Gymnasium is not installed")
envelope = pytest.importorskip(
    "morl_baselines.multi_policy.envelope.envelope", reason="MORL-Baselines is not installed"
)
indicators = pytest.importorskip("morl_baselines.common.performance_indicators")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STEPS = 4_000
REFERENCE = np.array([0.0, -1.1])
"""No right answer, at a little more than the most compute."""
SHARES = (0.0, 0.1, 0.25, 0.4, 0.5)
"""Weights of compute, beside those of right answers, that policies are asked for."""


def point(choose):
    """The mean vector return of a policy over all test images: accuracy, and minus compute."""
    evaluation = rnr.evaluate(source(), FunctionRouter(choose), DEFAULT_TRADEOFF)
    compute = source().spec.compute(evaluation.macs - evaluation.router_macs)
    return np.array([evaluation.correct.mean(), -compute.mean()])


def greedy(agent, weight):
    """The policy of an `Envelope` agent for a weight, for many observations at once."""
    weight = torch.tensor(weight, dtype=torch.float32)

    @torch.no_grad()
    def choose(obs):
        obs = torch.as_tensor(obs)
        values = agent.q_net(obs, weight.expand(len(obs), -1))  # (N, K, 2)
        return (values @ weight).argmax(1)

    return choose


def test_envelope_finds_part_of_the_front(record_property):
    env = mo_gym.make(ENV_ID, vector_reward=True)
    test = mo_gym.make(ENV_ID, split="test", vector_reward=True)
    front = test.unwrapped.pareto_front(gamma=1.0)
    agent = envelope.Envelope(
        env,
        log=False,
        gamma=1.0,
        initial_epsilon=1.0,
        final_epsilon=0.1,
        epsilon_decay_steps=STEPS // 2,
        learning_rate=1e-3,
        batch_size=64,
        buffer_size=STEPS,
        learning_starts=200,
        net_arch=[64, 64],
        seed=0,
        device="cpu",
    )
    agent.train(
        total_timesteps=STEPS,
        eval_env=test,
        ref_point=REFERENCE,
        known_pareto_front=front,
        # Not while it trains.
        eval_freq=STEPS + 1,
    )
    assert agent.global_step == STEPS

    points = []
    for share in SHARES:
        weight = np.array([1 - share, share])
        policy = greedy(agent, weight)
        found = point(policy)
        points.append(found)
        # No policy is better than the best choice of paths.
        assert found @ weight <= max(best @ weight for best in front) + 1e-9
        obs, _ = test.reset(seed=int(100 * share))
        assert agent.eval(obs, weight) == policy(obs[None])[0]

    # The weight decides what is spent.
    assert points[0][1] < points[-1][1] - 0.1

    rng = np.random.default_rng(0)
    chance = point(lambda obs: rng.integers(0, env.action_space.n, len(obs)))
    found = indicators.hypervolume(REFERENCE, points)
    assert found > indicators.hypervolume(REFERENCE, [chance]) + 0.1
    assert found < indicators.hypervolume(REFERENCE, front)
    record_property("steps", STEPS)
