"""Backbones by name and from files."""

import re

import pytest
import torch

from rnr_gym import storage
from rnr_gym.backbones import weights, zoo
from rnr_gym.registration import IDS
from tests.fixtures import small
from tests.fixtures.registered import LIGHT_BACKBONES

NAMES = pytest.mark.parametrize("name", LIGHT_BACKBONES)
BUNDLED = [
    (name, kind)
    for name in zoo.ARCHITECTURES
    for kind in weights.BUNDLED
    if weights.backbone_file(name, kind).is_file()
]


def config_of(name):
    """The config of a named architecture, with the defaults that it leaves out."""
    return zoo.from_config(zoo.ARCHITECTURES[name].config).config


def test_from_config_is_seeded():
    config = small.config("multipath")
    generator_state = torch.random.get_rng_state()
    first = zoo.from_config(config, seed=1)
    again = zoo.from_config(config, seed=1)
    other = zoo.from_config(config, seed=2)

    assert torch.equal(torch.random.get_rng_state(), generator_state)
    assert small.same_weights(first, again)
    assert not small.same_weights(first, other)
    assert not first.training


def test_load_names_how_architecture_differs(tmp_path):
    file = tmp_path / "file"
    weights.save(small.backbone("multipath", "exits"), file)
    message = (
        "`weights` must have the architecture of the named backbone, "
        rf"got {re.escape(repr(str(file)))}, .*exits: needs \[2\], has \[1, 2\]"
    )
    with pytest.raises(ValueError, match=message):
        zoo.load(file, small.config("multipath", "one exit"))


@NAMES
def test_named_backbone_is_built_once_and_frozen(name):
    backbone = zoo.named(name, None)
    assert backbone is zoo.named(name, None)
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.config == config_of(name)


def test_named_backbone_is_shared_by_equal_calls():
    by_position = zoo.named("rnr-digits", None)
    by_keyword = zoo.named("rnr-digits", weights=None, seed=0, device="cpu")
    assert by_position is by_keyword


@pytest.mark.parametrize(("name", "kind"), BUNDLED)
def test_bundled_weights_load(name, kind):
    assert zoo.named(name, kind).config == config_of(name)


def test_what_is_finetuned_is_pretrained_too():
    finetuned = {name for name, kind in BUNDLED if kind == "finetuned"}
    assert finetuned <= {name for name, kind in BUNDLED if kind == "pretrained"}


@NAMES
def test_unbundled_weights_name_training_command(name, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "WEIGHTS_DIR", tmp_path)
    message = re.escape(
        f"`weights` of {name} are not bundled, got 'pretrained'; "
        "`rnr-gym pretrain ENV --out FILE` trains them: pass FILE, or None for random ones"
    )
    # An unusual seed, because what was loaded before is shared.
    with pytest.raises(ValueError, match=f"{message}$"):
        zoo.named(name, "pretrained", seed=99)


def test_unbundled_finetuned_weights_name_the_command_too(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "WEIGHTS_DIR", tmp_path)
    with pytest.raises(ValueError, match=r"'finetuned'; `rnr-gym finetune RUN --out DIR` trains"):
        zoo.named("rnr-digits", "finetuned", seed=99)


def test_finetuned_weights_are_other_ones_of_the_same_architecture(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "WEIGHTS_DIR", tmp_path)
    other = zoo.from_config(config_of("rnr-digits"), seed=5)
    weights.save(other, weights.backbone_file("rnr-digits", "finetuned"))
    loaded = zoo.named("rnr-digits", "finetuned", seed=98)
    assert small.same_weights(loaded, other)


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_architecture_has_env_id_to_pretrain(name):
    # What the command in that message takes: an id that routes this backbone.
    backbones = [kwargs["backbone"] for kwargs in IDS.values()]
    assert name in backbones


@pytest.mark.parametrize("unknown", ["best", "/no/such/file"])
def test_unknown_weights_raise(unknown):
    message = f"`weights` must be 'pretrained', 'finetuned', a file, or None .*, got {unknown!r}"
    with pytest.raises(ValueError, match=message):
        zoo.named("rnr-digits", unknown)


@pytest.mark.parametrize("other", ["finetuned", "/no/such/file"])
def test_downloaded_networks_take_no_other_weights(other):
    message = f"`weights` of resnet50 must be 'pretrained', which are torch.*, got {other!r}"
    with pytest.raises(ValueError, match=message):
        zoo.named("resnet50", other)


def test_file_cannot_declare_network_of_torchvision(tmp_path):
    backbone = small.backbone("vgg")
    metadata = {"config": zoo.ARCHITECTURES["resnet50"].config}
    storage.save_tensors(tmp_path / "file", dict(backbone.state_dict()), metadata)
    with pytest.raises(ValueError, match="`kind` must be one of multipath, channels"):
        zoo.load(tmp_path / "file")


def test_unknown_backbone_raises():
    message = "`backbone` must be one of rnr-digits, .*, got 'resnet-50'"
    with pytest.raises(ValueError, match=message):
        zoo.named("resnet-50")


def test_file_can_stand_for_backbone_name(tmp_path):
    backbone = small.backbone("vgg")
    weights.save(backbone, tmp_path / "file")
    loaded = zoo.named(str(tmp_path / "file"))
    assert small.same_weights(loaded, backbone)


def test_file_can_give_weights_of_named_backbone(tmp_path):
    untrained = zoo.from_config(zoo.ARCHITECTURES["rnr-digits"].config, seed=5)
    backbone = small.shaken(untrained, seed=5)
    weights.save(backbone, tmp_path / "file")
    loaded = zoo.named("rnr-digits", str(tmp_path / "file"))
    assert small.same_weights(loaded, backbone)
