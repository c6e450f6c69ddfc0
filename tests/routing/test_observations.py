"""Layouts, confidence, quantisation, and the observation built from its parts."""

import math

import numpy as np
import pytest
import torch

from rnr_gym.routing.observations import (
    CLIP,
    LEVELS,
    bounds,
    confidence_features,
    layers_of,
    layout,
    observe,
    quantisation_steps,
    quantised,
)

WHERE = layout(pooled=4, glance=2, classes=3, layers=2, paths=5)
SUMMARY = 4 + 2 + 3 + 3 + 3


def width(part):
    return part.stop - part.start


def test_layout_parts_follow_without_gaps():
    parts = [*WHERE.summary, WHERE.layer, WHERE.compute, WHERE.prev_sub_path, WHERE.tradeoff]
    assert [width(part) for part in parts] == [4, 2, 3, 3, 3, 2, 1, 5, 1]
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert WHERE.summary.size == SUMMARY
    assert WHERE.size == SUMMARY + 2 + 1 + 5 + 1


def test_layout_can_leave_out_glance_classes():
    where = layout(pooled=8, glance=0, classes=3, layers=2, paths=5, glance_classes=0)
    assert [width(part) for part in where.summary] == [8, 0, 0, 3, 3]
    assert where.summary.exit_probabilities == slice(8, 11)
    assert where.size == 8 + 3 + 3 + 2 + 1 + 5 + 1

    low, high = bounds(where, clip=5.0, ceiling=1.25)
    assert low[:8].tolist() == [-5] * 8
    assert high[:8].tolist() == [5] * 8
    assert low[8:14].tolist() == [0] * 6
    assert high[8:14].tolist() == [1] * 6


@pytest.mark.parametrize(
    ("probabilities", "features"),
    [
        ([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0]),
        ([0.25, 0.25, 0.25, 0.25], [0.25, 0.0, 1.0]),
        ([0.5, 0.25, 0.125, 0.125], [0.5, 0.25, 1.75 * math.log(2) / math.log(4)]),
    ],
    ids=["certain", "uniform", "between"],
)
def test_confidence_of_known_probabilities(probabilities, features):
    # A second row, so that each image is seen to have its own.
    batch = torch.tensor([probabilities, [0.5, 0.5, 0.0, 0.0]])
    confidence = confidence_features(batch)
    assert confidence.shape == (2, 3)
    assert confidence[0].tolist() == pytest.approx(features)
    assert confidence[1].tolist() == pytest.approx([0.5, 0.0, 0.5])


def test_confidence_of_certainty_is_exact():
    assert confidence_features(torch.eye(4)).tolist() == [[1.0, 1.0, 0.0]] * 4


@pytest.fixture
def observation():
    """Observations of three images: at layer 0, at layer 1, and answered."""
    return observe(
        WHERE,
        summary=np.arange(3 * SUMMARY, dtype=np.float32).reshape(3, SUMMARY),
        layer=np.array([0, 1, 2]),
        prev_sub_path=np.array([4, 2, 0]),
        compute=np.array([0.1, 0.2, 0.3]),
        tradeoff=np.array([1.0, 2.0, 4.0]),
    )


def test_observe_fills_every_part(observation):
    assert (observation.dtype, observation.shape) == (np.float32, (3, WHERE.size))
    summary = np.arange(3 * SUMMARY).reshape(3, SUMMARY)
    np.testing.assert_array_equal(observation[:, : WHERE.summary.size], summary)
    assert observation[:, WHERE.layer].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert observation[:, WHERE.compute].ravel().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert observation[:, WHERE.tradeoff].ravel().tolist() == [1.0, 2.0, 4.0]

    # Nothing was executed before layer 0, whatever is said.
    prev_sub_path = observation[:, WHERE.prev_sub_path]
    assert prev_sub_path.tolist() == [[0] * 5, [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]


def test_layers_of_reads_the_layer_back(observation):
    # An answered image has no layer, and counts as at layer 0.
    assert layers_of(WHERE, observation).tolist() == [0, 1, 0]


def test_bounds_are_those_of_each_part():
    low, high = bounds(WHERE, clip=5.0, ceiling=1.25)
    assert low.dtype == np.float32
    assert high.dtype == np.float32

    for part in (WHERE.summary.pooled, WHERE.summary.glance):
        assert (low[part] == -5).all()
        assert (high[part] == 5).all()

    unit_parts = (
        WHERE.summary.glance_probabilities,
        WHERE.summary.exit_probabilities,
        WHERE.summary.confidence,
        WHERE.layer,
        WHERE.prev_sub_path,
    )
    for part in unit_parts:
        assert (low[part] == 0).all()
        assert (high[part] == 1).all()

    assert (low[WHERE.compute], high[WHERE.compute]) == (0, 1.25)
    assert (low[WHERE.tradeoff], high[WHERE.tradeoff]) == (0, 4)


def test_quantisation_step_is_a_127th():
    step = quantisation_steps(6, 4)
    assert step.dtype == np.float32
    assert step.tolist() == pytest.approx([5 / 127] * 4 + [1 / 127] * 2)
    # The highest value itself, never above it.
    highest = np.float32(LEVELS) * step
    assert highest.tolist() == [CLIP] * 4 + [1.0] * 2


def test_quantised_rounds_to_nearest_step():
    step = quantisation_steps(5, 3)
    counts = np.array([[-127, 0.4, 63.6, 0.4, 126.7], [126.51, -2.6, 2.4, 1.0, 0.0]], np.float32)
    expected = np.array([[-127, 0, 64, 0, 127], [127, -3, 2, 1, 0]], np.float32) * step

    rounded = quantised(counts * step, 3)
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(rounded, expected)
    np.testing.assert_array_equal(quantised(rounded, 3), rounded)


@pytest.mark.parametrize("entry", [0, 1], ids=["z-score", "probability"])
def test_quantised_values_survive_a_byte(entry):
    step = quantisation_steps(2, 1)[entry]
    counts = np.arange(-LEVELS, LEVELS + 1)
    values = counts.astype(np.int8) * step
    np.testing.assert_array_equal(np.rint(values / step).astype(np.int8), counts)


def test_quantised_zero_has_no_sign():
    negative = np.array([[-0.001, -0.001]], np.float32)
    assert not np.signbit(quantised(negative, 1)).any()
