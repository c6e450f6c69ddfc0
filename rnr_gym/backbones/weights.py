"""The bundled files and their names, and backbones written to and read from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnr_gym import storage
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.offshelf import Routable

WEIGHTS_DIR = Path(__file__).parents[1] / "weights"
"""Where the package keeps its bundled files."""
BUNDLED = ("pretrained", "finetuned")
"""Names of bundled weights: trained under random routing, and then under a router as well."""
SCALE = ".scale"
"""Suffix of the tensor that holds the step sizes of filters stored in bytes."""


def backbone_file(name: str, weights: str = "pretrained") -> Path:
    """Path of bundled weights of a named backbone, whether or not they are there."""
    return WEIGHTS_DIR / f"{name}.{weights}.safetensors"


def router_file(name: str, agent: str, weights: str = "pretrained") -> Path:
    """Path of the bundled router of an agent for those weights, whether or not it is there."""
    return WEIGHTS_DIR / f"{name}.{weights}.{agent}.safetensors"


def table_file(name: str, split: str) -> Path:
    """Path of the bundled route table of pretrained weights, whether or not it is there."""
    return WEIGHTS_DIR / f"{name}.pretrained.{split}.safetensors"


def checkpoint_file(path: Path) -> Path:
    """Where the training of a backbone that will be written to `path` keeps its checkpoint."""
    return path.with_name(f"{path.name}.part")


def save(backbone: Backbone, path: Path, metadata: dict[str, Any] | None = None) -> None:
    """Write a backbone's weights, its `config` and `metadata` to one safetensors file.

    A tensor is stored in fewer bits if that loses nothing, as after `round_weights`.

    Raises `ValueError` for an off-the-shelf network, which cannot be built again from a config.
    """
    if isinstance(backbone, Routable):
        raise ValueError(
            "`backbone` must be of this package's architectures to be saved, got "
            f"{backbone.report.model}; save that model, and call `routable` again"
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in backbone.state_dict().items():
        tensors |= _stored(name, tensor)
    storage.save_tensors(path, tensors, {"config": backbone.config, **(metadata or {})})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote: the state dict in full precision, and the metadata with `config`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a backbone.
    """
    tensors, metadata = storage.load_tensors(path)
    # A training checkpoint also has a `config`, and the state of the optimiser as `leaves`.
    if "config" not in metadata or "leaves" in metadata:
        raise ValueError(
            f"`weights` must be a backbone file as `rnr-gym pretrain` writes it, got {str(path)!r}"
        )

    state_dict: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE):
            continue
        state_dict[name] = tensor
        scale = tensors.get(name + SCALE)
        if scale is not None:
            # Other shapes could be multiplied, too, into a tensor of any size.
            expected = (*tensor.shape[:1], 1, 1, 1)
            if tensor.ndim != 4 or scale.shape != expected:
                raise ValueError(
                    f"`{name}{SCALE}` of {str(path)!r} must have shape {expected}, got "
                    f"{tuple(scale.shape)}"
                )
            state_dict[name] = tensor.float() * scale.float()
    return state_dict, metadata


@torch.no_grad()
def round_weights(backbone: Backbone) -> None:
    """Round filters to 255 steps each, and every other weight to half precision, in place.

    `save` then needs one byte per filter weight and two per other weight, and loses nothing.
    """
    # The rounding that `_stored` tries, so that it will find nothing to lose.
    for parameter in backbone.parameters():
        if parameter.ndim == 4:
            scale = _byte_scale(parameter)
            parameter.copy_((parameter / scale).round() * scale)
        else:
            parameter.copy_(parameter.half())


def _stored(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The entries of a file that hold one tensor, in as few bits as lose nothing."""
    if tensor.ndim == 4:
        scale = _byte_scale(tensor)
        filters = (tensor / scale).round()
        # Only filters that `round_weights` has rounded pass: others would lose precision.
        if torch.equal(filters * scale, tensor):
            return {name: filters.to(torch.int8), name + SCALE: scale.half()}

    # Integer counters stay as they are.
    half = tensor.half()
    if tensor.is_floating_point() and torch.equal(half.to(tensor.dtype), tensor):
        return {name: half}
    return {name: tensor}


def _byte_scale(filters: Tensor) -> Tensor:
    """The step size of each filter: `(O, I, H, W)` -> `(O, 1, 1, 1)`.

    The largest weight of a filter is 127 steps. A step has half precision: multiplied by a byte it
    is exact in single precision, so rounding twice changes nothing.
    """
    largest = filters.abs().amax((1, 2, 3), keepdim=True)
    # The smallest half above 0, so that filters of zeros can be divided by their step.
    return (largest / 127.0).half().float().clamp(min=2.0**-24)
