"""Photographs with noise, blur, lost contrast and compression."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from rnr_gym import data
from rnr_gym.data import ImageSet
from rnr_gym.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from tests.fixtures import photos

BY_NAME = pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)


@pytest.fixture
def photographs():
    """Smooth random images, so that blur and compression lose little of them at first."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (200, 3, 4, 4)).astype(np.uint8)
    images = coarse.repeat(8, 2).repeat(8, 3)
    return ImageSet.of(images, np.arange(200) % 10)


@BY_NAME
def test_damage_grows_with_severity(corrupt, photographs):
    originals = torch.from_numpy(photographs.images[:20].copy())

    damage = []
    for severity in range(1, SEVERITIES + 1):
        generator = torch.Generator().manual_seed(0)
        changed = [corrupt(image, severity, generator) for image in originals]
        damage.append(float((torch.stack(changed).float() - originals.float()).square().mean()))

    assert damage == sorted(damage)
    assert damage[0] > 0.0


def test_images_keep_shape_labels_and_originals(photographs):
    changed = corrupted(photographs)

    assert changed.images.shape == photographs.images.shape
    assert changed.images.dtype == np.uint8
    assert_array_equal(changed.labels, photographs.labels)
    assert_array_equal(changed.original_id, photographs.original_id)


def test_every_image_is_changed_and_every_severity_occurs(photographs):
    changed = corrupted(photographs)

    assert (changed.images != photographs.images).any((1, 2, 3)).all()
    assert set(changed.severity.tolist()) == set(range(1, SEVERITIES + 1))


def test_corrupted_images_are_always_the_same(photographs):
    assert_array_equal(corrupted(photographs).images, corrupted(photographs).images)


def test_the_images_that_are_given_stay_as_they_are(photographs):
    before = photographs.images.copy()

    corrupted(photographs)

    assert_array_equal(photographs.images, before)


def test_nothing_but_test_is_corrupted(tmp_path):
    photos.write_folders(tmp_path / "cifar10", photos.parts())

    for split in ("train", "route"):
        clean = data.load("cifar10", split, str(tmp_path))
        assert_array_equal(
            data.load("cifar10-corrupted", split, str(tmp_path)).images, clean.images
        )
    clean = data.load("cifar10", "test", str(tmp_path))
    assert (data.load("cifar10-corrupted", "test", str(tmp_path)).severity > 0).all()
    assert (clean.severity == 0).all()
