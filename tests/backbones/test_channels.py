"""Channel pruning: prefixes of channels, and which norm they meet."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnr_gym.backbones import ChannelPrunedNet
from rnr_gym.backbones.channels import PrefixBatchNorm
from tests.fixtures import small


def normed(x, norm):
    """Batch-norm over the channels that are there, from its definition."""
    part = slice(0, x.shape[1])
    mean, var, weight, bias = (
        value[part, None, None]
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (var + norm.eps).sqrt() * weight + bias


@pytest.mark.parametrize("exits", ["bare", "exits"])
@pytest.mark.parametrize("group", [1, 2])
def test_a_residual_layer_computes_its_inner_channels_up_to_a_group(exits, group):
    layer, first = (
        small.backbone("residual", exits).layers[1],
        int(exits != "bare"),
    )  # 16 to 32 channels, halving
    x, inner = torch.rand(2, 16, 8, 8), 16 * group
    y = torch.relu(
        normed(F.conv2d(x, layer.conv1.weight[:inner], stride=2, padding=1), layer.norm1)
    )
    y = normed(F.conv2d(y, layer.conv2.weight[:, :inner], padding=1), layer.norm2[group - 1])
    wanted = torch.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 16)) + y)
    torch.testing.assert_close(layer(x, first + group - 1), wanted)


@pytest.mark.parametrize("exits", ["bare", "exits"])
@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("came", [1, 2, 3])
def test_a_vgg_layer_reads_what_came_and_has_a_norm_for_each_way(exits, group, came):
    layer, first = (
        small.backbone("vgg", exits).layers[1],
        int(exits != "bare"),
    )  # 24 to 48 channels, halving
    x = torch.rand(2, 8 * came, 8, 8)
    y = F.conv2d(F.max_pool2d(x, 2), layer.conv.weight[: 16 * group, : 8 * came], padding=1)
    torch.testing.assert_close(
        layer(x, first + group - 1, first + came - 1), torch.relu(normed(y, layer.norms[came - 1]))
    )


def test_the_vgg_full_path_is_an_ordinary_network():
    backbone = small.backbone("vgg", shape=(3, 9, 7)).double()
    layers = []
    for number, layer in enumerate(backbone.layers):
        conv, norm = (
            nn.Conv2d(*((24, 24), (24, 48), (48, 48))[number], 3, padding=1, bias=False),
            nn.BatchNorm2d(layer.conv.out_channels),
        )
        conv.load_state_dict(layer.conv.state_dict())
        norm.load_state_dict(layer.norms[2].state_dict(), strict=False)
        layers += [nn.MaxPool2d(2, ceil_mode=True)] * (number == 1) + [conv, norm, nn.ReLU()]
    ordinary = (
        nn.Sequential(
            backbone.stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), backbone.head.linear
        )
        .double()
        .eval()
    )
    batch = small.pixels(4, (3, 9, 7))
    walk = small.travel(backbone, batch, torch.full((4, 3), backbone.full_path).numpy())
    torch.testing.assert_close(
        walk.logits, ordinary(backbone.prepare(batch)), rtol=1e-10, atol=1e-10
    )


def test_inner_widths_are_multiples_of_eight():
    assert [layer.inner for layer in small.backbone("residual").layers] == [
        [8, 16],
        [16, 32],
        [16, 32],
    ]
    assert [layer.widths[1:] for layer in small.backbone("vgg").layers] == [
        [8, 16, 24],
        [16, 32, 48],
        [16, 32, 48],
    ]


def test_a_prefix_norm_is_batch_norm_on_the_first_channels():
    ours, theirs, x = PrefixBatchNorm(8), nn.BatchNorm2d(5), torch.randn(6, 5, 4, 4) * 3 + 1
    for _ in range(3):
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_mean[:5], theirs.running_mean)
    torch.testing.assert_close(ours.running_var[:5], theirs.running_var)
    assert ours.running_mean[5:].tolist() == [0.0] * 3
    assert ours.running_var[5:].tolist() == [1.0] * 3
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@torch.no_grad()
def test_without_momentum_each_channel_averages_the_batches_it_was_in():
    norm = PrefixBatchNorm(8)
    norm.momentum = None
    batches = [torch.randn(6, width, 4, 4) * 2 + width for width in (4, 8, 6, 4)]
    for batch in batches:
        norm(batch)
    for channel in range(8):
        there = [batch[:, channel] for batch in batches if channel < batch.shape[1]]
        assert norm.running_mean[channel] == pytest.approx(
            float(torch.stack([part.mean() for part in there]).mean()), rel=1e-5
        )
        assert norm.running_var[channel] == pytest.approx(
            float(torch.stack([part.var() for part in there]).mean()), rel=1e-5
        )


@torch.no_grad()
def test_resetting_a_prefix_norm_forgets_the_batches():
    norm = PrefixBatchNorm(4)
    norm.momentum = None
    norm(torch.randn(6, 4, 3, 3))
    norm.reset_running_stats()
    batch = torch.randn(6, 4, 3, 3)
    norm(batch)
    torch.testing.assert_close(norm.running_mean, batch.mean((0, 2, 3)))


def test_statistics_are_no_part_of_the_graph_even_when_gradients_are_on():
    norm = PrefixBatchNorm(4)
    norm.momentum = None
    norm(torch.randn(6, 4, 3, 3, requires_grad=True))
    assert not norm.running_mean.requires_grad
    assert not norm.running_var.requires_grad


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("style", {"style": "plain"}),
        ("groups", {"groups": 1}),
        ("widths", {"groups": 3}),
        ("widths", {"widths": [24, 48]}),
        ("exits", {"exits": [3]}),
        ("blocks", {"blocks": [3]}),
    ],
)
@pytest.mark.parametrize("style", ["residual", "vgg"])
def test_arguments_that_do_not_fit_are_refused(name, changes, style):
    fitting = {
        "image_shape": [1, 8, 8],
        "classes": 3,
        "style": style,
        "widths": [16, 32],
        "blocks": [2, 1],
        "groups": 2,
    }
    ChannelPrunedNet(**fitting)
    with pytest.raises(ValueError, match=f"`{name}`"):
        ChannelPrunedNet(**{**fitting, **changes})
