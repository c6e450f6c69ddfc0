"""The task term, and which rewards and trade-offs are accepted."""

import math

import numpy as np
import pytest

from rnr_gym.routing.rewards import (
    TRADEOFF_RANGE,
    check_one_tradeoff,
    check_reward,
    check_tradeoff,
    task_term,
    tradeoff_grid,
)

BAD_NUMBERS = [-0.1, 4.01, math.nan, math.inf, "0.3", None, True, {"low": 0.1}]
BAD_PAIRS = [
    (),
    (0.1,),
    (0.1, 0.2, 0.3),
    (0.5, 0.1),
    (0.1, 5.0),
    (-1.0, 1.0),
    (0.0, 1.0),
    (0.1, math.nan),
    (0.1, "1"),
]


@pytest.mark.parametrize(
    ("reward", "task"),
    [("accuracy", [1.0, 0.0]), ("cross_entropy", [-0.125, -1.5])],
)
def test_task_term_of_known_answers(reward, task):
    correct = np.array([True, False])
    loss = np.array([0.25, 3.0])
    term = task_term(reward, correct, loss, loss_scale=0.5)
    assert (term.dtype, term.tolist()) == (np.float64, task)


@pytest.mark.parametrize("reward", ["accuracy", "cross_entropy"])
def test_check_reward_accepts_known_ones(reward):
    check_reward(reward)


@pytest.mark.parametrize("reward", ["top5", "", None])
def test_check_reward_rejects_unknown_ones(reward):
    message = f"`reward` must be one of accuracy, cross_entropy, got {reward!r}"
    with pytest.raises(ValueError, match=message):
        check_reward(reward)


@pytest.mark.parametrize(
    ("tradeoff", "pair"),
    [
        (0.3, (0.3, 0.3)),
        (0, (0, 0)),
        (4, (4, 4)),
        (np.float32(0.5), (0.5, 0.5)),
        ((0.1, 2), (0.1, 2)),
        ([1.0, 1.0], (1, 1)),
        ((0, 0), (0, 0)),
    ],
    ids=repr,
)
def test_check_tradeoff_gives_low_and_high(tradeoff, pair):
    assert check_tradeoff(tradeoff) == pair


@pytest.mark.parametrize("tradeoff", [*BAD_NUMBERS, *BAD_PAIRS], ids=repr)
def test_check_tradeoff_rejects_anything_else(tradeoff):
    with pytest.raises(ValueError, match="`tradeoff`"):
        check_tradeoff(tradeoff)


@pytest.mark.parametrize("tradeoff", [0, 0.3, np.float32(0.5), 4])
def test_check_one_tradeoff_accepts_numbers(tradeoff):
    checked = check_one_tradeoff(tradeoff)
    assert type(checked) is float
    assert checked == tradeoff


@pytest.mark.parametrize("tradeoff", [*BAD_NUMBERS, (0.1, 1.0), [1.0, 1.0]], ids=repr)
def test_check_one_tradeoff_rejects_ranges(tradeoff):
    with pytest.raises(ValueError, match="`tradeoff`"):
        check_one_tradeoff(tradeoff)


def test_tradeoff_grid_spans_the_range():
    grid = tradeoff_grid(5)
    assert grid[0] == pytest.approx(TRADEOFF_RANGE[0])
    assert grid[-1] == pytest.approx(TRADEOFF_RANGE[1])
    # Equal factors: a logarithmic scale.
    factors = np.array(grid[1:]) / grid[:-1]
    assert factors.tolist() == pytest.approx([factors[0]] * 4)
    assert factors[0] > 1
