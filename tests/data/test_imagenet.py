"""ImageNet: which image is in which split, and what is said where images are missing."""

import shutil

import numpy as np
import pytest
from PIL import Image
from torchvision.models import ResNet50_Weights

from rnr_gym import data
from rnr_gym.data import SPLITS, imagenet
from rnr_gym.data.streaming import Crop

CLASSES = 1000
EACH = {"train": 2, "val": 3}
"""Images of each class, by folder."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with all class folders; the red of an image is its rank in its class."""
    root = tmp_path_factory.mktemp("root")
    for part, each in EACH.items():
        for rank in range(each):
            Image.new("RGB", (3, 2), (rank, 0, 0)).save(root / "image.png")
            content = (root / "image.png").read_bytes()
            for wnid in imagenet.WNIDS:
                folder = root / "imagenet" / part / wnid
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{part}_{rank:08d}.PNG").write_bytes(content)
    return root


@pytest.fixture(scope="module")
def splits(root):
    """All splits, by name."""
    crop = Crop(size=2, resize=2)
    return {split: imagenet.load(split, str(root), crop=crop) for split in SPLITS}


def test_classes_are_those_of_torchvision():
    assert len(imagenet.WNIDS) == len(imagenet.CLASSES) == CLASSES
    assert list(imagenet.WNIDS) == sorted(set(imagenet.WNIDS))
    categories = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    # Versions of torchvision disagree about two names that others have, too.
    different = [
        pair for pair in zip(imagenet.CLASSES, categories, strict=True) if pair[0] != pair[1]
    ]
    assert len(different) <= 2
    assert data.dataset("imagenet").classes == imagenet.CLASSES


def test_splits_share_val_and_train_has_its_own(splits):
    assert {split: len(images) for split, images in splits.items()} == {
        "train": 2 * CLASSES,
        "route": 1500,
        "test": 1500,
    }
    numbers = np.concatenate([splits["route"].original_id, splits["test"].original_id])
    assert sorted(numbers) == list(range(3 * CLASSES))
    for images in splits.values():
        assert images.classes == imagenet.CLASSES
        assert not images.severity.any()


def test_split_follows_from_rank_and_class(splits):
    for parity, split in enumerate(("test", "route")):
        images = splits[split]
        rank = images.images[:][:, 0, 0, 0]
        assert set((rank + images.labels) % 2) == {parity}
        # By rank, then by class.
        order = rank.astype(int) * CLASSES + images.labels
        assert (np.diff(order) > 0).all()
        np.testing.assert_array_equal(order, images.original_id)


def test_one_image_of_each_class_serves_both_splits(root, tmp_path):
    shutil.copytree(root / "imagenet" / "val", tmp_path / "imagenet" / "val")
    for file in tmp_path.glob("imagenet/val/*/*"):
        if not file.stem.endswith("0"):
            file.unlink()
    for split, first in (("test", 0), ("route", 1)):
        images = imagenet.load(split, str(tmp_path))
        np.testing.assert_array_equal(images.labels, np.arange(first, CLASSES, 2))


def test_default_crop_is_that_of_torchvision(root):
    images = data.load("imagenet", "test", str(root))
    assert images.images.shape == (1500, 3, 224, 224)
    assert images is data.load("imagenet", "test", str(root), True)


def test_crop_can_be_given_as_a_plain_tuple(root):
    images = data.load("imagenet", "test", str(root), crop=(32, 40, "bicubic", 1))
    assert images.images.crop == Crop(32, 40, "bicubic", 1)
    assert images.images.shape == (1500, 1, 32, 32)
    preset = ResNet50_Weights.IMAGENET1K_V2.transforms()
    assert imagenet.crop_of(preset) == Crop(224, 232, "bilinear", 3)


@pytest.mark.parametrize(
    ("crop", "name"),
    [(224, "crop"), ((224, 256), "crop"), ((224, 100, "bilinear", 3), "resize")],
)
def test_bad_crop_is_named(root, crop, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        data.load("imagenet", "test", str(root), crop=crop)


@pytest.mark.parametrize("split", SPLITS)
def test_missing_folder_says_what_to_place_where(tmp_path, split):
    part = "train" if split == "train" else "val"
    with pytest.raises(FileNotFoundError) as error:
        imagenet.load(split, str(tmp_path))
    message = str(error.value)
    assert message.startswith(
        f"`data_root` must hold imagenet/{part}/<wnid>/*.JPEG for the split '{split}', "
        f"got '{tmp_path}'"
    )
    assert f"ILSVRC2012_img_{part}.tar" in message
    assert "torchvision.datasets.ImageNet" in message


def test_folders_of_other_classes_are_named(tmp_path):
    (tmp_path / "imagenet" / "val" / "tench").mkdir(parents=True)
    message = r"`data_root` must have the 1000 class folders.*missing: n01440764.*unknown: tench"
    with pytest.raises(ValueError, match=message):
        imagenet.load("test", str(tmp_path))


def test_real_photographs_are_those_of_torchvision(real_imagenet):
    images = data.load("imagenet", "test", str(real_imagenet))
    preset = ResNet50_Weights.IMAGENET1K_V1.transforms()
    mean = np.array(preset.mean, np.float32)[:, None, None]
    std = np.array(preset.std, np.float32)[:, None, None]
    idx = np.arange(0, len(images), len(images) // 10)
    for position, pixels in zip(idx, images.images[idx], strict=True):
        file = images.images.folder / images.images.files[position]
        expected = preset(Image.open(file).convert("RGB")).numpy()
        normalised = (pixels.astype(np.float32) / 255 - mean) / std
        np.testing.assert_allclose(normalised, expected, atol=1e-5)
