"""Fine-tuning a backbone under a router's decisions: the router is frozen, the backbone learns.

First the glance, from what the full path answers (Hinton, Vinyals and Dean, *Distilling the
Knowledge in a Neural Network*, 2015): a router lets it answer most images at small budgets, and it
was trained briefly, before there was a full path. Then the paths. Every step is one of pretraining,
so that no path is forgotten, and the batch takes the router's own paths in addition: each image
learns, from the full path's outputs, on the path that the router chooses for it, and at the exits
that it passes there (Rao et al. 2019; Huang et al. 2018).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.macs import TimeTable
from rnr_gym.data import Dataset, ImageSet
from rnr_gym.routing.protocols import Router
from rnr_gym.routing.rollout import route
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from rnr_gym.training.pretraining import Pretraining, Schedule, complete

PATH_RATE = 0.03
"""Learning rates of the paths, relative to pretraining. At ten times that, four epochs made all
paths of `rnr-cifar10-small` worse: narrow branches did not recover from where the rates started."""


class RoutedPaths:
    """A `Student`: the paths that a router chooses.

    Batch-norms use their running statistics here, since the images of a group are no fair sample:
    what the router sends to a wide branch is harder than the average.

    Args:
        backbone: the network that learns.
        router: stays as it is.
        exits: whether the router may answer at exits.
        tradeoffs: λ is drawn for each image from (low, high), uniformly on a logarithmic scale.
        exit_weight: weight of the exits that an image passes.
        time_table: what is charged instead of MACs, if the router was fitted under time.
    """

    def __init__(
        self,
        backbone: Backbone,
        router: Router,
        exits: bool,
        tradeoffs: tuple[float, float],
        exit_weight: float,
        time_table: TimeTable | None = None,
    ) -> None:
        self.backbone = backbone
        self.router = InFullPrecision(router)
        self.spec = RoutingSpec.of(backbone, exits, time_table)
        self.tradeoffs = tradeoffs
        self.exit_weight = exit_weight

    def __call__(self, images: Tensor, teacher: Tensor, generator: torch.Generator) -> Tensor:
        """The mean loss of images `(N, C, H, W)` on their paths."""
        modes = [(module, module.training) for module in self.backbone.modules()]
        self.backbone.eval()
        paths = self.chosen(images, generator)
        loss = self.loss(images, teacher, paths)
        for module, training in modes:
            module.training = training
        return loss

    @torch.no_grad()
    def chosen(self, images: Tensor, generator: torch.Generator) -> NDArray[np.int8]:
        """int8 `(N, T)`: the router's paths, each at a trade-off of its own."""
        low, high = np.log(self.tradeoffs)
        uniform = torch.rand(len(images), generator=generator, dtype=torch.float64).numpy()
        start = Traversal.start(self.backbone, images, self.spec.exit_layers)
        tradeoffs = np.exp(low + (high - low) * uniform)
        return route(start, self.spec, self.router, tradeoffs).path

    def loss(self, images: Tensor, teacher: Tensor, paths: NDArray[np.int8]) -> Tensor:
        """Cross-entropy of the answers on paths `(N, T)`, and of the exits passed on the way."""
        state = Traversal.start(self.backbone, images, self.spec.exit_layers)
        passed = []
        for layer, sub_paths in enumerate(paths.T):
            # The glance, layer 0's exit, has been trained before and stays as it is.
            if layer > 0 and layer in state.exit_layers:
                waiting = torch.from_numpy(np.flatnonzero(~state.done)).to(teacher.device)
                loss = F.cross_entropy(
                    state.exit_logits[waiting], teacher[waiting], reduction="sum"
                )
                passed.append(self.exit_weight * loss / len(images))
            # Entries of answered images, which are -1, are ignored.
            state = state.step(sub_paths.astype(np.int64))

        answers = F.cross_entropy(state.logits, teacher)
        return torch.stack([answers, *passed]).sum()


class InFullPrecision:
    """A router that decides in single precision, wherever its backbone runs in half precision."""

    def __init__(self, router: Router) -> None:
        self.router = router

    def predict(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray, Any]:
        """What the router predicts."""
        # Routers run on the CPU.
        with torch.autocast("cpu", enabled=False):
            return self.router.predict(observation, state, episode_start, deterministic)


def finetune(
    backbone: Backbone,
    router: Router,
    exits: bool,
    tradeoffs: tuple[float, float],
    dataset: Dataset,
    splits: dict[str, ImageSet],
    schedule: Schedule,
    checkpoint: Path,
    device: str = "cpu",
    save_every: float = 60.0,
    time_table: TimeTable | None = None,
) -> Backbone:
    """Train under a router, round the weights to what is stored, calibrate.

    Resumes from `checkpoint` if it exists; remove it when what is returned has been saved.

    Args:
        backbone: the network, changed in place and returned in evaluation mode.
        router: fitted to it; stays as it is.
        exits: as the router was fitted.
        tradeoffs: λ, (low, high), from which each image's is drawn.
        dataset: supplies the augmentation.
        splits: `train` for weights and batch-norm, `route` for the loss scale.
        schedule: duration and hyperparameters; with `glance_epochs=0` the glance stays as it is.
        checkpoint: as for `pretrain`.
        device: where to train.
        save_every: seconds between checkpoints.
        time_table: what is charged instead of MACs, if the router was fitted under time.
    """
    weight = schedule.exit_weight
    routed = RoutedPaths(backbone, router, exits, tradeoffs, weight, time_table)
    training = Pretraining(backbone, splits["train"], dataset, schedule, device, students=[routed])
    return complete(training, splits, checkpoint, "finetune", save_every)
