"""The task term and the trade-off's rules."""

import math

import numpy as np
import pytest

from rnr_gym.routing.rewards import check_reward, check_tradeoff, task_term

CORRECT, LOSS = np.array([True, False]), np.array([0.25, 3.0])


def test_accuracy_is_one_or_zero():
    assert task_term("accuracy", CORRECT, LOSS, 0.5).tolist() == [1.0, 0.0]


def test_cross_entropy_is_the_scaled_loss_negated():
    assert task_term("cross_entropy", CORRECT, LOSS, 0.5).tolist() == [-0.125, -1.5]


@pytest.mark.parametrize("reward", ["accuracy", "cross_entropy"])
def test_known_rewards_pass(reward):
    check_reward(reward)


@pytest.mark.parametrize("reward", ["top5", "", None])
def test_an_unknown_reward_is_refused(reward):
    with pytest.raises(ValueError, match=r"`reward` must be one of accuracy, cross_entropy"):
        check_reward(reward)


@pytest.mark.parametrize(
    ("tradeoff", "pair"),
    [(0.3, (0.3, 0.3)), (0, (0, 0)), (4, (4, 4)), (np.float32(0.5), (0.5, 0.5)), ((0.1, 2), (0.1, 2)), ([1.0, 1.0], (1, 1)), ((0, 0), (0, 0))],
)
def test_a_tradeoff_is_a_number_or_a_range(tradeoff, pair):
    assert check_tradeoff(tradeoff) == pair


BAD_TRADEOFFS = [
    -0.1, 4.01, math.nan, math.inf, "0.3", None, True, (), (0.1,), (0.1, 0.2, 0.3), (0.5, 0.1), (0.1, 5.0), (-1.0, 1.0), (0.0, 1.0), (0.1, math.nan),
    (0.1, "1"), {"low": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("tradeoff", BAD_TRADEOFFS, ids=repr)
def test_any_other_tradeoff_is_refused(tradeoff):
    with pytest.raises(ValueError, match="`tradeoff`"):
        check_tradeoff(tradeoff)
