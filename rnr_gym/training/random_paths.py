"""Paths for whole batches: which sub-path at every layer, and what comes of it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from rnr_gym.backbones.base import Backbone
from rnr_gym.routing.traversal import Traversal


def fixed_path(backbone: Backbone, sub_path: int) -> list[int]:
    """The same sub-path at every layer."""
    return [sub_path] * backbone.num_layers


def random_path(backbone: Backbone, generator: torch.Generator) -> list[int]:
    """A uniformly drawn path that does not exit."""
    first = int(backbone.has_exits)
    return torch.randint(first, backbone.num_paths, (backbone.num_layers,), generator=generator).tolist()


def spread_paths(backbone: Backbone, generator: torch.Generator) -> list[list[int]]:
    """Random paths that do not exit, together taking every pair of sub-paths in a row once."""
    sub_paths = torch.arange(int(backbone.has_exits), backbone.num_paths)
    pairs = torch.cartesian_prod(sub_paths, sub_paths) - sub_paths[0]

    # Layers in a row take the two entries of a pair, so that each meets each once.
    columns = []
    for layer in range(backbone.num_layers):
        shuffled = sub_paths[torch.randperm(len(sub_paths), generator=generator)]
        columns.append(shuffled[pairs[:, layer % 2]])
    return torch.stack(columns, 1).tolist()


def uniform_paths(backbone: Backbone) -> list[list[int]]:
    """The same width at every layer, for every width but the full one."""
    widths = range(backbone.narrowest, backbone.full_path)
    return [fixed_path(backbone, width) for width in widths]


def answers(backbone: Backbone, images: Tensor, path: list[int], exits: Collection[int] | None) -> tuple[Tensor, list[Tensor]]:
    """Send a batch down one path; its logits, and those of every exit head passed on the way."""
    traversal = Traversal.start(backbone, images, exits)
    passed = []
    for layer, sub_path in enumerate(path):
        if layer in traversal.exits:
            passed.append(traversal.exit_logits)
        traversal = traversal.step(np.full(len(images), sub_path))
    return traversal.logits, passed
