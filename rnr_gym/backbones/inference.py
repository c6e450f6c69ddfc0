"""A backbone as it runs where nothing is learned: norms folded, operations fused, in one dtype."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, pairwise

import torch
from torch import Tensor, nn

from rnr_gym import checks
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.blocks import PooledHead
from rnr_gym.backbones.folding import folded
from rnr_gym.backbones.fused_conv import RELU, FusedConv
from rnr_gym.backbones.segments import Segment

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""In what features may be computed, by name."""
AUTO = "auto"
"""Stands for the one of `DTYPES` that is faster."""
WORTHWHILE = 0.8
"""Half precision is chosen if it takes at most this share of the time."""
TRIAL_IMAGES = 32
"""How many images are classified to find out."""


def for_inference(backbone: Backbone, dtype: str = "float32") -> Backbone:
    """A copy that gives the same answers but for rounding, as fast as its device allows.

    Weights that change later change nothing in the copy.

    Args:
        backbone: in float32. With another dtype, such as float64, it keeps that one.
        dtype: a name in `DTYPES`, in which features are computed. Pooled features, logits and
            statistics stay as they are, since they take no time.
    """
    network = folded(backbone)
    if DTYPES[dtype] != torch.float32:
        _cast(network, DTYPES[dtype])
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            fuse(module)
        elif isinstance(module, Segment):
            module.fuse()
    return network


def fuse(sequence: nn.Sequential) -> None:
    """Let each convolution of a sequence run with the ReLU after it, where that is possible."""
    # What was a norm before folding does nothing.
    names = [name for name, child in sequence.named_children() if type(child) is not nn.Identity]
    for name in names:
        child = sequence.get_submodule(name)
        if FusedConv.takes(child):
            sequence.set_submodule(name, FusedConv(child))

    for name, next_name in pairwise(names):
        conv = sequence.get_submodule(name)
        if isinstance(conv, FusedConv) and type(sequence.get_submodule(next_name)) is nn.ReLU:
            conv.activation = RELU
            sequence.set_submodule(next_name, nn.Identity())


def chosen_dtype(backbone: Backbone, dtype: str) -> str:
    """The name of a dtype; for `"auto"`, the faster one on this machine, by a measurement.

    Raises `ValueError` for an unknown name.
    """
    checks.choice("dtype", dtype, (*DTYPES, AUTO))
    return _faster(backbone) if dtype == AUTO else dtype


@lru_cache(maxsize=32)
def _faster(backbone: Backbone) -> str:
    """The dtype in which the full path takes less time, once per process."""
    networks = {name: for_inference(backbone, name) for name in DTYPES}
    # Normal numbers, since kernels may be slow with others. What they are does not matter.
    images = torch.full((TRIAL_IMAGES, *backbone.image_shape), 0.5, device=backbone.device)
    seconds = dict.fromkeys(DTYPES, float("inf"))
    # In turn, so that other load meets both; the first round also prepares the kernels.
    for _ in range(4):
        for name, network in networks.items():
            seconds[name] = min(seconds[name], _seconds(network, images))
    is_faster = seconds["bfloat16"] <= WORTHWHILE * seconds["float32"]
    return "bfloat16" if is_faster else "float32"


@torch.inference_mode()
def _seconds(network: Backbone, images: Tensor) -> float:
    """What the full path takes."""
    start = time.perf_counter()
    x = network.stem(network.prepare(images))
    for layer in network.layers:
        x = layer(x, network.full_path, None)
    # Transferred, so that a GPU has to be done.
    network.head(x).cpu()
    return time.perf_counter() - start


def _cast(network: Backbone, dtype: torch.dtype) -> None:
    """Compute features in another dtype."""
    kept = {id(tensor) for tensor in _kept(network)}
    for part in (network.stem, network.layers, network.glance, network.head):
        if part is None:
            continue
        for tensor in chain(part.parameters(), part.buffers()):
            if id(tensor) not in kept and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def _kept(network: Backbone) -> Iterator[Tensor]:
    """Parameters and buffers that stay: of norms, and of what reads pooled features."""
    for module in network.modules():
        if isinstance(module, PooledHead | nn.modules.batchnorm._BatchNorm):
            yield from chain(module.parameters(), module.buffers())
    if network.glance is not None:
        yield from network.glance.linear.parameters()
