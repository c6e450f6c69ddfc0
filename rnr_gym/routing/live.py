"""A backbone with images, run when an episode needs it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from rnr_gym.backbones.base import Backbone
from rnr_gym.data import ImageSet
from rnr_gym.routing.protocols import Outcome, Rows
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal


@dataclass(frozen=True, eq=False)
class Live:
    """A backbone that runs when an episode needs it.

    Attributes:
        backbone: in evaluation mode.
        images: what is routed.
        spec: the routing problem; its `valid` says whether exits are on.
    """

    backbone: Backbone
    images: ImageSet
    spec: RoutingSpec

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.images.labels

    @torch.inference_mode()
    def start(self, indices: Rows) -> LiveWalk:
        """Images by number `(N,)`, each waiting at layer 0."""
        pixels = torch.from_numpy(self.images.images[indices]).to(self.backbone.image_mean.device)
        exits = np.flatnonzero(self.spec.valid[:, 0]).tolist() if self.spec.has_exits else ()
        return LiveWalk(Traversal.start(self.backbone, pixels, exits))

    @torch.inference_mode()
    def outcome(self, walk: LiveWalk, indices: Rows, rows: Rows) -> Outcome:
        logits = walk.traversal.logits[torch.from_numpy(rows)].float().cpu()
        loss = F.cross_entropy(logits, torch.from_numpy(self.labels[indices]), reduction="none")
        return Outcome(logits.argmax(1).numpy(), loss.double().numpy())


@dataclass(frozen=True, eq=False)
class LiveWalk:
    """A `Traversal` without gradients, as `rnr_gym.routing.protocols.RoutingState`."""

    traversal: Traversal

    @property
    def layer(self) -> Rows:
        return self.traversal.layer

    @property
    def prev_sub_path(self) -> Rows:
        return self.traversal.prev_sub_path

    @property
    def macs(self) -> Rows:
        return self.traversal.macs

    @property
    def path(self) -> NDArray[np.int8]:
        return self.traversal.path

    @property
    def done(self) -> NDArray[np.bool_]:
        return self.traversal.done

    @torch.inference_mode()
    def step(self, sub_paths: Rows) -> LiveWalk:
        return LiveWalk(self.traversal.step(sub_paths))

    @torch.inference_mode()
    def replaced(self, rows: Rows, other: LiveWalk) -> LiveWalk:
        return LiveWalk(self.traversal.replaced(rows, other.traversal))

    @torch.inference_mode()
    def summary(self) -> NDArray[np.float32]:
        return self.traversal.summary()
