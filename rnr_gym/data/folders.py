"""Images from class folders, `<root>/<name>/{train,test}/<class>/*`, decoded once into the cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from tqdm import tqdm

from rnr_gym import storage

NAMES = {"train": ("train",), "test": ("test", "val")}
"""What the folder of a part may be called."""

Decoded = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images uint8 `(N, C, H, W)` and labels int64 `(N,)`."""


def data_folder(data_root: str | None = None) -> Path:
    """Where image sets are looked for: the argument, else `RNR_GYM_DATA`, else a folder in the cache."""
    return Path(data_root or os.environ.get("RNR_GYM_DATA") or storage.cache_folder() / "data").expanduser()


def load(folder: Path, part: str, classes: tuple[str, ...], side: tuple[int, int]) -> Decoded:
    """Every image of a part, by class and then by file name.

    Args:
        folder: `<root>/<name>`.
        part: `"train"`, or `"test"`, which may be called `val`.
        classes: the class folders that must be there, no more and no fewer, in label order.
        side: `(height, width)` that every image must have.

    Raises:
        FileNotFoundError: the part's folder is missing.
        ValueError: class folders are missing or unknown, or a file is no such image.
        OSError: the cache has no room.
    """
    place = part_folder(folder, part)
    _check_classes(place, classes)
    files = [(label, file) for label, name in enumerate(classes) for file in sorted((place / name).iterdir())]
    cached = storage.cache_folder() / "images" / f"{folder.name}-{part}-{_digest(files, side)}.safetensors"
    try:
        return _read(cached)
    except (FileNotFoundError, ValueError):  # not there yet, or damaged
        decoded = _decode(files, side, f"decode {folder.name}/{place.name}")
        _write(cached, decoded)
        return decoded


def part_folder(folder: Path, part: str) -> Path:
    """Where the images of a part lie, whatever its folder is called."""
    for name in NAMES[part]:
        if (folder / name).is_dir():
            return folder / name
    raise FileNotFoundError(f"`data_root` must hold {folder.name}/{' or '.join(NAMES[part])}, got {str(folder)!r}, which has neither it nor images")


def _check_classes(place: Path, classes: tuple[str, ...]) -> None:
    found = {entry.name for entry in place.iterdir() if entry.is_dir()}
    missing, unknown = sorted(set(classes) - found), sorted(found - set(classes))
    if missing or unknown:
        wrong = "; ".join(f"{what}: {', '.join(names[:5])}" for what, names in (("missing", missing), ("unknown", unknown)) if names)
        raise ValueError(f"`data_root` must have the {len(classes)} class folders of {place.parent.name}, got {str(place)!r} ({wrong})")


def _digest(files: list[tuple[int, Path]], side: tuple[int, int]) -> str:
    """Twelve hexadecimal digits that change when a file is added, removed or written."""
    total = hashlib.sha256(repr(side).encode())
    for label, file in files:
        facts = file.stat()
        total.update(f"{label} {file.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return total.hexdigest()[:12]


def _decode(files: list[tuple[int, Path]], side: tuple[int, int], title: str) -> Decoded:
    images = np.empty((len(files), 3, *side), np.uint8)
    for row, (_, file) in enumerate(tqdm(files, desc=title, unit="image", leave=False)):
        images[row] = _pixels(file, side)
    return images, np.array([label for label, _ in files], np.int64)


def _pixels(file: Path, side: tuple[int, int]) -> NDArray[np.uint8]:
    """One image as RGB `(3, H, W)`."""
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises each of these for some broken files
        raise ValueError(f"`data_root` must hold readable images, got {str(file)!r} ({error}); replace or remove it") from error
    if pixels.shape[:2] != side:
        raise ValueError(f"`data_root` must hold images of {side[0]} x {side[1]} pixels, got {str(file)!r} of {pixels.shape[0]} x {pixels.shape[1]}")
    return pixels.transpose(2, 0, 1)


def _read(path: Path) -> Decoded:
    tensors, _ = storage.load_tensors(path)
    return tensors["images"].numpy(), tensors["labels"].numpy()


def _write(path: Path, decoded: Decoded) -> None:
    tensors = {name: torch.from_numpy(part) for name, part in zip(("images", "labels"), decoded, strict=True)}
    try:
        storage.save_tensors(path, tensors, {})
    except (OSError, SafetensorError) as error:
        wanted = f"room for {decoded[0].nbytes / 1e6:.0f} MB of decoded images"
        raise OSError(f"`RNR_GYM_CACHE` must name a folder with {wanted}, got {str(path.parent)!r} ({error}); nothing was kept there") from error
