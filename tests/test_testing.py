"""The check of networks: passed by every kind of ours, failed by broken ones with a clear word."""

import pytest
import torch

import rnr_gym
from rnr_gym.backbones import zoo
from rnr_gym.testing import check_backbone
from tests.fixtures import offshelf, small
from tests.fixtures.registered import LIGHT_BACKBONES


@pytest.mark.parametrize("name", LIGHT_BACKBONES)
def test_named_backbones_pass(name):
    check_backbone(zoo.from_config(zoo.ARCHITECTURES[name].config))


@pytest.mark.parametrize("kind", small.KINDS)
@pytest.mark.parametrize("exits", small.EXITS)
def test_small_backbones_pass(kind, exits):
    check_backbone(small.backbone(kind, exits))


def test_check_takes_images_and_is_public():
    backbone = small.backbone("multipath")
    rnr_gym.check_backbone(backbone, small.pixels(4))
    assert rnr_gym.testing.check_backbone is check_backbone


def in_training(backbone):
    backbone.train()


def not_finite(backbone):
    backbone.layers[1].branches[0].conv1.weight[0, 0, 0, 0] = float("nan")


def without_full_path(backbone):
    backbone.valid[1, -1] = False


def uncounted(backbone):
    backbone.mac_table.layers[1, :, 2] += 1


def descending(backbone):
    backbone.mac_table.layers[2, :, 2] = backbone.mac_table.layers[2, :, 3]


def other_answer(backbone):
    plain = backbone.plain()
    backbone.plain = lambda: lambda images: plain(images) + 0.1


def changes_features(backbone):
    layer = backbone.layers[2]
    forward = layer.forward
    layer.forward = lambda x, *args: forward(x.mul_(1.01), *args)


def other_width(backbone):
    backbone.layers[1].widths[2] = 24


def counts_calls(backbone):
    backbone.register_buffer("calls", torch.zeros(()))
    prepare = backbone.prepare
    backbone.prepare = lambda images: prepare(images) + 0 * backbone.calls.add_(1)


@pytest.mark.parametrize(
    ("breaking", "match"),
    [
        (in_training, "`backbone` must be in evaluation mode"),
        (not_finite, "`layers.1.branches.0.conv1.weight` must be finite"),
        (without_full_path, "layer 1 must offer the full path"),
        (uncounted, "MACs on path .* after layer 1, as torch counts them"),
        (descending, "sub-paths of layer 2 must ascend in MACs"),
        (other_answer, "the full path must equal `plain"),
        (changes_features, "of layer 2 must not change the features that it reads"),
        (other_width, "features after sub-path 2 of layer 1 must have 24 channels, got 16"),
        (counts_calls, "`calls` changes when the network runs"),
    ],
)
@torch.no_grad()
def test_broken_backbones_fail(breaking, match):
    backbone = small.backbone("multipath")
    breaking(backbone)
    with pytest.raises(AssertionError, match=match):
        check_backbone(backbone)


@torch.no_grad()
def test_results_have_to_be_independent_of_the_batch():
    backbone = small.backbone("multipath")
    head = backbone.head.forward
    backbone.head.forward = lambda features: head(features) + features.mean()
    stem, layers = backbone.stem, list(backbone.layers)

    def plain(images):
        features = stem(images)
        prev_sub_path = None
        for layer in layers:
            features = layer(features, backbone.full_path, prev_sub_path)
            prev_sub_path = backbone.full_path
        return backbone.head(features)

    backbone.plain = lambda: plain
    with pytest.raises(AssertionError, match="logits after layer 2 must not depend on the other"):
        check_backbone(backbone)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((torch.nn.ReLU(),), "`backbone` must be a `Backbone`, got ReLU"),
        ((small.backbone("vgg"), small.pixels(1)), "`images` must be at least 2, got 1"),
        ((small.backbone("vgg"), small.pixels(2, (3, 8, 8))), "`images` must be uint8 or float"),
    ],
)
def test_other_arguments_are_rejected(arguments, match):
    with pytest.raises(ValueError, match=match):
        check_backbone(*arguments)


def test_layers_of_offshelf_networks_are_named():
    backbone = rnr_gym.routable(offshelf.network("never seen"), offshelf.pixels(2))
    backbone.valid[1, -1] = False
    with pytest.raises(AssertionError, match=r"layer 1 \(`first.1`\) must offer the full path"):
        check_backbone(backbone)
