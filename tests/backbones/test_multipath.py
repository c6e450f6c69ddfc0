"""The multi-path network against a residual network written here, and its sub-paths one by one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnr_gym.backbones import MultiPathResNet
from tests.fixtures import small


class Block(nn.Module):
    """He et al. (2016), shortcut option A, written without looking at the package."""

    def __init__(self, channels_in, channels_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride, self.missing = stride, channels_out - channels_in

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        kept = F.avg_pool2d(x, 1, self.stride)
        zeros = torch.zeros(len(x), self.missing, *kept.shape[2:], dtype=x.dtype)
        return torch.relu(y + torch.cat([kept, zeros], 1))


class ResNet(nn.Module):
    def __init__(self, channels, classes, widths, blocks):
        super().__init__()
        self.conv, self.bn = (
            nn.Conv2d(channels, widths[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
        )
        self.blocks, width = nn.ModuleList(), widths[0]
        for stage, wide in enumerate(widths):
            for number in range(blocks[stage]):
                self.blocks.append(Block(width, wide, 2 if stage > 0 and number == 0 else 1))
                width = wide
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def copy(into, *parts):
    for ours, theirs in zip(into, parts, strict=True):
        ours.load_state_dict(theirs.state_dict(), strict=False)


def widest_branch(layer):
    branch = layer.branches[-1]
    return branch.conv1, branch.norms1[-1], branch.conv2, branch.norms2[-1]


def pruned_block(layer):
    return layer.conv1, layer.norm1, layer.conv2, layer.norm2[-1]


@pytest.mark.parametrize(
    ("kind", "parts"), [("multipath", widest_branch), ("residual", pruned_block)]
)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (3, 32, 32)])
def test_the_full_path_is_an_ordinary_resnet(kind, parts, shape):
    backbone = small.backbone(kind, shape=shape).double()
    facts = small.KINDS[kind]
    resnet = ResNet(shape[0], 3, facts["widths"], facts["blocks"]).double()
    copy(
        (resnet.conv, resnet.bn, resnet.fc),
        backbone.stem[0],
        backbone.stem[1],
        backbone.head.linear,
    )
    for block, layer in zip(resnet.blocks, backbone.layers, strict=True):
        copy((block.conv1, block.bn1, block.conv2, block.bn2), *parts(layer))
    resnet.eval()
    batch = small.pixels(4, shape)
    walk = small.travel(backbone, batch, torch.full((4, 3), backbone.full_path).numpy())
    wanted = resnet(backbone.prepare(batch))
    torch.testing.assert_close(walk.logits, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        backbone.plain()(backbone.prepare(batch)), wanted, rtol=1e-10, atol=1e-10
    )
    assert wanted.std() > 1e-3


@pytest.mark.parametrize("exits", ["bare", "exits"])
@pytest.mark.parametrize("way", [0, 1, 2])
def test_sub_paths_are_identity_and_branches(exits, way):
    layer = small.backbone("multipath", exits).layers[
        2
    ]  # 16 to 32 channels, halving the resolution
    first, x = int(exits != "bare"), torch.rand(2, 16, 8, 8)
    kept = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 16))
    assert torch.equal(layer(x, first, first + way), kept)
    for number, width in enumerate([16, 32]):
        branch = layer.branches[number]
        assert branch.conv1.out_channels == width
        y = branch.norms2[way](branch.conv2(torch.relu(branch.norms1[way](branch.conv1(x)))))
        torch.testing.assert_close(layer(x, first + 1 + number, first + way), torch.relu(kept + y))


def test_norms_of_a_branch_share_all_but_statistics():
    branch = small.backbone("multipath").layers[0].branches[0]
    for norms in (branch.norms1, branch.norms2):
        assert len(norms) == 3
        assert all(norm.weight is norms[0].weight for norm in norms)
        assert all(norm.bias is norms[0].bias for norm in norms)
        assert not torch.equal(norms[0].running_mean, norms[1].running_mean)


def test_branches_share_no_weights():
    layer = small.backbone("multipath").layers[0]
    parameters = [id(parameter) for branch in layer.branches for parameter in branch.parameters()]
    assert len(parameters) == len(set(parameters)) == 2 * 6


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
        ("glance", {"glance_widths": [8], "glance_strides": []}),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name, changes):
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
