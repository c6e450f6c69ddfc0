"""Files: whole or not there at all, and bit for bit what was written."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from rnr_gym import storage

TENSORS = {
    "float": torch.tensor([[1.5, float("nan")], [-0.0, float("inf")]]),
    "half": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "bytes": torch.arange(250, 256).to(torch.uint8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).view(2, 3).t(),
}


def bits(tensor):
    """The bytes of a tensor: NaN differs from itself, and -0 equals 0."""
    return tensor.contiguous().view(-1).view(torch.uint8).tolist()


def test_tensors_and_metadata_load_bit_for_bit(tmp_path):
    file = tmp_path / "new folder" / "file.safetensors"
    metadata = {"list": [1, 2.5, None], "nested": {"name": "λ"}}
    storage.save_tensors(file, TENSORS, metadata)

    loaded, loaded_metadata = storage.load_tensors(file)
    assert loaded_metadata == metadata
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in loaded.items():
        expected = TENSORS[name]
        assert tensor.dtype == expected.dtype
        assert tensor.shape == expected.shape
        assert bits(tensor) == bits(expected)


def test_parameters_sharing_memory_can_be_saved(tmp_path):
    file = tmp_path / "file"
    weight = torch.nn.Parameter(torch.arange(4.0))
    storage.save_tensors(file, {"a": weight, "b": weight[:2]}, {})

    loaded, _ = storage.load_tensors(file)
    assert loaded["b"].tolist() == [0.0, 1.0]


def test_failed_write_keeps_the_old_file(tmp_path):
    file = tmp_path / "file.json"
    storage.save_json(file, {"old": True})
    with pytest.raises(TypeError):
        storage.save_json(file, {"new": object()})

    assert json.loads(file.read_text()) == {"old": True}
    assert os.listdir(tmp_path) == ["file.json"]


def test_file_appears_when_its_write_is_over(tmp_path):
    file = tmp_path / "file"
    with storage.replacing(file) as partial:
        partial.write_text("whole")
        assert partial.parent == tmp_path
        assert not file.exists()

    assert file.read_text() == "whole"
    assert os.listdir(tmp_path) == ["file"]


def test_load_of_missing_file_raises(tmp_path):
    message = r"`path` must name a safetensors file, got .*nothing', which does not exist"
    with pytest.raises(FileNotFoundError, match=message):
        storage.load_tensors(tmp_path / "nothing")


@pytest.mark.parametrize("kept", [0, 4, 40, -1], ids="first {} bytes".format)
def test_load_of_truncated_file_raises(tmp_path, kept):
    file = tmp_path / "file"
    storage.save_tensors(file, TENSORS, {})
    file.write_bytes(file.read_bytes()[:kept])
    message = r"`path` must be a whole safetensors file, got .*file', which is cut off or damaged"
    with pytest.raises(ValueError, match=message):
        storage.load_tensors(file)


def test_load_of_foreign_file_raises(tmp_path):
    file = tmp_path / "file"
    save_file({"a": torch.zeros(1)}, file)
    message = r"`path` must be a file written by rnr_gym, got .*file', which lacks its header"
    with pytest.raises(ValueError, match=message):
        storage.load_tensors(file)


def test_flattened_optimizer_state_can_be_nested():
    momentum = torch.ones(2)
    state = {
        "optimizer": {
            0: {"momentum": momentum, "step": 3},
            11: {"momentum": torch.zeros(1), "step": None},
        },
        "draws": torch.arange(3),
    }
    tensors, leaves = storage.flattened(state)
    assert json.loads(json.dumps(leaves)) == leaves

    nested = storage.nested(tensors, leaves)
    assert nested.keys() == state.keys()
    optimizer = nested["optimizer"]
    assert optimizer.keys() == {0, 11}
    assert optimizer[0]["momentum"] is momentum
    assert optimizer[0]["step"] == 3
    assert optimizer[11]["step"] is None


def test_digest_follows_names_and_values():
    a = torch.arange(4.0)
    b = torch.ones(2)
    digest = storage.digest({"a": a, "b": b})
    assert len(digest) == 12
    # The order of the tensors does not matter.
    assert storage.digest({"b": b.clone(), "a": a.clone()}) == digest
    assert storage.digest({"a": a, "c": b}) != digest
    assert storage.digest({"a": a + 1e-6, "b": b}) != digest
