"""The ids that route torchvision's networks, with random weights and a few pictures."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from numpy.testing import assert_allclose, assert_array_equal
from torchvision import models

import rnr_gym as rnr
from rnr_gym.backbones import zoo
from rnr_gym.data.streaming import StreamedImages
from rnr_gym.registration import IDS
from rnr_gym.routing import sources
from rnr_gym.routing.sources import open_images
from tests.fixtures import imagenet_files

RESIZE = {"RNR-ImageNet-v0": 232, "RNR-ImageNet-Channels-v0": 256}
"""The ids, and the shorter side before the crop, as their weights expect it."""
SMALL = {
    "kind": "torchvision",
    "model": "mobilenet_v3_small",
    "weights": "IMAGENET1K_V1",
}
"""A network of which tests can run more than a few steps."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with `imagenet/val`."""
    return imagenet_files.write(tmp_path_factory.mktemp("root"))


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """Torch's cache, without any weights, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for name in ("ResNet50_Weights", "VGG16_BN_Weights"):
        entry = getattr(models, name).DEFAULT
        file_name = entry.url.rsplit("/", 1)[1]
        # No server listens at this port.
        monkeypatch.setattr(entry.value, "url", f"http://127.0.0.1:1/{file_name}")


@pytest.fixture
def env_kwargs(root, monkeypatch):
    """The small network in place of ResNet-50."""
    architecture = zoo.Architecture(config=SMALL, dataset="imagenet", schedule={})
    monkeypatch.setitem(zoo.ARCHITECTURES, "small", architecture)
    return {"backbone": "small", "weights": None, "data_root": str(root)}


def test_every_downloaded_network_is_here():
    downloaded = [
        env_id
        for env_id, kwargs in IDS.items()
        if zoo.ARCHITECTURES[kwargs["backbone"]].is_downloaded
    ]
    assert downloaded == list(RESIZE)


@pytest.mark.parametrize("env_id", RESIZE)
def test_id_plays_an_episode_on_cropped_images(env_id, root):
    env = gym.make(env_id, weights=None, data_root=str(root))
    images = env.unwrapped.source.images
    assert isinstance(images.images, StreamedImages)
    assert images.images.crop.resize == RESIZE[env_id]
    assert len(images) == 1000

    obs, _ = env.reset(seed=0)
    terminated = False
    while not terminated:
        assert env.observation_space.contains(obs)
        # The cheapest sub-path.
        obs, _, terminated, _, info = env.step(0)
    assert 0.1 < info["compute"] < 0.3


def test_routers_are_fitted_without_a_table(env_kwargs):
    fit_config = rnr.FitConfig("RNR-ImageNet-Channels-v0", kwargs=env_kwargs)
    assert not fit_config.has_table("route")


def test_check_env_passes(env_kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("RNR-ImageNet-v0", **env_kwargs)
        check_env(env.unwrapped, skip_render_check=True)


def test_vector_environment_agrees_with_scalar(env_kwargs):
    envs = gym.make_vec("RNR-ImageNet-v0", num_envs=2, **env_kwargs)
    env = gym.make("RNR-ImageNet-v0", **env_kwargs)
    obs, infos = envs.reset(seed=5)
    single_obs, info = env.reset(seed=5)
    for action in (1, 3, 4):
        assert_allclose(obs[0], single_obs, rtol=1e-4, atol=1e-4)
        assert infos["index"][0] == info["index"]
        obs, _, _, _, infos = envs.step(np.array([action, 4]))
        single_obs, _, _, _, info = env.step(action)
        assert infos["macs"][0] == info["macs"]


def test_spec_survives_json(env_kwargs):
    env = gym.make("RNR-ImageNet-v0", **env_kwargs)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert_array_equal(env.reset(seed=1)[0], again.reset(seed=1)[0])


def test_evaluation_decodes_ahead(env_kwargs, monkeypatch):
    images = open_images("imagenet", **env_kwargs).take(np.arange(6))
    announced = []
    monkeypatch.setattr(StreamedImages, "prefetch", lambda _, idx: announced.append(len(idx)))
    source = sources.open_source(images, **env_kwargs)
    paths = np.full((6, source.spec.num_layers), source.spec.full_path)
    outcome = rnr.evaluate_paths(source, paths)
    assert (source.spec.compute(outcome.macs) == 1.0).all()
    assert announced


@pytest.mark.parametrize("env_id", RESIZE)
@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
@pytest.mark.parametrize("download", [True, False])
def test_missing_weights_are_an_error_before_decoding(
    env_id, make, download, root, empty_cache, monkeypatch
):
    monkeypatch.setattr(StreamedImages, "_decode", lambda *_: pytest.fail("it was decoded"))
    name = IDS[env_id]["backbone"]
    with pytest.raises(FileNotFoundError, match=f"`weights` of {name} must be the file '.*hub/che"):
        make(env_id, data_root=str(root), download=download)


def test_missing_images_are_noticed_before_weights(empty_cache, tmp_path):
    with pytest.raises(FileNotFoundError, match="`data_root` must hold imagenet/val"):
        gym.make("RNR-ImageNet-v0", data_root=str(tmp_path))


def test_crop_goes_with_photographs_only(root):
    images = open_images("imagenet", data_root=str(root), backbone="resnet50")
    assert images.images.crop.resize == 232
    assert open_images("imagenet", data_root=str(root)).images.crop.resize == 256
    assert open_images("digits", backbone="resnet50").images.shape[1:] == (1, 12, 12)
    with pytest.raises(ValueError, match="`crop` must be None for digits"):
        rnr.load_images("digits", "route", crop=images.images.crop)
