"""Folded networks answer as the networks that they were made of, without batch-norms."""

import pytest
import torch
from torch import nn

from rnr_gym.backbones.channels import PrunedConvLayer
from rnr_gym.backbones.folding import folded, fused
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small
from tests.fixtures.routing import assert_near, states_along


@pytest.mark.parametrize("kind", small.KINDS)
@pytest.mark.parametrize("exits", ["bare", "glance and exits"])
def test_every_state_is_the_same_but_for_rounding(kind, exits):
    backbone = small.backbone(kind, exits).double()
    paths = small.paths(RoutingSpec.of(backbone), 40)
    expected = states_along(backbone, small.pixels(40), paths)
    actual = states_along(folded(backbone), small.pixels(40), paths)
    for state, other in zip(actual, expected, strict=True):
        assert_near(state.logits, other.logits.detach(), atol=1e-9)
        assert_near(state.exit_logits, other.exit_logits.detach(), atol=1e-9)
        assert_near(state.summary(), other.summary(), atol=1e-5)
        assert (state.macs == other.macs).all()


@pytest.mark.parametrize("kind", small.KINDS)
def test_norms_do_not_run(kind):
    network = folded(small.backbone(kind))
    ran = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, *_: ran.append(module))
    states_along(network, small.pixels(20), small.paths(RoutingSpec.of(network), 20))
    # Pruned streams keep their norms: there would be a convolution for each pair of sub-paths.
    has_pruned_stream = any(isinstance(module, PrunedConvLayer) for module in network.modules())
    assert bool(ran) == has_pruned_stream


def test_the_backbone_stays_as_it_was():
    backbone = small.backbone("multipath")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    folded(backbone)
    after = backbone.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_nothing_is_learned_by_a_folded_network():
    assert not any(
        weight.requires_grad for weight in folded(small.backbone("residual")).parameters()
    )


def test_fused_by_hand():
    """Two channels of a norm over three; pixels in the middle see the whole kernel."""
    norm = nn.BatchNorm2d(3, eps=0.0).eval()
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 9.0]))
    norm.running_var.copy_(torch.tensor([4.0, 1.0, 9.0]))
    norm.weight.data.copy_(torch.tensor([3.0, 1.0, 9.0]))
    norm.bias.data.copy_(torch.tensor([0.5, -1.0, 9.0]))
    conv = fused(torch.ones(2, 1, 3, 3), norm)
    y = conv(torch.ones(1, 1, 3, 3))[0, :, 1, 1]
    # (9 - 1) / 2 * 3 + 0.5, and (9 - 2) / 1 * 1 - 1.
    assert y.tolist() == [12.5, 6.0]


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(4, 6, 5, stride=2, padding=2, groups=2),
        nn.Conv2d(4, 6, 3, padding="same", dilation=2, bias=False),
    ],
    ids=["1 x 1", "grouped", "dilated"],
)
def test_convolutions_of_any_form_are_folded(conv):
    """A network of the user's own may have others than ours."""
    norm = nn.BatchNorm2d(6)
    norm.running_mean.copy_(torch.linspace(-1.0, 1.0, 6))
    norm.running_var.copy_(torch.linspace(0.5, 2.0, 6))
    network = nn.Sequential(conv, norm, nn.ReLU()).eval()
    images = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    network_folded = folded(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network_folded)
    torch.testing.assert_close(network_folded(images), network(images).detach())


class NormWithActivation(nn.BatchNorm2d):
    """As other libraries have it."""

    def forward(self, x):
        return torch.relu(super().forward(x))


def test_norm_that_does_more_stays():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), NormWithActivation(4)).eval()
    images = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(folded(network)(images), network(images).detach())


def test_norm_without_statistics_stays():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), norm).eval()
    assert isinstance(folded(network)[1], nn.BatchNorm2d)
