"""The exact front of cost and task term."""

import numpy as np
import pytest

from rnr_gym.routing.fronts import front


def random_problem(seed, paths=6, images=5):
    rng = np.random.default_rng(seed)
    # In a few steps, so that costs and task terms tie.
    cost = rng.integers(1, 6, paths) / 4
    task = rng.integers(0, 4, (paths, images)) / 3
    return task, cost


@pytest.mark.parametrize("seed", range(20))
def test_front_supports_the_best_choice_at_every_price(seed):
    """At each price of cost, the best point of the front is the mean of each image's best path."""
    task, cost = random_problem(seed)
    costs, tasks = front(task, cost)
    for price in [0.0, *np.geomspace(0.01, 100, 60)]:
        best = (task - price * cost[:, None]).max(0).mean()
        assert (tasks - price * costs).max() == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_front_rises_and_flattens(seed):
    costs, tasks = front(*random_problem(seed))
    extra = np.diff(costs)
    gain = np.diff(tasks)
    assert (extra >= 0).all()
    assert (gain > 0).all()
    assert (np.diff(extra / gain) >= -1e-9).all()


def test_front_of_one_path_is_a_point():
    costs, tasks = front(np.array([[1.0, 0.0]]), np.array([0.5]))
    assert costs.tolist() == [0.5]
    assert tasks.tolist() == [0.5]


def test_front_of_two_images():
    """The first is right on the dear path only; the second on both."""
    task = np.array([[0.0, 1.0], [1.0, 1.0]])
    costs, tasks = front(task, np.array([0.25, 0.75]))
    assert costs.tolist() == [0.25, 0.5]
    assert tasks.tolist() == [0.5, 1.0]
