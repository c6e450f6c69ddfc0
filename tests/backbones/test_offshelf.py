"""Ordinary networks as backbones: the full path is the network, narrow paths are parts of it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from rnr_gym.backbones import routable, weights
from rnr_gym.backbones.base import normalised
from rnr_gym.backbones.discovery import find_blocks
from rnr_gym.backbones.folding import folded
from rnr_gym.backbones.graphs import NetworkGraph
from rnr_gym.backbones.importance import readings_of
from rnr_gym.backbones.slicing import Choice
from rnr_gym.testing import check_backbone
from rnr_gym.training import calibration
from rnr_gym.training.calibration import calibrate_paths
from tests.fixtures import offshelf, small

EVERY_FAMILY = pytest.mark.parametrize("family", offshelf.FAMILIES)
LAYERS = {
    "resnet, basic": (5, 2),
    "resnet, bottleneck": (5, 1),
    "resnext": (5, 1),
    "wide resnet": (5, 1),
    "vgg": (3, 0),
    "vgg with batch-norm": (4, 0),
    "mobilenet v2": (4, 2),
    "mobilenet v3": (3, 2),
    "efficientnet": (4, 2),
    "regnet x": (6, 3),
    "regnet y": (6, 3),
    "convnext": (4, 4),
    "never seen": (4, 4),
}
"""Layers of each family, and how many of them can be skipped."""


def macs_of(network, images):
    """MACs by torch's counter."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops() // 2


@EVERY_FAMILY
def test_full_path_is_the_network_to_the_last_bit(family):
    backbone = offshelf.backbone(family)
    images = offshelf.pixels(4, seed=1)
    expected = offshelf.network(family)(backbone.prepare(images))
    state = small.travel_full_path(backbone, images)
    assert torch.equal(state.logits, expected)
    assert torch.equal(backbone.plain()(backbone.prepare(images)), expected)


@EVERY_FAMILY
def test_every_family_keeps_the_contract(family):
    check_backbone(offshelf.backbone(family))


@EVERY_FAMILY
def test_plain_macs_are_those_of_the_network(family):
    backbone = offshelf.backbone(family)
    expected = macs_of(offshelf.network(family), backbone.prepare(offshelf.pixels(1)))
    assert backbone.mac_table.plain == expected
    assert backbone.report.macs == expected


@EVERY_FAMILY
def test_blocks_are_found(family):
    backbone = offshelf.backbone(family)
    first = int(backbone.has_identity)
    skipped = int(backbone.valid[:, 0].sum()) if first else 0
    assert (backbone.num_layers, skipped) == LAYERS[family]
    # All but depth-wise blocks without expansion have inner channels.
    narrow = backbone.valid[:, first:-1].any(1)
    assert narrow.sum() >= backbone.num_layers - 1


@torch.no_grad()
def predict_others(module, reading, idx):
    """Let a reader see zeros in all channels but `idx`, and weigh these for the others as well."""
    axis = 1 if isinstance(module, nn.Conv2d) else -1
    others = torch.ones(len(reading.mean), dtype=torch.bool)
    others[idx] = False
    matrix, constant = reading.prediction(idx)
    weight = module.weight.clone()
    module.weight[:, idx] += torch.einsum("or...,rk->ok...", weight[:, others], matrix)
    added = torch.einsum("or...,r->o...", weight[:, others], constant)
    added = added.reshape(len(added), -1).sum(1)

    def before(_, args):
        shape = [1] * args[0].ndim
        shape[axis] = -1
        return (args[0] * (~others).float().view(shape),)

    def after(_, args, output):
        return output + (added[:, None, None] if axis == 1 else added)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


@EVERY_FAMILY
def test_narrow_path_is_whole_block_without_other_channels(family):
    """As in a whole block whose readers see zeros there: only the right channels were left out."""
    torch.manual_seed(0)
    graph = NetworkGraph(offshelf.network(family), torch.rand(4, *offshelf.SHAPE))
    choices = [Choice.of(graph, block, 3, True) for block in find_blocks(graph)]
    for choice in [choice for choice in choices if choice.sets][::3]:
        start = choice.block.start
        features = torch.randn(graph.shape(start))
        ways = choice.ways(graph, start, features)
        readers = [reader for channels in choice.sets for reader in channels.readers]
        readings = readings_of(ways.parts[3], readers, features)
        for group in range(2):
            whole = copy.deepcopy(ways.parts[3])
            for channels, kept in zip(choice.sets, ways.kept, strict=True):
                for reader in channels.readers:
                    module = whole.get_submodule(reader.name)
                    predict_others(module, readings[reader], kept[group])
            narrow = ways.parts[group + 1]
            expected = whole(features)
            scale = float(expected.abs().max())
            assert_close(narrow(features), expected, rtol=1e-3, atol=1e-4 * scale)
            assert macs_of(narrow, features) < macs_of(whole, features)


def test_channels_that_follow_from_others_cost_nothing():
    """Every inner channel twice, the second time with the opposite sign and another mean."""
    torch.manual_seed(0)
    network = copy.deepcopy(offshelf.network("never seen"))
    network.one = nn.Conv2d(24, 32, 1).requires_grad_(False)
    network.one.weight[16:] = -2.0 * network.one.weight[:16]
    network.one.bias[:] = 20.0
    network.other = nn.Conv2d(32, 24, 1).requires_grad_(False)
    # All channels are positive, so that the activation changes nothing.
    layer = routable(network, offshelf.pixels(8), groups=2).layers[3]
    features = 0.1 * torch.randn(2, 24, 4, 4)
    whole = layer(features, layer.num_paths - 1)
    assert_close(layer(features, layer.num_paths - 2), whole, rtol=0.0, atol=0.1)
    assert (whole - layer(features, 0)).abs().max() > 1.0


@EVERY_FAMILY
def test_folded_network_answers_alike_without_norms(family):
    backbone = offshelf.backbone(family)
    network = folded(backbone)
    ran = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, *_: ran.append(module))

    rng = np.random.default_rng(0)
    images = offshelf.pixels(3)
    paths = []
    for valid in backbone.valid:
        paths.append(rng.choice(np.flatnonzero(valid), len(images)))
    expected = small.travel(backbone, images, np.stack(paths, 1))
    actual = small.travel(network, images, np.stack(paths, 1))
    assert_close(actual.logits, expected.logits, rtol=1e-3, atol=1e-4)
    # The norms before an activation have no convolution in front of them.
    assert len(ran) == 0 or family == "never seen"


def test_report_names_modules_and_costs():
    report = offshelf.backbone("resnet, basic").report
    names = [layer.name for layer in report.layers]
    assert names == ["layer1.0", "layer2.0", "layer2.1", "layer3.0", "layer4.0"]
    kinds = [layer.kind for layer in report.layers]
    assert kinds == ["residual", "projected", "residual", "projected", "projected"]
    assert report.layers[0].widths == [[16], [32], [48], [64]]
    assert report.layers[0].macs == {
        0: 0,
        1: 2 * 16 * 64 * 9 * 64,
        2: 2 * 32 * 64 * 9 * 64,
        3: 2 * 48 * 64 * 9 * 64,
        4: 2 * 64 * 64 * 9 * 64,
    }
    lines = str(report).splitlines()
    assert len(lines) == 2 + len(names)
    assert "layer2.0" in lines[3]


def test_blocks_of_unseen_network_have_names():
    names = [layer.name for layer in offshelf.backbone("never seen").report.layers]
    assert names == ["first.0", "first.1", "second", "one to other"]


def test_most_important_channels_stay():
    """Inner channels that vary alike, read by weights that grow with their number."""
    torch.manual_seed(0)
    network = copy.deepcopy(offshelf.network("never seen"))
    network.one.weight[:] = network.one.weight[:1]
    network.one.bias[:] = 0.0
    network.other.weight[:] = torch.linspace(0.01, 1.0, 40)[None, :, None, None]

    graph = NetworkGraph(network, torch.rand(4, *offshelf.SHAPE))
    choice = Choice.of(graph, find_blocks(graph)[-1], 4, True)
    features = torch.randn(graph.shape(choice.block.start))
    (kept,) = choice.ways(graph, choice.block.start, features).kept
    # Two of four groups hold 20 channels, rounded to a multiple of 8.
    assert kept[1].tolist() == list(range(24, 40))
    assert kept[3].tolist() == list(range(40))


def test_training_narrow_paths_leaves_the_full_path_alone():
    backbone = routable(copy.deepcopy(offshelf.network("vgg")), offshelf.pixels(2))
    whole = {id(parameter) for parameter in backbone.plain().parameters()}
    narrow = {
        id(parameter) for layer in backbone.layers for parameter in layer.paths["0"].parameters()
    }
    assert narrow
    assert not narrow & whole


def test_model_stays_as_it_was():
    network = copy.deepcopy(offshelf.network("mobilenet v2")).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    backbone = routable(network, offshelf.pixels(2))
    calibrate_paths(backbone, offshelf.pixels(4))
    assert network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(offshelf.pixels(2, (3, 40, 28)), id="oblong"),
        pytest.param(torch.rand(2, 3, 32, 32), id="floats"),
    ],
)
def test_images_of_other_forms_are_taken(example):
    check_backbone(routable(offshelf.network("resnet, basic"), example))


def test_network_in_double_precision_stays_so():
    network = copy.deepcopy(offshelf.network("resnet, basic")).double()
    backbone = routable(network, offshelf.pixels(2))
    assert backbone.image_mean.dtype == torch.float64
    check_backbone(backbone)


def test_backbone_can_be_sent_to_other_processes():
    backbone = offshelf.backbone("mobilenet v3")
    received = pickle.loads(pickle.dumps(backbone))
    images = offshelf.pixels(2)
    expected = small.travel_full_path(backbone, images).logits
    assert torch.equal(small.travel_full_path(received, images).logits, expected)
    assert str(received.report) == str(backbone.report)


def test_named_blocks_become_layers():
    network = offshelf.network("resnet, basic")
    backbone = routable(network, offshelf.pixels(2), blocks=["layer1.0", "layer2", "layer4.0"])
    assert [layer.name for layer in backbone.report.layers] == ["layer1.0", "layer2", "layer4.0"]
    # A stage that changes the shape cannot be skipped.
    assert backbone.valid[:, 0].tolist() == [True, False, False]
    check_backbone(backbone)


@pytest.mark.parametrize(
    ("arguments", "num_paths"),
    [
        ({"groups": 1}, 2),
        ({"groups": 2}, 3),
        ({"skip": False}, 4),
        ({"skip": False, "groups": 2}, 2),
    ],
)
def test_groups_and_skip_say_what_is_offered(arguments, num_paths):
    backbone = routable(offshelf.network("resnet, basic"), offshelf.pixels(2), **arguments)
    assert backbone.num_paths == num_paths
    assert backbone.has_identity == arguments.get("skip", True)
    check_backbone(backbone)


def test_summary_groups_make_summaries_small():
    backbone = routable(offshelf.network("resnet, basic"), offshelf.pixels(2), summary_groups=8)
    assert backbone.pooled_width == 8
    check_backbone(backbone)


def test_transforms_bring_pixel_statistics():
    class Transforms:
        mean = (0.1, 0.2, 0.3)
        std = (0.4, 0.5, 0.6)

    network = offshelf.network("vgg")
    backbone = routable(network, offshelf.pixels(2), transforms=Transforms())
    assert_close(backbone.image_mean.flatten(), torch.tensor(Transforms.mean))
    assert_close(backbone.image_std.flatten(), torch.tensor(Transforms.std))


class InPlace(nn.Module):
    """Writes into what it reads: the features that a block before it has returned."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.blocks = nn.ModuleList([InPlaceBlock(), InPlaceBlock()])
        self.answer = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.answer(x.mean((2, 3)))


class InPlaceBlock(nn.Module):
    """A block whose first activation changes its input, the shortcut included."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 16, 3, padding=1)

    def forward(self, x):
        y = self.conv2(self.relu(self.conv1(self.relu(x))))
        y += x
        return y


def test_writing_in_place_stays_inside_a_block():
    torch.manual_seed(0)
    network = InPlace().eval()
    backbone = routable(network, offshelf.pixels(2))
    images = offshelf.pixels(3)
    with torch.no_grad():
        state = small.travel_full_path(backbone, images)
        assert torch.equal(state.logits, network(backbone.prepare(images)))
    check_backbone(backbone)


class Twisted(nn.Module):
    """A residual block whose inner convolution cannot be followed: it looks at values."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.inner = LooksAtValues()
        self.answer = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.inner(x)
        return self.answer(x.mean((2, 3)))


class LooksAtValues(nn.Module):
    """A convolution, or for images that are all black none."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 1)

    def forward(self, x):
        if x.abs().max() == 0:
            return x
        return self.conv(x)


def test_module_that_cannot_be_followed_stays_whole():
    backbone = routable(Twisted().eval(), offshelf.pixels(2))
    assert backbone.valid.tolist() == [[True, False, False, False, True]]
    check_backbone(backbone)


class NormWithActivation(nn.BatchNorm2d):
    """A norm of another library, which does more than normalise."""

    def forward(self, x):
        return torch.relu(super().forward(x))


class Scaled(nn.Module):
    """Blocks with an identity as shortcut, and with factors for each channel."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.shortcut = nn.Identity()
        self.factor = nn.Parameter(torch.rand(32))
        self.conv1 = nn.Conv2d(16, 32, 3, padding=1)
        self.norm = NormWithActivation(32)
        self.conv2 = nn.Conv2d(32, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv4 = nn.Conv2d(32, 16, 3, padding=1)
        self.answer = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x)
        x = self.conv2(self.norm(self.conv1(x))) + self.shortcut(x)
        x = x + self.conv4(self.conv3(x) * self.factor.view(1, -1, 1, 1))
        return self.answer(x.mean((2, 3)))


def test_norm_of_another_library_is_narrowed_but_not_folded():
    torch.manual_seed(0)
    backbone = routable(Scaled().eval(), offshelf.pixels(2))
    # The factors are left as they are, so that block is skipped or whole.
    assert backbone.valid.tolist() == [[True] * 5, [True, False, False, False, True]]
    check_backbone(backbone)
    images = offshelf.pixels(3)
    with torch.no_grad():
        expected = small.travel_full_path(backbone, images).logits
        assert_close(small.travel_full_path(folded(backbone), images).logits, expected)


def shifted(backbone):
    """The backbone, with wrong statistics in all norms of narrow sub-paths."""
    for name, tensor in backbone.named_buffers():
        if ".paths." in name and ".paths.4." not in name and name.endswith("running_mean"):
            tensor.add_(20.0)
    return backbone


def test_calibration_changes_narrow_norms_only():
    backbone = shifted(routable(offshelf.network("mobilenet v2"), offshelf.pixels(4)))
    images = offshelf.pixels(24, seed=2)
    expected = backbone.plain()(backbone.prepare(images))
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    calibrate_paths(backbone, images, batch_size=8)

    assert torch.equal(backbone.plain()(backbone.prepare(images)), expected)
    changed = set()
    for name, tensor in backbone.state_dict().items():
        if not torch.equal(tensor, before[name]):
            changed.add(name)
    assert {"summary_mean", "summary_std"} <= changed
    norms = {name for name in changed if name.startswith("layers")}
    assert any(".paths.1." in name for name in norms)
    assert not any(".paths.4." in name or "downsample" in name for name in norms)
    assert not any(name.endswith(("weight", "bias")) for name in norms)
    check_backbone(backbone)


def test_calibration_keeps_only_what_is_closer_to_full():
    images = offshelf.pixels(24, seed=2)
    backbone = routable(offshelf.network("mobilenet v2"), images)
    image_set = calibration.as_image_set(backbone, images)

    def distance():
        generator = torch.Generator().manual_seed(0)
        paths = calibration.paths_near_full(backbone, generator)
        return calibration.distance_from_full(backbone, image_set, paths, batch_size=24)

    # Nothing is better than the channels that were predicted on the very same images.
    before = distance()
    calibrate_paths(backbone, images)
    assert distance() <= before + 1e-6

    shifted(backbone)
    wrong = distance()
    calibrate_paths(backbone, images)
    assert distance() < wrong


def test_calibration_repeats_for_a_seed():
    states = []
    for _ in range(2):
        backbone = routable(offshelf.network("resnet, basic"), offshelf.pixels(4))
        calibrate_paths(backbone, offshelf.pixels(12), seed=3)
        states.append(backbone.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_weights_of_offshelf_networks_are_not_saved(tmp_path):
    backbone = offshelf.backbone("resnet, basic")
    with pytest.raises(ValueError, match="`backbone` must be of this package's architectures"):
        weights.save(backbone, tmp_path / "file.safetensors")


# Bad input


def rejects(match, model=None, example=None, **arguments):
    if model is None:
        model = offshelf.network("resnet, basic")
    if example is None:
        example = offshelf.pixels(2)
    with pytest.raises(ValueError, match=match):
        routable(model, example, **arguments)


def test_model_has_to_be_a_module():
    rejects("`model` must be a torch module, got str", "resnet18")


@pytest.mark.parametrize(
    ("example", "match"),
    [
        (torch.zeros(3, 32, 32), r"`example` must be a batch of images .* got \(3, 32, 32\)"),
        ([1, 2], "`example` must be a batch of images .* got list"),
        (torch.randn(2, 3, 32, 32), "`images` must lie in 0..1"),
        (offshelf.pixels(2, (1, 32, 32)), "`conv1` fails .*expected input.* to have 3 channels"),
    ],
)
def test_example_has_to_be_images_of_the_network(example, match):
    rejects(match, example=example)


def test_images_too_small_name_the_module():
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.MaxPool2d(4), nn.Conv2d(16, 16, 9), nn.Flatten(), nn.Linear(16, 2)
    )
    rejects("its `2` fails", network, offshelf.pixels(2, (3, 16, 16)))


def test_weights_have_to_be_finite():
    network = copy.deepcopy(offshelf.network("resnet, basic"))
    network.layer2[0].conv1.weight[0, 0, 0, 0] = float("nan")
    rejects("`layer2.0.conv1.weight` of `model` must be finite", network)


def test_network_without_blocks_is_rejected():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7200, 3))
    rejects("`model` must have blocks that can be skipped or narrowed, got Sequential", network)


def test_features_that_are_no_maps_are_no_blocks():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 16, 8, 8)
            self.mix = nn.Linear(16, 16)
            self.answer = nn.Linear(16, 3)

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            x = x + self.mix(x)
            return self.answer(x.mean(1))

    rejects("`model` must have blocks that can be skipped or narrowed, got Tokens", Tokens())


def test_output_has_to_be_logits():
    rejects(r"`model` must return logits \(N, classes\), got \(2, 8", nn.Conv2d(3, 8, 3))


def test_output_has_to_be_one_tensor():
    class Several(offshelf.NeverSeen):
        def forward(self, images):
            return {"logits": super().forward(images)}

    rejects("`model` must return logits .*, got immutable_dict of outputs", Several().eval())


def test_network_that_looks_at_values_is_named():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            if x.mean() > 0:
                x = self.conv(x)
            return x.mean((2, 3))

    rejects("`model` must be a network that torch.fx can follow, got Outer", Outer())


def test_network_that_answers_at_random_is_rejected():
    class Random(offshelf.NeverSeen):
        def forward(self, images):
            return super().forward(nn.functional.dropout(images, 0.5, True))

    rejects("`model` must give the same logits whenever", Random().eval())


@pytest.mark.parametrize(
    ("blocks", "match"),
    [
        ("layer1.0", "`blocks` must be a sequence of names"),
        (["layer9"], "`blocks` must name modules that `model` runs, got 'layer9'"),
        (["layer1.0.conv1"], "all features pass through, got 'layer1.0.conv1'"),
        (["layer2.0", "layer1.0"], "`blocks` must follow each other, got 'layer1.0'"),
        (["avgpool"], r"blocks that can be skipped or narrowed, got ResNet \(blocks: avgpool\)"),
        (["fc"], r"feature maps \(N, C, H, W\) before and after, got 'fc' with \(2, 512\)"),
    ],
)
def test_named_blocks_have_to_be_blocks(blocks, match):
    rejects(match, blocks=blocks)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"groups": 0}, "`groups` must be a whole number of at least 1"),
        ({"skip": 1}, "`skip` must be True or False"),
        ({"mean": [0.5]}, r"`mean` must have shape \(3,\)"),
        ({"std": [0.5, 0.0, 0.5]}, "`std` must be finite numbers"),
        ({"summary_groups": 48}, "`summary_groups` must be 0 or divide"),
    ],
)
def test_other_arguments_are_checked(arguments, match):
    rejects(match, **arguments)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (offshelf.pixels(1), "`images` must be at least 2, got 1"),
        (offshelf.pixels(4, (1, 32, 32)), r"`images` must be uint8 or float \(N, 3, 32, 32\)"),
        (torch.rand(4, 3, 32, 32), "`images` must be uint8, got torch.float32"),
    ],
)
def test_calibration_images_are_checked(images, match):
    with pytest.raises(ValueError, match=match):
        calibrate_paths(offshelf.backbone("resnet, basic"), images)


def test_prepared_images_are_normalised():
    images = offshelf.pixels(2)
    backbone = offshelf.backbone("vgg")
    expected = normalised(images, backbone.image_mean, backbone.image_std)
    assert torch.equal(backbone.prepare(images), expected)
