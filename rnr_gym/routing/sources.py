"""What an environment routes: a backbone with images, live, or their route table. Opened once a process and shared."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from rnr_gym import data, storage
from rnr_gym.backbones import zoo
from rnr_gym.backbones.base import Backbone
from rnr_gym.data import ImageSet
from rnr_gym.routing import route_table
from rnr_gym.routing.live import Live
from rnr_gym.routing.protocols import Source
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.spec import RoutingSpec

BACKENDS = ("live", "table", "shipped")


class SourceArguments(TypedDict, total=False):
    """What says which images and which network are routed; the keyword arguments of `open_source`."""

    dataset: str | ImageSet | Mapping[str, ImageSet]
    split: str
    backbone: str | Backbone
    weights: str | None
    exits: bool
    backend: str | RouteTable
    data_root: str | None
    download: bool
    device: str


def open_source(
    dataset: str | ImageSet | Mapping[str, ImageSet] = "digits",
    split: str = "route",
    backbone: str | Backbone = "rnr-digits",
    weights: str | None = "frozen",
    exits: bool = True,
    backend: str | RouteTable = "live",
    data_root: str | None = None,
    download: bool = True,
    device: str = "cpu",
) -> Source:
    """Images and backbone by name or as objects, checked against each other; the same arguments give the same object.

    A `RouteTable` as `backend` is routed as it is, whatever the other arguments say. `"shipped"` routes the table that
    comes with a named backbone, which needs no images.
    """
    if isinstance(backend, RouteTable):
        return backend
    if backend == "shipped":
        return shipped_table(backbone, split, weights, exits)
    if not isinstance(backbone, str | Backbone):
        raise ValueError(f"`backbone` must be a name, a file or a `Backbone`, got {type(backbone).__name__}")
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if not isinstance(backbone, str) and weights not in (*zoo.STAGES, None):
        raise ValueError(f"`weights` go with a named backbone, got {weights!r} beside a `Backbone`, which has its own")
    network = zoo.named(backbone, weights, device=device) if isinstance(backbone, str) else backbone.eval()
    state = "" if isinstance(backbone, str) else storage.digest(network.state_dict())
    return _opened(network, state, open_images(dataset, split, data_root, download), bool(exits), backend)


def open_images(
    dataset: str | ImageSet | Mapping[str, ImageSet] = "digits",
    split: str = "route",
    data_root: str | None = None,
    download: bool = True,
    backend: str | RouteTable = "live",
    **source: Any,
) -> ImageSet:
    """The images that `open_source` routes, given the same arguments. A bare `ImageSet` stands for every split."""
    if isinstance(dataset, str):
        images = data.load(dataset, split, data_root, download)
        if backend != "shipped":
            return images
        known = len(shipped_table(source.get("backbone", "rnr-digits"), split).labels)
        return images.take(np.arange(min(known, len(images))))
    data.check_split(split)
    if isinstance(dataset, Mapping) and split not in dataset:
        raise ValueError(f"`split` must be one that `dataset` holds, {', '.join(dataset)}, got {split!r}")
    images = dataset[split] if isinstance(dataset, Mapping) else dataset
    if not isinstance(images, ImageSet):
        raise ValueError(f"`dataset` must be a name, an `ImageSet`, or a dict of them by split, got {type(images).__name__}")
    return images


def shipped_table(backbone: str | Backbone, split: str, weights: str | None = "frozen", exits: bool = True) -> RouteTable:
    """The route table that comes with a named backbone; it holds the first images of its split."""
    data.check_split(split)
    path = zoo.bundled(str(backbone), f"{weights}.{split}")
    if not exits or not isinstance(backbone, str) or not path.is_file():
        tables = sorted(file.name.removesuffix(".safetensors") for part in data.SPLITS for file in zoo.FOLDER.glob(f"*.*.{part}.safetensors"))
        asked = f"{backbone if isinstance(backbone, str) else type(backbone).__name__}.{weights}.{split}{'' if exits else ' without exits'}"
        raise ValueError(
            f'`backend="shipped"` needs a table that ships, {", ".join(tables) or "none so far"}, got {asked}; "live" and "table" need images'
        )
    return _loaded(path)


@lru_cache(maxsize=8)
def _loaded(path: Path) -> RouteTable:
    return RouteTable.load(path)


@lru_cache(maxsize=8)
def _opened(backbone: Backbone, state: str, images: ImageSet, exits: bool, backend: str) -> Source:
    """One object for the same arguments; `state` tells the weights of an own backbone, which may change, apart."""
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # workers share the cores; torch would give each of them all
    _check_fit(backbone, images)
    spec = backbone.spec(exits)
    return Live(backbone, images, spec) if backend == "live" else _table(backbone, images, spec)


def _check_fit(backbone: Backbone, images: ImageSet) -> None:
    if images.images.shape[1:] != backbone.image_shape:
        raise ValueError(f"`dataset` must hold images of the backbone's shape {backbone.image_shape}, got {images.images.shape[1:]}")
    if len(images.classes) != backbone.num_classes:
        raise ValueError(f"`dataset` must have the backbone's {backbone.num_classes} classes, got {len(images.classes)}")


def digest_of(source: Source) -> str:
    """Twelve hexadecimal digits that change with weights, images and costs; a table's are those of what it was worked out from."""
    if isinstance(source, RouteTable) and source.origin:
        return source.origin
    key = hashlib.sha256(source.spec.digest.encode() + source.labels.tobytes())
    if isinstance(source, Live):
        key.update(storage.digest(source.backbone.state_dict()).encode() + source.images.images.tobytes())
    if isinstance(source, RouteTable):
        key.update(source.prediction.tobytes() + source.loss.tobytes())
    return key.hexdigest()[:12]


def _table(backbone: Backbone, images: ImageSet, spec: RoutingSpec) -> RouteTable:
    """The table from the cache, else built and put there: it is named after weights, images and problem."""
    origin = digest_of(Live(backbone, images, spec))
    path = storage.cache_folder() / "tables" / f"{origin}.safetensors"
    try:
        return RouteTable.load(path)
    except (FileNotFoundError, ValueError):  # not there yet, or damaged
        replace(route_table.build(backbone, images, spec), origin=origin).save(path)
        return RouteTable.load(path)
