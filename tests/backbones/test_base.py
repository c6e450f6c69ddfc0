"""What holds for every backbone."""

import pytest
import torch

from rnr_gym.backbones.blocks import Glance, PooledHead, Shortcut, round_to_eight
from tests.fixtures import small

EVERY = pytest.mark.parametrize(
    ("kind", "exits"), [(kind, exits) for kind in small.KINDS for exits in small.EXITS]
)


@EVERY
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 9, 7)])
def test_the_full_path_is_the_plain_network(kind, exits, shape):
    backbone = small.backbone(kind, exits, shape).double()
    x = backbone.prepare(small.pixels(5, shape))
    y = backbone.stem(x)
    prev_sub_path = None
    for layer in backbone.layers:
        y, prev_sub_path = (
            layer(y, backbone.full_path, prev_sub_path),
            backbone.full_path if backbone.reads_prev_sub_path else None,
        )
    torch.testing.assert_close(backbone.plain()(x), backbone.head(y), rtol=1e-10, atol=1e-10)


@EVERY
def test_the_plain_network_is_ordinary_modules_in_the_same_mode(kind, exits):
    backbone = small.backbone(kind, exits)
    plain = backbone.plain()
    assert not plain.training
    assert all(
        isinstance(module.running_mean, torch.Tensor)
        for module in plain.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    )
    torch.testing.assert_close(
        plain(backbone.prepare(small.pixels())),
        small.travel(backbone, small.pixels(), full(backbone), ()).logits,
    )


def full(backbone, count=6):
    return torch.full((count, backbone.num_layers), backbone.full_path).numpy()


def test_bytes_and_floats_are_prepared_alike():
    backbone, batch = small.backbone("multipath"), small.pixels()
    torch.testing.assert_close(backbone.prepare(batch), backbone.prepare(batch.float() / 255))
    scaled = (batch.double() / 255 - backbone.image_mean.double()) / backbone.image_std.double()
    torch.testing.assert_close(backbone.prepare(batch).double(), scaled, rtol=1e-5, atol=1e-5)


def test_a_layer_without_a_head_cannot_be_asked_to_exit():
    backbone = small.backbone("multipath", "one exit")
    with pytest.raises(ValueError, match="`exit`"):
        backbone.layers[1].exit(torch.zeros(1, 16, 8, 8))


@EVERY
def test_the_architecture_can_be_built_again_from_its_config(kind, exits):
    ours, again = small.backbone(kind, exits), small.backbone(kind, exits)
    assert ours.config == again.config == {**ours.config, **small.config(kind, exits)}
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("width", "rounded"), [(1, 8), (8, 8), (11, 8), (13, 16), (16, 16), (30, 32)]
)
def test_round_to_eight(width, rounded):
    assert round_to_eight(width) == rounded


def test_a_shortcut_keeps_every_second_pixel_and_appends_zero_channels():
    x = torch.arange(2 * 3 * 3, dtype=torch.float32).view(1, 2, 3, 3)
    y = Shortcut(2, 5, 2)(x)
    assert y.shape == (1, 5, 2, 2)
    assert torch.equal(y[:, :2], x[:, :, [0, 2]][..., [0, 2]])
    assert (y[:, 2:] == 0).all()
    assert torch.equal(Shortcut(2, 2, 1)(x), x)


def test_a_head_reads_only_the_channels_that_are_there():
    head, x = PooledHead(8, 3), torch.rand(2, 5, 4, 4)
    padded = torch.cat([x, torch.zeros(2, 3, 4, 4)], 1)
    torch.testing.assert_close(head(x), head(padded))
    torch.testing.assert_close(head(padded), head.linear(padded.mean((2, 3))))


@pytest.mark.parametrize(("widths", "strides"), [([8], [2, 1]), ([], [])])
def test_a_glance_needs_a_stride_for_each_width(widths, strides):
    with pytest.raises(ValueError, match="`glance`"):
        Glance((1, 8, 8), 3, widths, strides)


def test_a_glance_gives_pooled_features_and_their_logits():
    glance = Glance((2, 9, 7), 3, [8, 16], [2, 1]).eval()
    pooled, logits = glance(torch.rand(4, 2, 9, 7))
    assert (pooled.shape, logits.shape) == ((4, 16), (4, 3))
    torch.testing.assert_close(logits, glance.linear(pooled))
