"""Backbones written to a file and read from it, and the names of the bundled files."""

import pytest
import torch

from rnr_gym import storage
from rnr_gym.backbones import weights, zoo
from rnr_gym.data import SPLITS
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small

KINDS = pytest.mark.parametrize("kind", small.KINDS)


def rounded(kind="multipath"):
    """A small backbone with rounded weights."""
    backbone = small.backbone(kind)
    weights.round_weights(backbone)
    return backbone


@KINDS
def test_saved_backbone_loads_whole(tmp_path, kind):
    backbone = small.backbone(kind)
    file = tmp_path / "file"
    weights.save(backbone, file, {"accuracy": 0.5})

    loaded = zoo.load(file)
    assert small.same_weights(loaded, backbone)
    assert loaded.config == backbone.config
    assert not loaded.training
    _, metadata = storage.load_tensors(file)
    assert metadata["accuracy"] == 0.5

    paths = small.paths(RoutingSpec.of(backbone), 6)
    batch = small.pixels(6)
    expected = small.travel(backbone, batch, paths)
    assert torch.equal(small.travel(loaded, batch, paths).logits, expected.logits)


@KINDS
def test_rounded_weights_load_bit_for_bit(tmp_path, kind):
    backbone = rounded(kind)
    file = tmp_path / "file"
    weights.save(backbone, file)

    loaded = zoo.load(file)
    assert small.same_weights(loaded, backbone)
    state_dict = backbone.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == state_dict[name].dtype


@KINDS
def test_rounded_weights_are_stored_in_few_bits(tmp_path, kind):
    backbone = rounded(kind)
    file = tmp_path / "file"
    weights.save(backbone, file)

    stored, _ = storage.load_tensors(file)
    for name, parameter in backbone.named_parameters():
        dtype = torch.int8 if parameter.ndim == 4 else torch.float16
        assert stored[name].dtype == dtype

    # Measured, not rounded.
    assert stored["summary_std"].dtype == torch.float32
    counters = [name for name in stored if name.endswith("num_batches_tracked")]
    assert counters
    assert all(stored[name].dtype == torch.int64 for name in counters)


def test_rounding_twice_changes_nothing():
    twice = rounded()
    weights.round_weights(twice)
    assert small.same_weights(twice, rounded())


def test_rounding_errs_by_half_a_step_at_most():
    backbone = rounded()
    exact = small.backbone("multipath")
    for after, before in zip(backbone.parameters(), exact.parameters(), strict=True):
        if before.ndim == 4:
            step = before.abs().amax((1, 2, 3), keepdim=True) / 127.0
            # The step itself has half precision, hence not quite one half.
            assert ((after - before).abs() <= 0.51 * step).all()
        else:
            assert torch.equal(after, before.half().float())

    for after, before in zip(backbone.buffers(), exact.buffers(), strict=True):
        assert torch.equal(after, before)
    assert not small.same_weights(backbone, exact)


def test_rounding_and_saving_filters_of_zeros(tmp_path):
    backbone = small.backbone("multipath")
    with torch.no_grad():
        backbone.stem[0].weight.zero_()
    weights.round_weights(backbone)
    weights.save(backbone, tmp_path / "file")

    loaded = zoo.load(tmp_path / "file")
    assert (loaded.stem[0].weight == 0).all()


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
def test_half_precision_only_if_lossless(tmp_path, value, dtype):
    backbone = small.backbone("multipath")
    bias = backbone.head.linear.bias.data
    bias.copy_(torch.tensor([value, -0.0, 1.0]))
    file = tmp_path / "file"
    weights.save(backbone, file)

    stored, _ = storage.load_tensors(file)
    assert stored["head.linear.bias"].dtype == dtype
    # As integers, because NaN differs from itself and -0 equals 0.
    state_dict, _ = weights.read(file)
    loaded = state_dict["head.linear.bias"].float()
    assert torch.equal(loaded.view(torch.int32), bias.view(torch.int32))


def test_read_rejects_training_checkpoint(tmp_path):
    file = tmp_path / "file"
    storage.save_tensors(file, {}, {"config": {}, "leaves": {}})
    with pytest.raises(ValueError, match="`weights` must be a backbone file"):
        weights.read(file)
    with pytest.raises(ValueError, match="`weights` must be a backbone file"):
        zoo.load(file)


def test_bundled_files_have_distinct_names():
    files = [weights.backbone_file("tiny"), weights.router_file("tiny", "ppo")]
    files += [weights.table_file("tiny", split) for split in SPLITS]
    assert len(set(files)) == len(files)
    assert {file.parent for file in files} == {weights.WEIGHTS_DIR}
