"""The images of a gallery side by side in one picture, from which a page shows them one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rnr_gym import storage
from rnr_gym.data import ImageSet
from rnr_gym.experiments.results import Example, Examples

LARGEST = 128
"""Larger images are reduced to at most so many pixels in width and height."""


def sheet(images: ImageSet, examples: Examples) -> Image.Image:
    """The cheapest images in the first row, the most expensive ones in the second."""
    rows = [_row(images, examples.cheapest), _row(images, examples.most_expensive)]
    return Image.fromarray(np.concatenate(rows))


def save(images: ImageSet, examples: Examples, path: Path) -> None:
    """Write the sheet as a PNG, which loses nothing."""
    with storage.replacing(path) as partial:
        sheet(images, examples).save(partial, format="PNG")


def shows(path: Path, images: ImageSet, examples: Examples) -> bool:
    """Whether a file is a picture with the same pixels as the sheet."""
    try:
        with Image.open(path) as stored:
            return np.array_equal(np.asarray(stored), np.asarray(sheet(images, examples)))
    # Pillow raises this for files that are no pictures, too.
    except OSError:
        return False


def _row(images: ImageSet, examples: Sequence[Example]) -> NDArray[np.uint8]:
    tiles = [_tile(images.images[example.image]) for example in examples]
    return np.concatenate(tiles, axis=1)


def _tile(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image `(C, H, W)` as `(H, W)` or `(H, W, 3)`, reduced by a whole factor if it is large."""
    if len(pixels) == 3:
        picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))
    else:
        # One channel is its own mean; other numbers have no colours.
        picture = Image.fromarray(pixels.mean(0).round().astype(np.uint8))
    factor = -(-max(picture.size) // LARGEST)
    return np.asarray(picture.reduce(factor))
