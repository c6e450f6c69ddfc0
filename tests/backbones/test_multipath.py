"""The multi-path network against a residual network written here, and its sub-paths one by one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from rnr_gym.backbones import MultiPathResNet
from tests.fixtures import small


class Block(nn.Module):
    """He et al. (2016), shortcut option A, written without looking at the package."""

    def __init__(self, channels_in, channels_out, stride):
        super().__init__()
        self.stride = stride
        self.missing = channels_out - channels_in
        self.conv1 = nn.Conv2d(
            channels_in,
            channels_out,
            kernel_size=3,
            stride=stride,
            padding=1,
            bias=False,
        )
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        kept = F.avg_pool2d(x, 1, self.stride)
        batch_size, _, height, width = kept.shape
        zeros = x.new_zeros(batch_size, self.missing, height, width)
        return torch.relu(y + torch.cat([kept, zeros], 1))


class ResNet(nn.Module):
    """Stem, stages of blocks, of which all but the first halve the resolution, and head."""

    def __init__(self, channels, classes, widths, blocks):
        super().__init__()
        width = widths[0]
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)

        self.blocks = nn.ModuleList()
        for stage, stage_width in enumerate(widths):
            for number in range(blocks[stage]):
                stride = 2 if stage > 0 and number == 0 else 1
                self.blocks.append(Block(width, stage_width, stride))
                width = stage_width
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def copy_weights(module, source):
    # Not strict: norms of the package may have buffers of their own.
    module.load_state_dict(source.state_dict(), strict=False)


def copy_block(block, layer, kind):
    """Give a block the weights with which a layer runs the full path."""
    if kind == "multipath":
        branch = layer.branches[-1]
        copy_weights(block.conv1, branch.conv1)
        copy_weights(block.bn1, branch.norms1[-1])
        copy_weights(block.conv2, branch.conv2)
        copy_weights(block.bn2, branch.norms2[-1])
    else:
        copy_weights(block.conv1, layer.conv1)
        copy_weights(block.bn1, layer.norm1)
        copy_weights(block.conv2, layer.conv2)
        copy_weights(block.bn2, layer.norm2[-1])


@pytest.mark.parametrize("kind", ["multipath", "residual"])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 8, 8), id="1x8x8"),
        pytest.param((3, 9, 7), id="3x9x7"),
        pytest.param((3, 32, 32), id="3x32x32"),
    ],
)
def test_full_path_is_ordinary_resnet(kind, shape):
    backbone = small.backbone(kind, shape=shape).double()
    config = small.KINDS[kind]
    resnet = ResNet(shape[0], 3, config["widths"], config["blocks"]).double()

    copy_weights(resnet.conv, backbone.stem[0])
    copy_weights(resnet.bn, backbone.stem[1])
    copy_weights(resnet.fc, backbone.head.linear)
    for block, layer in zip(resnet.blocks, backbone.layers, strict=True):
        copy_block(block, layer, kind)
    resnet.eval()

    batch = small.pixels(4, shape)
    prepared = backbone.prepare(batch)
    expected = resnet(prepared)
    state = small.travel_full_path(backbone, batch)
    assert_close(state.logits, expected, rtol=1e-10, atol=1e-10)
    assert_close(backbone.plain()(prepared), expected, rtol=1e-10, atol=1e-10)
    # Logits that are all alike would agree whatever the networks do.
    assert expected.std() > 1e-3


@pytest.mark.parametrize("exits", ["bare", "exits"])
@pytest.mark.parametrize("prev_idx", [0, 1, 2])
def test_sub_paths_are_identity_and_branches(exits, prev_idx):
    backbone = small.backbone("multipath", exits)
    layer = backbone.layers[2]  # 16 to 32 channels, halving the resolution
    identity = backbone.first_sub_path
    prev_sub_path = identity + prev_idx

    x = torch.rand(2, 16, 8, 8)
    every_second = x[:, :, ::2, ::2]
    kept = F.pad(every_second, (0, 0, 0, 0, 0, 16))
    assert torch.equal(layer(x, identity, prev_sub_path), kept)

    for number, width in enumerate([16, 32]):
        branch = layer.branches[number]
        assert branch.conv1.out_channels == width

        y = torch.relu(branch.norms1[prev_idx](branch.conv1(x)))
        y = branch.norms2[prev_idx](branch.conv2(y))
        sub_path = identity + 1 + number
        assert_close(layer(x, sub_path, prev_sub_path), torch.relu(kept + y))


def test_branch_norms_share_all_but_statistics():
    branch = small.backbone("multipath").layers[0].branches[0]
    for norms in (branch.norms1, branch.norms2):
        assert len(norms) == 3
        assert all(norm.weight is norms[0].weight for norm in norms)
        assert all(norm.bias is norms[0].bias for norm in norms)
        assert not torch.equal(norms[0].running_mean, norms[1].running_mean)


def test_branches_share_no_weights():
    layer = small.backbone("multipath").layers[0]
    ids = []
    for branch in layer.branches:
        ids += [id(parameter) for parameter in branch.parameters()]
    # Two convolutions, and scale and shift of two sets of norms.
    assert len(ids) == len(set(ids)) == 2 * 6


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("inner", {"inner": []}),
        ("inner", {"inner": [0.5]}),
        ("inner", {"inner": [1.0, 0.5]}),
        ("inner", {"inner": [0.0, 1.0]}),
        ("inner", {"inner": [0.5, 0.6, 1.0]}),  # both 8 wide
        ("widths", {"widths": [16, 20]}),
        ("widths", {"widths": [32, 16]}),
        ("widths", {"widths": [16]}),
        ("blocks", {"blocks": [2, 0]}),
        ("exits", {"exits": [0]}),
        ("exits", {"exits": [3]}),
        ("image_shape", {"image_shape": [8, 8]}),
        ("image_shape", {"image_shape": [1, 0, 8]}),
        ("glance_widths", {"glance_widths": [8], "glance_strides": []}),
    ],
    ids=str,
)
def test_multipath_rejects_unfit_arguments(name, changes):
    fitting = {
        "image_shape": [1, 8, 8],
        "classes": 3,
        "widths": [16, 32],
        "blocks": [2, 1],
        "inner": [0.5, 1.0],
    }
    MultiPathResNet(**fitting)
    with pytest.raises(ValueError, match=f"`{name}`"):
        MultiPathResNet(**{**fitting, **changes})
