"""Channel pruning: prefixes of channels, and which norm they meet."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from rnr_gym.backbones import ChannelPrunedNet
from rnr_gym.backbones.channels import PrefixBatchNorm
from tests.fixtures import small

EXITS = pytest.mark.parametrize("exits", ["bare", "exits"])


def batch_norm(x, norm):
    """Batch-norm over the channels that arrive, from its definition."""
    arriving = slice(0, x.shape[1])
    mean = norm.running_mean[arriving, None, None]
    var = norm.running_var[arriving, None, None]
    weight = norm.weight[arriving, None, None]
    bias = norm.bias[arriving, None, None]
    return (x - mean) / (var + norm.eps).sqrt() * weight + bias


@EXITS
@pytest.mark.parametrize("group", [1, 2])
def test_residual_layer_computes_first_groups(exits, group):
    backbone = small.backbone("residual", exits)
    layer = backbone.layers[1]  # 16 to 32 channels, halving the resolution
    x = torch.rand(2, 16, 8, 8)
    inner = 16 * group

    y = F.conv2d(x, layer.conv1.weight[:inner], stride=2, padding=1)
    y = torch.relu(batch_norm(y, layer.norm1))
    y = F.conv2d(y, layer.conv2.weight[:, :inner], padding=1)
    y = batch_norm(y, layer.norm2[group - 1])
    every_second = x[:, :, ::2, ::2]
    shortcut = F.pad(every_second, (0, 0, 0, 0, 0, 16))

    sub_path = backbone.first_sub_path + group - 1
    assert_close(layer(x, sub_path), torch.relu(shortcut + y))


@EXITS
@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("prev_group", [1, 2, 3])
def test_vgg_layer_norm_follows_previous_sub_path(exits, group, prev_group):
    backbone = small.backbone("vgg", exits)
    layer = backbone.layers[1]  # 24 to 48 channels, halving the resolution
    in_width = 8 * prev_group
    x = torch.rand(2, in_width, 8, 8)

    weight = layer.conv.weight[: 16 * group, :in_width]
    y = F.conv2d(F.max_pool2d(x, 2), weight, padding=1)
    expected = torch.relu(batch_norm(y, layer.norms[prev_group - 1]))

    sub_path = backbone.first_sub_path + group - 1
    prev_sub_path = backbone.first_sub_path + prev_group - 1
    assert_close(layer(x, sub_path, prev_sub_path), expected)


def test_vgg_full_path_is_ordinary_network():
    backbone = small.backbone("vgg", shape=(3, 9, 7)).double()
    widths = [(24, 24), (24, 48), (48, 48)]

    modules = [backbone.stem]
    for number, layer in enumerate(backbone.layers):
        in_width, width = widths[number]
        conv = nn.Conv2d(in_width, width, 3, padding=1, bias=False)
        norm = nn.BatchNorm2d(width)
        conv.load_state_dict(layer.conv.state_dict())
        # The package's norm also counts batches by channel.
        norm.load_state_dict(layer.norms[2].state_dict(), strict=False)
        if number == 1:
            modules.append(nn.MaxPool2d(2, ceil_mode=True))
        modules += [conv, norm, nn.ReLU()]

    modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), backbone.head.linear]
    network = nn.Sequential(*modules).double().eval()

    batch = small.pixels(4, (3, 9, 7))
    state = small.travel_full_path(backbone, batch)
    expected = network(backbone.prepare(batch))
    assert_close(state.logits, expected, rtol=1e-10, atol=1e-10)


def test_group_widths_are_multiples_of_eight():
    residual = small.backbone("residual")
    inner = [layer.inner for layer in residual.layers]
    assert inner == [[8, 16], [16, 32], [16, 32]]

    vgg = small.backbone("vgg")
    widths = [layer.widths[1:] for layer in vgg.layers]
    assert widths == [[8, 16, 24], [16, 32, 48], [16, 32, 48]]


def test_prefix_norm_is_batch_norm_of_prefix():
    prefix_norm = PrefixBatchNorm(8)
    ordinary = nn.BatchNorm2d(5)
    x = torch.randn(6, 5, 4, 4) * 3 + 1
    for _ in range(3):
        assert_close(prefix_norm(x), ordinary(x))

    assert_close(prefix_norm.running_mean[:5], ordinary.running_mean)
    assert_close(prefix_norm.running_var[:5], ordinary.running_var)
    # Channels that never arrived keep the statistics that a norm starts with.
    assert prefix_norm.running_mean[5:].tolist() == [0.0] * 3
    assert prefix_norm.running_var[5:].tolist() == [1.0] * 3
    assert_close(prefix_norm.eval()(x), ordinary.eval()(x))


@torch.no_grad()
def test_prefix_norm_averages_without_momentum():
    norm = PrefixBatchNorm(8)
    norm.momentum = None
    batches = []
    for width in (4, 8, 6, 4):
        batch = 2 * torch.randn(6, width, 4, 4) + width
        batches.append(batch)
        norm(batch)

    for channel in range(8):
        # Only the batches that the channel was in count.
        arrived = [batch[:, channel] for batch in batches if channel < batch.shape[1]]
        means = torch.stack([values.mean() for values in arrived])
        variances = torch.stack([values.var() for values in arrived])
        assert norm.running_mean[channel] == pytest.approx(float(means.mean()), rel=1e-5)
        assert norm.running_var[channel] == pytest.approx(float(variances.mean()), rel=1e-5)


@torch.no_grad()
def test_prefix_norm_reset_forgets_batches():
    norm = PrefixBatchNorm(4)
    norm.momentum = None
    norm(torch.randn(6, 4, 3, 3))
    norm.reset_running_stats()

    batch = torch.randn(6, 4, 3, 3)
    norm(batch)
    assert_close(norm.running_mean, batch.mean((0, 2, 3)))


def test_prefix_norm_statistics_have_no_gradient():
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
    ids=str,
)
@pytest.mark.parametrize("style", ["residual", "vgg"])
def test_channels_reject_unfit_arguments(name, changes, style):
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
