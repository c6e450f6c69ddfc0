"""Training a backbone so that every sub-path works: random routing under the sandwich rule.

Each step runs the full path, the cheapest path and a few random ones. The full path learns from the labels; the
others, the exits and the glance learn from the labels and from the full path's answer (in-place distillation).
Sources: Yu and Huang, *Universally Slimmable Networks* (2019); Rao et al. (2019) for random routing before the router.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from rnr_gym import checkpoints
from rnr_gym.backbones.base import Backbone
from rnr_gym.data import Dataset, ImageSet
from rnr_gym.traversal import Traversal

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
    random_paths: int = 2
    """Random paths in every step, beside the full and the cheapest one."""
    distill: float = 0.5
    """Share of the full path's answer, against the labels, in what the other paths learn from."""
    seed: int = 0
    bf16: bool = True
    """Run convolutions in bfloat16: about twice the speed on recent CPUs and GPUs."""


def fixed_path(backbone: Backbone, sub_path: int) -> list[int]:
    """The same sub-path at every layer."""
    return [sub_path] * backbone.num_layers


def random_path(backbone: Backbone, generator: torch.Generator) -> list[int]:
    """A uniformly drawn path that does not exit."""
    first = int(backbone.has_exits)
    return torch.randint(first, backbone.num_paths, (backbone.num_layers,), generator=generator).tolist()


def spread_paths(backbone: Backbone, generator: torch.Generator) -> list[list[int]]:
    """Random paths that do not exit, together taking every sub-path of every layer twice."""
    first = int(backbone.has_exits)
    columns = [first + torch.randperm(backbone.num_paths - first, generator=generator).repeat(2) for _ in range(backbone.num_layers)]
    return torch.stack(columns, 1).tolist()


def answers(backbone: Backbone, images: Tensor, path: list[int], exits: Collection[int] | None) -> tuple[Tensor, list[Tensor]]:
    """Send a batch down one path; its logits, and those of every exit head passed on the way."""
    traversal = Traversal.start(backbone, images, exits)
    passed = []
    for layer, sub_path in enumerate(path):
        if layer in traversal.exits:
            passed.append(traversal.exit_logits)
        traversal = traversal.step(np.full(len(images), sub_path))
    return traversal.logits, passed


def sandwich_loss(backbone: Backbone, images: Tensor, labels: Tensor, schedule: Schedule, generator: torch.Generator) -> Iterator[Tensor]:
    """The losses of one step, one for each path, to be differentiated one after the other."""
    logits, passed = answers(backbone, images, fixed_path(backbone, backbone.full_path), None)
    teacher = logits.detach().softmax(1)

    def student(found: Tensor) -> Tensor:
        return (1 - schedule.distill) * F.cross_entropy(found, labels) + schedule.distill * F.cross_entropy(found, teacher)

    yield F.cross_entropy(logits, labels) + sum((student(found) for found in passed), logits.new_zeros(()))
    heads = backbone.exit_layers - {0}
    cheapest = fixed_path(backbone, int(backbone.has_exits))
    for path in [cheapest, *(random_path(backbone, generator) for _ in range(schedule.random_paths))]:
        logits, passed = answers(backbone, images, path, heads)
        yield student(logits) + sum((student(found) for found in passed), logits.new_zeros(())) / max(1, len(passed))


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

    def run_epoch(self) -> float:
        """One pass over the training images; the mean loss a step."""
        self.backbone.train()
        total = 0.0
        for rows in torch.randperm(len(self.images), generator=self.draws).to(self.device).split(self.schedule.batch_size):
            self.optimizer.zero_grad(set_to_none=True)  # sub-paths that do not run are not decayed either
            images = self.augment(self.images[rows], self.variations)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.schedule.bf16):
                for loss in sandwich_loss(self.backbone, images, self.labels[rows], self.schedule, self.draws):
                    loss.backward()
                    total += loss.item()
            nn.utils.clip_grad_norm_(self.backbone.parameters(), 5.0)
            self.optimizer.step()
            self.cycle.step()
        self.epoch += 1
        return total / self.steps

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
    backbone: Backbone, dataset: Dataset, splits: dict[str, ImageSet], schedule: Schedule, checkpoint: Path, device: str = "cpu", every: int = 10
) -> Backbone:
    """Train under random routing, then calibrate; goes on from `checkpoint` if it exists and removes it at the end.

    Args:
        backbone: the network, changed in place and returned in evaluation mode.
        dataset: supplies the augmentation.
        splits: `train` for weights and batch-norm, `route` for the loss scale.
        schedule: how long and how hard.
        checkpoint: where to keep what has been done, every `every` epochs.
    """
    work = Pretraining(backbone, splits["train"], dataset.augment, schedule, device)
    set_pixel_statistics(backbone, splits["train"])
    if checkpoint.exists():
        work.resume(checkpoint)
    with tqdm(total=schedule.epochs, initial=work.epoch, desc="pretrain", unit="epoch") as bar:
        while work.epoch < schedule.epochs:
            bar.set_postfix(loss=f"{work.run_epoch():.3f}")
            bar.update()
            if work.epoch % every == 0:
                work.save(checkpoint)
    calibrate(backbone, splits["train"], splits["route"], schedule.seed)
    checkpoint.unlink(missing_ok=True)
    return backbone


def set_pixel_statistics(backbone: Backbone, train: ImageSet) -> None:
    """Store the training images' mean and standard deviation a channel, of pixels scaled to 0..1."""
    scaled = train.images.astype(np.float32) / 255.0
    for buffer, value in ((backbone.image_mean, scaled.mean((0, 2, 3))), (backbone.image_std, scaled.std((0, 2, 3)))):
        buffer.copy_(torch.from_numpy(value)[:, None, None])


def calibrate(backbone: Backbone, train: ImageSet, route: ImageSet, seed: int = 0, batch_size: int = 512) -> None:
    """Measure what the backbone stores beside its weights: batch-norm and summary statistics on `train`, the loss scale on `route`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        recalibrate(backbone, train, generator, batch_size)
        measure_summaries(backbone, train, generator, batch_size)
        losses = [
            F.cross_entropy(answers(backbone, images, fixed_path(backbone, backbone.full_path), ())[0], labels, reduction="none")
            for images, labels in batches(backbone, route, batch_size)
        ]
        backbone.loss_scale.fill_(1.0 / float(torch.cat(losses).mean()))


def batches(backbone: Backbone, images: ImageSet, batch_size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels on the backbone's device, in order, or shuffled where a generator is given."""
    order = torch.arange(len(images)) if generator is None else torch.randperm(len(images), generator=generator)
    device = backbone.image_mean.device
    for rows in order.split(batch_size):
        yield torch.from_numpy(images.images[rows.numpy()]).to(device), torch.from_numpy(images.labels[rows.numpy()]).to(device)


def full_path_norms(backbone: Backbone, images: Tensor) -> set[nn.BatchNorm2d]:
    """The batch-norms that run on the full path, exits and glance included."""
    seen: set[nn.BatchNorm2d] = set()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_hook(lambda module, *_: seen.add(module)) for norm in norms]
    backbone.eval()
    answers(backbone, images[:1], fixed_path(backbone, backbone.full_path), None)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def recalibrate(backbone: Backbone, train: ImageSet, generator: torch.Generator, batch_size: int = 512, only_others: bool = False) -> None:
    """Measure batch-norm statistics again: the full path's set on the full path alone, every other under random routing.

    With `only_others` the full path's set stays as it is.
    """
    first = next(batches(backbone, train, 1))[0]
    norms = {module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)}
    full = full_path_norms(backbone, first)
    if not only_others:
        _measure_norms(backbone, full, train, generator, batch_size, lambda: [fixed_path(backbone, backbone.full_path)])
    _measure_norms(
        backbone, norms - full, train, generator, batch_size, lambda: spread_paths(backbone, generator) + spread_paths(backbone, generator)
    )
    backbone.eval()


def _measure_norms(
    backbone: Backbone,
    norms: set[nn.BatchNorm2d],
    train: ImageSet,
    generator: torch.Generator,
    batch_size: int,
    paths: Callable[[], list[list[int]]],
) -> None:
    backbone.eval()
    momenta = {norm: norm.momentum for norm in norms}
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None
    for images, _ in batches(backbone, train, batch_size, generator):
        for path in paths():
            answers(backbone, images, path, None)
    for norm, momentum in momenta.items():
        norm.momentum = momentum


def measure_summaries(backbone: Backbone, train: ImageSet, generator: torch.Generator, batch_size: int = 512) -> None:
    """Store mean and standard deviation of the pooled features, by layer and channel, under random routing."""
    moments = [torch.zeros(3, backbone.pooled_width, dtype=torch.float64) for _ in range(backbone.num_layers)]
    glanced = []
    for images, _ in batches(backbone, train, batch_size, generator):
        traversal = Traversal.start(backbone, images)
        glanced.append(traversal.glance_pooled.cpu().double())
        for layer, sub_path in enumerate(random_path(backbone, generator)):
            (group,) = traversal.groups
            pooled = group.features.float().mean((2, 3)).cpu().double()
            moments[layer][:, : pooled.shape[1]] += torch.stack([torch.ones_like(pooled), pooled, pooled**2]).sum(1)
            traversal = traversal.step(np.full(len(images), sub_path))
    for layer, (count, total, squares) in enumerate(moments):
        mean = total / count.clamp(min=1)
        spread = (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()
        backbone.summary_mean[layer] = mean.float()
        backbone.summary_std[layer] = torch.where(spread > 1e-6, spread, 1.0).float()
    everything = torch.cat(glanced)
    backbone.glance_mean.copy_(everything.mean(0).float())
    backbone.glance_std.copy_(everything.std(0).clamp(min=1e-6).float())


@torch.no_grad()
def evaluate_full_path(backbone: Backbone, images: ImageSet, batch_size: int = 512) -> float:
    """Top-1 accuracy of the plain network, 0..1."""
    path = fixed_path(backbone, backbone.full_path)
    right = [(answers(backbone, pixels, path, ())[0].argmax(1) == labels).cpu() for pixels, labels in batches(backbone, images, batch_size)]
    return float(torch.cat(right).float().mean())
