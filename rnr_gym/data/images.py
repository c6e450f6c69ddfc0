"""Labelled images in memory, and the rule that splits them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "route", "test")
"""`train` fits backbone weights, `route` fits routers and calibration, `test` is for final figures only."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images that every environment of a process shares, read-only.

    Attributes:
        images: uint8 `(N, C, H, W)`, 0..255.
        labels: int64 `(N,)`, 0..len(classes)-1.
        source: int64 `(N,)`; images with one number are versions of one original. Statistics resample originals.
        severity: int64 `(N,)`, 0 = untouched, growing with difficulty; all zeros where nothing is known.
        classes: the class names in label order.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    source: NDArray[np.int64]
    severity: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(f"`images` must be uint8 (N, C, H, W), got {self.images.dtype} {self.images.shape}")
        rows = len(self.images)
        if rows == 0:
            raise ValueError("`images` must hold at least one image, got none")
        for name in ("labels", "source", "severity"):
            if getattr(self, name).shape != (rows,):
                raise ValueError(f"`{name}` must have shape ({rows},), got {getattr(self, name).shape}")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise ValueError(f"`labels` must lie in 0..{len(self.classes) - 1}, got {self.labels.min()}..{self.labels.max()}")
        for name in ("images", "labels", "source", "severity"):
            getattr(self, name).flags.writeable = False

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> ImageSet:
        """The chosen rows, in the order given."""
        parts = {name: getattr(self, name)[rows] for name in ("images", "labels", "source", "severity")}
        return replace(self, **parts)

    @classmethod
    def of(cls, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: tuple[str, ...] | None = None) -> ImageSet:
        """An image set from bare arrays: every image its own original, severity unknown."""
        labels = np.array(labels, np.int64)
        if len(labels) and labels.min() < 0:
            raise ValueError(f"`labels` must be 0 or above, got {labels.min()}")
        names = classes or tuple(str(label) for label in range(int(labels.max(initial=0)) + 1))
        return cls(np.array(images), labels, np.arange(len(labels)), np.zeros(len(labels), np.int64), names)


def rank_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row the number of earlier rows with the same label: the key by which splits are made."""
    ranks = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        ranks[rows] = np.arange(len(rows))
    return ranks
