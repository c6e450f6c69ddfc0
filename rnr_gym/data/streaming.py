"""Images in files, decoded when they are read, so that a set of any size can be routed."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rnr_gym import checks, storage

MODES = {1: "L", 3: "RGB"}
"""What Pillow calls images of one channel and of three."""
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
WORKERS = min(os.cpu_count() or 1, 8)
"""Threads that decode images which are being read, and as many for those that will be."""
MEMORY = 2**27
"""Bytes of pixels that may be decoded ahead: 891 images of 3 x 224 x 224."""
BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for files that it cannot decode."""


class Crop(NamedTuple):
    """How an image of any size becomes one of `size x size` pixels, as torchvision's presets do it.

    Attributes:
        size: side of the square that is cut out of the middle.
        resize: the shorter side before that, at least `size`.
        interpolation: `"nearest"`, or, both antialiased, `"bilinear"` or `"bicubic"`.
        channels: 3 for RGB, to which grey images are converted; 1 for grey, also of RGB images.
    """

    size: int = 224
    resize: int = 256
    interpolation: str = "bilinear"
    channels: int = 3

    @classmethod
    def of(cls, size: int, resize: int | None, interpolation: str, channels: int) -> Crop:
        """Checked; without `resize`, the usual 8/7 of `size`, which makes 256 of 224."""
        size = checks.integer("size", size, 1)
        if resize is None:
            resize = round(size * 8 / 7)
        resize = checks.integer("resize", resize, size)
        interpolation = checks.choice("interpolation", interpolation, INTERPOLATIONS)
        is_whole = isinstance(channels, int) and not isinstance(channels, bool)
        if not is_whole or channels not in MODES:
            raise ValueError(f"`channels` must be 1 or 3, got {channels!r}")
        return cls(size, resize, interpolation, channels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of every image."""
        return self.channels, self.size, self.size

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """uint8 `(C, size, size)`, the same pixels as from torchvision."""
        image = image.convert(MODES[self.channels])
        # The longer side is rounded down and the margins to even, as torchvision does.
        shorter = min(image.size)
        width, height = (self.resize * side // shorter for side in image.size)
        resized = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        left = round((width - self.size) / 2)
        top = round((height - self.size) / 2)
        square = resized.crop((left, top, left + self.size, top + self.size))

        pixels = np.asarray(square).reshape(self.size, self.size, self.channels)  # (H, W, C)
        return pixels.transpose(2, 0, 1)


class StreamedImages:
    """Images in files as an array, uint8 `(N, C, H, W)`, whose pixels are not kept.

    It is indexed like an array along its first axis, and every reading decodes: `images[5]`,
    `images[:100]`, `images[idx]` and `images[mask]` are new arrays. `prefetch` says what will be
    read next, so that it is decoded while something else runs. At most `MEMORY` bytes of pixels
    wait to be read, whatever N is.

    `WORKERS` threads decode: Pillow lets go of Python's lock while it does, so threads use all
    cores, share the pixels with whoever reads them, and take any index array at any time. Worker
    processes, torch's `DataLoader` among them, would have to be given an order beforehand and send
    every image to this one; `benchmarks/streaming.py` measures both. The pixels depend neither on
    threads nor on `prefetch`.

    Copies in memory and in other processes have the names of the files, and decode for themselves.

    Args:
        folder: what file names are relative to.
        files: names `(N,)`.
        crop: what is made of each image.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, folder: Path, files: Sequence[str] | NDArray[np.str_], crop: Crop) -> None:
        self.folder = folder
        self.files = np.asarray(files, np.str_)
        self.crop = crop
        self._position = np.arange(len(self.files))
        self._ahead = _Ahead()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.files, self.crop)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, C, H, W)`."""
        return len(self.files), *self.crop.shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, idx: Any) -> NDArray[np.uint8]:
        """The pixels of one image `(C, H, W)`, or of those that a slice, mask or array chooses.

        Raises `ValueError`, which names the file, if one cannot be decoded.
        """
        chosen = self._position[idx]
        pixels = self._read(chosen.reshape(-1))
        return pixels.reshape(*chosen.shape, *self.crop.shape)

    def __array__(self, *_: Any, **__: Any) -> NDArray[np.uint8]:
        gigabytes = int(np.prod(self.shape)) / 1e9
        raise ValueError(
            f"`images` must be in memory here, got {len(self):,} images in files ({gigabytes:.1f} "
            "GB of pixels); where they fit, `dataclasses.replace(dataset, "
            "images=dataset.images[:])` is the same set in memory"
        )

    def take(self, idx: Any) -> StreamedImages:
        """The images chosen by an index array, a slice or a mask; none is decoded."""
        return StreamedImages(self.folder, self.files[idx], self.crop)

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with a file's content, their order and the crop.

        Every file is read once for it: about a tenth of the time that decoding takes.
        """
        pool = _threads(os.getpid(), "now")
        digests = pool.map(self._digest_of, range(len(self)))
        return storage.short_hash(repr(tuple(self.crop)).encode(), *digests)

    def prefetch(self, idx: NDArray[np.integer]) -> None:
        """Begin to decode images that will be read, the first ones first.

        What is already waiting stays, and what has waited longest is dropped once `MEMORY` is full.
        """
        capacity = max(1, MEMORY // int(np.prod(self.crop.shape)))
        pool = _threads(os.getpid(), "ahead")
        ahead = self._of_this_process()
        with ahead.lock:
            for position in self._position[idx[:capacity]].tolist():
                if position not in ahead.waiting:
                    ahead.waiting[position] = pool.submit(self._decode, position)
            while len(ahead.waiting) > capacity:
                _, dropped = ahead.waiting.popitem(last=False)
                dropped.cancel()

    def _read(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pixels `(n, C, H, W)`: what was prefetched, and all others decoded now."""
        pixels = np.empty((len(positions), *self.crop.shape), np.uint8)
        ahead = self._of_this_process()
        with ahead.lock:
            prefetched = {
                position: ahead.waiting.pop(position)
                for position in set(positions.tolist())
                if position in ahead.waiting
            }

        # Other threads than those of `prefetch`, which may have hundreds of images to decode first.
        pool = _threads(os.getpid(), "now")
        decoded = []
        for row, position in enumerate(positions.tolist()):
            if position not in prefetched:
                decoded.append(pool.submit(self._decode, position, pixels[row]))
        for row, position in enumerate(positions.tolist()):
            if position in prefetched:
                pixels[row] = prefetched[position].result()
        for future in decoded:
            future.result()
        return pixels

    def _decode(self, position: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """One image `(C, H, W)`, written to `out` if that is given."""
        if out is None:
            out = np.empty(self.crop.shape, np.uint8)
        file = self._file(position)
        try:
            with Image.open(file) as image:
                # Pillow would cut 16 bits off at 255, so that nearly all pixels become white.
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels have more than 8 bits, mode {image.mode}")
                out[...] = self.crop(image)
        except BROKEN as error:
            raise unreadable("images", file, error) from error
        return out

    def _digest_of(self, position: int) -> bytes:
        file = self._file(position)
        try:
            return digest_of_file(file)
        except OSError as error:
            raise unreadable("images", file, error) from error

    def _file(self, position: int) -> Path:
        return self.folder / str(self.files[position])

    def _of_this_process(self) -> _Ahead:
        # A forked process has none of the threads that would finish what was begun.
        if self._ahead.process != os.getpid():
            self._ahead = _Ahead()
        return self._ahead


class _Ahead:
    """Images of one process that are decoded, or being decoded, and that nobody has read."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = Lock()
        self.waiting: OrderedDict[int, Future[NDArray[np.uint8]]] = OrderedDict()


@lru_cache(maxsize=2)
def _threads(process: int, purpose: str) -> ThreadPoolExecutor:
    """The decoding threads of a process, shared by all its sets."""
    return ThreadPoolExecutor(WORKERS, thread_name_prefix=f"decode-{purpose}")


def digest_of_file(file: Path) -> bytes:
    """The SHA-256 of a file's content, since sizes and times can be those of another file.

    Raises `OSError` if it cannot be read.
    """
    with file.open("rb", buffering=0) as content:
        return hashlib.sha256(content.read()).digest()


def unreadable(argument: str, file: Path, error: Exception) -> ValueError:
    """The error for a file that is no image, or a damaged one."""
    return ValueError(
        f"`{argument}` must hold readable images, got {str(file)!r} ({error}); replace or remove it"
    )
