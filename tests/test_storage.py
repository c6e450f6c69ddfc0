"""Files: whole or not there at all, and bit for bit what was written."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from rnr_gym.storage import (
    digest,
    flattened,
    load_tensors,
    nested,
    replacing,
    save_json,
    save_tensors,
)

TENSORS = {
    "float": torch.tensor([[1.5, float("nan")], [-0.0, float("inf")]]),
    "half": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "bytes": torch.arange(250, 256).to(torch.uint8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "turned": torch.arange(6.0).view(2, 3).t(),
}


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).tolist()


def test_tensors_and_facts_come_back_bit_for_bit(tmp_path):
    facts = {"list": [1, 2.5, None], "nested": {"name": "λ"}}
    save_tensors(tmp_path / "new folder" / "file.safetensors", TENSORS, facts)
    tensors, found = load_tensors(tmp_path / "new folder" / "file.safetensors")
    assert found == facts
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert (tensor.dtype, tensor.shape, bits(tensor)) == (
            TENSORS[name].dtype,
            TENSORS[name].shape,
            bits(TENSORS[name]),
        )


def test_parameters_that_share_memory_can_be_saved(tmp_path):
    weight = torch.nn.Parameter(torch.arange(4.0))
    save_tensors(tmp_path / "file", {"a": weight, "b": weight[:2]}, {})
    assert load_tensors(tmp_path / "file")[0]["b"].tolist() == [0.0, 1.0]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file.json"
    save_json(path, {"old": True})
    with pytest.raises(TypeError):
        save_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": True}
    assert os.listdir(tmp_path) == ["file.json"]


def test_nothing_stands_under_the_name_before_the_write_is_over(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as partial:
        partial.write_text("whole")
        assert partial.parent == tmp_path
        assert not path.exists()
    assert path.read_text() == "whole"
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` must name a safetensors file"):
        load_tensors(tmp_path / "nothing")


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_truncated_file_is_a_value_error(tmp_path, kept):
    save_tensors(tmp_path / "file", TENSORS, {})
    whole = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(whole[:kept])
    with pytest.raises(ValueError, match="`path` must be a whole safetensors file"):
        load_tensors(tmp_path / "file")


def test_a_file_of_somebody_else_is_a_value_error(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "file")
    with pytest.raises(ValueError, match="`path` must be a file written by rnr_gym"):
        load_tensors(tmp_path / "file")


def test_an_optimiser_state_survives_flattening():
    tree = {
        "optimizer": {
            0: {"momentum": torch.ones(2), "step": 3},
            11: {"momentum": torch.zeros(1), "step": None},
        },
        "draws": torch.arange(3),
    }
    tensors, leaves = flattened(tree)
    assert json.loads(json.dumps(leaves)) == leaves
    again = nested(tensors, leaves)
    assert again.keys() == tree.keys()
    assert again["optimizer"].keys() == {0, 11}
    assert again["optimizer"][0]["momentum"] is tree["optimizer"][0]["momentum"]
    assert (again["optimizer"][0]["step"], again["optimizer"][11]["step"]) == (3, None)


def test_the_digest_changes_with_names_and_values_but_not_with_order():
    a, b = torch.arange(4.0), torch.ones(2)
    original = digest({"a": a, "b": b})
    assert len(original) == 12
    assert original == digest({"b": b.clone(), "a": a.clone()})
    assert original != digest({"a": a, "c": b})
    assert original != digest({"a": a + 1e-6, "b": b})
