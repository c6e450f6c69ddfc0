"""Paths for whole batches: drawing them, and running a backbone along one."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from rnr_gym.backbones.base import Backbone
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal


def fixed_path(backbone: Backbone, sub_path: int) -> list[int]:
    """The same sub-path at every layer, or the nearest one that it offers."""
    return _offered(backbone, [[sub_path] * backbone.num_layers])[0]


def random_path(backbone: Backbone, generator: torch.Generator) -> list[int]:
    """A path that does not exit, whose sub-paths are drawn uniformly.

    As everywhere here, a layer that does not offer a sub-path gets the nearest one that it has.
    """
    size = (backbone.num_layers,)
    sub_paths = torch.randint(
        backbone.first_sub_path,
        backbone.num_paths,
        size,
        generator=generator,
    )
    return _offered(backbone, [sub_paths.tolist()])[0]


def spread_paths(backbone: Backbone, generator: torch.Generator) -> list[list[int]]:
    """Random paths that do not exit, with every pair of consecutive sub-paths exactly once."""
    sub_paths = torch.arange(backbone.first_sub_path, backbone.num_paths)
    pairs = torch.cartesian_prod(sub_paths, sub_paths) - sub_paths[0]  # (P, 2)

    # Even layers read the first entry of a pair and odd layers the second, so that any two
    # consecutive layers see all pairs.
    columns = []
    for layer in range(backbone.num_layers):
        shuffled = sub_paths[torch.randperm(len(sub_paths), generator=generator)]
        columns.append(shuffled[pairs[:, layer % 2]])
    return _offered(backbone, torch.stack(columns, 1).tolist())


def uniform_paths(backbone: Backbone) -> list[list[int]]:
    """The same width at every layer, for every width but the full one."""
    widths = range(backbone.narrowest, backbone.full_path)
    return [fixed_path(backbone, width) for width in widths]


def _offered(backbone: Backbone, paths: list[list[int]]) -> list[list[int]]:
    """Paths of the nearest sub-paths that each layer offers, apart from exits."""
    onward = RoutingSpec.of(backbone).onward  # (T, K)
    offered: list[list[int]] = onward[np.arange(backbone.num_layers), paths].tolist()
    return offered


def path_logits(
    backbone: Backbone,
    images: Tensor,
    path: list[int],
    exits: Collection[int] | None,
) -> tuple[Tensor, list[Tensor]]:
    """Send a batch down one path.

    Args:
        backbone: the network.
        images: `(N, C, H, W)`, uint8 or float 0..1, on the backbone's device.
        path: one sub-path for each layer.
        exits: layers whose exits run; None for all that the backbone has, `()` for none.

    Returns:
        The logits `(N, classes)` of the path, and those of every exit on it, in order of layers.
    """
    traversal = Traversal.start(backbone, images, exits)
    exit_logits = []
    for layer, sub_path in enumerate(path):
        # An exit head has run on arrival, whether or not the path exits there.
        if layer in traversal.exit_layers:
            exit_logits.append(traversal.exit_logits)
        traversal = traversal.step(np.full(len(images), sub_path))
    return traversal.logits, exit_logits
