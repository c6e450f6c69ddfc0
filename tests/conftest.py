"""What every test shares: one thread a worker, a cache folder of its own, no screen."""

import os
from pathlib import Path

import pytest
import torch

from rnr_gym import data
from tests import small

os.environ["MPLBACKEND"] = "agg"


@pytest.fixture(scope="session", autouse=True)
def _quiet_machine(tmp_path_factory):
    """One torch thread here and in processes started from here; tables are cached in a folder that all workers share."""
    torch.set_num_threads(1)
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNR_GYM_CACHE", str(Path(shared) / "rnr_gym_cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def some_digits():
    """40 digits of all severities: small enough for route tables of the registered backbones."""
    digits = data.load("digits", "route")
    return digits.take(slice(0, len(digits), len(digits) // 40)).take(slice(0, 40))


@pytest.fixture(scope="session")
def images():
    """24 random images in 3 classes."""
    return small.images()


@pytest.fixture(scope="session")
def backbone():
    """A small multi-path network with glance and exits; shared, so leave it as it is."""
    return small.backbone("multipath")
