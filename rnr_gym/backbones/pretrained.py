"""Backbones by name, with the weights that ship with the package, or from a file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnr_gym import checkpoints
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.channels import ChannelPrunedNet
from rnr_gym.backbones.multipath import MultiPathResNet
from rnr_gym.registration import id_of

KINDS: dict[str, type[Backbone]] = {"multipath": MultiPathResNet, "channels": ChannelPrunedNet}
FOLDER = Path(__file__).parents[1] / "weights"
STAGES = ("frozen",)
"""Which weights of a named backbone ship: `frozen`, trained under random routing, before any router."""


class Architecture(NamedTuple):
    """A named backbone: what builds it, the data set it is trained on, and how (arguments of `training.Schedule`)."""

    config: dict[str, Any]
    dataset: str
    schedule: dict[str, Any]


_DIGITS: dict[str, Any] = {
    "image_shape": [1, 12, 12],
    "classes": 10,
    "exits": [1, 2, 3],
    "glance_widths": [8, 16, 16],
    "glance_strides": [2, 2, 1],
}
_CIFAR: dict[str, Any] = {
    "image_shape": [3, 32, 32],
    "widths": [64, 160, 320],
    "exits": [2, 3, 4],
    "glance_widths": [40, 64, 128],
    "glance_strides": [],
    "whitened": True,
}
_CIFAR_MULTIPATH = {**_CIFAR, "kind": "multipath", "blocks": [1, 2, 2], "inner": [0.25, 1.0]}
# Four decisions, so that the table of all paths of all test images fits into memory.
_CIFAR_CHANNELS = {
    **_CIFAR,
    "kind": "channels",
    "style": "residual",
    "widths": [64, 192, 352],
    "blocks": [1, 2, 1],
    "groups": 4,
    "exits": [2, 3],
}
# Narrow enough to be a small network in its own right, and with summaries that fit into few bytes.
_CIFAR_SMALL = {
    **_CIFAR,
    "kind": "multipath",
    "classes": 10,
    "widths": [48, 96, 192],
    "blocks": [1, 1, 1],
    "inner": [0.25, 1.0],
    "exits": [1, 2],
    "glance_widths": [16, 32, 64],
    "condensed": 8,
}
# A narrow branch shares no filters with the wide one, so it has to see every image by itself.
_MULTIPATH_SCHEDULE = {"epochs": 20, "path_share": 1.0}
_SMALL_SCHEDULE = {**_MULTIPATH_SCHEDULE, "epochs": 32}
_DIGITS_SCHEDULE = {"epochs": 300, "glance_epochs": 300, "batch_size": 128}
ARCHITECTURES = {
    "rnr-digits": Architecture(
        config={
            "kind": "multipath",
            **_DIGITS,
            "widths": [16, 32],
            "blocks": [2, 2],
            "inner": [0.5, 1.0],
        },
        dataset="digits",
        schedule=_DIGITS_SCHEDULE,
    ),
    "rnr-digits-channels": Architecture(
        config={
            "kind": "channels",
            **_DIGITS,
            "style": "residual",
            "widths": [32, 32],
            "blocks": [1, 3],
            "groups": 4,
        },
        dataset="digits",
        schedule=_DIGITS_SCHEDULE,
    ),
    "rnr-cifar10": Architecture({**_CIFAR_MULTIPATH, "classes": 10}, "cifar10", _MULTIPATH_SCHEDULE),
    "rnr-cifar10-channels": Architecture({**_CIFAR_CHANNELS, "classes": 10}, "cifar10", {}),
    "rnr-cifar10-small": Architecture(_CIFAR_SMALL, "cifar10", _SMALL_SCHEDULE),
    "rnr-cifar100": Architecture({**_CIFAR_MULTIPATH, "classes": 100}, "cifar100", _MULTIPATH_SCHEDULE),
    "rnr-cifar100-channels": Architecture({**_CIFAR_CHANNELS, "classes": 100}, "cifar100", {}),
}


def from_config(config: dict[str, Any], seed: int = 0) -> Backbone:
    """Build an architecture with seeded random weights, in evaluation mode; the global generator is left as it was."""
    arguments = {name: value for name, value in config.items() if name != "kind"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return KINDS[config["kind"]](**arguments).eval()


def save(backbone: Backbone, path: Path, facts: dict[str, Any] | None = None) -> None:
    """Write a backbone's weights, architecture and what else is known of it (`facts`) to one safetensors file.

    Tensors that lose nothing by it are stored in fewer bits, as `round_weights` leaves them.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in backbone.state_dict().items():
        if tensor.ndim == 4:
            scale = _byte_scale(tensor)
            filters = (tensor / scale).round()
            if torch.equal(filters * scale, tensor):
                tensors[name] = filters.to(torch.int8)
                tensors[name + SCALE] = scale.half()
                continue
        tensors[name] = _halved(tensor)
    checkpoints.save_tensors(path, tensors, {"config": backbone.config, **(facts or {})})


SCALE = ".scale"
"""Ends the name of the tensor that holds the steps of filters stored in bytes."""


@torch.no_grad()
def round_weights(backbone: Backbone) -> None:
    """Round filters to 255 steps each, and every other weight to half precision.

    `save` then needs one byte, or two, for a weight and loses nothing.
    """
    for parameter in backbone.parameters():
        if parameter.ndim == 4:
            scale = _byte_scale(parameter)
            parameter.copy_((parameter / scale).round() * scale)
        else:
            parameter.copy_(parameter.half())


def _byte_scale(filters: Tensor) -> Tensor:
    """One step of each filter `(O, I, H, W)` -> `(O, 1, 1, 1)`, so that its largest weight has 127.

    A step has half precision: multiplied by a byte it is exact, so rounding twice changes nothing.
    """
    largest = filters.abs().amax((1, 2, 3), keepdim=True)
    return (largest / 127.0).half().float().clamp(min=2.0**-24)


def _halved(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if tensor.is_floating_point() and torch.equal(half.to(tensor.dtype), tensor) else tensor


def _full_precision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo what `save` did to filters."""
    restored = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE)}
    for name, tensor in tensors.items():
        if name.endswith(SCALE):
            filters = name.removesuffix(SCALE)
            restored[filters] = tensors[filters].float() * tensor.float()
    return restored


def load(path: Path, expected: dict[str, Any] | None = None) -> Backbone:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no backbone, or of another architecture than `expected`.
    """
    tensors, facts = checkpoints.load_tensors(path)
    if "config" not in facts or "leaves" in facts:
        raise ValueError(f"`weights` must be a backbone file as `rnr-gym pretrain` writes it, got {str(path)!r}")
    if expected is not None and facts["config"] != expected:
        different = {key for key in facts["config"].keys() | expected.keys() if facts["config"].get(key) != expected.get(key)}
        shown = "; ".join(f"{key}: needs {expected.get(key)}, has {facts['config'].get(key)}" for key in sorted(different))
        raise ValueError(f"`weights` must be of this id's architecture, got {str(path)!r}, which is another ({shown})")
    backbone = from_config(facts["config"])
    backbone.load_state_dict(_full_precision(tensors))
    return backbone.eval()


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`device` must be one that torch can use here, got {device!r} ({str(error).splitlines()[0]})") from error


def bundled(name: str, stage: str = "frozen") -> Path:
    """Where the package keeps the weights of a named backbone."""
    return FOLDER / f"{name}.{stage}.safetensors"


def named(name: str, weights: str | None = "frozen", seed: int = 0, device: str = "cpu") -> Backbone:
    """A backbone, shared read-only by all who ask for it in this process.

    Args:
        name: a key of `ARCHITECTURES`, or the path of a file written by `save`.
        weights: `"frozen"` for those shipped, a path for one's own, None for seeded random ones.
        seed: of the random weights.
        device: where it runs.
    """
    check_device(device)
    return _shared(name, weights, seed, device)


@lru_cache(maxsize=8)
def _shared(name: str, weights: str | None, seed: int, device: str) -> Backbone:
    backbone = _named(name, weights, seed).to(device).requires_grad_(False)
    return backbone.to(memory_format=torch.channels_last)


def _named(name: str, weights: str | None, seed: int) -> Backbone:
    if weights is not None and not isinstance(weights, str | Path):
        raise ValueError(f"`weights` must be a name, a file, or None, got {weights!r}")
    if name not in ARCHITECTURES:
        if not Path(name).is_file():
            raise ValueError(f"`backbone` must be one of {', '.join(ARCHITECTURES)}, or a file that `rnr-gym pretrain` wrote, got {name!r}")
        return load(Path(name))
    config = ARCHITECTURES[name].config
    if weights is None:
        return from_config(config, seed)
    if weights in STAGES:
        if not bundled(name, weights).is_file():
            command = f"`rnr-gym pretrain {id_of(name)} --out FILE`"
            raise ValueError(f"`weights` of {name} are not shipped, got {weights!r}; {command} trains them: pass FILE, or None for random ones")
        return load(bundled(name, weights), config)
    if not Path(weights).is_file():
        raise ValueError(f"`weights` must be {' or '.join(map(repr, STAGES))}, a file, or None for random ones, got {weights!r}")
    return load(Path(weights), config)
