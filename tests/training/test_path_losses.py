"""The losses of a pretraining step: which path runs, and what learns from what."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnr_gym.training import pretraining
from rnr_gym.training.pretraining import Schedule
from tests.fixtures import small

SCHEDULE = Schedule(bf16=False)
LABELS = torch.tensor([0, 1, 2, 0, 1, 1])
NARROW = 0
FULL = 1
"""The branches of a multi-path layer, by position."""


def path_losses(backbone, batch, labels, schedule=SCHEDULE):
    """The losses of one step, as they are differentiated one after the other."""
    generator = torch.Generator().manual_seed(0)
    return pretraining.path_losses(backbone, batch, labels, schedule, generator)


def always_take(monkeypatch, path):
    """Let the other path of every step be this one."""
    monkeypatch.setattr(pretraining, "other_path", lambda backbone, generator: path)


def logits_of(backbone, batch, path):
    """Logits of a whole batch on one path."""
    paths = np.tile(path, (len(batch), 1))
    return small.travel(backbone, batch, paths).logits


def has_gradients(module):
    """Whether each parameter has a gradient."""
    return [parameter.grad is not None for parameter in module.parameters()]


@pytest.mark.parametrize(
    ("kind", "exits"),
    list(itertools.product(small.KINDS, small.EXITS)),
)
def test_gradients_reach_only_what_ran(kind, exits, monkeypatch):
    backbone = small.untrained(kind, exits).train()
    glance_parameters = set()
    if backbone.glance is not None:
        backbone.glance.requires_grad_(False)
        glance_parameters = set(backbone.glance.parameters())

    ran = set()
    for module in backbone.modules():
        module.register_forward_hook(lambda module, *_: ran.add(module))

    always_take(monkeypatch, [backbone.first_sub_path] * 3)
    losses = list(path_losses(backbone, small.pixels(8), torch.arange(8) % 3))
    assert len(losses) == 2
    for loss in losses:
        loss.backward()

    # By parameter, not by module: norms of one branch share theirs.
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    learning = set()
    for norm in norms:
        if norm in ran:
            learning |= set(norm.parameters()) - glance_parameters
    for norm in norms:
        for parameter in norm.parameters():
            assert (parameter.grad is not None) == (parameter in learning)


@pytest.mark.parametrize("exits", small.EXITS)
def test_gradients_miss_branches_that_did_not_run(exits, monkeypatch):
    backbone = small.untrained("multipath", exits).train()
    # Identity at every layer.
    always_take(monkeypatch, [backbone.first_sub_path] * 3)
    for loss in path_losses(backbone, small.pixels(8), torch.arange(8) % 3):
        loss.backward()

    for layer in backbone.layers:
        assert not any(has_gradients(layer.branches[NARROW]))
        assert all(has_gradients(layer.branches[FULL]))


def test_other_path_learns_from_the_full_path(monkeypatch):
    backbone = small.backbone("multipath", "bare")
    batch = small.pixels(6)
    schedule = replace(SCHEDULE, smoothing=0.2, path_share=0.5, path_weight=0.25)
    always_take(monkeypatch, [0, 1, 0])
    full_loss, other_loss = path_losses(backbone, batch, LABELS, schedule)

    # The other path runs on half of the batch.
    teacher = logits_of(backbone, batch, [2, 2, 2])
    student = logits_of(backbone, batch[:3], [0, 1, 0])
    from_labels = F.cross_entropy(teacher, LABELS, label_smoothing=0.2)
    soft_labels = teacher[:3].softmax(1)  # (3, classes)
    products = soft_labels * student.log_softmax(1)
    from_teacher = -products.sum(1).mean()
    assert full_loss.item() == pytest.approx(from_labels.item(), rel=1e-5)
    assert other_loss.item() == pytest.approx(0.25 * from_teacher.item(), rel=1e-4)


def test_exit_losses_are_weighted_without_glance(monkeypatch):
    backbone = small.backbone("multipath")
    batch = small.pixels(6)
    always_take(monkeypatch, [2, 2, 2])

    def full_path_loss(exit_weight):
        schedule = replace(SCHEDULE, exit_weight=exit_weight)
        return next(path_losses(backbone, batch, LABELS, schedule)).item()

    # The exits at layers 1 and 2; the glance, layer 0's, is finished.
    expected = 0.0
    for path in ([3, 0, -1], [3, 3, 0]):
        logits = logits_of(backbone, batch, path)
        expected += F.cross_entropy(logits, LABELS, label_smoothing=0.1).item()
    difference = full_path_loss(1.0) - full_path_loss(0.0)
    assert difference == pytest.approx(expected, rel=1e-4)


def test_other_path_without_weight_does_not_run():
    schedule = replace(SCHEDULE, path_weight=0.0)
    losses = list(path_losses(small.untrained(), small.pixels(6), LABELS, schedule))
    assert len(losses) == 1


@pytest.mark.parametrize(
    ("count", "share", "size"),
    [
        pytest.param(12, 0.5, 6, id="half"),
        pytest.param(7, 1 / 3, 2, id="third, rounded"),
        pytest.param(5, 0.1, 2, id="two at least"),
        pytest.param(12, 1.0, 12, id="all"),
    ],
)
def test_other_path_runs_on_share_of_batch(count, share, size):
    backbone = small.untrained()
    sizes = []
    backbone.stem.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))

    schedule = replace(SCHEDULE, path_share=share)
    list(path_losses(backbone, small.pixels(count), torch.arange(count) % 3, schedule))
    assert sizes == [count, size]


@pytest.mark.parametrize(
    ("kind", "exits"),
    list(itertools.product(small.KINDS, ["bare", "glance and exits"])),
)
def test_other_path_is_narrow_uniform_or_random(kind, exits):
    backbone = small.untrained(kind, exits)
    full = backbone.full_path
    narrowest = backbone.narrowest
    assert narrowest == int(backbone.has_exits) + int(backbone.has_identity)

    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(pretraining.other_path(backbone, generator)) for _ in range(600)]
    # Uniform and random paths may be the narrowest too.
    assert drawn.count((narrowest,) * 3) > 600 / 3
    for width in range(narrowest, full):
        assert (width,) * 3 in drawn

    mixed = [path for path in drawn if len(set(path)) > 1]
    assert len(mixed) > 600 / 6
    sub_paths = set(itertools.chain.from_iterable(drawn))
    assert sub_paths == set(range(int(backbone.has_exits), full + 1))


@pytest.mark.parametrize("kind", small.KINDS)
def test_teacher_is_not_taught_by_its_student(kind, monkeypatch):
    backbone = small.untrained(kind, "bare").train()
    always_take(monkeypatch, [0, 0, 0])
    _, other_loss = path_losses(backbone, small.pixels(6), LABELS)
    other_loss.backward()

    # Where sub-paths share no filters, what the full path ran shows in their gradients.
    if backbone.has_identity:
        for layer in backbone.layers:
            assert not any(has_gradients(layer.branches[FULL]))
    assert backbone.head.linear.weight.grad is not None
