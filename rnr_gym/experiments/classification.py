"""Image files, classified one by one by a router and its network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rnr_gym import data
from rnr_gym.backbones import zoo
from rnr_gym.classifier import BACKBONE_FILE, RoutedClassifier, load_run
from rnr_gym.data import photos
from rnr_gym.data.streaming import Crop

TRADEOFF = 0.1
"""λ where neither a budget nor a trade-off is given."""
RUNS = 5
"""How often an image is classified to time it, after one run that is not timed."""


class Classified(NamedTuple):
    """An image and its answer.

    Attributes:
        file: the image's.
        name: of the class; its number where nobody knows the names.
        confidence: probability of that class, 0..1.
        path: the executed sub-paths.
        compute: MACs over those of the plain network, the router's own included.
        milliseconds: the median of a few runs on this machine.
    """

    file: Path
    name: str
    confidence: float
    path: tuple[int, ...]
    compute: float
    milliseconds: float


def classify(
    name: str,
    files: Sequence[Path],
    compute: float | None = None,
    tradeoff: float | None = None,
    dtype: str | None = None,
) -> list[Classified]:
    """Classify the central part of each image, scaled to what the network takes.

    Args:
        name: the folder of a run, or what `RoutedClassifier.from_pretrained` takes.
        files: PNG, JPEG, WebP, GIF or BMP.
        compute: mean compute to aim at.
        tradeoff: λ; `TRADEOFF` if `compute` is left out as well.
        dtype: as for `RoutedClassifier`; None for float32, or that of the run.

    Raises:
        ValueError: a file is no image, or an argument is not allowed.
        FileNotFoundError: there is no such file, or no such classifier.
    """
    if not files:
        raise ValueError("`images` must name at least one file, got none")
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"`images` must be files, got {missing[0]!r}, which does not exist")
    classifier, classes, crop = _load(name, dtype)
    batches = [_read(file, classifier.backbone.image_shape, crop) for file in files]
    if compute is None and tradeoff is None:
        tradeoff = TRADEOFF
    return [
        _classified(classifier, classes, file, batch, compute, tradeoff)
        for file, batch in zip(files, batches, strict=True)
    ]


def _load(
    name: str, dtype: str | None
) -> tuple[RoutedClassifier, tuple[str, ...] | None, Crop | None]:
    """A classifier with its class names and how it expects photographs, if they are known."""
    folder = Path(name)
    # A folder that `save_pretrained` wrote has its backbone in it.
    if folder.is_dir() and not (folder / BACKBONE_FILE).exists():
        kwargs = load_run(name).fit_config.source_kwargs("route")
        architecture = zoo.ARCHITECTURES.get(kwargs["backbone"])
        crop = None if architecture is None else architecture.crop
        classes = data.dataset(kwargs["dataset"]).classes
        return RoutedClassifier.from_run(name, dtype=dtype), classes, crop
    classifier = RoutedClassifier.from_pretrained(name, dtype=dtype or "float32")
    if name in zoo.ARCHITECTURES:
        return classifier, data.dataset(zoo.ARCHITECTURES[name].dataset).classes, None
    return classifier, None, None


def _read(file: Path, shape: tuple[int, ...], crop: Crop | None) -> Tensor:
    """uint8 `(1, C, H, W)`, cropped as told, else the central part."""
    channels, height, width = shape
    try:
        image = photos.read_image(file)
    except photos.RefusedImage as refused:
        raise ValueError(f"`images` must be image files, got {str(file)!r}: {refused}") from refused
    if channels == 1:
        image = image.convert("L").convert("RGB")
    # The channels of a grey image are alike.
    pixels = crop(image) if crop else photos.network_input(image, (height, width))[:channels]
    return torch.from_numpy(pixels[None].copy())


def _classified(
    classifier: RoutedClassifier,
    classes: tuple[str, ...] | None,
    file: Path,
    batch: Tensor,
    compute: float | None,
    tradeoff: float | None,
) -> Classified:
    times = []
    for _ in range(1 + RUNS):
        start = time.perf_counter()
        routed = classifier(batch, compute=compute, tradeoff=tradeoff)
        times.append(1000 * (time.perf_counter() - start))

    probabilities = routed.logits[0].softmax(0)
    label = int(probabilities.argmax())
    path = routed.path[0]
    return Classified(
        file=file,
        name=str(label) if classes is None else classes[label],
        confidence=float(probabilities[label]),
        path=tuple(path[path >= 0].tolist()),
        compute=float(routed.compute[0]),
        milliseconds=statistics.median(times[1:]),
    )
