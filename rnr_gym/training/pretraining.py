"""Pretraining: the glance by itself, then every path of the backbone at once.

A step of the second part runs the full path on the whole batch, which learns from the labels, and
one other path on a part of it, which learns from the full path's answers. So cheap paths grow up with
the full path instead of being fitted to a finished one, and no path is neglected.
Sources: Yu and Huang, *Universally Slimmable Networks* (2019) for in-place distillation; Rao et al.
(2019) for random routing before there is a router.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from rnr_gym import storage
from rnr_gym.backbones import zoo
from rnr_gym.backbones.base import Backbone
from rnr_gym.data import Dataset, ImageSet
from rnr_gym.training.calibration import calibrate, measure_glance, measure_whitening, set_pixel_statistics
from rnr_gym.training.muon import Muon
from rnr_gym.training.random_paths import answers, fixed_path, random_path


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train. The defaults were measured on CIFAR-10."""

    epochs: int = 16
    """Passes over the training images in which all paths learn."""
    glance_epochs: int = 20
    """Passes before that in which only the glance learns; it costs a tenth as much."""
    batch_size: int = 500
    learning_rate: float = 0.1
    """Peak of Muon's, on convolutions: warmed up over `WARM_UP` of a part's steps, then falling to 0."""
    norm_learning_rate: float = 0.05
    """Peak of that of SGD with Nesterov momentum 0.85, on everything else."""
    smoothing: float = 0.1
    """Label smoothing (Szegedy et al. 2016)."""
    exit_weight: float = 0.3
    """Weight of every exit's loss beside that of the path it lies on."""
    path_share: float = 0.5
    """Part of the batch that the other path runs on."""
    path_weight: float = 0.5
    """Weight of the other path's loss beside the full path's; 0 trains the full path alone."""
    seed: int = 0
    bf16: bool = True
    """Run convolutions in bfloat16: about twice the speed on recent CPUs and GPUs."""


WARM_UP = 0.08
SGD: dict[str, Any] = {"momentum": 0.85, "nesterov": True, "weight_decay": 5e-4}


def glance_loss(backbone: Backbone, images: Tensor, labels: Tensor, schedule: Schedule) -> Iterator[Tensor]:
    """The one loss of a step in which the glance learns."""
    assert backbone.glance is not None
    _, logits = backbone.glance(backbone.prepare(images))
    yield F.cross_entropy(logits, labels, label_smoothing=schedule.smoothing)


def path_losses(
    backbone: Backbone,
    images: Tensor,
    labels: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """The losses of a step in which all paths learn, to be differentiated one after the other.

    First the full path's on the whole batch, then that of another path on its leading part, unless
    it has no weight.
    """
    smoothing = schedule.smoothing
    logits, exit_logits = _run(backbone, images, fixed_path(backbone, backbone.full_path))
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    for exit_logit in exit_logits:
        exit_loss = F.cross_entropy(exit_logit, labels, label_smoothing=smoothing)
        loss = loss + schedule.exit_weight * exit_loss
    yield loss
    if schedule.path_weight == 0.0:
        return

    # Batch-norm needs two images at least.
    size = max(2, round(schedule.path_share * len(images)))
    teacher = logits[:size].detach().softmax(1)
    logits, exit_logits = _run(backbone, images[:size], other_path(backbone, generator))
    loss = F.cross_entropy(logits, teacher)
    for exit_logit in exit_logits:
        loss = loss + schedule.exit_weight * F.cross_entropy(exit_logit, teacher)
    yield schedule.path_weight * loss


def _run(backbone: Backbone, images: Tensor, path: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Logits of a path and of the exit heads on it; the glance, which has learnt, is left out."""
    logits, exit_logits = answers(backbone, images, path, None)
    return logits, exit_logits[int(0 in backbone.exit_layers) :]


def other_path(backbone: Backbone, generator: torch.Generator) -> list[int]:
    """The path beside the full one: the narrowest, or one width everywhere, or random; a third each.

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
        dataset: says how images are varied, and whether they may be mirrored.
        schedule: how long and how hard.
        device: where to train.
    """

    def __init__(
        self,
        backbone: Backbone,
        train: ImageSet,
        dataset: Dataset,
        schedule: Schedule,
        device: str = "cpu",
    ) -> None:
        self.schedule = schedule
        self.dataset = dataset
        self.device = torch.device(device)
        self.backbone: Backbone = backbone.to(self.device).to(memory_format=torch.channels_last)

        self.train = train.take(train.severity == 0)
        self.images = torch.from_numpy(np.array(self.train.images)).to(self.device)
        self.labels = torch.from_numpy(np.array(self.train.labels)).to(self.device)
        self.steps_per_epoch = -(-len(self.images) // schedule.batch_size)

        self.generator = torch.Generator().manual_seed(schedule.seed)
        self.augment_generator = torch.Generator(self.device).manual_seed(schedule.seed)
        mirrored = torch.randint(2, (len(self.images),), generator=self.generator)
        self.mirrored = mirrored.to(self.device)

        self.epoch = 0
        self._begin_part()

    @property
    def glance_epochs(self) -> int:
        """Epochs of the first part: none without a glance."""
        return self.schedule.glance_epochs if self.backbone.glance is not None else 0

    @property
    def epochs(self) -> int:
        """Epochs of both parts."""
        return self.glance_epochs + self.schedule.epochs

    @property
    def in_glance_part(self) -> bool:
        """Whether the glance learns now."""
        return self.epoch < self.glance_epochs

    def _begin_part(self) -> None:
        """Let only what learns in this part learn, with fresh optimizers."""
        glance = set(self.backbone.glance.parameters()) if self.backbone.glance is not None else set()
        learning = []
        for parameter in self.backbone.parameters():
            parameter.requires_grad_((parameter in glance) == self.in_glance_part)
            if parameter.requires_grad:
                learning.append(parameter)

        filters = [parameter for parameter in learning if parameter.ndim == 4]
        others = [parameter for parameter in learning if parameter.ndim != 4]
        self.muon = Muon(filters, self.schedule.learning_rate)
        self.sgd = torch.optim.SGD(others, self.schedule.norm_learning_rate, **SGD)

    def _set_learning_rates(self, step: int) -> None:
        """Warm up, then fall to zero over the steps of a part."""
        epochs = self.glance_epochs if self.in_glance_part else self.schedule.epochs
        total = epochs * self.steps_per_epoch
        warm_up = max(1.0, WARM_UP * total)
        factor = min(1.0, (step + 1) / warm_up, (total - step) / max(1.0, total - warm_up))
        self.muon.param_groups[0]["lr"] = factor * self.schedule.learning_rate
        self.sgd.param_groups[0]["lr"] = factor * self.schedule.norm_learning_rate

    def run_epoch(self, on_step: Callable[[], object] = lambda: None) -> float:
        """One pass over the training images, `on_step` called after every batch; the mean loss."""
        # The glance is finished when the paths learn: its batch-norms stay as they were measured.
        self.backbone.train()
        if self.backbone.glance is not None:
            self.backbone.glance.train(self.in_glance_part)

        first_epoch = 0 if self.in_glance_part else self.glance_epochs
        step = (self.epoch - first_epoch) * self.steps_per_epoch
        order = torch.randperm(len(self.images), generator=self.generator).to(self.device)
        total = 0.0
        for idx in order.split(self.schedule.batch_size):
            self._set_learning_rates(step)
            total += self._step(idx)
            step += 1
            on_step()

        self.epoch += 1
        if self.epoch == self.glance_epochs:
            measure_glance(self.backbone, self.train, self.generator)
            self._begin_part()
        return total / self.steps_per_epoch

    def _step(self, idx: Tensor) -> float:
        # Gradients of sub-paths that do not run must be None, or momentum would move them.
        self.muon.zero_grad(set_to_none=True)
        self.sgd.zero_grad(set_to_none=True)

        images = self.dataset.augment(self._mirrored(idx), self.augment_generator)
        labels = self.labels[idx]
        total = 0.0
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.schedule.bf16):
            if self.in_glance_part:
                losses = glance_loss(self.backbone, images, labels, self.schedule)
            else:
                losses = path_losses(self.backbone, images, labels, self.schedule, self.generator)
            for loss in losses:
                loss.backward()
                total += loss.item()

        self.muon.step()
        self.sgd.step()
        return total

    def _mirrored(self, idx: Tensor) -> Tensor:
        """Images `(N, C, H, W)`, each mirrored in every other epoch rather than at random.

        Two epochs in a row then show both views of each image (Jordan 2024, *alternating flip*).
        """
        images = self.images[idx]
        if not self.dataset.mirrored:
            return images
        mirror = (self.mirrored[idx] + self.epoch) % 2 == 1
        return torch.where(mirror[:, None, None, None], images.flip(3), images)

    def save(self, path: Path) -> None:
        """Write all that is needed to continue as if nothing had happened."""
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
        """Continue what `save` wrote.

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
        weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        self.backbone.load_state_dict(weights)
        self.epoch = metadata["epoch"]
        self._begin_part()

        state = storage.nested(tensors, metadata["leaves"])
        for name, optimizer in (("muon", self.muon), ("sgd", self.sgd)):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state.get(name, {}), "param_groups": groups})
        self.generator.set_state(state["generators"]["main"])
        self.augment_generator.set_state(state["generators"]["augment"])

    def _identity(self) -> dict[str, Any]:
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

    Resumes from `checkpoint` if it exists, and removes it at the end.

    Args:
        backbone: the network, changed in place and returned in evaluation mode.
        dataset: supplies the augmentation.
        splits: `train` for weights and batch-norm, `route` for the loss scale.
        schedule: how long and how hard.
        checkpoint: written after the first epoch that ends `save_every` seconds after the last time.
        device: where to train.
        save_every: seconds between checkpoints.
    """
    work = Pretraining(backbone, splits["train"], dataset, schedule, device)
    set_pixel_statistics(backbone, splits["train"])
    measure_whitening(backbone, splits["train"])
    if checkpoint.exists():
        work.resume(checkpoint)

    saved = time.monotonic()
    steps = work.steps_per_epoch
    with tqdm(total=work.epochs * steps, initial=work.epoch * steps, unit="step") as bar:
        while work.epoch < work.epochs:
            bar.set_description("pretrain glance" if work.in_glance_part else "pretrain paths")
            loss = work.run_epoch(bar.update)
            bar.set_postfix(epoch=work.epoch, loss=f"{loss:.3f}")
            if time.monotonic() - saved >= save_every:
                work.save(checkpoint)
                saved = time.monotonic()

    backbone.requires_grad_(True)
    zoo.round_weights(backbone)
    calibrate(backbone, splits["train"], splits["route"], schedule.seed)
    checkpoint.unlink(missing_ok=True)
    return backbone
