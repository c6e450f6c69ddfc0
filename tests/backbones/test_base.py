"""What holds for every backbone."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from rnr_gym.backbones.blocks import Glance, PooledHead, Shortcut, round_to_eight
from tests.fixtures import small

EVERY = pytest.mark.parametrize(
    ("kind", "exits"),
    list(itertools.product(small.KINDS, small.EXITS)),
)


@EVERY
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 8, 8), id="even sides"),
        pytest.param((2, 9, 7), id="odd sides"),
    ],
)
def test_plain_network_equals_full_path(kind, exits, shape):
    backbone = small.backbone(kind, exits, shape).double()
    images = backbone.prepare(small.pixels(5, shape))

    features = backbone.stem(images)
    prev_sub_path = None
    for layer in backbone.layers:
        features = layer(features, backbone.full_path, prev_sub_path)
        if backbone.reads_prev_sub_path:
            prev_sub_path = backbone.full_path

    # In double precision, so that only another order of additions makes a difference.
    expected = backbone.head(features)
    assert_close(backbone.plain()(images), expected, rtol=1e-10, atol=1e-10)


@EVERY
def test_plain_network_has_ordinary_modules(kind, exits):
    backbone = small.backbone(kind, exits)
    plain = backbone.plain()
    assert not plain.training
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert isinstance(module.running_mean, torch.Tensor)

    batch = small.pixels()
    expected = small.travel_full_path(backbone, batch, exits=())
    assert_close(plain(backbone.prepare(batch)), expected.logits)


def test_prepare_treats_bytes_and_floats_alike():
    backbone = small.backbone("multipath")
    batch = small.pixels()
    prepared = backbone.prepare(batch)
    assert_close(prepared, backbone.prepare(batch.float() / 255))

    mean = backbone.image_mean.double()
    std = backbone.image_std.double()
    scaled = (batch.double() / 255 - mean) / std
    assert_close(prepared.double(), scaled, rtol=1e-5, atol=1e-5)


def test_layer_exit_without_head_raises():
    backbone = small.backbone("multipath", "one exit")
    with pytest.raises(ValueError, match="`exit` was called at a layer that has no exit head"):
        backbone.layers[1].exit(torch.zeros(1, 16, 8, 8))


@EVERY
def test_config_rebuilds_same_architecture(kind, exits):
    backbone = small.backbone(kind, exits)
    rebuilt = small.backbone(kind, exits)
    assert backbone.config == rebuilt.config
    # The config may have more entries than were asked for, but none that differs.
    assert backbone.config == {**backbone.config, **small.config(kind, exits)}
    assert small.same_weights(backbone, rebuilt)


@pytest.mark.parametrize(
    ("width", "rounded"),
    [
        (1, 8),
        (8, 8),
        (11, 8),
        (13, 16),
        (16, 16),
        (30, 32),
    ],
)
def test_round_to_eight_gives_nearest(width, rounded):
    assert round_to_eight(width) == rounded


def test_shortcut_halves_and_adds_zero_channels():
    x = torch.arange(18.0).view(1, 2, 3, 3)
    y = Shortcut(in_width=2, width=5, stride=2)(x)
    assert y.shape == (1, 5, 2, 2)

    every_second = x[:, :, ::2, ::2]
    kept = y[:, :2]
    assert torch.equal(kept, every_second)
    assert (y[:, 2:] == 0).all()


def test_shortcut_without_change_is_identity():
    x = torch.rand(1, 2, 3, 3)
    shortcut = Shortcut(in_width=2, width=2, stride=1)
    assert torch.equal(shortcut(x), x)


def test_pooled_head_reads_arriving_channels():
    head = PooledHead(8, 3)
    x = torch.rand(2, 5, 4, 4)
    padded = torch.cat([x, torch.zeros(2, 3, 4, 4)], 1)
    assert_close(head(x), head(padded))
    assert_close(head(padded), head.linear(padded.mean((2, 3))))


def test_glance_gives_features_and_their_logits():
    glance = Glance(
        image_shape=(2, 9, 7),
        classes=3,
        widths=[8, 16],
        strides=[2, 1],
    )
    pooled, logits = glance.eval()(torch.rand(4, 2, 9, 7))
    assert pooled.shape == (4, 16)
    assert logits.shape == (4, 3)
    assert_close(logits, glance.linear(pooled))


@pytest.mark.parametrize(
    ("side", "batch_size"), [(8, 512), (32, 512), (224, 64), (448, 16), (10_000, 1)]
)
def test_large_images_run_in_small_batches(side, batch_size):
    backbone = small.backbone("multipath", shape=(3, 8, 8))
    backbone.image_shape = (3, side, side)
    assert backbone.batch_size == batch_size
