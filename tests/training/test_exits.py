"""Exit heads that are fitted to an ordinary network."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rnr_gym.backbones import routable
from rnr_gym.routing.traversal import Traversal, glance_z_scores
from rnr_gym.testing import check_backbone
from rnr_gym.training.exits import fit_exits
from tests.fixtures import offshelf, small


@pytest.fixture(scope="module")
def images():
    """Noise of different brightness and colour, on which answers differ."""
    rng = np.random.default_rng(0)
    bright = rng.uniform(0, 200, (300, 3, 1, 1))
    noise = rng.uniform(0, 55, (300, *offshelf.SHAPE))
    return torch.from_numpy((bright + noise).astype(np.uint8))


@pytest.fixture(scope="module")
def unfitted(images):
    """A network with two exit heads that are not fitted yet."""
    return routable(offshelf.network("resnet, basic"), images[:8], exits=[1, 3])


@pytest.fixture(scope="module")
def fitted(unfitted, images):
    """The same, fitted to most images."""
    backbone = copy.deepcopy(unfitted)
    fit_exits(backbone, images[:240])
    return backbone


@torch.no_grad()
def distance(backbone, images):
    """Cross-entropy of each exit on the full path against the full path's probabilities."""
    target = small.travel_full_path(backbone, images, ()).logits.softmax(1)
    losses = []
    state = Traversal.start(backbone, images)
    for layer in range(backbone.num_layers):
        if layer in backbone.exit_layers:
            losses.append(float(F.cross_entropy(state.exit_logits, target)))
        state = state.step(np.full(len(images), backbone.full_path))
    return losses


def test_exit_is_sub_path_zero(unfitted):
    assert unfitted.has_exits
    assert unfitted.num_paths == 6
    assert unfitted.exit_layers == {1, 3}
    # After the exit come skipping, three narrow sub-paths and the whole block.
    assert unfitted.valid[0].tolist() == [False, True, True, True, True, True]
    assert unfitted.valid[1].tolist() == [True, False, True, True, True, True]


def test_network_with_exits_keeps_the_contract(unfitted, fitted):
    check_backbone(unfitted)
    check_backbone(fitted)


def test_exits_answer_as_the_full_path(unfitted, fitted, images):
    before = distance(unfitted, images[240:])
    after = distance(fitted, images[240:])
    assert before[0] == pytest.approx(np.log(offshelf.CLASSES), abs=1e-5)
    assert (np.array(after) < np.array(before) - 0.1).all()


def test_only_heads_change(unfitted, fitted):
    other = fitted.state_dict()
    changed = {name for name, old in unfitted.state_dict().items() if not old.equal(other[name])}
    heads = {
        f"layers.{layer}.head.linear.{part}" for layer in (1, 3) for part in ("weight", "bias")
    }
    assert changed == heads


@pytest.fixture(scope="module")
def with_glance(images):
    """A network with a glance and one exit head, not fitted yet, and the same, fitted."""
    unfitted = routable(offshelf.network("resnet, basic"), images[:8], groups=2, exits=[0, 3])
    fitted = copy.deepcopy(unfitted)
    fit_exits(fitted, images[:240], epochs=10)
    return unfitted, fitted


def test_exit_zero_is_a_glance(with_glance):
    unfitted, fitted = with_glance
    assert unfitted.exit_layers == {0, 3}
    assert unfitted.valid[:, 0].tolist() == [True, False, False, True, False]
    assert unfitted.report.glance == unfitted.glance.macs
    assert "glance" in str(unfitted.report)
    check_backbone(unfitted)
    check_backbone(fitted)


def test_glance_alone_is_enough(images):
    backbone = routable(offshelf.network("regnet x"), images[:8], groups=1, exits=[0])
    fit_exits(backbone, images[:32], epochs=1)
    assert backbone.exit_layers == {0}
    check_backbone(backbone)


def test_glance_answers_as_the_full_path(with_glance, images):
    unfitted, fitted = with_glance
    before = distance(unfitted, images[240:])
    after = distance(fitted, images[240:])
    assert before[0] == pytest.approx(np.log(offshelf.CLASSES), abs=1e-5)
    assert (np.array(after) < np.array(before) - 0.05).all()


def test_glance_features_are_scaled(with_glance, images):
    """Mean 0 and deviation 1 on the images that it was fitted to."""
    _, fitted = with_glance
    z_scores = glance_z_scores(fitted, Traversal.start(fitted, images[:240]).glance_pooled)
    varies = fitted.glance_std > 1e-3
    assert varies.any()
    assert z_scores[:, varies].mean(0).abs().max() < 0.1
    torch.testing.assert_close(
        fitted.glance_mean, Traversal.start(fitted, images[:240]).glance_pooled.mean(0)
    )


def test_only_exits_and_glance_change(with_glance):
    unfitted, fitted = with_glance
    other = fitted.state_dict()
    for name, old in unfitted.state_dict().items():
        is_exit = name.startswith(("glance", "layers.3.head."))
        assert is_exit or old.equal(other[name]), name


def test_glance_is_fitted_the_same_again(images):
    """Whatever it has learned before, and whatever torch's own generator has drawn."""
    backbone = routable(offshelf.network("regnet x"), images[:8], groups=1, exits=[0])
    glances = []
    for seed in (0, 0, 1):
        state = torch.get_rng_state()
        fit_exits(backbone, images[:40], seed=seed, epochs=1)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(1)
        glances.append(copy.deepcopy(backbone.glance.state_dict()))
    first, again, other = glances
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


def test_glance_of_half_precision_is_fitted(images):
    model = copy.deepcopy(offshelf.network("regnet x")).bfloat16()
    backbone = routable(model, images[:8], groups=1, exits=[0])
    fit_exits(backbone, images[:40], epochs=1)
    state = Traversal.start(backbone, images[:4])
    assert state.exit_logits.isfinite().all()
    assert state.exit_logits.abs().max() > 0


def test_exits_have_to_be_layers(images):
    for exits in ([5], [-1], [1.5]):
        with pytest.raises(ValueError, match="`exits`"):
            routable(offshelf.network("resnet, basic"), images[:8], exits=exits)


def test_network_without_exits_is_rejected(images):
    with pytest.raises(ValueError, match="`backbone` must have exits"):
        fit_exits(offshelf.backbone("resnet, basic"), images)
