"""CIFAR-10 and CIFAR-100: torchvision's files, fetched on first use, or class folders of images.

Source: Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009).
"""

from __future__ import annotations

import shutil
import sys
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnr_gym import claims
from rnr_gym.data import folders
from rnr_gym.data.images import ImageSet, rank_in_class

SIDE = (32, 32)
HELD_OUT = 10
"""Every `HELD_OUT`-th training image of each class goes to `route`."""


class Cifar(NamedTuple):
    """One of the two data sets.

    Attributes:
        name: of the data set, and of its folder where it is stored in class folders.
        title: name of its class in `torchvision.datasets`.
        megabytes: size of the archive that is fetched.
        classes: the class names in label order.
    """

    name: str
    title: str
    megabytes: int
    classes: tuple[str, ...]


TEN = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905
HUNDRED = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
)
CIFAR10 = Cifar(name="cifar10", title="CIFAR10", megabytes=170, classes=TEN)
CIFAR100 = Cifar(name="cifar100", title="CIFAR100", megabytes=169, classes=HUNDRED)


def load(
    variant: Cifar, split: str, data_root: str | None = None, download: bool = True
) -> ImageSet:
    """One split: 45,000 `train`, 5,000 `route` and 10,000 `test` images.

    Every tenth training image of each class, by rank within the class, belongs to `route`. Images
    are ordered and numbered by (rank, class), so the order does not depend on how they are stored.

    Args:
        variant: `CIFAR10` or `CIFAR100`.
        split: one of `SPLITS`.
        data_root: the folder to look in; None for `RNR_GYM_DATA`, else the cache.
        download: whether torchvision's files may be fetched where they are missing or damaged.

    Raises:
        FileNotFoundError: the images are not there and could not be, or may not be, fetched.
        ValueError: an image folder holds other classes, unreadable images, or too few.
        OSError: the cache has no room for decoded images.
    """
    root = folders.data_dir(data_root)
    dataset_dir = root / variant.name
    part = "test" if split == "test" else "train"

    # Class folders first: they are there only if the user put them there.
    if dataset_dir.is_dir():
        images, labels = folders.load(dataset_dir, part, variant.classes, SIDE)
        _check_enough(labels, variant, part, folders.part_dir(dataset_dir, part))
    else:
        images, labels = _official(variant, root, part, download)

    idx, original_id = _split_idx(labels, split)
    return ImageSet(
        images=images[idx],
        labels=labels[idx],
        original_id=original_id,
        severity=np.zeros(len(idx), np.int64),
        classes=variant.classes,
    )


def _split_idx(
    labels: NDArray[np.int64], split: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The images of a split, ordered by (rank within the class, class).

    Returns where they are in the part as stored, and their positions in that order of the part.
    """
    # By rank first, so that the first images of a split hold every class equally often.
    rank = rank_in_class(labels)
    order = np.lexsort((labels, rank))
    if split == "test":
        return order, np.arange(len(order))

    held_out = rank[order] % HELD_OUT == HELD_OUT - 1
    original_id = np.flatnonzero(held_out == (split == "route"))
    return order[original_id], original_id


def _check_enough(labels: NDArray[np.int64], variant: Cifar, part: str, images_dir: Path) -> None:
    # With fewer training images of a class than `HELD_OUT`, `route` would have none of it.
    least = HELD_OUT
    if part == "test":
        least = 1

    counts = np.bincount(labels, minlength=len(variant.classes))
    if counts.min() < least:
        smallest = variant.classes[counts.argmin()]
        raise ValueError(
            f"`data_root` must hold at least {least} {part} images per class, so that every "
            f"split has some, got {counts.min()} of {smallest} in {str(images_dir)!r}"
        )


def _official(variant: Cifar, root: Path, part: str, download: bool) -> folders.Decoded:
    """torchvision's files, each checked against its MD5."""
    # torchvision takes seconds to import, and class folders do not need it.
    from torchvision import datasets

    reader: Any = getattr(datasets, variant.title)
    if download and not _is_complete(reader, root):
        _fetch(reader, variant, root)

    try:
        dataset = reader(root, train=part == "train")
    # `from None`: torchvision's message recommends an option that does not exist here.
    except RuntimeError:
        raise _not_found(reader, variant, root, _state(reader, root)) from None
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))  # (N, 3, 32, 32)
    return images, np.array(dataset.targets, np.int64)


def _is_complete(reader: Any, root: Path) -> bool:
    """Whether every file of the data set is in `root` with its checksum."""
    try:
        reader(root)
    except RuntimeError:
        return False
    return True


def _fetch(reader: Any, variant: Cifar, root: Path) -> None:
    """Fetch and unpack in a temporary folder within `root`, then move the files into place."""
    print(
        f"fetching {variant.title}, {variant.megabytes} MB, from {reader.url} into {root}",
        file=sys.stderr,
    )
    files_dir = root / reader.base_folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Of several processes that start at once, one fetches and the others wait.
        with (
            claims.claimed(files_dir, wait=True),
            TemporaryDirectory(dir=root, prefix=f".{variant.name}.") as partial,
        ):
            if _is_complete(reader, root):
                return
            reader(partial, download=True)
            # Only now: damaged files stay where they are until there are better ones.
            shutil.rmtree(files_dir, ignore_errors=True)
            (Path(partial) / reader.base_folder).rename(files_dir)
    except (OSError, RuntimeError, HTTPException) as error:
        # On one line, and never empty: some exceptions have no message.
        reason = " ".join(str(error).split()) or type(error).__name__
        problem = f"{_state(reader, root)}; fetching it failed: {reason}"
        raise _not_found(reader, variant, root, problem) from error


def _state(reader: Any, root: Path) -> str:
    """What is wrong with torchvision's files in `root`."""
    if (root / reader.base_folder).exists():
        return f"{reader.base_folder} is incomplete or damaged"
    return f"{reader.base_folder} is not there"


def _not_found(reader: Any, variant: Cifar, root: Path, problem: str) -> FileNotFoundError:
    """An error that says where the images were looked for, what was found, and what to do."""
    expected = f"{variant.name}/train/<class>/* or {reader.base_folder}"
    command = f"`rnr-gym data {variant.name}`"
    return FileNotFoundError(
        f"`data_root` must hold {expected}, got {str(root)!r} ({problem}). "
        f"{command} fetches {variant.megabytes} MB from {reader.url}; or set `data_root` or "
        "RNR_GYM_DATA to a folder that has them. "
        "RNR-CIFAR10-Table-v0 and RNR-Digits-v0 need no images."
    )
