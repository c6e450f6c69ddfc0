"""Answers by retrieval: heads that embed an image and look for the nearest one of a gallery."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.blocks import PooledHead
from rnr_gym.backbones.macs import MacTable, linear_macs

KIND = "retrieval"
"""`kind` in the config of a backbone that retrieves."""
SIZES = ("items", "dimensions", "classes")
"""Entries of that config, which are arguments of `add_gallery`."""
LOWEST = -2.0
"""Less than any cosine."""


class Gallery(nn.Module):
    """Labelled embeddings among which the nearest one answers.

    Embeddings `(N, D)` -> scores `(N, classes)`. The score of a class is the cosine similarity to
    its nearest item, over a temperature. So the class with the highest score is that of the nearest
    item of all, and to be right about it is recall at 1; scores serve as logits everywhere.

    Args:
        num_items: M.
        dimensions: D.
        classes: number of classes.

    Attributes:
        macs: MACs of one search, which goes over all items.
        items: float32 `(M, D)`, of length 1.
        labels: int64 `(M,)`.
        temperature: float32 `()`.
    """

    items: Tensor
    labels: Tensor
    temperature: Tensor

    def __init__(self, num_items: int, dimensions: int, classes: int) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.classes = classes
        self.macs = linear_macs(dimensions, num_items)
        self.register_buffer("items", torch.zeros(num_items, dimensions))
        self.register_buffer("labels", torch.zeros(num_items, dtype=torch.int64))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, embeddings: Tensor) -> Tensor:
        similarity = F.linear(F.normalize(embeddings), self.items)
        return self.by_class(similarity) / self.temperature

    def by_class(self, similarity: Tensor) -> Tensor:
        """The highest similarity `(N, M)` within each class, `(N, classes)`."""
        lowest = similarity.new_full((len(similarity), self.classes), LOWEST)
        labels = self.labels.expand(len(similarity), -1)
        return lowest.scatter_reduce(1, labels, similarity, "amax")


class RetrievalHead(PooledHead):
    """A linear embedding of pooled features, and the search in a gallery.

    Features as for `PooledHead` -> scores `(N, classes)`.

    Args:
        channels: of the features.
        gallery: what is searched; it belongs to the backbone, whose heads share it.
        context: as for `PooledHead`.
    """

    def __init__(self, channels: int, gallery: Gallery, context: int = 0) -> None:
        super().__init__(channels, gallery.dimensions, context)
        # In a tuple, so that the gallery is not stored again with every head.
        self._shared = (gallery,)

    def forward(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        (gallery,) = self._shared
        scores: Tensor = gallery(super().forward(features, context))
        return scores

    def macs(self, channels: int) -> int:
        (gallery,) = self._shared
        return super().macs(channels) + gallery.macs


def add_gallery(backbone: Backbone, items: int, dimensions: int, classes: int) -> None:
    """Make a backbone retrieve, in place: all its heads get random weights, its gallery zeros.

    Where the backbone's own head is no `PooledHead`, what it returns is embedded.
    """
    gallery = Gallery(items, dimensions, classes)
    glance = backbone.glance
    context = 0
    if glance is not None:
        head = RetrievalHead(glance.width, gallery)
        glance.macs += head.macs(glance.width)
        glance.macs -= linear_macs(glance.width, backbone.num_classes)
        glance.add_module("linear", head)
        if backbone.exits_read_glance:
            context = glance.width + classes

    for layer_idx, layer in enumerate(backbone.layers):
        if layer.head is not None:
            width = backbone.in_width(layer_idx, backbone.full_path)
            layer.head = RetrievalHead(width, gallery, context)

    if isinstance(backbone.head, PooledHead):
        width = backbone.in_width(backbone.num_layers, backbone.full_path)
        before = np.zeros_like(backbone.mac_table.head)
        head = RetrievalHead(width, gallery)
        backbone.head = head
    else:
        before = backbone.mac_table.head
        head = RetrievalHead(backbone.num_classes, gallery)
        backbone.head = nn.Sequential(backbone.head, head)

    backbone.add_module("gallery", gallery)
    backbone.mac_table = _mac_table(backbone, before, head)
    backbone.num_classes = classes
    backbone.config = {
        "kind": KIND,
        "of": backbone.config,
        "items": items,
        "dimensions": dimensions,
        "classes": classes,
    }
    backbone.to(backbone.device)


def gallery_of(backbone: Backbone) -> Gallery | None:
    """The gallery of a backbone that retrieves; None for one that classifies."""
    gallery: Any = getattr(backbone, "gallery", None)
    assert gallery is None or isinstance(gallery, Gallery)
    return gallery


def _mac_table(backbone: Backbone, before: NDArray[np.int64], head: RetrievalHead) -> MacTable:
    """The MACs with new exit heads, and with `head` after what costs `before`, int64 `(K,)`."""
    exits = np.zeros_like(backbone.mac_table.exits)
    last = np.zeros_like(backbone.mac_table.head)
    # No image comes from an exit.
    for prev_sub_path in range(backbone.first_sub_path, backbone.num_paths):
        for layer_idx, layer in enumerate(backbone.layers):
            if layer.head is not None:
                width = backbone.in_width(layer_idx, prev_sub_path)
                exits[layer_idx, prev_sub_path] = layer.head.macs(width)

        width = head.linear.in_features
        if backbone.head is head:
            width = backbone.in_width(backbone.num_layers, prev_sub_path)
        last[prev_sub_path] = before[prev_sub_path] + head.macs(width)
    # The glance reads the image, wherever it is said to come from.
    if backbone.glance is not None:
        exits[0] = backbone.glance.macs
    return backbone.mac_table._replace(exits=exits, head=last)
