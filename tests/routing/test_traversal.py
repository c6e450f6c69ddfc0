"""A batch in progress: each image on its own way, answers, replacements, summaries."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.testing import assert_close

from rnr_gym.routing.observations import CLIP
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from tests.fixtures import small
from tests.fixtures.routing import assert_near, confidence_of, states_along, step

EVERY = pytest.mark.parametrize("exits", small.EXITS)
KINDS = pytest.mark.parametrize("kind", small.KINDS)
ARRAYS = ("layer", "prev_sub_path", "macs", "path", "done")
TENSORS = ("logits", "exit_logits", "glance_pooled", "glance_logits")


def assert_same_images(state, other, batch_idx):
    """The images `batch_idx` of one state are as the images of another, which holds no more."""
    for name in ARRAYS:
        actual = getattr(state, name)[batch_idx]
        assert_array_equal(actual, getattr(other, name), name)
    for name in TENSORS:
        actual = getattr(state, name)[batch_idx]
        assert_close(actual, getattr(other, name), rtol=1e-9, atol=1e-9)
    summary = state.summary()[batch_idx]
    assert_allclose(summary, other.summary(), rtol=1e-5, atol=1e-5)


def glance_context(backbone, pooled, logits):
    """What exit heads read of the glance."""
    if not backbone.exits_read_glance:
        return None
    return torch.cat([pooled, logits.softmax(1)], 1)


@KINDS
@EVERY
def test_image_does_not_depend_on_its_batch(kind, exits):
    backbone = small.backbone(kind, exits).double()
    pixels = small.pixels(8)
    paths = small.paths(RoutingSpec.of(backbone), 8)
    # In double precision, batches of different sizes agree to 1e-9.
    together = states_along(backbone, pixels, paths)
    for idx in range(8):
        only = slice(idx, idx + 1)
        alone = states_along(backbone, pixels[only], paths[only])
        for state, other in zip(together, alone, strict=True):
            assert_same_images(state, other, only)


@KINDS
@EVERY
def test_state_records_the_way_so_far(kind, exits):
    backbone = small.backbone(kind, exits)
    paths = small.paths(RoutingSpec.of(backbone), 12)
    states = states_along(backbone, small.pixels(12), paths)
    prev_sub_path = np.full(12, backbone.full_path)
    for layer, state in enumerate(states):
        path = paths.copy()
        path[:, layer:] = -1
        assert_array_equal(state.path, path)

        has_exited = ((path == 0) & backbone.has_exits).any(1)
        assert_array_equal(state.done, has_exited | (layer == 3))
        assert_array_equal(state.layer, np.where(has_exited, 3, layer))

        if layer > 0:
            last = path[:, layer - 1]
            # After an exit nothing else is executed.
            prev_sub_path = np.where(last >= 0, last, prev_sub_path)
        assert_array_equal(state.prev_sub_path, prev_sub_path)


@KINDS
def test_answers_are_those_of_the_modules(kind):
    backbone = small.backbone(kind)
    pixels = small.pixels(2)
    state = Traversal.start(backbone, pixels)
    x = backbone.prepare(pixels)
    glance_pooled, glance_logits = backbone.glance(x)
    context = glance_context(backbone, glance_pooled, glance_logits)
    assert_close(state.glance_pooled, glance_pooled)
    assert_close(state.exit_logits, glance_logits)

    features = backbone.stem(x)
    prev_sub_path = None
    for layer, sub_path in enumerate([2, 1, 2]):
        module = backbone.layers[layer]
        if layer > 0:
            logits = module.exit(features, context)
            assert_close(state.exit_logits, logits)
            exited = step(state, 0, 0)
            assert_close(exited.logits, logits)

        assert (state.logits == 0).all()
        assert_close(state.glance_logits, glance_logits)
        state = state.step(np.full(2, sub_path))
        features = module(features, sub_path, prev_sub_path)
        if backbone.reads_prev_sub_path:
            prev_sub_path = sub_path

    assert_close(state.logits, backbone.head(features))
    assert_close(state.glance_logits, glance_logits)


def test_answered_image_stays_as_it_is(backbone):
    start = Traversal.start(backbone, small.pixels(2))
    answered = step(start, 0, 2)
    # Entries of answered images are ignored, whatever they are.
    later = step(answered, 99, 2)
    later = step(later, -7, 2)
    for name in ARRAYS:
        before = getattr(answered, name)[0]
        assert_array_equal(getattr(later, name)[0], before, name)
    assert torch.equal(answered.logits[0], later.logits[0])
    assert later.done.all()


def test_step_leaves_its_state_unchanged(backbone):
    start = Traversal.start(backbone, small.pixels(4))
    state = step(start, 1, 2, 3, 0)
    arrays = {name: np.array(getattr(state, name)) for name in ARRAYS}
    tensors = {name: getattr(state, name).clone() for name in TENSORS}
    features = [group.features.clone() for group in state.groups]

    sub_paths = np.array([3, 0, 1, 0])
    once = state.step(sub_paths)
    again = state.step(sub_paths)
    assert torch.equal(once.exit_logits, again.exit_logits)
    for name, before in arrays.items():
        assert_array_equal(getattr(state, name), before, name)
    for name, before in tensors.items():
        assert torch.equal(getattr(state, name), before)
    for group, before in zip(state.groups, features, strict=True):
        assert torch.equal(group.features, before)


@KINDS
@EVERY
def test_replaced_images_start_as_others_continue(kind, exits):
    backbone = small.backbone(kind, exits).double()
    first = backbone.first_sub_path
    old = small.pixels(5, seed=1)
    new = small.pixels(2, seed=2)
    old_paths = first + np.array(
        [
            [0, 1, 0],
            [1, 0, 1],
            [1, 1, 0],
            [0, 1, 1],
            [1, 0, 0],
        ]
    )
    new_paths = first + np.array(
        [
            [1, 0, 1],
            [0, 1, 1],
        ]
    )
    stay = [0, 2, 4]
    # In this order, the new images take the places of two old ones.
    replaced = np.array([3, 1])
    state = Traversal.start(backbone, old).step(old_paths[:, 0])
    state = state.replaced(replaced, Traversal.start(backbone, new))

    for layer in range(3):
        assert (state.layer[replaced] == layer).all()
        sub_paths = np.full(5, -1)
        sub_paths[replaced] = new_paths[:, layer]
        if layer < 2:
            sub_paths[stay] = old_paths[stay, layer + 1]
        state = state.step(sub_paths)

    assert_same_images(state, small.travel(backbone, old[stay], old_paths[stay]), stay)
    assert_same_images(state, small.travel(backbone, new, new_paths), replaced)


def test_answered_images_can_be_replaced():
    backbone = small.backbone("vgg").double()
    old = small.pixels(3, seed=1)
    new = small.pixels(2, seed=2)
    state = step(Traversal.start(backbone, old), 0, 3, 0)
    ahead = step(Traversal.start(backbone, new), 2, 1)
    ahead = step(ahead, 3, 0)
    state = state.replaced(np.array([0, 2]), ahead)
    assert state.layer.tolist() == [2, 1, 3]

    state = step(state, 1, 1, 0)
    state = step(state, 0, 2, 0)
    pixels = torch.stack([new[0], old[1], new[1]])
    paths = np.array(
        [
            [2, 3, 1],
            [3, 1, 2],
            [1, 0, -1],
        ]
    )
    expected = small.travel(backbone, pixels, paths)
    assert_same_images(state, expected, slice(None))


@KINDS
@EVERY
@pytest.mark.parametrize("bad", ["negative", "too high"])
def test_step_rejects_unknown_sub_paths(kind, exits, bad):
    backbone = small.backbone(kind, exits)
    state = Traversal.start(backbone, small.pixels(2))
    number = -1
    if bad == "too high":
        number = backbone.num_paths

    message = rf"`sub_paths` must be valid at their layers \[0, 0\], got .*{number}\]"
    with pytest.raises(ValueError, match=message):
        step(state, backbone.full_path, number)


def test_step_rejects_exits_that_a_layer_lacks():
    backbone = small.backbone("multipath", "one exit")
    state = Traversal.start(backbone, small.pixels(2))
    with pytest.raises(ValueError, match="`sub_paths` must be valid"):
        step(state, 1, 0)


@KINDS
def test_step_rejects_exits_that_are_off(kind):
    backbone = small.backbone(kind)
    start = Traversal.start(backbone, small.pixels(2), exits=[0, 2])
    state = step(start, 1, 1)
    with pytest.raises(ValueError, match=r"`sub_paths` may exit at layers \[0, 2\] only"):
        step(state, 1, 0)


@pytest.mark.parametrize(
    ("exits", "exit_layers"),
    [
        ("bare", [1]),
        ("exits", [0]),
        ("one exit", [1, 2]),
        ("glance and exits", [3]),
    ],
)
def test_start_rejects_exits_that_are_not_there(exits, exit_layers):
    backbone = small.backbone("multipath", exits)
    with pytest.raises(ValueError, match="`exits` must be among"):
        Traversal.start(backbone, small.pixels(2), exit_layers)


def test_start_rejects_exits_without_their_glance():
    backbone = small.backbone("whitened")
    with pytest.raises(ValueError, match=r"`exits` must include 0, the glance.*got \[2\]"):
        Traversal.start(backbone, small.pixels(2), [2])


@pytest.fixture
def summarised(kind):
    """A batch at layer 2, of which the last two images have exited."""
    backbone = small.backbone(kind)
    with torch.no_grad():
        start = Traversal.start(backbone, small.pixels(5))
        state = step(start, 2, 2, 2, 2, 0)
        return step(state, 1, 1, 1, 0, 0)


@KINDS
def test_summary_is_zero_for_answered_images(summarised):
    layout = RoutingSpec.of(summarised.backbone).layout.summary
    summary = summarised.summary()
    assert summary.dtype == np.float32
    assert summary.shape == (5, layout.size)
    assert (summary[3:] == 0).all()
    assert (summary[:3] != 0).any(1).all()


@KINDS
def test_summary_pools_features_as_z_scores(summarised):
    backbone = summarised.backbone
    layout = RoutingSpec.of(backbone).layout.summary
    (group,) = summarised.groups
    features = group.features.mean((2, 3)).numpy()  # (3, C)
    width = features.shape[1]
    mean = backbone.summary_mean[2, :width].numpy()
    std = backbone.summary_std[2, :width].numpy()
    z_scores = np.clip((features - mean) / std, -CLIP, CLIP)

    pooled = summarised.summary()[:3, layout.pooled]
    assert_near(pooled[:, :width], z_scores, atol=1e-5)
    # Narrow features leave the rest zero.
    assert (pooled[:, width:] == 0).all()


@KINDS
@torch.no_grad()
def test_summary_holds_glance_and_last_exit(summarised):
    backbone = summarised.backbone
    layout = RoutingSpec.of(backbone).layout.summary
    summary = summarised.summary()[:3]
    x = backbone.prepare(small.pixels(5)[:3])
    glance_pooled, glance_logits = backbone.glance(x)

    z_scores = (glance_pooled - backbone.glance_mean) / backbone.glance_std
    z_scores = z_scores.clamp(-CLIP, CLIP)
    assert_near(summary[:, layout.glance], z_scores, atol=1e-5)
    expected = glance_logits.softmax(1)
    actual = summary[:, layout.glance_probabilities]
    assert_near(actual, expected, atol=1e-5)

    (group,) = summarised.groups
    context = glance_context(backbone, glance_pooled, glance_logits)
    logits = backbone.layers[2].exit(group.features, context)
    probabilities = logits.softmax(1).numpy()
    actual = summary[:, layout.exit_probabilities]
    assert_near(actual, probabilities, atol=1e-5)

    confidence = confidence_of(probabilities)
    assert_near(summary[:, layout.confidence], confidence)


def test_summary_is_clipped():
    backbone = small.backbone("multipath")
    # So that z-scores are far out.
    backbone.summary_std.fill_(1e-4)
    backbone.glance_std.fill_(1e-4)
    layout = RoutingSpec.of(backbone).layout.summary
    start = Traversal.start(backbone, small.pixels(4))
    summary = start.step(np.full(4, 2)).summary()
    for part in (layout.pooled, layout.glance):
        assert np.abs(summary[:, part]).max() == CLIP
