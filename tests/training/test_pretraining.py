"""Pretraining: what a step touches, what learns from what, and resuming after a stop."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnr_gym.backbones import weights, zoo
from rnr_gym.data import Dataset
from rnr_gym.training import calibration, pretraining
from rnr_gym.training.pretraining import Pretraining, Schedule
from tests.fixtures import small

KINDS = pytest.mark.parametrize("kind", small.KINDS)
WITH_EXITS = [(kind, exits) for kind in small.KINDS for exits in ("bare", "glance and exits")]
SCHEDULE = Schedule(epochs=2, glance_epochs=1, batch_size=16, bf16=False)
NARROW, FULL = 0, 1
"""The branches of a multi-path layer, by position."""


def moved(images, generator):
    """An augmentation that draws from its generator."""
    return images.roll(int(torch.randint(0, 3, (), generator=generator)), 3)


def unchanged(images, generator):
    return images


MOVED = Dataset(load=None, augment=moved, mirrored=False)
MIRRORED = Dataset(load=None, augment=unchanged, mirrored=True)


def fresh(kind="multipath", exits="glance and exits", seed=0):
    return zoo.from_config(small.config(kind, exits), seed)


def work_on(backbone, schedule=SCHEDULE, dataset=MOVED):
    return Pretraining(backbone, small.images(40), dataset, schedule)


def same_weights(one, other):
    expected, actual = one.state_dict(), other.state_dict()
    return all(torch.equal(expected[name], actual[name]) for name in expected)


def always(monkeypatch, path):
    """Let the other path of every step be this one."""
    monkeypatch.setattr(pretraining, "other_path", lambda backbone, generator: path)


def losses_of(backbone, batch, labels, schedule=SCHEDULE):
    generator = torch.Generator().manual_seed(0)
    return pretraining.path_losses(backbone, batch, labels, schedule, generator)


@pytest.mark.parametrize(
    ("kind", "exits"), [(kind, exits) for kind in small.KINDS for exits in small.EXITS]
)
def test_gradients_reach_what_ran_and_nothing_else(kind, exits, monkeypatch):
    backbone = fresh(kind, exits).train()
    if backbone.glance is not None:
        backbone.glance.requires_grad_(False)
    always(monkeypatch, [int(backbone.has_exits)] * 3)
    ran = set()
    for module in backbone.modules():
        module.register_forward_hook(lambda module, *_: ran.add(module))

    losses = list(losses_of(backbone, small.pixels(8), torch.arange(8) % 3))
    assert len(losses) == 2
    for loss in losses:
        loss.backward()

    # By parameter, not by module: norms of one branch share theirs.
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    glance = set(backbone.glance.parameters()) if backbone.glance is not None else set()
    learnt = {
        parameter for norm in norms if norm in ran for parameter in norm.parameters()
    } - glance
    for norm in norms:
        assert all(
            (parameter.grad is not None) == (parameter in learnt) for parameter in norm.parameters()
        )
    if kind == "multipath":
        for layer in backbone.layers:
            assert all(parameter.grad is None for parameter in layer.branches[NARROW].parameters())
            assert all(
                parameter.grad is not None for parameter in layer.branches[FULL].parameters()
            )


def test_branches_that_never_ran_keep_still(monkeypatch):
    backbone = fresh()
    before = copy.deepcopy(backbone)
    for parameter in backbone.parameters():  # as an earlier step leaves them behind
        parameter.grad = torch.ones_like(parameter)
    always(monkeypatch, [1, 1, 1])
    work_on(backbone, replace(SCHEDULE, glance_epochs=0)).run_epoch()
    for after, original in zip(backbone.layers, before.layers, strict=True):
        assert same_weights(after.branches[NARROW], original.branches[NARROW])
        assert not same_weights(after.branches[FULL], original.branches[FULL])


def test_full_path_learns_from_labels_others_from_it(monkeypatch):
    backbone = small.backbone("multipath", "bare")
    batch, labels = small.pixels(6), torch.tensor([0, 1, 2, 0, 1, 1])
    schedule = replace(SCHEDULE, smoothing=0.2, path_share=0.5, path_weight=0.25)
    always(monkeypatch, [0, 1, 0])
    full, other = (loss.item() for loss in losses_of(backbone, batch, labels, schedule))

    teacher = small.travel(backbone, batch, np.full((6, 3), 2)).logits.detach()
    student = small.travel(backbone, batch[:3], np.tile([0, 1, 0], (3, 1))).logits.detach()
    expected = F.cross_entropy(teacher, labels, label_smoothing=0.2)
    assert full == pytest.approx(float(expected), rel=1e-5)
    soft = -(teacher[:3].softmax(1) * student.log_softmax(1)).sum(1).mean()
    assert other == pytest.approx(0.25 * float(soft), rel=1e-4)


def test_exits_weigh_less_and_the_glance_nothing(monkeypatch):
    backbone = small.backbone("multipath")
    batch, labels = small.pixels(6), torch.tensor([0, 1, 2, 0, 1, 1])
    always(monkeypatch, [2, 2, 2])
    schedules = [replace(SCHEDULE, exit_weight=weight) for weight in (0.0, 1.0)]
    without, with_exits = (
        next(losses_of(backbone, batch, labels, schedule)) for schedule in schedules
    )

    walk = small.travel(backbone, batch, np.tile([3, 3, 0], (6, 1)))
    second = walk.logits
    first = small.travel(backbone, batch, np.tile([3, 0, -1], (6, 1))).logits
    expected = sum(
        F.cross_entropy(logits, labels, label_smoothing=0.1) for logits in (first, second)
    )
    assert float((with_exits - without).detach()) == pytest.approx(
        float(expected.detach()), rel=1e-4
    )


def test_without_weight_no_other_path_runs():
    schedule = replace(SCHEDULE, path_weight=0.0)
    losses = losses_of(fresh(), small.pixels(6), torch.arange(6) % 3, schedule)
    assert len(list(losses)) == 1


@pytest.mark.parametrize(
    ("count", "share", "size"), [(12, 0.5, 6), (7, 1 / 3, 2), (5, 0.1, 2), (12, 1.0, 12)]
)
def test_other_path_runs_on_a_part_of_the_batch(count, share, size):
    backbone, seen = fresh(), []
    backbone.stem.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    schedule = replace(SCHEDULE, path_share=share)
    list(losses_of(backbone, small.pixels(count), torch.arange(count) % 3, schedule))
    assert seen == [count, size]


@pytest.mark.parametrize(("kind", "exits"), WITH_EXITS)
def test_other_path_is_narrow_uniform_or_random(kind, exits):
    backbone, generator = fresh(kind, exits), torch.Generator().manual_seed(0)
    drawn = [tuple(pretraining.other_path(backbone, generator)) for _ in range(600)]
    narrowest, full = backbone.narrowest, backbone.full_path
    assert narrowest == int(backbone.has_exits) + int(backbone.has_identity)

    assert drawn.count((narrowest,) * 3) > 600 / 3
    for width in range(narrowest, full):
        assert (width,) * 3 in drawn
    sub_paths = {sub_path for path in drawn for sub_path in path}
    assert sub_paths == set(range(int(backbone.has_exits), full + 1))
    assert sum(len(set(path)) > 1 for path in drawn) > 600 / 6


@KINDS
def test_the_teacher_is_not_taught_by_its_students(kind, monkeypatch):
    backbone = fresh(kind, "bare").train()
    always(monkeypatch, [0, 0, 0])
    _, other = losses_of(backbone, small.pixels(4), torch.tensor([0, 1, 2, 0]))
    other.backward()
    if backbone.has_identity:
        for layer in backbone.layers:
            assert all(parameter.grad is None for parameter in layer.branches[FULL].parameters())
    assert backbone.head.linear.weight.grad is not None


@KINDS
def test_only_the_glance_learns_at_first(kind):
    backbone = fresh(kind)
    before = copy.deepcopy(backbone)
    work = work_on(backbone)
    work.run_epoch()
    assert not same_weights(backbone.glance, before.glance)
    for name in ("stem", "layers", "head"):
        assert same_weights(getattr(backbone, name), getattr(before, name))

    finished = copy.deepcopy(backbone)
    work.run_epoch()
    assert same_weights(backbone.glance, finished.glance)
    for name in ("stem", "layers", "head"):
        assert not same_weights(getattr(backbone, name), getattr(before, name))


def test_without_a_glance_paths_learn_at_once():
    work = work_on(fresh(exits="exits"))
    assert (work.epochs, work.in_glance_part) == (2, False)


def test_learning_rates_rise_then_fall_in_each_part():
    work = work_on(fresh(), replace(SCHEDULE, epochs=10, glance_epochs=5))
    rates = []
    for _ in range(15):
        work.run_epoch(
            lambda: rates.append((work.muon.param_groups[0]["lr"], work.sgd.param_groups[0]["lr"]))
        )
    muon, sgd = zip(*rates, strict=True)
    steps = work.steps_per_epoch
    for part in (slice(0, 5 * steps), slice(5 * steps, 15 * steps)):
        values = np.array(muon[part])
        assert values.max() <= SCHEDULE.learning_rate
        assert values.argmax() <= max(1, round(0.1 * len(values)))
        assert values[-1] < 0.15 * values.max()
        assert (np.diff(values[values.argmax() :]) < 0).all()
    np.testing.assert_allclose(
        np.array(sgd) * SCHEDULE.learning_rate, np.array(muon) * SCHEDULE.norm_learning_rate
    )


def test_images_are_mirrored_in_every_other_epoch():
    work = work_on(fresh(exits="exits"), dataset=MIRRORED)
    idx = torch.arange(40)
    first = work._mirrored(idx)
    work.epoch += 1
    second = work._mirrored(idx)
    flipped = work.images.flip(3)
    is_flipped = (first == flipped).flatten(1).all(1)
    assert 10 < is_flipped.sum() < 30
    assert torch.equal(torch.where(is_flipped[:, None, None, None], work.images, flipped), second)


def test_images_that_may_not_be_mirrored_are_not():
    work = work_on(fresh(), dataset=MOVED)
    assert torch.equal(work._mirrored(torch.arange(40)), work.images)


@KINDS
def test_training_learns_what_can_be_learnt(kind):
    images = small.images(60)
    patterns = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    easy = type(images).of(patterns[images.labels], images.labels)
    backbone = fresh(kind)
    still = Dataset(load=None, augment=unchanged, mirrored=False)
    work = Pretraining(backbone, easy, still, replace(SCHEDULE, epochs=10, glance_epochs=10))
    for _ in range(20):
        work.run_epoch()
    calibration.calibrate(backbone, easy, easy)
    assert calibration.evaluate_full_path(backbone, easy) == 1.0
    narrow = small.travel(
        backbone, torch.from_numpy(np.array(easy.images)), np.full((60, 3), backbone.narrowest)
    )
    assert (narrow.logits.argmax(1).numpy() == easy.labels).mean() == 1.0
    assert (narrow.glance_logits.argmax(1).numpy() == easy.labels).mean() == 1.0


@KINDS
@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_resumed_training_equals_uninterrupted(kind, epochs, tmp_path):
    straight = work_on(fresh(kind))
    for _ in range(3):
        straight.run_epoch()

    stopped = work_on(fresh(kind))
    for _ in range(epochs):
        stopped.run_epoch()
    stopped.save(tmp_path / "file")
    resumed = work_on(fresh(kind, seed=1))
    resumed.resume(tmp_path / "file")
    assert resumed.epoch == epochs
    for _ in range(3 - epochs):
        resumed.run_epoch()
    assert same_weights(straight.backbone, resumed.backbone)


def test_saving_changes_nothing(tmp_path):
    quiet, saving = work_on(fresh()), work_on(fresh())
    for work in (quiet, saving):
        for _ in range(3):
            work.run_epoch()
            if work is saving:
                work.save(tmp_path / "file")
    assert same_weights(quiet.backbone, saving.backbone)


@pytest.mark.parametrize(
    "change",
    [{"epochs": 4}, {"seed": 1}, {"learning_rate": 0.2}, {"bf16": True}, {"path_share": 0.3}],
    ids=str,
)
def test_another_schedule_cannot_be_resumed(tmp_path, change):
    work_on(fresh()).save(tmp_path / "file")
    with pytest.raises(ValueError, match="`schedule` must be that of the checkpoint"):
        work_on(fresh(), replace(SCHEDULE, **change)).resume(tmp_path / "file")


def test_another_architecture_cannot_be_resumed(tmp_path):
    work_on(fresh()).save(tmp_path / "file")
    with pytest.raises(ValueError, match="`config` must be that of the checkpoint"):
        work_on(fresh(exits="exits")).resume(tmp_path / "file")


def test_a_seed_decides_everything():
    first, again = work_on(fresh()), work_on(fresh())
    other = work_on(fresh(), replace(SCHEDULE, seed=1))
    assert first.run_epoch() == again.run_epoch() != other.run_epoch()
    assert same_weights(first.backbone, again.backbone)


def splits():
    return {"train": small.images(40), "route": small.images(20, seed=1)}


def test_pretraining_calibrates_returns_the_backbone_and_leaves_no_checkpoint(tmp_path):
    backbone = fresh()
    done = pretraining.pretrain(
        backbone, MOVED, splits(), SCHEDULE, tmp_path / "part", save_every=0.0
    )
    assert done is backbone
    assert not any(module.training for module in done.modules())
    assert list(tmp_path.iterdir()) == []
    logits = done.plain()(
        done.prepare(torch.from_numpy(np.array(splits()["route"].images)))
    ).detach()
    loss = F.cross_entropy(logits, torch.from_numpy(np.array(splits()["route"].labels)))
    assert float(done.loss_scale) == pytest.approx(1 / float(loss), rel=1e-4)
    scaled = splits()["train"].images / 255.0
    assert done.image_mean.item() == pytest.approx(scaled.mean(), rel=1e-5)
    assert done.image_std.item() == pytest.approx(scaled.std(), rel=1e-5)


@KINDS
def test_pretrained_weights_are_stored_without_loss(kind, tmp_path):
    done = pretraining.pretrain(fresh(kind), MOVED, splits(), SCHEDULE, tmp_path / "part")
    assert all(parameter.requires_grad for parameter in done.parameters())
    weights.save(done, tmp_path / "file")
    assert same_weights(zoo.load(tmp_path / "file"), done)


def test_statistics_and_the_loss_scale_are_those_of_the_rounded_weights(tmp_path):
    done = pretraining.pretrain(fresh(), MOVED, splits(), SCHEDULE, tmp_path / "part")
    again = copy.deepcopy(done)
    calibration.calibrate(again, splits()["train"], splits()["route"], SCHEDULE.seed)
    assert same_weights(done, again)


class Killed(Exception):
    pass


def killer(steps):
    """An augmentation that stops the run after so many steps."""
    left = iter(range(steps))

    def augment(images, generator):
        if next(left, None) is None:
            raise Killed
        return moved(images, generator)

    return augment


@KINDS
def test_a_killed_run_ends_as_one_that_was_not_killed(kind, tmp_path):
    straight, killed = fresh(kind), fresh(kind)
    pretraining.pretrain(straight, MOVED, splits(), SCHEDULE, tmp_path / "other", save_every=0.0)
    with pytest.raises(Killed):  # in the second epoch of 3 steps
        pretraining.pretrain(
            killed,
            Dataset(None, killer(4), False),
            splits(),
            SCHEDULE,
            tmp_path / "part",
            save_every=0.0,
        )
    assert (tmp_path / "part").is_file()
    killed = fresh(kind, seed=1)
    pretraining.pretrain(killed, MOVED, splits(), SCHEDULE, tmp_path / "part", save_every=0.0)
    assert same_weights(straight, killed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("every", "saved"), [(0.0, [1, 2, 3]), (float("inf"), [])])
def test_what_has_been_done_is_kept_after_an_epoch_that_ends_late_enough(
    every, saved, tmp_path, monkeypatch
):
    found, save = [], Pretraining.save
    monkeypatch.setattr(
        Pretraining, "save", lambda work, path: (save(work, path), found.append(work.epoch))
    )
    pretraining.pretrain(fresh(), MOVED, splits(), SCHEDULE, tmp_path / "part", save_every=every)
    assert found == saved
    assert list(tmp_path.iterdir()) == []


def test_only_untouched_images_are_trained_on():
    images = small.images(40)
    severity = np.arange(40) % 4
    work = Pretraining(fresh(), replace(images, severity=severity), MOVED, SCHEDULE)
    np.testing.assert_array_equal(work.images, images.images[severity == 0])
    np.testing.assert_array_equal(work.labels, images.labels[severity == 0])
