"""Pretraining: the glance by itself, then all paths of the backbone at once.

A step of the second part runs the full path on the whole batch, which learns from the labels, and
one other path on a part of it, which learns from the full path's outputs. So cheap paths are
trained together with the full path instead of being fitted to a finished one, and no path is left
out. Sources: Yu and Huang, *Universally Slimmable Networks* (2019) for in-place distillation; Rao
et al. (2019) for random routing before there is a router.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym import storage
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.weights import round_weights
from rnr_gym.data import Dataset, ImageSet
from rnr_gym.progress import progress_bar
from rnr_gym.training.calibration import (
    calibrate,
    measure_glance,
    measure_whitening,
    set_pixel_statistics,
)
from rnr_gym.training.muon import Muon
from rnr_gym.training.random_paths import fixed_path, path_logits, random_path


@dataclass(frozen=True)
class Schedule:
    """Duration and hyperparameters of training. The defaults were measured on CIFAR-10."""

    epochs: int = 16
    """Passes over the training images in which all paths learn."""
    glance_epochs: int = 20
    """Passes before that in which only the glance learns; each costs a tenth as much."""
    glance_from_full_path: bool = False
    """Whether the glance learns what the full path answers, which is trained then, not labels."""
    batch_size: int = 500
    learning_rate: float = 0.1
    """Peak of Muon's, on convolutions: warmed up over `WARM_UP` of a part's steps, then to 0."""
    norm_learning_rate: float = 0.05
    """Peak of that of SGD with Nesterov momentum 0.85, on everything else."""
    path_rate: float = 1.0
    """Factor of both peaks in the part in which all paths learn."""
    smoothing: float = 0.1
    """Label smoothing (Szegedy et al. 2016)."""
    exit_weight: float = 0.3
    """Weight of every exit's loss, relative to that of the path it lies on."""
    path_share: float = 0.5
    """Part of the batch that the other path runs on."""
    path_weight: float = 0.5
    """Weight of the other path's loss, relative to the full path's; 0 trains only the full path."""
    seed: int = 0
    bf16: bool = True
    """Run convolutions in bfloat16: about twice the speed on recent CPUs and GPUs."""


Student = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""The loss of something that learns from the full path.

It is given images `(N, C, H, W)`, the full path's class probabilities `(N, classes)`, and the
generator that it draws from.
"""
WARM_UP = 0.08
"""Share of a part's steps in which learning rates rise."""
SGD: dict[str, Any] = {"momentum": 0.85, "nesterov": True, "weight_decay": 5e-4}


def glance_loss(backbone: Backbone, images: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """The only loss of a step in which the glance learns probabilities `(N, classes)`."""
    assert backbone.glance is not None
    _, logits = backbone.glance(backbone.prepare(images))
    yield F.cross_entropy(logits, targets)


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Labels `(N,)` as probabilities `(N, classes)`, part of which is spread over all classes."""
    return F.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes


@torch.no_grad()
def full_path_answers(backbone: Backbone, images: Tensor, mirrored: bool, batch: int) -> Tensor:
    """What the full path answers to images; probabilities `(N, classes)`.

    Where mirroring keeps the label, the mean of an image's and its mirror image's.
    """
    plain = backbone.plain().eval()
    answers = []
    for pixels in images.split(batch):
        views = [pixels, pixels.flip(3)] if mirrored else [pixels]
        probabilities = [plain(backbone.prepare(view)).float().softmax(1) for view in views]
        answers.append(torch.stack(probabilities).mean(0))
    return torch.cat(answers)


def path_losses(
    backbone: Backbone,
    images: Tensor,
    labels: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
    students: Sequence[Student] = (),
) -> Iterator[Tensor]:
    """The losses of a step in which all paths learn, to be differentiated one after the other.

    First the full path's on the whole batch, then that of another path on its leading part, unless
    it has no weight, then those of the students.
    """
    smoothing = schedule.smoothing
    full_path = fixed_path(backbone, backbone.full_path)
    logits, exit_logits = _run(backbone, images, full_path)
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    for exit_logit in exit_logits:
        exit_loss = F.cross_entropy(exit_logit, labels, label_smoothing=smoothing)
        loss = loss + schedule.exit_weight * exit_loss
    yield loss

    # Soft labels: the full path teaches, and gradients do not reach it from here.
    teacher = logits.detach().softmax(1)  # (N, classes)
    if schedule.path_weight > 0.0:
        # Batch-norm needs at least two images.
        size = max(2, round(schedule.path_share * len(images)))
        path = other_path(backbone, generator)
        yield schedule.path_weight * _path_loss(
            backbone, images[:size], teacher[:size], path, schedule.exit_weight
        )
    for student in students:
        yield student(images, teacher, generator)


def _path_loss(
    backbone: Backbone,
    images: Tensor,
    teacher: Tensor,
    path: list[int],
    exit_weight: float,
) -> Tensor:
    """How far a path and the exits on it are from the full path."""
    logits, exit_logits = _run(backbone, images, path)
    loss = F.cross_entropy(logits, teacher)
    for exit_logit in exit_logits:
        loss = loss + exit_weight * F.cross_entropy(exit_logit, teacher)
    return loss


def _run(backbone: Backbone, images: Tensor, path: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Logits of a path, and of the exit heads on it."""
    logits, exit_logits = path_logits(backbone, images, path, None)
    # Layer 0 exits by the glance, which is not trained any more.
    if 0 in backbone.exit_layers:
        exit_logits = exit_logits[1:]
    return logits, exit_logits


def other_path(backbone: Backbone, generator: torch.Generator) -> list[int]:
    """The other path of a step: the narrowest, or one width everywhere, or random; a third each.

    The narrowest is drawn most often, since it is the farthest from the full path.
    """
    kind = int(torch.randint(3, (), generator=generator))
    if kind == 0:
        return fixed_path(backbone, backbone.narrowest)
    if kind == 1:
        highest = max(backbone.narrowest + 1, backbone.full_path)
        width = torch.randint(backbone.narrowest, highest, (), generator=generator)
        return fixed_path(backbone, int(width))
    return random_path(backbone, generator)


class Pretraining:
    """A backbone's pretraining, one epoch at a time; can be saved after any epoch and resumed.

    Args:
        backbone: changed in place.
        train: the training images; those of severity 0 are used.
        dataset: how images are augmented, and whether they may be mirrored.
        schedule: duration and hyperparameters.
        device: where to train.
        students: what else learns from the full path in the second part.
    """

    def __init__(
        self,
        backbone: Backbone,
        train: ImageSet,
        dataset: Dataset,
        schedule: Schedule,
        device: str = "cpu",
        students: Sequence[Student] = (),
    ) -> None:
        self.schedule = schedule
        self.students = students
        self.dataset = dataset
        self.device = torch.device(device)
        backbone = backbone.to(self.device)
        self.backbone: Backbone = backbone.to(memory_format=torch.channels_last)

        self.train = train.take(train.severity == 0)
        self.images = torch.from_numpy(np.array(self.train.images)).to(self.device)
        self.labels = torch.from_numpy(np.array(self.train.labels)).to(self.device)
        self.steps_per_epoch = math.ceil(len(self.images) / schedule.batch_size)

        # Images are augmented on the device, which needs a generator of its own.
        self.generator = torch.Generator().manual_seed(schedule.seed)
        self.augment_generator = torch.Generator(self.device).manual_seed(schedule.seed)
        mirrored = torch.randint(2, (len(self.images),), generator=self.generator)
        self.mirrored = mirrored.to(self.device)

        self.glance_targets: Tensor | None = None
        self.epoch = 0
        self._begin_part()

    def _find_glance_targets(self) -> Tensor:
        """float32 `(N, classes)`: what the glance learns of each training image."""
        schedule = self.schedule
        if not schedule.glance_from_full_path:
            return smoothed(self.labels, self.backbone.num_classes, schedule.smoothing)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=schedule.bf16):
            return full_path_answers(
                self.backbone, self.images, self.dataset.mirrored, schedule.batch_size
            )

    @property
    def glance_epochs(self) -> int:
        """Epochs of the first part: none without a glance."""
        if self.backbone.glance is None:
            return 0
        return self.schedule.glance_epochs

    @property
    def epochs(self) -> int:
        """Epochs of both parts."""
        return self.glance_epochs + self.schedule.epochs

    @property
    def in_glance_part(self) -> bool:
        """Whether the glance learns now."""
        return self.epoch < self.glance_epochs

    def _begin_part(self) -> None:
        """Let only those parameters learn that belong to this part, with new optimizers."""
        glance: set[nn.Parameter] = set()
        if self.backbone.glance is not None:
            glance = set(self.backbone.glance.parameters())

        # Muon takes filters `(O, I, H, W)` only; norms, biases and linear layers are left to SGD.
        filters = []
        others = []
        for parameter in self.backbone.parameters():
            learns = (parameter in glance) == self.in_glance_part
            parameter.requires_grad_(learns)
            if learns and parameter.ndim == 4:
                filters.append(parameter)
            elif learns:
                others.append(parameter)

        self.muon = Muon(filters, self.schedule.learning_rate)
        self.sgd = torch.optim.SGD(others, self.schedule.norm_learning_rate, **SGD)

    def _set_learning_rates(self, step: int) -> None:
        """Warm up, then fall to zero over the steps of a part."""
        epochs = self.schedule.epochs
        rate = self.schedule.path_rate
        if self.in_glance_part:
            epochs = self.glance_epochs
            rate = 1.0

        total = epochs * self.steps_per_epoch
        warm_up = max(1.0, WARM_UP * total)
        rising = (step + 1) / warm_up
        falling = (total - step) / max(1.0, total - warm_up)
        factor = rate * min(1.0, rising, falling)
        self.muon.param_groups[0]["lr"] = factor * self.schedule.learning_rate
        self.sgd.param_groups[0]["lr"] = factor * self.schedule.norm_learning_rate

    def run_epoch(self, on_step: Callable[[], object] = lambda: None) -> float:
        """One pass over the training images, `on_step` called after every batch; the mean loss."""
        # Now, because the full path answers in evaluation mode.
        if self.in_glance_part and self.glance_targets is None:
            self.glance_targets = self._find_glance_targets()
        # The glance is finished when the paths learn: its batch-norms stay as they were measured.
        self.backbone.train()
        if self.backbone.glance is not None:
            self.backbone.glance.train(self.in_glance_part)

        first_epoch = self.glance_epochs
        if self.in_glance_part:
            first_epoch = 0
        step = (self.epoch - first_epoch) * self.steps_per_epoch

        order = torch.randperm(len(self.images), generator=self.generator).to(self.device)
        total = 0.0
        for image_idx in order.split(self.schedule.batch_size):
            self._set_learning_rates(step)
            total += self._step(image_idx)
            step += 1
            on_step()

        self.epoch += 1
        if self.epoch == self.glance_epochs:
            # Running averages lag behind the weights, so the glance ends with true averages.
            measure_glance(self.backbone, self.train, self.generator)
            self.glance_targets = None
            self._begin_part()
        return total / self.steps_per_epoch

    def _step(self, image_idx: Tensor) -> float:
        """Learn from one batch; the sum of its losses."""
        # Gradients of sub-paths that do not run must be None, or momentum would move them.
        self.muon.zero_grad(set_to_none=True)
        self.sgd.zero_grad(set_to_none=True)

        images = self.dataset.augment(self._mirrored(image_idx), self.augment_generator)
        labels = self.labels[image_idx]
        total = 0.0
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.schedule.bf16):
            if self.glance_targets is not None:
                losses = glance_loss(self.backbone, images, self.glance_targets[image_idx])
            else:
                losses = path_losses(
                    self.backbone,
                    images,
                    labels,
                    self.schedule,
                    self.generator,
                    self.students,
                )

            # One at a time, so that the graph of a path is freed before the next one runs.
            for loss in losses:
                # A student learns nothing if all its images leave at the glance, which is finished.
                if loss.requires_grad:
                    loss.backward()
                total += loss.item()

        self.muon.step()
        self.sgd.step()
        return total

    def _mirrored(self, image_idx: Tensor) -> Tensor:
        """Images `(N, C, H, W)`, each mirrored in every other epoch rather than at random.

        Two consecutive epochs then show both views of each image (Jordan 2024, *alternating flip*).
        """
        images = self.images[image_idx]
        if not self.dataset.mirrored:
            return images
        mirror = (self.mirrored[image_idx] + self.epoch) % 2 == 1  # (N,)
        return torch.where(mirror[:, None, None, None], images.flip(3), images)

    def save(self, path: Path) -> None:
        """Write everything needed to resume; the result equals that of an uninterrupted run."""
        state = {
            "backbone": self.backbone.state_dict(),
            "muon": self.muon.state_dict()["state"],
            "sgd": self.sgd.state_dict()["state"],
            "generators": {
                "main": self.generator.get_state(),
                "augment": self.augment_generator.get_state(),
            },
        }
        tensors, leaves = storage.flattened(state)
        metadata = {"epoch": self.epoch, "leaves": leaves, **self._identity()}
        storage.save_tensors(path, tensors, metadata)

    def resume(self, path: Path) -> None:
        """Continue from what `save` wrote.

        Raises:
            ValueError: it was written for another architecture or schedule.
        """
        tensors, metadata = storage.load_tensors(path)
        for name, expected in self._identity().items():
            if metadata.get(name) != expected:
                raise ValueError(
                    f"`{name}` must be that of the checkpoint {str(path)!r}, {metadata.get(name)}, "
                    f"got {expected}; finish that run, or choose another output"
                )

        prefix = "backbone/"
        state_dict = {}
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                state_dict[name.removeprefix(prefix)] = tensor
        self.backbone.load_state_dict(state_dict)
        self.epoch = metadata["epoch"]
        self._begin_part()

        # The optimizers are those of the part that the epoch belongs to.
        state = storage.nested(tensors, metadata["leaves"])
        self._load_optimizer(self.muon, state.get("muon", {}))
        self._load_optimizer(self.sgd, state.get("sgd", {}))
        self.generator.set_state(state["generators"]["main"])
        self.augment_generator.set_state(state["generators"]["augment"])

    def _load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[int, Any]) -> None:
        # The groups hold settings, which the schedule gives again.
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _identity(self) -> dict[str, Any]:
        """What a run must have in common with a checkpoint that it resumes."""
        return {"schedule": asdict(self.schedule), "config": self.backbone.config}


def pretrain(
    backbone: Backbone,
    dataset: Dataset,
    splits: dict[str, ImageSet],
    schedule: Schedule,
    checkpoint: Path,
    device: str = "cpu",
    save_every: float = 60.0,
) -> Backbone:
    """Train, round the weights to what is stored, calibrate.

    Resumes from `checkpoint` if it exists; remove it when what is returned has been saved.

    Args:
        backbone: the network, changed in place and returned in evaluation mode.
        dataset: supplies the augmentation.
        splits: `train` for weights and batch-norm, `route` for the loss scale.
        schedule: duration and hyperparameters.
        checkpoint: written after the first epoch that ends at least `save_every` seconds after it
            was last written.
        device: where to train.
        save_every: seconds between checkpoints.
    """
    pretraining = Pretraining(backbone, splits["train"], dataset, schedule, device)
    # For a run that starts; a checkpoint has the same values.
    set_pixel_statistics(backbone, splits["train"])
    measure_whitening(backbone, splits["train"])
    return complete(pretraining, splits, checkpoint, "pretrain", save_every)


def complete(
    pretraining: Pretraining,
    splits: dict[str, ImageSet],
    checkpoint: Path,
    title: str,
    save_every: float = 60.0,
) -> Backbone:
    """Resume if there is a checkpoint, train to the end, round, calibrate; arguments as above."""
    if checkpoint.exists():
        pretraining.resume(checkpoint)
    run(pretraining, checkpoint, title, save_every)
    finish(pretraining.backbone, splits, pretraining.schedule.seed)
    return pretraining.backbone


def run(pretraining: Pretraining, checkpoint: Path, title: str, save_every: float) -> None:
    """Train until all epochs have been run, with a progress bar and checkpoints."""
    saved = time.monotonic()
    steps = pretraining.steps_per_epoch
    total = pretraining.epochs * steps
    with progress_bar(total=total, initial=pretraining.epoch * steps, unit="step") as bar:
        while pretraining.epoch < pretraining.epochs:
            part = "glance" if pretraining.in_glance_part else "paths"
            bar.set_description(f"{title} {part}", refresh=False)
            loss = pretraining.run_epoch(bar.update)
            bar.set_postfix(epoch=pretraining.epoch, loss=f"{loss:.3f}", refresh=False)

            if time.monotonic() - saved >= save_every:
                pretraining.save(checkpoint)
                saved = time.monotonic()


def finish(backbone: Backbone, splits: dict[str, ImageSet], seed: int) -> None:
    """Round the weights to what is stored, then measure all statistics on them."""
    backbone.requires_grad_(True)
    round_weights(backbone)
    calibrate(backbone, splits["train"], splits["route"], seed)
