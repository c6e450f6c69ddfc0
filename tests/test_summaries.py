"""Layouts, confidence, and the observation built from its parts."""

import math

import numpy as np
import pytest
import torch

from rnr_gym.routing.observations import CLIP, LEVELS, bounds, confidence, layout, observe, quantised, steps

WHERE = layout(pooled=4, glance=2, classes=3, layers=2, paths=5)
SUMMARY = 4 + 2 + 3 + 3 + 3


def test_the_parts_of_an_observation_follow_one_another_without_gaps():
    parts = [*WHERE.summary, WHERE.layer, WHERE.compute, WHERE.prev_sub_path, WHERE.tradeoff]
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
    layer, prev_sub_path = np.array([0, 1, 2]), np.array([4, 2, 0])
    seen = observe(WHERE, summary, layer, prev_sub_path, np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 4.0]))
    assert seen.dtype == np.float32
    np.testing.assert_array_equal(seen[:, : WHERE.summary.size], summary)
    assert seen[:, WHERE.layer].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert seen[:, WHERE.prev_sub_path].tolist() == [[0] * 5, [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert seen[:, WHERE.compute].ravel().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert seen[:, WHERE.tradeoff].ravel().tolist() == [1.0, 2.0, 4.0]


def test_bounds_are_finite_and_those_of_each_part():
    low, high = bounds(WHERE, clip=5.0, ceiling=1.25)
    assert low.dtype == high.dtype == np.float32
    for part in (WHERE.summary.pooled, WHERE.summary.glance):
        assert (low[part] == -5).all()
        assert (high[part] == 5).all()
    for part in (WHERE.summary.glance_probabilities, WHERE.summary.exit_probabilities, WHERE.summary.confidence, WHERE.layer, WHERE.prev_sub_path):
        assert (low[part] == 0).all()
        assert (high[part] == 1).all()
    assert (low[WHERE.compute], high[WHERE.compute]) == (0, 1.25)
    assert (low[WHERE.tradeoff], high[WHERE.tradeoff]) == (0, 4)


def test_a_layout_leaves_out_what_the_glance_said_where_it_is_told_to():
    where = layout(pooled=8, glance=0, classes=3, layers=2, paths=5, glance_classes=0)
    assert [part.stop - part.start for part in where.summary] == [8, 0, 0, 3, 3]
    assert where.summary.exit_probabilities == slice(8, 11)
    assert where.size == 8 + 3 + 3 + 2 + 1 + 5 + 1
    low, high = bounds(where, clip=5.0, ceiling=1.25)
    assert (low[:8], high[:8]) == (pytest.approx([-5] * 8), pytest.approx([5] * 8))
    assert (low[8:14], high[8:14]) == (pytest.approx([0] * 6), pytest.approx([1] * 6))


def test_a_step_is_a_127th_of_the_highest_value():
    found = steps(6, 4)
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([5 / 127] * 4 + [1 / 127] * 2)
    assert (np.float32(LEVELS) * found).tolist() == [CLIP] * 4 + [1.0] * 2  # the highest value itself, never above it


def test_a_summary_is_rounded_to_the_nearest_step():
    step = steps(5, 3)
    counted = np.array([[-127, 0.4, 63.6, 0.4, 126.7], [126.51, -2.6, 2.4, 1.0, 0.0]], np.float32)
    rounded = quantised(counted * step, 3)
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(rounded, np.array([[-127, 0, 64, 0, 127], [127, -3, 2, 1, 0]], np.float32) * step)
    np.testing.assert_array_equal(quantised(rounded, 3), rounded)


def test_every_step_survives_a_byte():
    whole = np.arange(-LEVELS, LEVELS + 1)
    for step in np.unique(steps(2, 1)):
        values = whole.astype(np.int8) * step
        np.testing.assert_array_equal(np.rint(values / step).astype(np.int8), whole)


def test_a_rounded_zero_has_no_sign():
    assert not np.signbit(quantised(np.array([[-0.001, -0.001]], np.float32), 1)).any()
