"""CIFAR-10 and CIFAR-100: torchvision's checked files, fetched on first use, or class folders of images.

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

from rnr_gym.data import folders
from rnr_gym.data.images import ImageSet, rank_in_class

SIDE = (32, 32)
HELD_OUT = 10
"""Every so manieth training image of a class is held out of `train` for `route`."""


class Cifar(NamedTuple):
    """One of the two sets: its name and torchvision's, the size of its archive, its classes in label order."""

    name: str
    title: str
    megabytes: int
    classes: tuple[str, ...]
    instead: str


TEN = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905
HUNDRED = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar cattle
    chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter
    palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
    turtle wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
)
NO_IMAGES = "RNR-CIFAR10-Table-v0 and RNR-Digits-v0 need no images"
CIFAR10 = Cifar("cifar10", "CIFAR10", 170, TEN, NO_IMAGES)
CIFAR100 = Cifar("cifar100", "CIFAR100", 169, HUNDRED, NO_IMAGES)


def load(facts: Cifar, split: str, data_root: str | None = None, download: bool = True) -> ImageSet:
    """One split: 45,000 `train`, 5,000 `route` and 10,000 `test` images, in an order that does not depend on how they are stored.

    Every tenth training image of a class, by rank within it, belongs to `route`; images come, and are numbered, by (rank, class).

    Raises:
        FileNotFoundError: the images are not there and could not be, or may not be, fetched.
        ValueError: an image folder holds other classes, unreadable images, or too few.
        OSError: the cache has no room for decoded images.
    """
    root = folders.data_folder(data_root)
    part = "test" if split == "test" else "train"
    if (root / facts.name).is_dir():
        images, labels = folders.load(root / facts.name, part, facts.classes, SIDE)
        _check_enough(labels, facts, part, folders.part_folder(root / facts.name, part))
    else:
        images, labels = _official(facts, root, part, download)
    rows, source = _dealt(labels, split)
    return ImageSet(images[rows], labels[rows], source, np.zeros(len(rows), np.int64), facts.classes)


def _dealt(labels: NDArray[np.int64], split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of a split, by rank within the class and then by class, and their numbers in that order of the whole part."""
    rank = rank_in_class(labels)
    order = np.lexsort((labels, rank))
    held_out = rank[order] % HELD_OUT == HELD_OUT - 1
    source = np.arange(len(order)) if split == "test" else np.flatnonzero(held_out == (split == "route"))
    return order[source], source


def _check_enough(labels: NDArray[np.int64], facts: Cifar, part: str, place: Path) -> None:
    least = 1 if part == "test" else HELD_OUT
    counts = np.bincount(labels, minlength=len(facts.classes))
    if counts.min() < least:
        few = f"{counts.min()} of {facts.classes[counts.argmin()]} in {str(place)!r}"
        raise ValueError(f"`data_root` must hold at least {least} {part} images a class, so that every split has some, got {few}")


def _official(facts: Cifar, root: Path, part: str, download: bool) -> folders.Decoded:
    """torchvision's files, each checked against its MD5."""
    from torchvision import datasets

    reader: Any = getattr(datasets, facts.title)
    if not download or _whole(reader, root):
        return _opened(reader, facts, root, part)
    _fetch(reader, facts, root)
    return _opened(reader, facts, root, part)


def _whole(reader: Any, root: Path) -> bool:
    """Whether every file of the set is in `root` with its checksum."""
    try:
        reader(root)
    except RuntimeError:
        return False
    return True


def _opened(reader: Any, facts: Cifar, root: Path, part: str) -> folders.Decoded:
    try:
        found = reader(root, train=part == "train")
    except RuntimeError:
        raise FileNotFoundError(_advice(reader, facts, root, _state(reader, root))) from None
    return np.ascontiguousarray(found.data.transpose(0, 3, 1, 2)), np.array(found.targets, np.int64)


def _state(reader: Any, root: Path) -> str:
    return f"{reader.base_folder} is {'incomplete or damaged' if (root / reader.base_folder).exists() else 'not there'}"


def _fetch(reader: Any, facts: Cifar, root: Path) -> None:
    """Fetch and unpack beside `root`'s own files, and put them there only when whole."""
    print(f"fetching {facts.title}, {facts.megabytes} MB, from {reader.url} into {root}", file=sys.stderr)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root, prefix=f".{facts.name}.") as partial:
            reader(partial, download=True)
            shutil.rmtree(root / reader.base_folder, ignore_errors=True)
            (Path(partial) / reader.base_folder).rename(root / reader.base_folder)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileNotFoundError(_advice(reader, facts, root, f"{_state(reader, root)}; fetching it failed: {reason}")) from error


def _advice(reader: Any, facts: Cifar, root: Path, what: str) -> str:
    """One message: where was looked, what was found, what to do."""
    looked = f"`data_root` must hold {facts.name}/train/<class>/* or {reader.base_folder}, got {str(root)!r} ({what})"
    ways = f"`rnr-gym data {facts.name}` fetches {facts.megabytes} MB from {reader.url}; `data_root` or RNR_GYM_DATA names a folder that has it"
    return f"{looked}. {ways}. {facts.instead}."
