"""Labelled images by data set and split, opened once per process and shared read-only.

May import `storage`, `claims`, `checks` and `progress` only: data sets know neither networks nor
environments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

from torch import Generator, Tensor

from rnr_gym import checks
from rnr_gym.data import augmentation, cifar, digits, imagenet
from rnr_gym.data.folders import load_folder
from rnr_gym.data.images import SPLITS, ImageSet
from rnr_gym.data.streaming import Crop

__all__ = [
    "DATASETS",
    "SPLITS",
    "Dataset",
    "ImageSet",
    "check_split",
    "dataset",
    "load",
    "load_folder",
]


class Dataset(NamedTuple):
    """How a data set is read, and how its training images are augmented.

    Attributes:
        load: from split, data root and whether to download, to images; with a `Crop` as well, if
            the data set is cropped.
        augment: uint8 `(N, C, H, W)` to the same, varied at random.
        mirrored: whether mirroring an image keeps its label.
        classes: class names, by label.
        is_cropped: whether its images have many sizes, so that a network's crop is made of them.
    """

    load: Callable[..., ImageSet]
    augment: Callable[[Tensor, Generator], Tensor]
    mirrored: bool
    classes: tuple[str, ...]
    is_cropped: bool = False


def _load_corrupted(split: str, data_root: str | None, download: bool) -> ImageSet:
    """CIFAR-10, with corrupted images in `test` alone: a shift is what nothing was fitted to."""
    images = cifar.load(cifar.CIFAR10, split, data_root, download)
    if split != "test":
        return images

    # torchvision's transforms take seconds to import.
    from rnr_gym.data.corruptions import corrupted

    return corrupted(images)


DATASETS = {
    "digits": Dataset(
        load=digits.load,
        augment=digits.augment,
        # A mirrored 3 is not a digit.
        mirrored=False,
        classes=digits.CLASSES,
    ),
    "cifar10": Dataset(
        load=partial(cifar.load, cifar.CIFAR10),
        augment=augmentation.photographs,
        mirrored=True,
        classes=cifar.CIFAR10.classes,
    ),
    "cifar10-corrupted": Dataset(
        load=_load_corrupted,
        augment=augmentation.photographs,
        mirrored=True,
        classes=cifar.CIFAR10.classes,
    ),
    "cifar100": Dataset(
        load=partial(cifar.load, cifar.CIFAR100),
        augment=augmentation.photographs,
        mirrored=True,
        classes=cifar.CIFAR100.classes,
    ),
    "imagenet": Dataset(
        load=imagenet.load,
        augment=augmentation.photographs,
        mirrored=True,
        classes=imagenet.CLASSES,
        is_cropped=True,
    ),
}


def dataset(name: str) -> Dataset:
    """The data set of that name.

    Raises `ValueError`, with a list of the names, if there is none.
    """
    return DATASETS[checks.choice("dataset", name, DATASETS)]


def check_split(split: str) -> None:
    """Raise `ValueError` for an unknown split."""
    checks.choice("split", split, SPLITS)


def load(
    name: str,
    split: str,
    data_root: str | None = None,
    download: bool = True,
    crop: Crop | None = None,
) -> ImageSet:
    """A split of a data set; the same arguments give the same object within a process.

    Args:
        name: a key of `DATASETS`.
        split: one of `SPLITS`.
        data_root: the folder that holds image sets; None for `RNR_GYM_DATA`, else the cache.
        download: whether files that are not there may be fetched.
        crop: what is made of each image of ImageNet, as `Crop` has it: `(size, resize,
            interpolation, channels)`; None for `(224, 256, "bilinear", 3)`.

    Raises `ValueError` for an unknown name or split, or a crop that is none or of another data set,
    and what the data set raises.
    """
    check_split(split)
    if data_root is not None:
        data_root = checks.path("data_root", data_root)
    if crop is not None:
        if not dataset(name).is_cropped:
            raise ValueError(
                f"`crop` must be None for {name}, got {crop!r}: its images are not cut"
            )
        if not isinstance(crop, tuple) or len(crop) != len(Crop._fields):
            raise ValueError(f"`crop` must be a tuple of {', '.join(Crop._fields)}, got {crop!r}")
        crop = Crop.of(*crop)
    return _shared(name, split, data_root, checks.flag("download", download), crop)


# All arguments by position: the cache would tell `load(a, b)` and `load(a, split=b)` apart.
@lru_cache(maxsize=16)
def _shared(
    name: str, split: str, data_root: str | None, download: bool, crop: Crop | None
) -> ImageSet:
    if crop is None:
        return dataset(name).load(split, data_root, download)
    return dataset(name).load(split, data_root, download, crop)
