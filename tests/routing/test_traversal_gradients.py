"""Gradients through a traversal: those of the plain network, or none where none were enabled."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch.nn import functional as F
from torch.testing import assert_close

from rnr_gym.routing.rollout import follow
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from tests.fixtures import small
from tests.fixtures.routing import assert_near, states_along, step

EVERY = pytest.mark.parametrize("exits", small.EXITS)
KINDS = pytest.mark.parametrize("kind", small.KINDS)
TENSORS = ("logits", "exit_logits", "glance_pooled", "glance_logits")


def assert_exact(actual, expected):
    """Equal but for rounding in double precision."""
    assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def float_pixels(count, seed=0):
    """Random images as doubles 0..1, through which gradients pass."""
    scaled = small.pixels(count, seed=seed).double() / 255
    return scaled.requires_grad_()


@KINDS
@EVERY
def test_full_path_gradients_match_plain_network(kind, exits):
    backbone = small.backbone(kind, exits).double()
    labels = torch.tensor([0, 1, 2, 0])
    routed_pixels = float_pixels(4)
    start = Traversal.start(backbone, routed_pixels)
    state = follow(start, np.full(3, backbone.full_path))
    F.cross_entropy(state.logits, labels).backward()

    plain_pixels = float_pixels(4)
    plain = backbone.plain().double()
    logits = plain(backbone.prepare(plain_pixels))
    F.cross_entropy(logits, labels).backward()
    assert (plain_pixels.grad != 0).any()
    assert_exact(routed_pixels.grad, plain_pixels.grad)


@KINDS
def test_gradients_reach_images_by_their_own_way(kind):
    backbone = small.backbone(kind).double()
    paths = small.paths(RoutingSpec.of(backbone), 8)
    # The glance's gradient, too.
    paths[0] = [0, -1, -1]
    together = float_pixels(8)
    state = follow(Traversal.start(backbone, together), paths)
    state.logits.square().sum().backward()

    for idx in range(8):
        only = slice(idx, idx + 1)
        alone = float_pixels(8).detach()[only].requires_grad_()
        state = follow(Traversal.start(backbone, alone), paths[only])
        state.logits.square().sum().backward()
        assert (alone.grad != 0).any()
        assert_exact(together.grad[only], alone.grad)


@KINDS
def test_gradients_pass_through_a_replacement(kind):
    backbone = small.backbone(kind).double()
    old = float_pixels(3, seed=1)
    new = float_pixels(3, seed=2)
    state = step(Traversal.start(backbone, old), 1, 2, 2)
    newcomer = Traversal.start(backbone, new[:1])
    state = state.replaced(np.array([1]), newcomer)
    state = follow(state, np.full(3, 2))
    state.logits.square().sum().backward()

    # Image 1 left, and one of the new images took its place.
    assert old.grad.flatten(1).any(1).tolist() == [True, False, True]
    assert new.grad.flatten(1).any(1).tolist() == [True, False, False]


def test_exit_heads_send_glance_no_gradients():
    backbone = small.backbone("whitened")
    start = Traversal.start(backbone, small.pixels(4))
    state = start.step(np.full(4, 3))
    state.exit_logits.sum().backward()
    context = backbone.layers[1].head.context
    assert context.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.glance.parameters())


@pytest.mark.parametrize("disabled", [torch.no_grad, torch.inference_mode])
@KINDS
def test_start_without_gradients_stays_without(kind, disabled):
    backbone = small.backbone(kind)
    sub_paths = np.array([1, 2, 0, 2])
    with disabled():
        start = Traversal.start(backbone, small.pixels(4))
        newcomer = Traversal.start(backbone, small.pixels(1, seed=1))

    # Gradients are enabled again, but not for these.
    assert torch.is_grad_enabled()
    state = start.step(sub_paths)
    state = state.replaced(np.array([2]), newcomer)
    state = follow(state, np.full(3, 2))
    assert state.done.all()
    assert not state.grad
    for name in TENSORS:
        assert not getattr(state, name).requires_grad, name


@KINDS
def test_start_with_gradients_keeps_them(kind):
    backbone = small.backbone(kind)
    state = Traversal.start(backbone, small.pixels(4))
    assert state.grad
    for _ in range(3):
        assert state.exit_logits.requires_grad
        state = state.step(np.full(4, 2))
    assert state.logits.requires_grad


@KINDS
def test_numbers_are_the_same_without_gradients(kind):
    backbone = small.backbone(kind)
    paths = small.paths(RoutingSpec.of(backbone), 8)
    with_gradients = states_along(backbone, small.pixels(8), paths)
    with torch.no_grad():
        without = states_along(backbone, small.pixels(8), paths)
    for state, other in zip(with_gradients, without, strict=True):
        assert_array_equal(state.macs, other.macs)
        assert_near(state.summary(), other.summary(), atol=1e-5)
        assert_close(state.logits, other.logits)
