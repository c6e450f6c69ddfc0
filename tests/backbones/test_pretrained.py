"""Backbones by name and from files."""

import pytest
import torch

from rnr_gym import checkpoints
from rnr_gym.backbones import pretrained
from tests import small


def same(one, other):
    return one.state_dict().keys() == other.state_dict().keys() and all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("kind", small.KINDS)
def test_a_saved_backbone_comes_back_whole(tmp_path, kind):
    ours = small.backbone(kind)
    pretrained.save(ours, tmp_path / "file", {"accuracy": 0.5})
    again = pretrained.load(tmp_path / "file")
    assert same(ours, again)
    assert again.config == ours.config
    assert not again.training
    assert checkpoints.load_tensors(tmp_path / "file")[1]["accuracy"] == 0.5
    path, batch = small.paths(ours.spec(), 6), small.pixels(6)
    assert torch.equal(small.travel(ours, batch, path).logits, small.travel(again, batch, path).logits)


def test_a_seed_gives_weights_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = (pretrained.from_config(small.config("multipath"), seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert same(first, again)
    assert not same(first, other)
    assert not first.training


def test_another_architecture_is_refused_and_the_difference_named(tmp_path):
    pretrained.save(small.backbone("multipath", "exits"), tmp_path / "file")
    with pytest.raises(ValueError, match=r"`weights` must be of this id's architecture.*exits: needs \[2\], has \[1, 2\]"):
        pretrained.load(tmp_path / "file", small.config("multipath", "one exit"))


def test_a_training_checkpoint_is_no_backbone(tmp_path):
    checkpoints.save_tensors(tmp_path / "file", {}, {"config": {}, "leaves": {}})
    with pytest.raises(ValueError, match="`weights` must be a backbone file"):
        pretrained.load(tmp_path / "file")


@pytest.mark.parametrize("name", pretrained.ARCHITECTURES)
def test_a_process_builds_a_named_backbone_once_and_freezes_it(name):
    backbone = pretrained.named(name, None)
    assert backbone is pretrained.named(name, None)
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.config == pretrained.from_config(pretrained.ARCHITECTURES[name].config).config


def test_the_same_backbone_is_shared_however_it_is_asked_for():
    assert pretrained.named("rnr-digits", None) is pretrained.named("rnr-digits", weights=None, seed=0, device="cpu")


@pytest.mark.parametrize("name", pretrained.ARCHITECTURES)
@pytest.mark.parametrize("stage", pretrained.STAGES)
def test_weights_that_are_not_shipped_are_refused_and_those_that_are_load(name, stage):
    if pretrained.bundled(name, stage).is_file():
        assert pretrained.named(name, stage).config == pretrained.from_config(pretrained.ARCHITECTURES[name].config).config
    else:
        with pytest.raises(ValueError, match=r"`weights` of .* are not shipped"):
            pretrained.named(name, stage)


@pytest.mark.parametrize("weights", ["best", "/no/such/file"])
def test_unknown_weights_are_refused(weights):
    with pytest.raises(ValueError, match="`weights` must be 'frozen'"):
        pretrained.named("rnr-digits", weights)


def test_an_unknown_backbone_is_refused():
    with pytest.raises(ValueError, match="`backbone` must be one of rnr-digits"):
        pretrained.named("resnet-50")


def test_a_file_can_stand_for_a_name(tmp_path):
    ours = small.backbone("vgg")
    pretrained.save(ours, tmp_path / "file")
    assert same(ours, pretrained.named(str(tmp_path / "file")))


def test_a_file_of_ones_own_can_give_the_weights_of_a_name(tmp_path):
    ours = small.shaken(pretrained.from_config(pretrained.ARCHITECTURES["rnr-digits"].config, seed=5), 5)
    pretrained.save(ours, tmp_path / "file")
    assert same(ours, pretrained.named("rnr-digits", str(tmp_path / "file")))
