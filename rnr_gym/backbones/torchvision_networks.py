"""torchvision's networks for ImageNet by name, made routable; weights are downloaded on request."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rnr_gym import claims
from rnr_gym.backbones.offshelf import Routable, routable
from rnr_gym.data.imagenet import crop_of
from rnr_gym.data.streaming import Crop

KIND = "torchvision"
"""`kind` in the config of these networks; the other entries are arguments of `build`."""
EXAMPLES = 16
"""Pictures by which channels are ordered, and the others predicted; more would take longer."""
RANDOM_EXAMPLES = 2
"""The same for random weights, whose channels have no order of importance to be found."""
SMALLEST = 0.35
"""Of the squares that are cut out of photographs, as a share of the height."""


def build(model: str, weights: str) -> Routable:
    """The network with torchvision's random initial weights, from the global generator.

    Args:
        model: torchvision's name of it.
        weights: the name of the weights that it is meant for, whose preprocessing it has.
    """
    # torchvision's networks take a second to import.
    from torchvision import models

    network = models.get_model(model, weights=None)
    return _routable(network, model, weights, RANDOM_EXAMPLES)


def pretrained(model: str, weights: str) -> Routable:
    """The network with those weights of torchvision's, from the file that `fetch` left.

    Raises `ValueError` if that is another file.
    """
    from torchvision import models

    file = weights_file(model, weights)
    _check_content(file, model, _weights(model, weights).url)
    # Tensors only: a file that was put there by hand must not run code.
    network = models.get_model(model, weights=None)
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return _routable(network, model, weights, EXAMPLES)


def fetch(model: str, weights: str, download: bool = True) -> Path:
    """The file of those weights, downloaded into torch's cache if it is not there.

    Raises `FileNotFoundError`, which says what to put where, if it is not there and cannot, or may
    not, be downloaded.
    """
    file = weights_file(model, weights)
    if file.is_file():
        return file
    url = _weights(model, weights).url
    if not download:
        raise _not_found(model, file, url, "`download` is False")

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Of several processes that start at once, one fetches and the others wait.
        with claims.claimed(file, wait=True):
            if not file.is_file():
                print(f"fetching {url} into {file.parent}", file=sys.stderr)
                torch.hub.download_url_to_file(url, str(file), _expected_hash(url))
    # A `RuntimeError` is a checksum that does not fit.
    except (OSError, RuntimeError, HTTPException) as error:
        # On one line, and never empty: some exceptions have no message.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _not_found(model, file, url, f"downloading it failed: {reason}") from error
    return file


def weights_file(model: str, weights: str) -> Path:
    """Where torch keeps that file, whether or not it is there."""
    name = _weights(model, weights).url.rsplit("/", 1)[1]
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def crop(model: str, weights: str) -> Crop:
    """What those weights expect to be made of each image."""
    return crop_of(_weights(model, weights).transforms())


def _weights(model: str, weights: str) -> Any:
    """torchvision's entry: `url`, `transforms` and `meta`."""
    from torchvision import models

    return models.get_model_weights(model)[weights]


def _expected_hash(url: str) -> str:
    """The first digits of the file's SHA-256, which are in its name."""
    found = torch.hub.HASH_REGEX.search(url)
    assert found is not None
    return str(found[1])


def _check_content(file: Path, model: str, url: str) -> None:
    """Raise `ValueError` unless the file has the checksum that its name says."""
    expected = _expected_hash(url)
    with file.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    if not actual.startswith(expected):
        raise ValueError(
            f"`weights` of {model} must be the file of {url}, whose SHA-256 begins with "
            f"{expected}, got {str(file)!r} with {actual[: len(expected)]}; remove it"
        )


def _not_found(model: str, file: Path, url: str, problem: str) -> FileNotFoundError:
    """An error that says where the file was looked for, and what to do."""
    return FileNotFoundError(
        f"`weights` of {model} must be the file {str(file)!r}, which is not there ({problem}). "
        f"Where there is a network, download {url}, and put it there; or set TORCH_HOME to a "
        "folder that has it in hub/checkpoints. `weights=None` gives random ones"
    )


def _routable(network: torch.nn.Module, model: str, weights: str, count: int) -> Routable:
    """The network made routable by `count` pictures, the same ones always."""
    transforms = _weights(model, weights).transforms()
    example = pictures(count, crop_of(transforms).size)
    with _one_thread():
        backbone = routable(network, example, transforms=transforms)
        _measure_summaries(backbone, example)
    # By this it can be built again, which ordinary networks cannot.
    backbone.config = {"kind": KIND, "model": model, "weights": weights}
    return backbone


@contextmanager
def _one_thread() -> Iterator[None]:
    """Take every sum in one order, so that all processes make the same network."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _measure_summaries(backbone: Routable, images: Tensor) -> None:
    """Store mean and standard deviation of pooled features on the full path."""
    features = backbone.stem(backbone.prepare(images))
    for layer_idx, layer in enumerate(backbone.layers):
        pooled = backbone.pool(features)  # (N, C)
        width = pooled.shape[1]
        std = pooled.std(0)
        backbone.summary_mean[layer_idx, :width] = pooled.mean(0)
        # A channel that is always zero stays zero.
        backbone.summary_std[layer_idx, :width] = torch.where(std > 1e-6, std, 1.0)
        features = layer(features, backbone.full_path)


def pictures(count: int, size: int) -> Tensor:
    """Photographs to order channels by, uint8 `(count, 3, size, size)`, the same ones for everyone.

    Seeded squares of scikit-learn's two sample photographs, a temple and a flower, at several
    scales, half of them mirrored. Whoever has images of ImageNet need not have the same ones, and
    the network must not depend on them.
    """
    # As for the digits: scikit-learn takes a second to import.
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(0)
    squares = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        width, height = photograph.size
        side = rng.uniform(SMALLEST, 1.0) * height
        left = rng.uniform(0.0, width - side)
        top = rng.uniform(0.0, height - side)
        box = (left, top, left + side, top + side)
        square = photograph.resize((size, size), Image.Resampling.BILINEAR, box)
        if rng.uniform() < 0.5:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        squares.append(np.asarray(square).transpose(2, 0, 1))  # (H, W, C) -> (C, H, W)
    return torch.from_numpy(np.stack(squares))
