"""Images from class folders, `<root>/<name>/{train,test}/<class>/*`, decoded into the cache."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rnr_gym import claims, storage
from rnr_gym.progress import progress_bar

NAMES = {"train": ("train",), "test": ("test", "val")}
"""What the folder of a part may be called."""

Decoded = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images uint8 `(N, C, H, W)` and labels int64 `(N,)`."""

LabelledFile = tuple[int, Path]
"""A label and the image file that has it."""


def data_dir(data_root: str | None = None) -> Path:
    """Where image sets are looked for: the argument, else `RNR_GYM_DATA`, else in the cache."""
    chosen = data_root or os.environ.get("RNR_GYM_DATA") or storage.cache_dir() / "data"
    return Path(chosen).expanduser()


def load(dataset_dir: Path, part: str, classes: tuple[str, ...], side: tuple[int, int]) -> Decoded:
    """Every image of a part, by class and then by file name.

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


def _check_classes(images_dir: Path, classes: tuple[str, ...]) -> None:
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
            f"`data_root` must have the {len(classes)} class folders of {images_dir.parent.name}, "
            f"got {str(images_dir)!r} ({'; '.join(differences)})"
        )


def _digest(files: list[LabelledFile], side: tuple[int, int]) -> str:
    """Twelve hexadecimal digits that change when a file is added, removed or changed."""
    parts = [repr(side).encode()]
    # Their content, since sizes and times can be those of another folder's files.
    for label, file in files:
        try:
            with file.open("rb", buffering=0) as content:
                digest = hashlib.sha256(content.read()).digest()
        except OSError as error:
            raise _unreadable(file, error) from error
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


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"`data_root` must hold readable images, got {str(file)!r} ({error}); replace or remove it"
    )


def _pixels(file: Path, side: tuple[int, int]) -> NDArray[np.uint8]:
    """One image as RGB, uint8 `(3, H, W)`."""
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))  # (H, W, 3)
    # Pillow raises each of these for some broken files.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(file, error) from error

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
