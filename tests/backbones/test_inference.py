"""Networks as they run where nothing is learned: fused convolutions and half precision."""

import copy

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from rnr_gym.backbones import inference
from rnr_gym.backbones.fused_conv import HAS_FUSED_CONV, FusedConv
from rnr_gym.backbones.inference import chosen_dtype, for_inference, fuse
from rnr_gym.backbones.segments import Segment
from rnr_gym.routing.rollout import follow
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from tests.fixtures import offshelf, small
from tests.fixtures.routing import assert_near, states_along

needs_fused_conv = pytest.mark.skipif(not HAS_FUSED_CONV, reason="torch without oneDNN")


def convs():
    """Convolutions of different forms, by name."""
    return {
        "3 x 3": nn.Conv2d(4, 6, 3, 1, 1),
        "strided, without bias": nn.Conv2d(4, 6, 3, 2, 1, bias=False),
        "1 x 1": nn.Conv2d(4, 6, 1),
        "depth-wise": nn.Conv2d(4, 8, 5, padding=2, groups=4),
        "dilated": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    }


@needs_fused_conv
@pytest.mark.parametrize("name", convs())
@pytest.mark.parametrize("batch_size", [0, 1, 3])
def test_fused_conv_matches_conv_and_relu(name, batch_size):
    sequence = nn.Sequential(convs()[name], nn.ReLU(), nn.Identity()).requires_grad_(False)
    images = torch.randn(batch_size, 4, 9, 9)
    expected = sequence(images)
    fuse(sequence)
    assert isinstance(sequence[0], FusedConv)
    assert isinstance(sequence[1], nn.Identity)
    torch.testing.assert_close(sequence(images), expected)
    # In another memory format, too.
    last = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(sequence(last), expected)


@needs_fused_conv
@pytest.mark.parametrize("name", convs())
def test_operations_are_counted_as_those_of_conv(name):
    sequence = nn.Sequential(convs()[name], nn.ReLU()).requires_grad_(False)
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            sequence(torch.zeros(2, 4, 9, 9))
        counts.append(counter.get_total_flops())
        fuse(sequence)
    assert counts[0] == counts[1] > 0


@needs_fused_conv
def test_only_a_relu_right_after_is_fused():
    sequence = nn.Sequential(
        nn.Conv2d(4, 4, 1),
        nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.GELU(),
        nn.ReLU(),
    ).requires_grad_(False)
    images = torch.randn(2, 4, 5, 5)
    expected = sequence(images)
    fuse(sequence)
    convs = [module for module in sequence if isinstance(module, FusedConv)]
    assert [conv.activation.name for conv in convs] == ["relu", "none"]
    torch.testing.assert_close(sequence(images), expected)


def with_hook(module):
    """A module that does more than its class."""
    module.register_forward_hook(lambda module, args, output: output + 1.0)
    return module


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 6, 3).double(),
        nn.Conv2d(4, 6, 3, device="meta"),
        nn.Conv1d(4, 6, 3),
        with_hook(nn.Conv2d(4, 6, 3)),
    ],
    ids=["padding by name", "reflecting", "float64", "another device", "one dimension", "hooked"],
)
def test_other_convolutions_stay(conv):
    sequence = nn.Sequential(conv, nn.ReLU())
    fuse(sequence)
    assert sequence[0] is conv


@needs_fused_conv
def test_fused_conv_can_be_copied_after_use():
    conv = FusedConv(nn.Conv2d(4, 6, 3).requires_grad_(False))
    images = torch.randn(2, 4, 5, 5)
    expected = conv(images)
    torch.testing.assert_close(copy.deepcopy(conv)(images), expected)


ACTIVATIONS = {
    "relu": (nn.ReLU(), torch.relu, lambda x: F.relu(x, inplace=True), lambda x: x.relu_()),
    "hardtanh": (nn.ReLU6(inplace=True), nn.Hardtanh(-1.0, 2.0), F.relu6),
    "hardswish": (nn.Hardswish(), F.hardswish),
    "swish": (nn.SiLU(), F.silu),
    "sigmoid": (nn.Sigmoid(), torch.sigmoid, lambda x: x.sigmoid()),
    "none": (nn.GELU(), lambda x: F.threshold(x, 0.0, 1.0), nn.Identity()),
}
"""Functions and modules, by the name of what runs in one operation with a convolution."""


class ConvThen(nn.Module):
    """A convolution, its norm and something else."""

    def __init__(self, conv, after):
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels)
        self.after = after

    def forward(self, x):
        return self.after(self.norm(self.conv(x)))


def segment_of(network, images):
    """The whole of a network as a segment, for inference, and its fused convolutions."""
    network = network.eval().requires_grad_(False)
    segment = Segment(fx.symbolic_trace(network))
    expected = network(images.clone())
    segment.fold()
    segment.fuse()
    assert_near(segment(images), expected)
    return [module for module in segment.network.modules() if isinstance(module, FusedConv)]


@needs_fused_conv
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("form", convs())
def test_segment_runs_conv_norm_and_activation_at_once(name, form):
    for after in ACTIVATIONS[name]:
        images = 5.0 * torch.randn(2, 4, 9, 9)
        (conv,) = segment_of(ConvThen(convs()[form], after), images)
        assert conv.activation.name == name


class ReadTwice(nn.Module):
    """What is rectified is read before that, too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.conv(x)
        return y + torch.relu(y)


@needs_fused_conv
def test_activation_stays_where_its_input_is_read_elsewhere():
    (conv,) = segment_of(ReadTwice(), torch.randn(2, 4, 5, 5))
    assert conv.activation.name == "none"


@needs_fused_conv
@pytest.mark.parametrize("family", ["resnet, basic", "mobilenet v2", "mobilenet v3"])
def test_no_conv_off_the_shelf_leaves_its_activation_to_others(family):
    network = for_inference(offshelf.backbone(family))
    fused = [module for module in network.modules() if isinstance(module, FusedConv)]
    assert any(conv.activation.name != "none" for conv in fused)
    for segment in [module for module in network.modules() if isinstance(module, fx.GraphModule)]:
        modules = dict(segment.named_children())
        for node in segment.graph.nodes:
            # The others rectify sums.
            if isinstance(modules.get(str(node.target)), nn.ReLU | nn.ReLU6 | nn.Hardswish):
                source = modules.get(str(node.args[0].target))
                assert not isinstance(source, FusedConv)


@needs_fused_conv
def test_network_off_the_shelf_counts_the_same_when_fused():
    backbone = offshelf.backbone("mobilenet v3")
    images = offshelf.pixels(1)
    counts = []
    for network in (backbone, for_inference(backbone)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            small.travel_full_path(network, images, ())
        counts.append(counter.get_total_flops() // 2)
    assert counts == [backbone.mac_table.plain] * 2


@pytest.mark.parametrize("kind", small.KINDS)
@pytest.mark.parametrize("exits", ["bare", "glance and exits"])
def test_every_state_matches_the_backbone(kind, exits):
    backbone = small.backbone(kind, exits)
    paths = small.paths(RoutingSpec.of(backbone), 40)
    expected = states_along(backbone, small.pixels(40), paths)
    actual = states_along(for_inference(backbone), small.pixels(40), paths)
    for state, other in zip(actual, expected, strict=True):
        assert_near(state.logits, other.logits.detach())
        assert_near(state.exit_logits, other.exit_logits.detach())
        assert_near(state.summary(), other.summary())


@pytest.mark.parametrize("kind", small.KINDS)
@pytest.mark.parametrize("exits", ["bare", "glance and exits"])
def test_half_precision_is_close_and_summaries_stay_single(kind, exits):
    backbone = small.backbone(kind, exits)
    paths = small.paths(RoutingSpec.of(backbone), 40)
    expected = states_along(backbone, small.pixels(40), paths)
    network = for_inference(backbone, "bfloat16")
    assert network.dtype == torch.bfloat16
    actual = states_along(network, small.pixels(40), paths)
    for state, other in zip(actual, expected, strict=True):
        assert all(group.features.dtype == torch.bfloat16 for group in state.groups)
        assert state.logits.dtype == torch.float32
        # Eight bits of mantissa, over a few layers.
        scale = other.logits.detach().abs().max().clamp(min=1.0)
        assert (state.logits - other.logits.detach()).abs().max() < 0.05 * scale
        assert (state.macs == other.macs).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "family", ["never seen", "resnet, basic", "mobilenet v2", "efficientnet", "convnext"]
)
def test_network_off_the_shelf_runs_close_to_itself(family, dtype):
    backbone = offshelf.backbone(family)
    pixels = offshelf.pixels(8)
    spec = RoutingSpec.of(backbone)
    network = for_inference(backbone, dtype)
    for sub_path in range(spec.num_paths):
        path = spec.onward[:, sub_path]
        expected = follow(Traversal.start(backbone, pixels), path).logits.detach()
        actual = follow(Traversal.start(network, pixels), path)
        assert actual.summary().dtype == np.float32
        bound = 0.05 if dtype == "bfloat16" else 1e-5
        difference = (actual.logits.float() - expected).abs().max()
        assert difference <= bound * expected.abs().max().clamp(min=1.0)


def test_the_backbone_keeps_its_dtype_and_weights():
    backbone = small.backbone("whitened")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    for_inference(backbone, "bfloat16")
    after = backbone.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert backbone.dtype == torch.float32


def test_making_it_draws_no_random_numbers():
    backbone = small.backbone("whitened")
    before = torch.get_rng_state()
    for_inference(backbone, "bfloat16")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_auto_takes_the_faster_dtype(monkeypatch, faster):
    monkeypatch.setattr(
        inference, "_seconds", lambda network, images: 1.0 + (str(network.dtype)[6:] != faster)
    )
    assert chosen_dtype(small.backbone("multipath"), "auto") == faster


def test_auto_stays_single_for_a_small_gain(monkeypatch):
    monkeypatch.setattr(
        inference, "_seconds", lambda network, images: 1.0 - 0.1 * (network.dtype == torch.bfloat16)
    )
    assert chosen_dtype(small.backbone("multipath"), "auto") == "float32"


def test_dtype_given_by_name_is_not_measured(monkeypatch):
    monkeypatch.delattr(inference, "_seconds")
    assert chosen_dtype(small.backbone("multipath"), "bfloat16") == "bfloat16"


def test_dtype_unknown_is_refused():
    with pytest.raises(ValueError, match="`dtype` must be"):
        chosen_dtype(small.backbone("multipath"), "float16")
