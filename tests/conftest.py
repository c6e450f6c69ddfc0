"""What all tests share: one thread per worker, cache and image folders of their own, no screen."""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from rnr_gym import data
from rnr_gym.agents import RECIPES
from rnr_gym.data import cifar
from rnr_gym.registration import IDS
from tests.fixtures import photos, small
from tests.fixtures.browser import chromium

os.environ["MPLBACKEND"] = "agg"
# Tables are as wide as the terminal of whoever runs the tests.
os.environ["COLUMNS"] = "80"
REAL_DATA = os.environ.get("RNR_GYM_DATA")
"""The images of whoever runs the tests."""


LONGEST = ("test_notebooks.py", "test_cli_compare.py", "test_crashes.py")


def pytest_collection_modifyitems(items):
    """The longest tests first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def _quiet_machine(tmp_path_factory):
    """One torch thread here and in child processes; a cache for tables that all workers share.

    Images are looked for in a folder that is not there until `small_cifar` fills it.
    """
    torch.set_num_threads(1)
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNR_GYM_CACHE", str(Path(shared) / "rnr_gym_cache"))
        patch.setenv("RNR_GYM_DATA", str(root / "images"))
        patch.setenv("OMP_NUM_THREADS", "1")
        # Runs in tests are too short to depart from the full path, so they start from even odds.
        for name, recipe in RECIPES.items():
            patch.setitem(RECIPES, name, replace(recipe, full_path_bias=0.0))
        yield


@pytest.fixture(scope="session")
def small_cifar(_quiet_machine):
    """A folder in which every id that routes CIFAR finds a few pictures of each class."""
    root = Path(os.environ["RNR_GYM_DATA"])
    for name, classes in (("cifar10", cifar.TEN), ("cifar100", cifar.HUNDRED)):
        photos.write_folders(
            root / name, photos.parts(len(classes), {"train": 10, "test": 1}), classes
        )
    return root


@pytest.fixture(scope="session")
def real_data():
    """The folder with the whole of CIFAR-10."""
    if REAL_DATA is None or not any(
        (Path(REAL_DATA) / name).is_dir() for name in ("cifar10", "cifar-10-batches-py")
    ):
        pytest.skip("RNR_GYM_DATA names no folder with cifar10 or cifar-10-batches-py")
    return Path(REAL_DATA)


@pytest.fixture(scope="session")
def real_imagenet():
    """The folder with images of ImageNet's 1,000 classes in `imagenet/val`."""
    if REAL_DATA is None or not (Path(REAL_DATA) / "imagenet" / "val").is_dir():
        pytest.skip("RNR_GYM_DATA names no folder with imagenet/val")
    return Path(REAL_DATA)


@pytest.fixture(scope="session")
def some_digits():
    """40 digits of all severities: small enough for route tables of the registered backbones."""
    digits = data.load("digits", "route")
    return digits.take(slice(0, len(digits), len(digits) // 40)).take(slice(0, 40))


@pytest.fixture(scope="session")
def few_images(some_digits, small_cifar):
    """For each registered id some images that it can route; the larger its network, the fewer."""

    @cache
    def of(name):
        dataset = IDS[name]["dataset"]
        return some_digits if dataset == "digits" else data.load(dataset, "route").take(slice(0, 8))

    return of


@pytest.fixture(scope="session")
def images():
    """24 random images in 3 classes."""
    return small.images()


@pytest.fixture(scope="session")
def backbone():
    """A small multi-path network with glance and exits; shared, so leave it as it is."""
    return small.backbone("multipath")


@pytest.fixture(scope="session")
def browser(_quiet_machine):
    """A headless Chromium."""
    with chromium() as installed:
        yield installed
