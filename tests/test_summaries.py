"""Layouts, confidence, and the observation built from its parts."""

import math

import numpy as np
import pytest
import torch

from rnr_gym.summaries import bounds, confidence, layout, observe

WHERE = layout(pooled=4, glance=2, classes=3, layers=2, paths=5)
SUMMARY = 4 + 2 + 3 + 3 + 3


def test_the_parts_of_an_observation_follow_one_another_without_gaps():
    parts = [*WHERE.summary, WHERE.layer, WHERE.compute, WHERE.came_by, WHERE.tradeoff]
    assert [part.stop - part.start for part in parts] == [4, 2, 3, 3, 3, 2, 1, 5, 1]
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert WHERE.summary.size == SUMMARY
    assert WHERE.size == SUMMARY + 2 + 1 + 5 + 1


def test_confidence_of_certainty_of_doubt_and_of_something_between():
    certain, doubt, between = confidence(torch.tensor([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.25, 0.125, 0.125]])).tolist()
    assert certain == [1.0, 1.0, 0.0]
    assert doubt == pytest.approx([0.25, 0.0, 1.0])
    assert between == pytest.approx([0.5, 0.25, 1.75 * math.log(2) / math.log(4)])


def test_observe_puts_each_part_in_its_place():
    summary = np.arange(3 * SUMMARY, dtype=np.float32).reshape(3, SUMMARY)
    layer, came_by = np.array([0, 1, 2]), np.array([4, 2, 0])
    seen = observe(WHERE, summary, layer, came_by, np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 4.0]))
    assert seen.dtype == np.float32
    np.testing.assert_array_equal(seen[:, : WHERE.summary.size], summary)
    assert seen[:, WHERE.layer].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert seen[:, WHERE.came_by].tolist() == [[0] * 5, [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert seen[:, WHERE.compute].ravel().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert seen[:, WHERE.tradeoff].ravel().tolist() == [1.0, 2.0, 4.0]


def test_bounds_are_finite_and_those_of_each_part():
    low, high = bounds(WHERE, clip=5.0, ceiling=1.25)
    assert low.dtype == high.dtype == np.float32
    for part in (WHERE.summary.pooled, WHERE.summary.glance):
        assert (low[part] == -5).all()
        assert (high[part] == 5).all()
    for part in (WHERE.summary.glance_probabilities, WHERE.summary.exit_probabilities, WHERE.summary.confidence, WHERE.layer, WHERE.came_by):
        assert (low[part] == 0).all()
        assert (high[part] == 1).all()
    assert (low[WHERE.compute], high[WHERE.compute]) == (0, 1.25)
    assert (low[WHERE.tradeoff], high[WHERE.tradeoff]) == (0, 4)
