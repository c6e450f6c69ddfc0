"""Labelled images, in memory or in files, and the rule that splits them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rnr_gym import checks
from rnr_gym.data.streaming import StreamedImages

SPLITS = ("train", "route", "test")
"""`train` fits backbone weights, `route` fits routers and calibration, `test` is for final figures
only."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images, read-only, so that every environment of a process can share them.

    Attributes:
        images: uint8 `(N, C, H, W)`, 0..255: an array, or files that are decoded when they are
            read, as `load_folder` gives. Either is indexed in the same way.
        labels: int64 `(N,)`, 0..len(classes)-1.
        original_id: int64 `(N,)`; images with the same number are versions of one original.
            Statistics resample originals.
        severity: int64 `(N,)`, 0 = untouched, growing with difficulty; all zeros if unknown.
        classes: the class names in label order.

    Raises `ValueError` if shapes or labels do not fit together, or if there is no image.
    """

    images: NDArray[np.uint8] | StreamedImages
    labels: NDArray[np.int64]
    original_id: NDArray[np.int64]
    severity: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("images", "labels", "original_id", "severity"):
            array = getattr(self, name)
            if name == "images" and isinstance(array, StreamedImages):
                continue
            if not isinstance(array, np.ndarray):
                raise ValueError(f"`{name}` must be a NumPy array, got {type(array).__name__}")
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(
                f"`images` must be uint8 (N, C, H, W), got {self.images.dtype} {self.images.shape}"
            )
        count = len(self.images)
        if count == 0:
            raise ValueError("`images` must hold at least one image, got none")

        for name in ("labels", "original_id", "severity"):
            # Other integers are converted.
            numbers = checks.whole_numbers(name, getattr(self, name), (count,))
            object.__setattr__(self, name, numbers)

        lowest = self.labels.min()
        highest = self.labels.max()
        if lowest < 0 or highest >= len(self.classes):
            raise ValueError(
                f"`labels` must lie in 0..{len(self.classes) - 1}, got {lowest}..{highest}"
            )

        # `frozen` protects the attributes, not the contents of the arrays.
        for array in (self.images, self.labels, self.original_id, self.severity):
            if isinstance(array, np.ndarray):
                array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.images)

    def take(self, idx: NDArray[np.integer] | NDArray[np.bool_]) -> ImageSet:
        """The images chosen by an index array or a mask, in that order; files stay undecoded."""
        if isinstance(self.images, StreamedImages):
            images: NDArray[np.uint8] | StreamedImages = self.images.take(idx)
        else:
            images = self.images[idx]
        return replace(
            self,
            images=images,
            labels=self.labels[idx],
            original_id=self.original_id[idx],
            severity=self.severity[idx],
        )

    def prefetch(self, idx: NDArray[np.integer]) -> None:
        """Announce which images will be read next, in what order; more than fit are ignored.

        Files are decoded in the background meanwhile. It changes no result, and does nothing for
        images in memory.
        """
        if isinstance(self.images, StreamedImages):
            self.images.prefetch(idx)

    def fingerprint(self) -> bytes:
        """Bytes that change with any pixel: the pixels, or a digest of the files and their crop."""
        if isinstance(self.images, StreamedImages):
            return self.images.digest.encode()
        return self.images.tobytes()

    @classmethod
    def of(
        cls,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        classes: tuple[str, ...] | None = None,
    ) -> ImageSet:
        """An image set from arrays: every image is its own original, and severity is unknown.

        Args:
            images: uint8 `(N, C, H, W)`.
            labels: int `(N,)`, 0 or above.
            classes: the class names in label order; None for "0", "1", ...
        """
        if not isinstance(images, np.ndarray):
            raise ValueError(f"`images` must be a NumPy array, got {type(images).__name__}")
        labels = checks.whole_numbers("labels", labels, (len(images),)).copy()
        if len(labels) and labels.min() < 0:
            raise ValueError(f"`labels` must be 0 or above, got {labels.min()}")

        if classes is not None and not isinstance(classes, tuple | list):
            raise ValueError(f"`classes` must be a tuple of names, got {classes!r}")
        if not classes:
            num_classes = int(labels.max(initial=0)) + 1
            classes = tuple(str(label) for label in range(num_classes))

        # Copies, because the set is read-only and the caller's arrays must not become so.
        return cls(
            images=np.array(images),
            labels=labels,
            original_id=np.arange(len(labels)),
            severity=np.zeros(len(labels), np.int64),
            classes=classes,
        )


def rank_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each image the number of earlier images with the same label; splits are made by it.

    `(N,)` -> `(N,)`.
    """
    ranks = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        idx = np.flatnonzero(labels == label)
        ranks[idx] = np.arange(len(idx))
    return ranks
