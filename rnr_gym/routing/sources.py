"""Opening what an environment routes: by name, once per process, shared by all who ask for it."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from rnr_gym import checks, claims, data, storage
from rnr_gym.backbones import weights as weight_files
from rnr_gym.backbones import zoo
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.inference import AUTO, DTYPES, chosen_dtype
from rnr_gym.data import ImageSet
from rnr_gym.data.streaming import Crop
from rnr_gym.routing import profiles, route_table
from rnr_gym.routing.live import Live
from rnr_gym.routing.profiles import Profile
from rnr_gym.routing.protocols import RoutingSource
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.spec import RoutingSpec

BACKENDS = ("live", "table")
MACS = "macs"
TIME = "time"
PRETRAINED = "pretrained"
ROUNDING = 2
"""Changes when networks round otherwise than before, so that older tables are not read."""


class SourceKwargs(TypedDict, total=False):
    """The keyword arguments of `open_source`: which images and which network are routed."""

    dataset: str | ImageSet | Mapping[str, ImageSet]
    split: str
    backbone: str | Backbone
    weights: str | None
    exits: bool
    backend: str | RouteTable
    data_root: str | None
    download: bool
    device: str
    dtype: str
    cost: str | Profile


def open_source(
    dataset: str | ImageSet | Mapping[str, ImageSet] = "digits",
    split: str = "route",
    backbone: str | Backbone = "rnr-digits",
    weights: str | None = PRETRAINED,
    exits: bool = True,
    backend: str | RouteTable = "live",
    data_root: str | None = None,
    download: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
    cost: str | Profile = MACS,
) -> RoutingSource:
    """Open images and backbone, checked against each other.

    The same arguments give the same object.

    Args:
        dataset: a name, an `ImageSet`, or a dict of them by split.
        split: `"train"`, `"route"` or `"test"`.
        backbone: a name, a file that `rnr-gym pretrain` wrote, or a `Backbone`.
        weights: of a named backbone: `"pretrained"`, `"finetuned"`, a file, or None for seeded
            random ones. Torchvision's networks have no fine-tuned ones, and take no file.
        exits: whether exits and glance run.
        backend: `"live"` runs the network. `"table"` routes the bundled table where there is one,
            which needs no images, else a table that is built and kept in the cache. A `RouteTable`
            is routed as it is, whatever the other arguments are.
        data_root: directory of the images.
        download: whether to fetch images, and torchvision's weights, that are missing.
        device: where the network runs.
        dtype: in what it computes features: `"float32"`, `"bfloat16"`, or `"auto"` for the faster
            one on this machine. A bundled table was computed in float32.
        cost: what is charged: `"macs"`; `"time"`, as `rnr-gym profile` measured it on this machine;
            or a profile, or its file.

    Raises:
        ValueError: an argument is unknown, the images do not fit the backbone, or the profile is
            that of another one.
        FileNotFoundError: there are no images, no profile, or no weights of torchvision's.
    """
    # First, because whoever has no profile should not wait for images.
    profile = open_profile(backbone, weights, device, dtype, cost)
    if isinstance(backend, RouteTable):
        return _charging(backend, profile)
    if not isinstance(backbone, str | Backbone):
        raise ValueError(
            "`backbone` must be a name, a file or a `Backbone`, got " + type(backbone).__name__
        )
    backend = checks.choice("backend", backend, BACKENDS)
    exits = checks.flag("exits", exits)
    checks.choice("dtype", dtype, (*DTYPES, AUTO))

    # A bundled table goes first, because it needs neither weights nor images.
    if backend == "table":
        table = bundled_table(dataset, split, backbone, weights, exits, dtype)
        if table is not None:
            return _charging(table, profile)

    # Named weights never change, so their name identifies them.
    if isinstance(backbone, str):
        if _crop(backbone) is not None:
            # These images are listed only; without them there is no need to download weights.
            open_images(dataset, split, data_root, download, backbone=backbone)
        network = zoo.named(backbone, weights, device=device, download=download)
        state_digest = ""
    elif weights in (PRETRAINED, None):
        network = backbone.eval()
        state_digest = storage.digest(network.state_dict())
    else:
        raise ValueError(
            f"`weights` go with a named backbone, got {weights!r} with a `Backbone`, which has its "
            "own"
        )

    images = open_images(dataset, split, data_root, download, backbone=backbone)
    dtype = chosen_dtype(network, dtype)
    source = _opened(network, state_digest, images, exits, backend, dtype)
    return _charging(source, profile)


def open_profile(
    backbone: str | Backbone = "rnr-digits",
    weights: str | None = PRETRAINED,
    device: str = "cpu",
    dtype: str = "float32",
    cost: str | Profile = MACS,
    **other: Any,
) -> Profile | None:
    """What `open_source` charges by, given the same arguments; None for MACs."""
    if isinstance(cost, Profile):
        return cost
    if not isinstance(cost, str | PathLike):
        raise ValueError(f'`cost` must be "macs", "time" or a profile, got {cost!r}')
    if cost == MACS:
        return None
    if cost != TIME:
        if not Path(cost).is_file():
            raise ValueError(
                '`cost` must be "macs", "time" or a file that `rnr-gym profile` wrote, got '
                f"{str(cost)!r}"
            )
        return profiles.of_file(str(cost))
    if checks.choice("dtype", dtype, (*DTYPES, AUTO)) == AUTO:
        raise ValueError(
            f'`dtype` must be float32 or bfloat16 with `cost="time"`, got {AUTO!r}: each has its '
            "own profile"
        )

    if isinstance(backbone, Backbone):
        return profiles.of_backbone(backbone, backbone.config, str(backbone.device), dtype)
    # The weights of a name do not matter here, but a file is an architecture of its own.
    architecture = zoo.ARCHITECTURES.get(backbone) if isinstance(backbone, str) else None
    if architecture is not None:
        return profiles.of_backbone(backbone, architecture.config, checks.device(device), dtype)
    config = zoo.named(backbone, weights).config
    return profiles.of_backbone(backbone, config, checks.device(device), dtype)


def open_images(
    dataset: str | ImageSet | Mapping[str, ImageSet] = "digits",
    split: str = "route",
    data_root: str | None = None,
    download: bool = True,
    **other: Any,
) -> ImageSet:
    """The images that `open_source` routes, given the same arguments.

    An `ImageSet` serves for every split. Photographs of a named data set are cropped as the weights
    of a named backbone expect it. Where a bundled table is routed, these are the images that it was
    computed from.
    """
    if isinstance(dataset, str):
        crop = _crop(other.get("backbone"))
        if crop is not None and data.dataset(dataset).is_cropped:
            images = data.load(dataset, split, data_root, download, crop)
        else:
            images = data.load(dataset, split, data_root, download)
        table = None
        if other.get("backend") == "table":
            table = bundled_table(
                dataset,
                split,
                other.get("backbone", "rnr-digits"),
                other.get("weights", PRETRAINED),
                other.get("exits", True),
                other.get("dtype", "float32"),
            )
        if table is None:
            return images
        # A table holds the first images of its split.
        return images.take(np.arange(min(len(table.labels), len(images))))

    data.check_split(split)
    chosen: Any = dataset
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise ValueError(
                f"`split` must be one that `dataset` holds, {', '.join(dataset)}, got {split!r}"
            )
        chosen = dataset[split]
    if not isinstance(chosen, ImageSet):
        raise ValueError(
            "`dataset` must be a name, an `ImageSet`, or a dict of them by split, got "
            + type(chosen).__name__
        )
    return chosen


def _crop(backbone: Any) -> Crop | None:
    """What a named backbone expects to be made of photographs; None for any other."""
    architecture = zoo.ARCHITECTURES.get(backbone) if isinstance(backbone, str) else None
    return None if architecture is None else architecture.crop


def bundled_table(
    dataset: str | ImageSet | Mapping[str, ImageSet],
    split: str,
    backbone: str | Backbone,
    weights: str | None = PRETRAINED,
    exits: bool = True,
    dtype: str = "float32",
) -> RouteTable | None:
    """The route table that comes with a named backbone and its own data set; None without one."""
    data.check_split(split)
    # What is bundled was computed in float32.
    if dtype == "bfloat16":
        return None
    if not isinstance(backbone, str) or weights != PRETRAINED or not exits:
        return None
    # Other images than those of its own data set are not in the table; arrays compare by element.
    if not isinstance(dataset, str):
        return None
    architecture = zoo.ARCHITECTURES.get(backbone)
    path = weight_files.table_file(backbone, split)
    if architecture is None or dataset != architecture.dataset or not path.is_file():
        return None
    return _loaded(path)


@lru_cache(maxsize=8)
def _loaded(path: Path) -> RouteTable:
    return RouteTable.load(path)


@lru_cache(maxsize=8)
def _opened(
    backbone: Backbone,
    state_digest: str,
    images: ImageSet,
    exits: bool,
    backend: str,
    dtype: str,
) -> RoutingSource:
    """One object for the same arguments.

    `state_digest` tells apart the weights of a user's own backbone, which may change in place.
    """
    if multiprocessing.parent_process() is not None:
        # Workers share the cores; torch would give each of them all.
        torch.set_num_threads(1)

    _check_fit(backbone, images)
    spec = RoutingSpec.of(backbone, exits)
    live = Live(backbone, images, spec, dtype)
    if backend == "live":
        return live
    return _cached_table(live)


def _charging(source: RoutingSource, profile: Profile | None) -> RoutingSource:
    """The source, charging time if there is a profile."""
    if profile is None:
        return source
    assert isinstance(source, Live | RouteTable)
    return _timed(source, profile)


@lru_cache(maxsize=8)
def _timed(source: Live | RouteTable, profile: Profile) -> RoutingSource:
    """One object for the same arguments."""
    profile.check_fits(source.spec)
    if isinstance(source, RouteTable):
        return source.timed(profile.times)
    return replace(source, spec=source.spec.timed(profile.times))


def _check_fit(backbone: Backbone, images: ImageSet) -> None:
    """Raise `ValueError` unless the images have the backbone's shape and classes."""
    shape = images.images.shape[1:]
    if shape != backbone.image_shape:
        channels = backbone.image_shape[0]
        hint = ""
        if shape[0] != channels and channels in (1, 3):
            hint = f"; `load_folder(..., channels={channels})` converts image files"
        raise ValueError(
            f"`dataset` must hold images of the backbone's shape {backbone.image_shape}, got "
            f"{shape}{hint}"
        )
    if len(images.classes) != backbone.num_classes:
        raise ValueError(
            f"`dataset` must have the backbone's {backbone.num_classes} classes, got "
            f"{len(images.classes)}"
        )


def digest_of(source: RoutingSource) -> str:
    """Twelve hexadecimal digits that change with weights, images, costs and dtype.

    Those of a table are the digits of what it was computed from.
    """
    spec = source.spec
    if spec.time_table is None:
        return _digest_without_times(source)
    return storage.short_hash(_digest_without_times(source).encode(), spec.digest.encode())


def _digest_without_times(source: RoutingSource) -> str:
    """The digits of the same source where MACs are charged."""
    if isinstance(source, RouteTable):
        return source.origin or digest_of_content(source)

    spec = replace(source.spec, time_table=None)
    parts = [spec.digest.encode(), source.labels.tobytes()]
    if isinstance(source, Live):
        parts.append(storage.digest(source.backbone.state_dict()).encode())
        parts.append(source.images.fingerprint())
        # Named only where it is another one, so that older digests hold.
        if source.dtype != "float32":
            parts.append(source.dtype.encode())
    return storage.short_hash(*parts)


def digest_of_content(source: RouteTable) -> str:
    """Twelve hexadecimal digits that change with what a table holds."""
    spec = replace(source.spec, time_table=None)
    return storage.short_hash(
        spec.digest.encode(),
        source.labels.tobytes(),
        source.prediction.tobytes(),
        source.loss.tobytes(),
        source.summary.tobytes(),
    )


def _cached_table(live: Live) -> RouteTable:
    """The table from the cache; else built, and kept there under the digest of its origin."""
    origin = digest_of(live)
    path = storage.cache_dir() / "tables" / f"{origin}-{ROUNDING}.safetensors"

    def build() -> RouteTable:
        built = route_table.build(live.network, live.images, live.spec)
        replace(built, origin=origin).save(path)
        return RouteTable.load(path)

    return claims.cached(path, read=lambda: _read_table(path, origin, live.spec), make=build)


def _read_table(path: Path, origin: str, spec: RoutingSpec) -> RouteTable | None:
    """What is in the cache; None if nothing is, or, with a warning, if it is damaged."""
    if not path.exists():
        return None
    try:
        table = RouteTable.load(path)
        if (table.origin, table.spec.digest) != (origin, spec.digest):
            raise ValueError("it is about other weights or images")
    except ValueError as error:
        warnings.warn(f"{path} is computed again, for it is damaged: {error}", stacklevel=2)
        return None
    return table
