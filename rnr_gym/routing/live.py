"""A backbone with images, which runs when an episode needs it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.inference import for_inference
from rnr_gym.data import ImageSet
from rnr_gym.routing.protocols import Indices, Outcome
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal


@dataclass(frozen=True, eq=False)
class Live:
    """A `RoutingSource` whose states are traversals of a network.

    Attributes:
        backbone: in evaluation mode.
        images: what is routed.
        spec: the routing problem; its `valid` says whether exits are on.
        dtype: in what the network computes features, a name in `inference.DTYPES`.
    """

    backbone: Backbone
    images: ImageSet
    spec: RoutingSpec
    dtype: str = "float32"

    @cached_property
    def network(self) -> Backbone:
        """The backbone as it runs."""
        return for_inference(self.backbone, self.dtype)

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 `(N,)`: the label of every image."""
        return self.images.labels

    @property
    def batch_size(self) -> int:
        """Most images that should start together, by their size."""
        return self.backbone.batch_size

    def prefetch(self, image_idx: Indices) -> None:
        """Announce which images will start next: those in files are decoded meanwhile."""
        self.images.prefetch(image_idx)

    def start(self, image_idx: Indices) -> Traversal:
        """The images `(N,)` of this source, waiting at layer 0; without gradients."""
        pixels = torch.from_numpy(self.images.images[image_idx])
        # What starts without gradients stays without them.
        with torch.inference_mode():
            return Traversal.start(
                self.network,
                pixels.to(self.network.device),
                self.spec.exit_layers,
            )

    @torch.inference_mode()
    def outcome(self, state: Traversal, image_idx: Indices, batch_idx: Indices) -> Outcome:
        """The outcome of images `image_idx`, which are at positions `batch_idx` of a state."""
        logits = state.logits[torch.from_numpy(batch_idx)].float().cpu()  # (n, classes)
        labels = torch.from_numpy(self.labels[image_idx])
        # In float32, since bfloat16 logits would round the loss to two digits.
        loss = F.cross_entropy(logits, labels, reduction="none")
        return Outcome(prediction=logits.argmax(1).numpy(), loss=loss.double().numpy())
