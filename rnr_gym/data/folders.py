"""Images from class folders: small ones decoded once, into the cache, others when they are read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rnr_gym import checks, claims, storage
from rnr_gym.data.images import ImageSet
from rnr_gym.data.streaming import BROKEN, Crop, StreamedImages, digest_of_file, unreadable
from rnr_gym.progress import progress_bar

NAMES = {"train": ("train",), "test": ("test", "val")}
"""What the folder of a part may be called."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
"""Of the files that are streamed, in capitals too; others in a class folder are no images."""

Decoded = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images uint8 `(N, C, H, W)` and labels int64 `(N,)`."""

LabelledFile = tuple[int, Path]
"""A label and the image file that has it."""


def data_dir(data_root: str | None = None) -> Path:
    """Where image sets are looked for: the argument, else `RNR_GYM_DATA`, else in the cache."""
    chosen = data_root or os.environ.get("RNR_GYM_DATA") or storage.cache_dir() / "data"
    return Path(chosen).expanduser()


def load(dataset_dir: Path, part: str, classes: tuple[str, ...], side: tuple[int, int]) -> Decoded:
    """Every image of a part of `<root>/<name>/{train,test}/<class>/*`, by class, then by file name.

    Args:
        dataset_dir: `<root>/<name>`.
        part: `"train"`, or `"test"`, whose folder may be called `val`.
        classes: the class folders that must be there, no more and no fewer, in label order.
        side: `(height, width)` that every image must have.

    Raises:
        FileNotFoundError: the part's folder is missing.
        ValueError: class folders are missing or unknown, or a file is not such an image.
        OSError: the cache has no room.
    """
    images_dir = part_dir(dataset_dir, part)
    _check_classes(images_dir, classes)

    # Sorted, because file systems list files in any order.
    files: list[LabelledFile] = []
    for label, name in enumerate(classes):
        files += [(label, file) for file in sorted((images_dir / name).iterdir())]

    # The digest in the name: files that change on disk are decoded again.
    name = f"{dataset_dir.name}-{part}-{_digest(files, side)}.safetensors"
    cached = storage.cache_dir() / "images" / name
    title = f"decode {dataset_dir.name}/{images_dir.name}"
    try:
        return claims.cached(
            cached,
            read=lambda: _read(cached, files, side),
            make=lambda: _decode_into(cached, files, side, title),
        )
    except OSError as error:
        megabytes = len(files) * 3 * side[0] * side[1] / 1e6
        raise OSError(
            f"`RNR_GYM_CACHE` must name a folder with room for {megabytes:.0f} MB of decoded "
            f"images, got {str(cached.parent)!r} ({error}); nothing was written"
        ) from error


def load_folder(
    path: str | Path,
    size: int = 224,
    resize: int | None = None,
    interpolation: str = "bilinear",
    channels: int = 3,
    classes: Sequence[str] | None = None,
) -> ImageSet:
    """Your own images, `<path>/<class>/*`, of any number and any size.

    They are decoded when they are read, by several threads, and never all held in memory. Images
    come by class, then by file name. A set for each split is a folder for each, or the parts that
    `ImageSet.take` gives. Pixels are those that torchvision's transforms make: transparency and
    the orientation that a camera notes are ignored.

    Args:
        path: a folder with one folder for each class. JPEG, PNG, WebP, BMP and GIF files are read,
            the last by their first frame; other files are ignored.
        size: side of the square that is cut out of the middle of each image.
        resize: the shorter side of each image before that; None for 8/7 of `size`, as torchvision
            cuts 224 out of 256.
        interpolation: `"bilinear"`, `"bicubic"` or `"nearest"`, as the network was trained.
        channels: 3 for RGB, to which grey images are converted; 1 for grey.
        classes: the class folders in label order; None for all in alphabetical order.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: an argument is unfit, class folders are missing or unknown, or there is no
            image. A damaged image is one when it is read; the message names the file.
    """
    images_dir = Path(checks.path("path", path)).expanduser()
    crop = Crop.of(size, resize, interpolation, channels)
    if not images_dir.is_dir():
        raise FileNotFoundError(
            f"`path` must be a folder with a folder for each class, got {str(path)!r}, which does "
            "not exist or is a file"
        )
    if classes is None:
        classes = sorted(entry.name for entry in images_dir.iterdir() if entry.is_dir())
    elif isinstance(classes, str) or not isinstance(classes, Sequence):
        raise ValueError(f"`classes` must be a sequence of names, got {classes!r}")
    elif len(set(map(str, classes))) < len(classes):
        raise ValueError(f"`classes` must differ, got {checks.shortened(classes)}")
    return stream(images_dir, tuple(classes), crop, "path")


def stream(
    images_dir: Path, classes: tuple[str, ...], crop: Crop, argument: str = "data_root"
) -> ImageSet:
    """Every image of class folders `<images_dir>/<class>/*`, undecoded, by class then by file name.

    `argument` is the one that errors are about. Raises `ValueError` as `load_folder` does.
    """
    _check_classes(images_dir, classes, argument)
    files: list[str] = []
    counts = []
    for name in classes:
        names = [entry.name for entry in os.scandir(images_dir / name)]
        # Names that start with a dot are the system's own.
        images = [file for file in names if file.lower().endswith(SUFFIXES) and file[0] != "."]
        files += [f"{name}/{file}" for file in sorted(images)]
        counts.append(len(images))
    if not files:
        raise ValueError(
            f"`{argument}` must hold images, <class>/*, that end in {', '.join(SUFFIXES)}, got "
            f"{str(images_dir)!r}, which has none in its {len(classes)} class folders"
        )

    return ImageSet(
        images=StreamedImages(images_dir, files, crop),
        labels=np.repeat(np.arange(len(classes)), counts),
        original_id=np.arange(len(files)),
        severity=np.zeros(len(files), np.int64),
        classes=classes,
    )


def part_dir(dataset_dir: Path, part: str) -> Path:
    """The folder of a part, under whichever of its `NAMES` it is there.

    Raises `FileNotFoundError` if there is none.
    """
    for name in NAMES[part]:
        if (dataset_dir / name).is_dir():
            return dataset_dir / name

    names = " or ".join(NAMES[part])
    raise FileNotFoundError(
        f"`data_root` must hold {dataset_dir.name}/{names}, "
        f"got {str(dataset_dir)!r}, which has no such folder"
    )


def _check_classes(images_dir: Path, classes: tuple[str, ...], argument: str = "data_root") -> None:
    present = {entry.name for entry in images_dir.iterdir() if entry.is_dir()}
    missing = sorted(set(classes) - present)
    unknown = sorted(present - set(classes))

    # Five names show what is wrong; ImageNet would have a thousand.
    differences = []
    if missing:
        differences.append(f"missing: {', '.join(missing[:5])}")
    if unknown:
        differences.append(f"unknown: {', '.join(unknown[:5])}")
    if differences:
        raise ValueError(
            f"`{argument}` must have the {len(classes)} class folders of {images_dir.parent.name}, "
            f"got {str(images_dir)!r} ({'; '.join(differences)})"
        )


def _digest(files: list[LabelledFile], side: tuple[int, int]) -> str:
    """Twelve hexadecimal digits that change when a file is added, removed or changed."""
    parts = [repr(side).encode()]
    # Their content, since sizes and times can be those of another folder's files.
    for label, file in files:
        try:
            digest = digest_of_file(file)
        except OSError as error:
            raise unreadable("data_root", file, error) from error
        parts.append(f"{label} ".encode() + digest)
    return storage.short_hash(*parts)


def _decode_into(
    cached: Path, files: list[LabelledFile], side: tuple[int, int], title: str
) -> Decoded:
    """Decode files and keep the result in the cache."""
    decoded = _decode(files, side, title)
    images, labels = map(torch.from_numpy, decoded)
    storage.save_tensors(cached, {"images": images, "labels": labels}, {})
    return decoded


def _decode(files: list[LabelledFile], side: tuple[int, int], title: str) -> Decoded:
    images = np.empty((len(files), 3, *side), np.uint8)
    labels = np.empty(len(files), np.int64)
    for idx, (label, file) in enumerate(progress_bar(files, desc=title, unit="image", leave=False)):
        images[idx] = _pixels(file, side)
        labels[idx] = label
    return images, labels


def _pixels(file: Path, side: tuple[int, int]) -> NDArray[np.uint8]:
    """One image as RGB, uint8 `(3, H, W)`."""
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))  # (H, W, 3)
    except BROKEN as error:
        raise unreadable("data_root", file, error) from error

    if pixels.shape[:2] != side:
        raise ValueError(
            f"`data_root` must hold images of {side[0]} x {side[1]} pixels, "
            f"got {str(file)!r} of {pixels.shape[0]} x {pixels.shape[1]}"
        )
    return pixels.transpose(2, 0, 1)


def _read(path: Path, files: list[LabelledFile], side: tuple[int, int]) -> Decoded | None:
    """What is in the cache; None if nothing is, or, with a warning, if it is damaged."""
    if not path.exists():
        return None

    labels = [label for label, _ in files]
    try:
        tensors, _ = storage.load_tensors(path)
        images = tensors["images"].numpy()
        if images.dtype != np.uint8 or images.shape != (len(files), 3, *side):
            raise ValueError(f"its images are {images.dtype} {images.shape}")
        if tensors["labels"].tolist() != labels:
            raise ValueError("its labels are not those of the files")
    except (ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{path} is decoded again, for it is damaged: {error}", stacklevel=2)
        return None
    return images, np.array(labels, np.int64)
