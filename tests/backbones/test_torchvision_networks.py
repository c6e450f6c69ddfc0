"""torchvision's networks by name: which weights, from where, and what is said without them."""

import hashlib
import os
import pickle

import numpy as np
import pytest
import torch
from torchvision import models

from rnr_gym import storage
from rnr_gym.backbones import torchvision_networks, zoo
from tests.fixtures import small

MODEL = "mobilenet_v3_small"
WEIGHTS = "IMAGENET1K_V1"
ENTRY = models.MobileNet_V3_Small_Weights.IMAGENET1K_V1


@pytest.fixture(scope="module")
def network():
    """A small network with random weights, in place of those that cannot be downloaded here."""
    torch.manual_seed(0)
    return models.get_model(MODEL, weights=None).eval().requires_grad_(False)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """A function that offers an object as the file of the weights; torch's cache is empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def offer(content, digest=None):
        file = tmp_path / "content"
        torch.save(content, file)
        digest = digest or hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        named = file.rename(tmp_path / f"{MODEL}-{digest}.pth")
        monkeypatch.setattr(ENTRY.value, "url", named.as_uri())
        return named

    return offer


def test_pinned_weights_are_the_default_of_torchvision():
    for name in ("resnet50", "vgg16_bn"):
        config = zoo.ARCHITECTURES[name].config
        assert config["model"] == name
        assert models.get_model_weights(name).DEFAULT.name == config["weights"]
    assert zoo.ARCHITECTURES["resnet50"].crop == (224, 232, "bilinear", 3)
    assert zoo.ARCHITECTURES["vgg16_bn"].crop == (224, 256, "bilinear", 3)
    assert zoo.ARCHITECTURES["rnr-digits"].crop is None


def test_downloaded_network_answers_as_torchvision_does(serve, network):
    served = serve(network.state_dict())
    file = torchvision_networks.fetch(MODEL, WEIGHTS)
    assert file == torchvision_networks.weights_file(MODEL, WEIGHTS)
    served.unlink()
    # From now on it is in the cache.
    assert torchvision_networks.fetch(MODEL, WEIGHTS, download=False) == file

    backbone = torchvision_networks.pretrained(MODEL, WEIGHTS)
    images = small.pixels(2, (3, 224, 224))
    transforms = ENTRY.transforms()
    mean = torch.tensor(transforms.mean)[:, None, None]
    std = torch.tensor(transforms.std)[:, None, None]
    logits = small.travel_full_path(backbone, images).logits
    torch.testing.assert_close(logits, network((images / 255 - mean) / std))
    assert backbone.config == {"kind": "torchvision", "model": MODEL, "weights": WEIGHTS}
    # Summaries are scaled, so that observations do not leave their bounds.
    assert backbone.summary_mean.any(1).all()


def test_missing_weights_say_what_to_put_where(serve, network):
    serve(network.state_dict()).unlink()
    for download, problem in ((False, "`download` is False"), (True, "downloading it failed: ")):
        with pytest.raises(FileNotFoundError) as error:
            torchvision_networks.fetch(MODEL, WEIGHTS, download)
        message = str(error.value)
        assert message.startswith(f"`weights` of {MODEL} must be the file '")
        assert problem in message
        assert f"download {ENTRY.url}" in message
        assert "TORCH_HOME" in message
        assert "\n" not in message


def test_damaged_download_leaves_nothing(serve, network):
    serve(network.state_dict(), digest="01234567")
    with pytest.raises(FileNotFoundError, match=r'invalid hash value \(expected "01234567"'):
        torchvision_networks.fetch(MODEL, WEIGHTS)
    assert not os.listdir(torchvision_networks.weights_file(MODEL, WEIGHTS).parent)


def test_other_file_in_the_cache_is_refused(serve, network):
    serve(network.state_dict())
    file = torchvision_networks.weights_file(MODEL, WEIGHTS)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"other")
    with pytest.raises(ValueError, match=f"`weights` of {MODEL} must .* SHA-256 begins .*remove"):
        torchvision_networks.pretrained(MODEL, WEIGHTS)


class Harmful:
    """An object that runs code when it is unpickled."""

    def __reduce__(self):
        return os.system, ("true",)


def test_weights_file_runs_no_code(serve):
    serve({"weight": Harmful()})
    torchvision_networks.fetch(MODEL, WEIGHTS)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torchvision_networks.pretrained(MODEL, WEIGHTS)


def test_network_is_the_same_in_every_process():
    config = {"kind": "torchvision", "model": MODEL, "weights": WEIGHTS}
    digests = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        digests.append(storage.digest(zoo.from_config(config, seed=3).state_dict()))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert digests[0] == digests[1]
    assert digests[0] != storage.digest(zoo.from_config(config, seed=4).state_dict())


def test_pictures_are_photographs_and_always_the_same():
    pictures = torchvision_networks.pictures(4, 64)
    assert pictures.shape == (4, 3, 64, 64)
    assert pictures.dtype == torch.uint8
    assert torch.equal(pictures, torchvision_networks.pictures(4, 64))
    assert len({picture.numpy().tobytes() for picture in pictures}) == 4
    # Neighbours are alike, which they are not in noise.
    steps = np.abs(np.diff(pictures.numpy().astype(float))).mean()
    assert steps < 0.5 * pictures.float().std()
