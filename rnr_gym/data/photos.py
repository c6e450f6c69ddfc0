"""Reading an image file: pixels for a network, or the reason why there are none."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
"""Pillow tries no other; it knows dozens, most of them rare."""
NAMES = "PNG, JPEG, WebP, GIF or BMP"
MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
"""A file of a few kilobytes can say that it has billions of pixels."""


class RefusedImage(ValueError):
    """A file that is not an image, or too large a one; the message is for whoever has chosen it."""


def read_image(file: Path) -> Image.Image:
    """The first frame of an image file, upright, as RGB; what is transparent becomes white.

    Raises `RefusedImage` for anything else.
    """
    size = file.stat().st_size
    if size == 0:
        raise RefusedImage("The file is empty.")
    if size > MAX_BYTES:
        raise RefusedImage(
            f"The file has {size / 1e6:.0f} MB; at most {MAX_BYTES / 1e6:.0f} MB are read."
        )

    content = file.read_bytes()
    try:
        return _decoded(content)
    except RefusedImage:
        raise
    except UnidentifiedImageError:
        raise RefusedImage(
            f"This is not an image that can be read here; it must be {NAMES}."
        ) from None
    # Pillow warns of many pixels before it refuses to open the file.
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_many_pixels() from None
    # Its decoders raise nearly anything for a broken file, and none of it ends the page.
    except Exception as error:
        raise RefusedImage(f"The image is damaged and cannot be read ({error}).") from error


def network_input(image: Image.Image, side: tuple[int, int]) -> NDArray[np.uint8]:
    """The central part of an RGB image, reduced or enlarged to what a network takes.

    Args:
        image: RGB, of any size.
        side: height and width.

    Returns:
        uint8 `(3, H, W)`.
    """
    height, width = side
    # Pillow's filters average over all pixels that are merged, so nothing aliases.
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(fitted)  # (H, W, 3)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _decoded(content: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)

    # Known from the header, before anything is decoded.
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels()

    # Cameras store how they were held instead of turning the pixels.
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        return _eight_bits(upright).convert("RGB")
    if upright.has_transparency_data:
        return _on_white(upright.convert("RGBA"))
    return upright.convert("RGB")


def _too_many_pixels() -> RefusedImage:
    return RefusedImage(
        f"The image has more than {MAX_PIXELS // 1_000_000} megapixels; use a smaller one."
    )


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits; `convert` would make all but its darkest pixels white."""
    pixels = np.asarray(image).astype(np.uint16) >> 8  # (H, W)
    return Image.fromarray(pixels.astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image).convert("RGB")
