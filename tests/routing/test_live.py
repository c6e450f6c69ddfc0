"""A backbone with images as a source: no gradients, exits only where they are on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch.nn import functional as F

from rnr_gym.routing.live import Live
from rnr_gym.routing.rollout import follow
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small

EVERY_IMAGE = np.arange(4)


def live_source(kind="multipath", exits=True):
    """Four random images with a small backbone."""
    backbone = small.backbone(kind)
    spec = RoutingSpec.of(backbone, exits)
    return Live(backbone, small.images(4), spec)


def cross_entropy(logits, labels):
    labels = torch.from_numpy(np.array(labels))
    return F.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize(
    ("exits", "exit_layers"),
    [
        (True, {0, 1, 2}),
        (False, set()),
    ],
    ids=["on", "off"],
)
def test_live_runs_exits_only_where_they_are_on(exits, exit_layers):
    state = live_source(exits=exits).start(EVERY_IMAGE)
    assert state.exit_layers == exit_layers


def test_live_states_stay_without_gradients():
    # Although gradients are enabled where the states are stepped.
    assert torch.is_grad_enabled()
    state = live_source().start(EVERY_IMAGE)
    for _ in range(3):
        assert not state.exit_logits.requires_grad
        state = state.step(np.full(4, 2))
    assert not state.logits.requires_grad


def test_live_labels_are_those_of_its_images():
    live = live_source()
    assert_array_equal(live.labels, live.images.labels)


@pytest.mark.parametrize("kind", small.KINDS)
def test_live_outcome_is_top_class_and_loss(kind):
    live = live_source(kind)
    image_idx = np.array([3, 0, 2])
    paths = np.array(
        [
            [2, 1, 2],
            [0, -1, -1],
            [1, 2, 1],
        ]
    )
    state = follow(live.start(image_idx), paths)

    # Two of the three, in another order.
    batch_idx = np.array([2, 0])
    outcome = live.outcome(state, image_idx[batch_idx], batch_idx)
    logits = state.logits[[2, 0]]
    assert_array_equal(outcome.prediction, logits.argmax(1))
    assert_array_equal(outcome.loss, cross_entropy(logits, live.labels[[2, 3]]))


def test_live_outcome_is_in_single_precision():
    live = live_source()
    state = live.start(EVERY_IMAGE).step(np.zeros(4, np.int64))
    # As a network in bfloat16 answers.
    rounded = replace(state, logits=state.logits.bfloat16())
    outcome = live.outcome(rounded, EVERY_IMAGE, EVERY_IMAGE)
    loss = cross_entropy(rounded.logits.float(), live.labels)
    assert_array_equal(outcome.loss, loss)
