"""Images by name and split, loaded once a process."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

from torch import Generator, Tensor

from rnr_gym.data import augmentation, cifar, digits
from rnr_gym.data.images import SPLITS, ImageSet

__all__ = ["DATASETS", "SPLITS", "Dataset", "ImageSet", "check_split", "dataset", "load"]


class Dataset(NamedTuple):
    """How a data set is read, and how its training images are varied.

    Attributes:
        load: from split, data root and whether to download to images.
        augment: uint8 `(N, C, H, W)` to the same, varied at random.
        mirrored: whether an image means the same when it is mirrored.
    """

    load: Callable[[str, str | None, bool], ImageSet]
    augment: Callable[[Tensor, Generator], Tensor]
    mirrored: bool


DATASETS = {
    "digits": Dataset(digits.load, digits.augment, mirrored=False),
    "cifar10": Dataset(partial(cifar.load, cifar.CIFAR10), augmentation.photographs, mirrored=True),
    "cifar100": Dataset(partial(cifar.load, cifar.CIFAR100), augmentation.photographs, mirrored=True),
}


def dataset(name: str) -> Dataset:
    """The data set of that name, else a `ValueError` that lists the names."""
    if name not in DATASETS:
        raise ValueError(f"`dataset` must be one of {', '.join(DATASETS)}, got {name!r}")
    return DATASETS[name]


def check_split(split: str) -> None:
    """Refuse an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}")


def load(name: str, split: str, data_root: str | None = None, download: bool = True) -> ImageSet:
    """A split of a data set, shared read-only by all who ask for it in this process."""
    check_split(split)
    return _shared(name, split, data_root, download)


@lru_cache(maxsize=16)
def _shared(name: str, split: str, data_root: str | None, download: bool) -> ImageSet:
    return dataset(name).load(split, data_root, download)
