"""Layouts, confidence, quantisation, and the observation built from its parts."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

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


def widths(parts):
    return [part.stop - part.start for part in parts]


def test_layout_parts_follow_without_gaps():
    parts = [
        *WHERE.summary,
        WHERE.layer,
        WHERE.compute,
        WHERE.prev_sub_path,
        WHERE.tradeoff,
    ]
    assert widths(parts) == [4, 2, 3, 3, 3, 2, 1, 5, 1]
    end = 0
    for part in parts:
        assert part.start == end
        end = part.stop
    assert WHERE.size == end
    assert WHERE.summary.size == SUMMARY


def test_layout_can_leave_out_glance_classes():
    where = layout(
        pooled=8,
        glance=0,
        classes=3,
        layers=2,
        paths=5,
        glance_classes=0,
    )
    assert widths(where.summary) == [8, 0, 0, 3, 3]
    assert where.summary.exit_probabilities == slice(8, 11)
    assert where.size == 8 + 3 + 3 + 2 + 1 + 5 + 1

    low, high = bounds(where, clip=5.0, ceiling=1.25)
    assert (low[:8] == -5).all()
    assert (high[:8] == 5).all()
    assert (low[8:14] == 0).all()
    assert (high[8:14] == 1).all()


CERTAIN = [1.0, 0.0, 0.0, 0.0]
UNIFORM = [0.25, 0.25, 0.25, 0.25]
BETWEEN = [0.5, 0.25, 0.125, 0.125]
BETWEEN_ENTROPY = 1.75 * math.log(2) / math.log(4)


@pytest.mark.parametrize(
    ("probabilities", "confidence"),
    [
        (CERTAIN, [1.0, 1.0, 0.0]),
        (UNIFORM, [0.25, 0.0, 1.0]),
        (BETWEEN, [0.5, 0.25, BETWEEN_ENTROPY]),
    ],
    ids=["certain", "uniform", "between"],
)
def test_confidence_of_known_probabilities(probabilities, confidence):
    # Among others, so that each image is seen to have its own.
    batch = torch.tensor([UNIFORM, probabilities, CERTAIN])
    features = confidence_features(batch)
    assert features.shape == (3, 3)
    assert features[1].tolist() == pytest.approx(confidence)


def test_confidence_of_certainty_is_exact():
    features = confidence_features(torch.eye(4))
    assert (features == torch.tensor([1.0, 1.0, 0.0])).all()


SUMMARIES = np.arange(3 * SUMMARY, dtype=np.float32).reshape(3, SUMMARY)
COMPUTE = np.array([0.1, 0.2, 0.3])
TRADEOFF = np.array([1.0, 2.0, 4.0])


@pytest.fixture
def observation():
    """Observations of three images: at layer 0, at layer 1, and answered."""
    return observe(
        WHERE,
        summary=SUMMARIES,
        layer=np.array([0, 1, 2]),
        prev_sub_path=np.array([4, 2, 0]),
        compute=COMPUTE,
        tradeoff=TRADEOFF,
    )


def test_observe_fills_every_part(observation):
    assert observation.dtype == np.float32
    assert observation.shape == (3, WHERE.size)
    assert_array_equal(observation[:, : WHERE.summary.size], SUMMARIES)
    assert_array_equal(observation[:, WHERE.compute.start], np.float32(COMPUTE))
    assert_array_equal(observation[:, WHERE.tradeoff.start], TRADEOFF)


def test_observe_has_one_hot_layer_and_sub_path(observation):
    # The third image has been answered, and has no layer.
    assert observation[:, WHERE.layer].tolist() == [
        [1, 0],
        [0, 1],
        [0, 0],
    ]
    # Nothing was executed before layer 0, whatever is said.
    assert observation[:, WHERE.prev_sub_path].tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0],
    ]


def test_layers_of_reads_the_layer_back(observation):
    # An answered image counts as at layer 0.
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

    assert low[WHERE.compute] == 0
    assert high[WHERE.compute] == 1.25
    assert low[WHERE.tradeoff] == 0
    assert high[WHERE.tradeoff] == 4


def test_quantisation_step_is_a_127th():
    step = quantisation_steps(6, 4)
    assert step.dtype == np.float32
    assert step[:4] == pytest.approx(5 / 127)
    assert step[4:] == pytest.approx(1 / 127)
    # The highest value itself, never above it.
    highest = np.float32(LEVELS) * step
    assert (highest[:4] == CLIP).all()
    assert (highest[4:] == 1.0).all()


def test_quantised_rounds_to_nearest_step():
    step = quantisation_steps(5, 3)
    counts = [
        [-127, 0.4, 63.6, 0.4, 126.7],
        [126.51, -2.6, 2.4, 1.0, 0.0],
    ]
    whole_counts = [
        [-127, 0, 64, 0, 127],
        [127, -3, 2, 1, 0],
    ]
    rounded = quantised(np.float32(counts) * step, 3)
    assert rounded.dtype == np.float32
    assert_array_equal(rounded, np.float32(whole_counts) * step)
    assert_array_equal(quantised(rounded, 3), rounded)


@pytest.mark.parametrize("entry", [0, 1], ids=["z-score", "probability"])
def test_quantised_values_survive_a_byte(entry):
    step = quantisation_steps(2, 1)[entry]
    counts = np.arange(-LEVELS, LEVELS + 1).astype(np.int8)
    values = counts * step
    restored = np.rint(values / step).astype(np.int8)
    assert_array_equal(restored, counts)


def test_quantised_zero_has_no_sign():
    negative = np.array([[-0.001, -0.001]], np.float32)
    rounded = quantised(negative, 1)
    assert not np.signbit(rounded).any()
