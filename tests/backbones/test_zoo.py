"""Backbones by name and from files."""

import re

import pytest
import torch

from rnr_gym import storage
from rnr_gym.backbones import zoo
from rnr_gym.registration import IDS
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small


def same(one, other):
    return one.state_dict().keys() == other.state_dict().keys() and all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("kind", small.KINDS)
def test_a_saved_backbone_comes_back_whole(tmp_path, kind):
    ours = small.backbone(kind)
    zoo.save(ours, tmp_path / "file", {"accuracy": 0.5})
    again = zoo.load(tmp_path / "file")
    assert same(ours, again)
    assert again.config == ours.config
    assert not again.training
    assert storage.load_tensors(tmp_path / "file")[1]["accuracy"] == 0.5
    path, batch = small.paths(RoutingSpec.of(ours), 6), small.pixels(6)
    assert torch.equal(
        small.travel(ours, batch, path).logits, small.travel(again, batch, path).logits
    )


@pytest.mark.parametrize("kind", small.KINDS)
def test_rounded_weights_load_bit_for_bit(tmp_path, kind):
    original = small.backbone(kind)
    zoo.round_weights(original)
    zoo.save(original, tmp_path / "file")
    stored, _ = storage.load_tensors(tmp_path / "file")
    loaded = zoo.load(tmp_path / "file")

    assert same(original, loaded)
    for name, parameter in original.named_parameters():
        assert stored[name].dtype == (torch.int8 if parameter.ndim == 4 else torch.float16)
    assert stored["summary_std"].dtype == torch.float32  # measured, not rounded
    counters = [name for name in stored if name.endswith("num_batches_tracked")]
    assert counters
    assert all(stored[name].dtype == torch.int64 for name in counters)
    for name, tensor in loaded.state_dict().items():
        assert original.state_dict()[name].dtype == tensor.dtype


def test_rounding_twice_changes_nothing():
    once, twice = small.backbone("multipath"), small.backbone("multipath")
    zoo.round_weights(once)
    zoo.round_weights(twice)
    zoo.round_weights(twice)
    assert same(once, twice)


def test_rounding_errs_by_half_a_step_at_most():
    rounded, exact = small.backbone("multipath"), small.backbone("multipath")
    zoo.round_weights(rounded)
    for after, before in zip(rounded.parameters(), exact.parameters(), strict=True):
        if before.ndim == 4:
            step = before.abs().amax((1, 2, 3), keepdim=True) / 127.0
            assert ((after - before).abs() <= 0.51 * step).all()
        else:
            assert torch.equal(after, before.half().float())
    assert all(
        torch.equal(one, other)
        for one, other in zip(rounded.buffers(), exact.buffers(), strict=True)
    )
    assert not same(rounded, exact)


def test_filters_of_zeros_can_be_rounded_and_stored(tmp_path):
    original = small.backbone("multipath")
    with torch.no_grad():
        original.stem[0].weight.zero_()
    zoo.round_weights(original)
    zoo.save(original, tmp_path / "file")
    assert (zoo.load(tmp_path / "file").stem[0].weight == 0).all()


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.5, torch.float16),
        (65504.0, torch.float16),
        (2.0**-24, torch.float16),
        (float("inf"), torch.float16),
        (1 / 3, torch.float32),
        (65536.0, torch.float32),
        (2.0**-25, torch.float32),
        (float("nan"), torch.float32),
    ],
    ids=str,
)
def test_a_tensor_is_stored_in_half_precision_only_if_that_loses_nothing(tmp_path, value, dtype):
    ours = small.backbone("multipath")
    bias = ours.head.linear.bias.data
    bias.copy_(torch.tensor([value, -0.0, 1.0]))
    zoo.save(ours, tmp_path / "file")
    assert storage.load_tensors(tmp_path / "file")[0]["head.linear.bias"].dtype == dtype
    found = zoo.load(tmp_path / "file").head.linear.bias.data
    assert torch.equal(found.view(torch.int32), bias.view(torch.int32))


def test_a_seed_gives_weights_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = (zoo.from_config(small.config("multipath"), seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert same(first, again)
    assert not same(first, other)
    assert not first.training


def test_another_architecture_is_refused_and_the_difference_named(tmp_path):
    zoo.save(small.backbone("multipath", "exits"), tmp_path / "file")
    with pytest.raises(
        ValueError,
        match=r"`weights` must be of this id's architecture.*exits: needs \[2\], has \[1, 2\]",
    ):
        zoo.load(tmp_path / "file", small.config("multipath", "one exit"))


def test_a_training_checkpoint_is_no_backbone(tmp_path):
    storage.save_tensors(tmp_path / "file", {}, {"config": {}, "leaves": {}})
    with pytest.raises(ValueError, match="`weights` must be a backbone file"):
        zoo.load(tmp_path / "file")


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_a_process_builds_a_named_backbone_once_and_freezes_it(name):
    backbone = zoo.named(name, None)
    assert backbone is zoo.named(name, None)
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.config == zoo.from_config(zoo.ARCHITECTURES[name].config).config


def test_the_same_backbone_is_shared_however_it_is_asked_for():
    assert zoo.named("rnr-digits", None) is zoo.named(
        "rnr-digits", weights=None, seed=0, device="cpu"
    )


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        (name, stage)
        for name in zoo.ARCHITECTURES
        for stage in zoo.STAGES
        if zoo.bundled(name, stage).is_file()
    ],
)
def test_weights_that_are_shipped_load(name, stage):
    assert zoo.named(name, stage).config == zoo.from_config(zoo.ARCHITECTURES[name].config).config


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
@pytest.mark.parametrize("stage", zoo.STAGES)
def test_weights_that_are_not_shipped_are_refused_with_the_command_that_trains_them(
    name, stage, tmp_path, monkeypatch
):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    with pytest.raises(
        ValueError, match=f"`weights` of {name} are not shipped, got {stage!r}"
    ) as refused:
        zoo.named(name, stage, seed=99)  # a seed of its own, since what was loaded before is shared
    (env,) = re.findall(
        r"`rnr-gym pretrain (\S+) --out FILE` trains them: pass FILE, or None for random ones$",
        str(refused.value),
    )
    assert IDS[env]["backbone"] == name


def test_unshipped_weights_of_cifar100_name_its_own_command(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="`rnr-gym pretrain RNR-CIFAR100-v0 --out FILE`"):
        zoo.named("rnr-cifar100", seed=99)


@pytest.mark.parametrize("weights", ["best", "/no/such/file"])
def test_unknown_weights_are_refused(weights):
    with pytest.raises(ValueError, match="`weights` must be 'frozen'"):
        zoo.named("rnr-digits", weights)


def test_an_unknown_backbone_is_refused():
    with pytest.raises(ValueError, match="`backbone` must be one of rnr-digits"):
        zoo.named("resnet-50")


def test_a_file_can_stand_for_a_name(tmp_path):
    ours = small.backbone("vgg")
    zoo.save(ours, tmp_path / "file")
    assert same(ours, zoo.named(str(tmp_path / "file")))


def test_a_file_of_ones_own_can_give_the_weights_of_a_name(tmp_path):
    ours = small.shaken(zoo.from_config(zoo.ARCHITECTURES["rnr-digits"].config, seed=5), 5)
    zoo.save(ours, tmp_path / "file")
    assert same(ours, zoo.named("rnr-digits", str(tmp_path / "file")))
