"""Training a backbone so that every sub-path works: random routing under the sandwich rule.

Each step runs the full path, the cheapest path and a few random ones. The full path learns from the labels; the
others, the exits and the glance learn from the labels and from the full path's answer (in-place distillation).
Sources: Yu and Huang, *Universally Slimmable Networks* (2019); Rao et al. (2019) for random routing before the router.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from rnr_gym import checkpoints
from rnr_gym.backbones import pretrained
from rnr_gym.backbones.base import Backbone
from rnr_gym.calibration import calibrate, set_pixel_statistics
from rnr_gym.data import Dataset, ImageSet
from rnr_gym.paths import answers, fixed_path, random_path

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train."""

    epochs: int = 60
    """Passes over the training images, each freshly augmented."""
    batch_size: int = 256
    learning_rate: float = 0.1
    """Peak of the one-cycle schedule; SGD with Nesterov momentum 0.9."""
    weight_decay: float = 5e-4
    uniform_paths: int = 0
    """Paths in every step that take one sub-path at every layer, drawn from those between the cheapest and the full one."""
    random_paths: int = 2
    """Random paths in every step, beside the full and the cheapest one."""
    share: float = 1.0
    """Part of the batch that each path beside the full one runs on; they take turns at the parts."""
    shrunk: float = 0.0
    """Leading part of the epochs that sees images at three quarters of their side, for little more than half the work."""
    distill: float = 0.5
    """Share of the full path's answer, against the labels, in what the other paths learn from."""
    seed: int = 0
    bf16: bool = True
    """Run convolutions in bfloat16: about twice the speed on recent CPUs and GPUs."""


def sandwich_loss(backbone: Backbone, images: Tensor, labels: Tensor, schedule: Schedule, generator: torch.Generator) -> Iterator[Tensor]:
    """The losses of one step, one for each path, to be differentiated one after the other."""
    logits, passed = answers(backbone, images, fixed_path(backbone, backbone.full_path), None)
    teacher = logits.detach().softmax(1)

    def student(found: Tensor, rows: Tensor) -> Tensor:
        return (1 - schedule.distill) * F.cross_entropy(found, labels[rows]) + schedule.distill * F.cross_entropy(found, teacher[rows])

    everything = torch.arange(len(images), device=images.device)
    yield F.cross_entropy(logits, labels) + sum((student(found, everything) for found in passed), logits.new_zeros(()))
    heads, size = backbone.exit_layers - {0}, max(2, round(schedule.share * len(images)))
    for turn, path in enumerate(lesser_paths(backbone, schedule, generator)):
        rows = everything.roll(-turn * size)[:size]
        logits, passed = answers(backbone, images[rows], path, heads)
        yield student(logits, rows) + sum((student(found, rows) for found in passed), logits.new_zeros(())) / max(1, len(passed))


def lesser_paths(backbone: Backbone, schedule: Schedule, generator: torch.Generator) -> list[list[int]]:
    """The paths of one step beside the full one: the cheapest, uniform ones, random ones."""
    cheapest = int(backbone.has_exits)
    between = torch.randint(cheapest + 1, max(cheapest + 2, backbone.full_path), (schedule.uniform_paths,), generator=generator)
    uniform = [fixed_path(backbone, sub_path) for sub_path in between.tolist()]
    return [fixed_path(backbone, cheapest), *uniform, *(random_path(backbone, generator) for _ in range(schedule.random_paths))]


class Pretraining:
    """A backbone's training under random routing, one epoch at a time; can be saved after any and taken up again."""

    def __init__(self, backbone: Backbone, train: ImageSet, augment: Augment, schedule: Schedule, device: str = "cpu") -> None:
        self.schedule, self.augment, self.device = schedule, augment, torch.device(device)
        self.backbone: Backbone = backbone.to(self.device).to(memory_format=torch.channels_last)
        untouched = train.take(train.severity == 0)
        self.images = torch.from_numpy(np.array(untouched.images)).to(self.device)
        self.labels = torch.from_numpy(np.array(untouched.labels)).to(self.device)
        self.optimizer = torch.optim.SGD(
            backbone.parameters(), schedule.learning_rate, momentum=0.9, weight_decay=schedule.weight_decay, nesterov=True
        )
        self.steps = -(-len(self.images) // schedule.batch_size)
        self.cycle = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, schedule.learning_rate, epochs=schedule.epochs, steps_per_epoch=self.steps, pct_start=0.2, cycle_momentum=False
        )
        self.draws = torch.Generator().manual_seed(schedule.seed)
        self.variations = torch.Generator(self.device).manual_seed(schedule.seed)
        self.epoch = 0

    def run_epoch(self, stepped: Callable[[], object] = lambda: None) -> float:
        """One pass over the training images, with `stepped` called after every batch; the mean loss a step."""
        self.backbone.train()
        total = 0.0
        for rows in torch.randperm(len(self.images), generator=self.draws).to(self.device).split(self.schedule.batch_size):
            self.optimizer.zero_grad(set_to_none=True)  # sub-paths that do not run are not decayed either
            images = self._resized(self.augment(self.images[rows], self.variations))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.schedule.bf16):
                for loss in sandwich_loss(self.backbone, images, self.labels[rows], self.schedule, self.draws):
                    loss.backward()
                    total += loss.item()
            nn.utils.clip_grad_norm_(self.backbone.parameters(), 5.0)
            self.optimizer.step()
            self.cycle.step()
            stepped()
        self.epoch += 1
        return total / self.steps

    def _resized(self, images: Tensor) -> Tensor:
        """Images as they are, or, early in the schedule, shrunk to floats of 0..1 (progressive resizing)."""
        if self.epoch >= self.schedule.shrunk * self.schedule.epochs:
            return images
        return F.interpolate(images.float() / 255.0, scale_factor=0.75, mode="area")

    def save(self, path: Path) -> None:
        """Write all that is needed to go on as if nothing had happened."""
        state = {"backbone": self.backbone.state_dict(), "optimizer": self.optimizer.state_dict()["state"]}
        state["random"] = {"draws": self.draws.get_state(), "variations": self.variations.get_state()}
        tensors, leaves = checkpoints.flattened(state)
        checkpoints.save_tensors(path, tensors, {"epoch": self.epoch, "leaves": leaves, **self._identity()})

    def resume(self, path: Path) -> None:
        """Take up what `save` wrote; a `ValueError` if it was written for another architecture or schedule."""
        tensors, facts = checkpoints.load_tensors(path)
        for name, ours in self._identity().items():
            if facts.get(name) != ours:
                raise ValueError(f"`{name}` must be that of the run taken up, {facts.get(name)}, got {ours}; finish it so, or choose another output")
        state = checkpoints.nested(tensors, facts["leaves"])
        self.backbone.load_state_dict({name[len("backbone/") :]: tensor for name, tensor in tensors.items() if name.startswith("backbone/")})
        self.optimizer.load_state_dict({"state": state.get("optimizer", {}), "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.draws.set_state(state["random"]["draws"])
        self.variations.set_state(state["random"]["variations"])
        self.epoch = facts["epoch"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the optimiser's steps were made before the stop
            for _ in range(self.epoch * self.steps):
                self.cycle.step()

    def _identity(self) -> dict[str, Any]:
        return {"schedule": asdict(self.schedule), "config": self.backbone.config}


def pretrain(
    backbone: Backbone, dataset: Dataset, splits: dict[str, ImageSet], schedule: Schedule, checkpoint: Path, device: str = "cpu", every: float = 60.0
) -> Backbone:
    """Train under random routing, round the weights to half precision, calibrate; goes on from `checkpoint` and removes it at the end.

    Args:
        backbone: the network, changed in place and returned in evaluation mode.
        dataset: supplies the augmentation.
        splits: `train` for weights and batch-norm, `route` for the loss scale.
        schedule: how long and how hard.
        checkpoint: where to keep what has been done, after the first epoch that ends `every` seconds or more after the last time.
    """
    work = Pretraining(backbone, splits["train"], dataset.augment, schedule, device)
    set_pixel_statistics(backbone, splits["train"])
    if checkpoint.exists():
        work.resume(checkpoint)
    saved = time.monotonic()
    with tqdm(total=schedule.epochs * work.steps, initial=work.epoch * work.steps, desc="pretrain", unit="step") as bar:
        while work.epoch < schedule.epochs:
            loss = work.run_epoch(bar.update)
            bar.set_postfix(epoch=work.epoch, loss=f"{loss:.3f}")
            if time.monotonic() - saved >= every:
                work.save(checkpoint)
                saved = time.monotonic()
    pretrained.round_to_half(backbone)
    calibrate(backbone, splits["train"], splits["route"], schedule.seed)
    checkpoint.unlink(missing_ok=True)
    return backbone
