"""ImageNet (ILSVRC 2012), read from torchvision's folders; its images are decoded when needed.

Source: Russakovsky et al., *ImageNet Large Scale Visual Recognition Challenge* (2015).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rnr_gym.data import folders
from rnr_gym.data.images import ImageSet, rank_in_class
from rnr_gym.data.streaming import Crop

NAME = "imagenet"
_LINES = (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
WNIDS = tuple(line.split(" ", 1)[0] for line in _LINES)
"""Names of the class folders, sorted, which is the order of the labels."""
CLASSES = tuple(line.split(" ", 1)[1] for line in _LINES)
"""The class names of torchvision's weights, whose import takes seconds."""
PART = {"train": "train", "route": "val", "test": "val"}
"""The folder that a split comes from; the test set of ImageNet has no labels."""

CROP = Crop(size=224, resize=256, interpolation="bilinear")
"""That of torchvision's first weights of most networks."""


def load(
    split: str, data_root: str | None = None, download: bool = True, crop: Crop = CROP
) -> ImageSet:
    """One split: all of `train/` is `train`, and `val/` is shared by `route` and `test`.

    The image of rank r in class c (by file name) belongs to `test` if r + c is even, else to
    `route`: of 50 images of a class each split has 25, and of one image per class each has every
    other class. Images are ordered and numbered by (rank, class) of the whole folder.

    Args:
        split: one of `SPLITS`.
        data_root: the folder that holds `imagenet/{train,val}/<wnid>/*.JPEG`, as torchvision's
            `ImageNet` leaves them; None for `RNR_GYM_DATA`, else the cache.
        download: accepted as for every data set; ImageNet is given to registered users only.
        crop: what is made of each image.

    Raises:
        FileNotFoundError: the folder of the split is not there.
        ValueError: its class folders are not the 1,000 of ImageNet.
    """
    root = folders.data_dir(data_root)
    images_dir = root / NAME / PART[split]
    if not images_dir.is_dir():
        raise _not_found(root, split)

    images = folders.stream(images_dir, WNIDS, crop)
    rank = rank_in_class(images.labels)
    # By rank first, so that the first images of a split hold every class equally often.
    order = np.lexsort((images.labels, rank))
    original_id = np.arange(len(order))
    if split != "train":
        is_odd = (rank + images.labels)[order] % 2 == 1
        original_id = np.flatnonzero(is_odd == (split == "route"))

    chosen = images.take(order[original_id])
    return replace(chosen, original_id=original_id, classes=CLASSES)


def crop_of(transforms: Any) -> Crop:
    """What torchvision's `Weights.transforms()` make of an image before they scale its pixels."""
    (size,) = transforms.crop_size
    (resize,) = transforms.resize_size
    return Crop.of(size, resize, transforms.interpolation.value, channels=3)


def _not_found(root: Path, split: str) -> FileNotFoundError:
    part = PART[split]
    archive = f"ILSVRC2012_img_{part}.tar"
    return FileNotFoundError(
        f"`data_root` must hold {NAME}/{part}/<wnid>/*.JPEG for the split {split!r}, got "
        f"{str(root)!r}, which has no such folder. ImageNet cannot be fetched without an account: "
        f"put {archive} and ILSVRC2012_devkit_t12.tar.gz from image-net.org into "
        f"{str(root / NAME)!r}, and torchvision.datasets.ImageNet unpacks them there; or set "
        "`data_root` or RNR_GYM_DATA to a folder that has them. `load_folder` reads other folders."
    )
