"""Backbones by name, with bundled weights, or from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnr_gym import checks
from rnr_gym.backbones import gallery, torchvision_networks
from rnr_gym.backbones import weights as weight_files
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.channels import ChannelPrunedNet
from rnr_gym.backbones.multipath import MultiPathResNet
from rnr_gym.data.streaming import Crop

TRAINED_BY = {
    "pretrained": "`rnr-gym pretrain ENV --out FILE` trains them",
    "finetuned": "`rnr-gym finetune RUN --out DIR` trains them; FILE is in DIR/round-1",
}
"""What to do where weights are not bundled."""
KINDS: dict[str, type[Backbone]] = {"multipath": MultiPathResNet, "channels": ChannelPrunedNet}
"""The kinds that files can hold."""


@dataclass(frozen=True)
class Architecture:
    """A named backbone.

    Attributes:
        config: `kind`, a key of `KINDS` or that of torchvision's networks, and the constructor's
            arguments. A plain JSON-able dict, because it is stored in weights files and compared
            with them.
        dataset: the data set it is trained on.
        schedule: how it is trained: arguments of `training.pretraining.Schedule`.
    """

    config: dict[str, Any]
    dataset: str
    schedule: dict[str, Any]

    @property
    def is_downloaded(self) -> bool:
        """Whether its weights are torchvision's, which are downloaded on request."""
        return bool(self.config["kind"] == torchvision_networks.KIND)

    @property
    def crop(self) -> Crop | None:
        """What its weights expect to be made of photographs; None where images have one size."""
        if not self.is_downloaded:
            return None
        return torchvision_networks.crop(**_arguments(self.config))


_DIGITS_MULTIPATH = {
    "kind": "multipath",
    "image_shape": [1, 12, 12],
    "classes": 10,
    "widths": [16, 32],
    "blocks": [2, 2],
    "inner": [0.5, 1.0],
    "exits": [1, 2, 3],
    "glance_widths": [8, 16, 16],
    "glance_strides": [2, 2, 1],
}
_DIGITS_CHANNELS = {
    "kind": "channels",
    "style": "residual",
    "image_shape": [1, 12, 12],
    "classes": 10,
    "widths": [32, 32],
    "blocks": [1, 3],
    "groups": 4,
    "exits": [1, 2, 3],
    "glance_widths": [8, 16, 16],
    "glance_strides": [2, 2, 1],
}


def _cifar_multipath(classes: int) -> dict[str, Any]:
    return {
        "kind": "multipath",
        "image_shape": [3, 32, 32],
        "classes": classes,
        "widths": [64, 160, 320],
        "blocks": [1, 2, 2],
        "inner": [0.25, 1.0],
        "exits": [2, 3, 4],
        "glance_widths": [40, 64, 128],
        "glance_strides": [],
        "whitened": True,
    }


def _cifar_channels(classes: int) -> dict[str, Any]:
    return {
        "kind": "channels",
        "style": "residual",
        "image_shape": [3, 32, 32],
        "classes": classes,
        "widths": [64, 192, 352],
        # Four decisions, so that the table of all paths of all test images fits into memory.
        "blocks": [1, 2, 1],
        "groups": 4,
        "exits": [2, 3],
        "glance_widths": [40, 64, 128],
        "glance_strides": [],
        "whitened": True,
    }


# Narrow enough to be a small network in its own right, and with summaries that fit into few bytes.
_CIFAR10_SMALL = {
    "kind": "multipath",
    "image_shape": [3, 32, 32],
    "classes": 10,
    "widths": [48, 96, 192],
    "blocks": [1, 1, 1],
    "inner": [0.25, 1.0],
    "exits": [1, 2],
    "glance_widths": [16, 32, 64],
    "glance_strides": [],
    "whitened": True,
    "summary_groups": 8,
}


def _torchvision(model: str, weights: str) -> dict[str, Any]:
    # By their own name: torchvision's default may change, and the environment must not.
    return {"kind": torchvision_networks.KIND, "model": model, "weights": weights}


_DIGITS_SCHEDULE = {"epochs": 300, "glance_epochs": 300, "batch_size": 128}
# A narrow branch shares no filters with the wide one, so it has to see every image by itself:
# `path_share` is 1. Pruned channels do share them, and train by the default schedule.
_MULTIPATH_SCHEDULE = {"epochs": 20, "path_share": 1.0}
_SMALL_SCHEDULE = {"epochs": 32, "path_share": 1.0}

ARCHITECTURES: dict[str, Architecture] = {
    "rnr-digits": Architecture(
        config=_DIGITS_MULTIPATH,
        dataset="digits",
        schedule=_DIGITS_SCHEDULE,
    ),
    "rnr-digits-channels": Architecture(
        config=_DIGITS_CHANNELS,
        dataset="digits",
        schedule=_DIGITS_SCHEDULE,
    ),
    "rnr-cifar10": Architecture(
        config=_cifar_multipath(classes=10),
        dataset="cifar10",
        schedule=_MULTIPATH_SCHEDULE,
    ),
    "rnr-cifar10-channels": Architecture(
        config=_cifar_channels(classes=10),
        dataset="cifar10",
        schedule={},
    ),
    "rnr-cifar10-small": Architecture(
        config=_CIFAR10_SMALL,
        dataset="cifar10",
        schedule=_SMALL_SCHEDULE,
    ),
    "rnr-cifar100": Architecture(
        config=_cifar_multipath(classes=100),
        dataset="cifar100",
        schedule=_MULTIPATH_SCHEDULE,
    ),
    "rnr-cifar100-channels": Architecture(
        config=_cifar_channels(classes=100),
        dataset="cifar100",
        schedule={},
    ),
    # Never trained here, so they have no schedule.
    "resnet50": Architecture(
        config=_torchvision("resnet50", "IMAGENET1K_V2"),
        dataset="imagenet",
        schedule={},
    ),
    # With batch-norms, which `calibrate_paths` can fit to images.
    "vgg16_bn": Architecture(
        config=_torchvision("vgg16_bn", "IMAGENET1K_V1"),
        dataset="imagenet",
        schedule={},
    ),
}


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments in a config."""
    return {name: value for name, value in config.items() if name != "kind"}


def from_config(config: dict[str, Any], seed: int = 0) -> Backbone:
    """Build an architecture with seeded random weights, in evaluation mode.

    The gallery of one that retrieves is empty. The global generator is left as it was.
    """
    if config["kind"] == gallery.KIND:
        backbone = from_config(config["of"], seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = {name: config[name] for name in gallery.SIZES}
            gallery.add_gallery(backbone, **sizes)
        return backbone.eval()

    build: Callable[..., Backbone]
    if config["kind"] == torchvision_networks.KIND:
        build = torchvision_networks.build
    else:
        build = KINDS[config["kind"]]
    # `devices=[]`: weights are drawn on the CPU; to fork other generators would start CUDA.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(**_arguments(config)).eval()


def load(path: Path, expected: dict[str, Any] | None = None) -> Backbone:
    """Read what `weights.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, not a backbone, or its config is not `expected`.
    """
    state_dict, metadata = weight_files.read(path)
    config = metadata["config"]
    # Weights of a named backbone may also be those of one that retrieves, which was made of it.
    if expected is not None and expected not in (config, _of(config)):
        raise ValueError(
            "`weights` must have the architecture of the named backbone, "
            f"got {str(path)!r}, which has another ({_difference(expected, config)})"
        )

    _check_declared(path, config, state_dict)
    backbone = from_config(config)
    backbone.load_state_dict(state_dict)
    return backbone.eval()


def _of(config: Any) -> Any:
    """What a backbone that retrieves was made of."""
    return config.get("of") if isinstance(config, dict) else None


def _check_declared(path: Path, config: Any, state_dict: dict[str, Tensor]) -> None:
    """Raise `ValueError` unless a file holds the tensors of the architecture that it declares.

    Before the network is made, which could need any amount of memory and time.
    """
    try:
        _check_sizes(config, state_dict)
        # Shapes without memory.
        with torch.device("meta"):
            declared = from_config(config).state_dict()
    except KeyError as error:
        raise ValueError(f"`config` of {str(path)!r} must have {error}, got {config}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"`config` of {str(path)!r} must be a backbone's ({error})") from error

    for name in sorted(declared.keys() | state_dict.keys()):
        if name not in declared:
            raise ValueError(
                f"`{name}` of {str(path)!r} must be part of the architecture that it declares"
            )
        expected = tuple(declared[name].shape)
        found = tuple(state_dict[name].shape) if name in state_dict else None
        if found != expected:
            raise ValueError(f"`{name}` of {str(path)!r} must have shape {expected}, got {found}")
        if not state_dict[name].isfinite().all():
            raise ValueError(f"`{name}` of {str(path)!r} must be finite, got NaN or infinity")


def _check_sizes(config: Any, state_dict: dict[str, Tensor]) -> None:
    """Raise `ValueError` for an architecture of more layers or channels than the file can hold."""
    if not isinstance(config, dict):
        raise ValueError(f"`config` must be a dict, got {config!r}")
    if config.get("kind") == gallery.KIND:
        if _of(config["of"]) is not None:
            raise ValueError("`of` must be a backbone that classifies, got one that retrieves")
        _check_sizes(config["of"], state_dict)
        _check_gallery(config, state_dict)
        return
    checks.choice("kind", config["kind"], KINDS)
    num_values = sum(tensor.numel() for tensor in state_dict.values())
    # Every layer has tensors of its own, and every group or branch has a batch-norm.
    most = {"groups": len(state_dict)}
    blocks = checks.integers("blocks", config["blocks"], 1)
    if sum(blocks) > len(state_dict):
        raise ValueError(f"`blocks` must fit into the file, got {checks.shortened(blocks)}")
    for name, value in config.items():
        entries = value if isinstance(value, list) else [value]
        if len(entries) > len(state_dict):
            raise ValueError(f"`{name}` must have fewer entries than the file has tensors")
        for entry in entries:
            if isinstance(entry, int) and entry > most.get(name, num_values):
                raise ValueError(f"`{name}` must fit into the file, got {checks.shortened(value)}")


def _check_gallery(config: dict[str, Any], state_dict: dict[str, Tensor]) -> None:
    """Raise `ValueError` unless the file can hold such a gallery, or for labels out of range."""
    num_values = sum(tensor.numel() for tensor in state_dict.values())
    for name in gallery.SIZES:
        checks.integer(name, config[name], 1, num_values)
    shape = (config["items"],)
    labels = state_dict["gallery.labels"].numpy()
    checks.whole_numbers("gallery.labels", labels, shape, 0, config["classes"] - 1)


def _difference(expected: dict[str, Any], actual: dict[str, Any]) -> str:
    """The entries in which two configs differ, for an error message."""
    entries = []
    for key in sorted(expected.keys() | actual.keys()):
        if expected.get(key) != actual.get(key):
            entries.append(f"{key}: needs {expected.get(key)}, has {actual.get(key)}")
    return "; ".join(entries)


def own_architecture(name: str, argument: str) -> Architecture:
    """A named architecture of this package, whose weights can be trained and written.

    Raises `ValueError`, which names the argument, for one that comes from torchvision.
    """
    architecture = ARCHITECTURES[name]
    if architecture.is_downloaded:
        raise ValueError(
            f"`{argument}` must route a network of this package, got one that routes {name}, which "
            "comes from torchvision with its weights"
        )
    return architecture


def named(
    name: str,
    weights: str | None = "pretrained",
    seed: int = 0,
    device: str = "cpu",
    download: bool = True,
) -> Backbone:
    """A backbone, shared read-only by all callers in a process that give the same arguments.

    Args:
        name: a key of `ARCHITECTURES`, or the path of a file written by `weights.save`.
        weights: of the bundled ones, `"pretrained"` (under random routing, before any router) or
            `"finetuned"` (then under a router, too); the path of a file for other ones, None for
            seeded random ones. Those of torchvision's networks are `"pretrained"`, torchvision's,
            or None. Ignored if `name` is a file.
        seed: of the random weights.
        device: where it runs.
        download: whether torchvision's weights may be downloaded where torch's cache lacks them.

    Raises:
        ValueError: the name, the weights or the device are unknown, the weights are not bundled, or
            they have another architecture.
        FileNotFoundError: torchvision's weights are not there.
    """
    if isinstance(weights, PathLike):
        weights = str(weights)
    if weights is not None and not isinstance(weights, str):
        raise ValueError(f"`weights` must be a name, a file, or None, got {weights!r}")
    name = checks.path("backbone", name)
    seed = checks.seed(seed)
    device = checks.device(device)
    architecture = ARCHITECTURES.get(name)
    if architecture is not None and architecture.is_downloaded:
        if weights not in ("pretrained", None):
            raise ValueError(
                f"`weights` of {name} must be 'pretrained', which are torchvision's, or None for "
                f"random ones, got {weights!r}; `routable` takes a network with other weights"
            )
        if weights is not None:
            torchvision_networks.fetch(**_arguments(architecture.config), download=download)
    return _shared(name, weights, seed, device)


# All arguments by position: the cache would tell `named(a, b)` and `named(a, weights=b)` apart.
@lru_cache(maxsize=2 * len(ARCHITECTURES))
def _shared(name: str, weights: str | None, seed: int, device: str) -> Backbone:
    backbone = _named(name, weights, seed).to(device).requires_grad_(False)
    # Convolutions run faster with the channels last.
    return backbone.to(memory_format=torch.channels_last)


def _named(name: str, weights: str | None, seed: int) -> Backbone:
    if name not in ARCHITECTURES:
        if not Path(name).is_file():
            raise ValueError(
                f"`backbone` must be one of {', '.join(ARCHITECTURES)}, "
                f"or a file that `rnr-gym pretrain` wrote, got {name!r}"
            )
        # A file brings its own architecture and its own weights.
        return load(Path(name))

    config = ARCHITECTURES[name].config
    if weights is None:
        return from_config(config, seed)
    if ARCHITECTURES[name].is_downloaded:
        return torchvision_networks.pretrained(**_arguments(config)).eval()

    if weights in weight_files.BUNDLED:
        path = weight_files.backbone_file(name, str(weights))
        if not path.is_file():
            raise ValueError(
                f"`weights` of {name} are not bundled, got {weights!r}; "
                f"{TRAINED_BY[str(weights)]}: pass FILE, or None for random ones"
            )
        return load(path, config)

    if not Path(weights).is_file():
        raise ValueError(
            "`weights` must be 'pretrained', 'finetuned', a file, or None for random ones, got "
            f"{weights!r}"
        )
    return load(Path(weights), config)
