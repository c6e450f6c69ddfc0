"""Training under random routing: what a step touches, what calibration measures, and going on after a stop."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnr_gym import calibration, training
from rnr_gym.backbones import pretrained
from rnr_gym.data import Dataset
from rnr_gym.training import Pretraining, Schedule
from tests import small

KINDS = pytest.mark.parametrize("kind", small.KINDS)
SCHEDULE = Schedule(epochs=3, batch_size=16, learning_rate=0.05, bf16=False)
THRIFTY = replace(SCHEDULE, uniform_paths=1, random_paths=1, share=1 / 3, shrunk=0.5)
SCHEDULES = pytest.mark.parametrize("schedule", [SCHEDULE, THRIFTY], ids=["whole", "thrifty"])


def moved(images, generator):
    """An augmentation that draws from its generator."""
    return images.roll(int(torch.randint(0, 3, (), generator=generator)), 3)


def fresh(kind="multipath", exits="glance and exits", seed=0):
    return pretrained.from_config(small.config(kind, exits), seed)


def work_on(backbone, schedule=SCHEDULE, augment=moved):
    return Pretraining(backbone, small.images(40), augment, schedule)


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("kind", "exits"), [(kind, exits) for kind in small.KINDS for exits in small.EXITS])
def test_a_step_has_gradients_for_what_ran_and_for_nothing_else(kind, exits):
    backbone, ran = fresh(kind, exits).train(), set()
    for module in backbone.modules():
        module.register_forward_hook(lambda module, *_: ran.add(module))
    labels = torch.tensor([0, 1, 2, 0])
    losses = training.sandwich_loss(backbone, small.pixels(4), labels, replace(SCHEDULE, random_paths=0), torch.Generator())
    count = 0
    for loss in losses:
        loss.backward()
        count += 1
    assert count == 2  # the full path and the cheapest
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Linear):
            head = isinstance(module, nn.Linear)
            used = module in ran or (head and any(module is getattr(over, "linear", None) for over in ran))
            assert all((parameter.grad is not None) == used for parameter in module.parameters(recurse=False))
    if kind == "multipath":
        assert all(parameter.grad is None for layer in backbone.layers for parameter in layer.branches[0].parameters())
        assert all(parameter.grad is not None for layer in backbone.layers for parameter in layer.branches[1].parameters())


def test_training_leaves_sub_paths_that_never_ran_bit_for_bit_as_they_were():
    backbone = fresh()
    before = copy.deepcopy(backbone)
    for parameter in backbone.parameters():  # as an earlier step leaves them behind
        parameter.grad = torch.ones_like(parameter)
    work_on(backbone, replace(SCHEDULE, random_paths=0)).run_epoch()
    for ours, theirs in zip(backbone.layers, before.layers, strict=True):
        assert same_weights(ours.branches[0], theirs.branches[0])
        assert not same_weights(ours.branches[1], theirs.branches[1])


def test_the_full_path_learns_from_labels_the_others_also_from_it():
    backbone, labels, batch = small.backbone("multipath", "bare").train(False), torch.tensor([0, 1, 2, 0]), small.pixels(4)
    schedule = replace(SCHEDULE, random_paths=0, distill=0.25)
    full, cheapest = (loss.item() for loss in training.sandwich_loss(backbone, batch, labels, schedule, torch.Generator()))
    teacher, student = (small.travel(backbone, batch, np.full((4, 3), sub_path)).logits.detach() for sub_path in (2, 0))
    assert full == pytest.approx(float(F.cross_entropy(teacher, labels)), rel=1e-5)
    soft = -(teacher.softmax(1) * student.log_softmax(1)).sum(1).mean()
    assert cheapest == pytest.approx(float(0.75 * F.cross_entropy(student, labels) + 0.25 * soft), rel=1e-5)


def watched(backbone):
    """A list that grows by the prepared images of every path that sets out."""
    seen = []
    backbone.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    return seen


@pytest.mark.parametrize(
    ("count", "share", "parts"),
    [
        (12, 1 / 3, [range(4), range(4, 8), range(8, 12), range(4)]),
        (12, 0.5, [range(6), range(6, 12), range(6), range(6, 12)]),
        (12, 1.0, [range(12)] * 4),
        (7, 1 / 3, [[0, 1], [2, 3], [4, 5], [6, 0]]),
        (5, 0.1, [[0, 1], [2, 3], [4, 0], [1, 2]]),
    ],
    ids=["thirds", "halves", "whole", "odd", "at least two"],
)
def test_each_lesser_path_runs_on_its_part_of_the_batch_and_they_take_turns(count, share, parts):
    backbone, schedule = fresh(), replace(SCHEDULE, uniform_paths=1, random_paths=2, share=share)
    seen, batch = watched(backbone), small.pixels(count)
    labels = torch.arange(count) % 3
    assert len(list(training.sandwich_loss(backbone, batch, labels, schedule, torch.Generator()))) == 5
    for found, rows in zip(seen, [range(count), *parts], strict=True):
        assert torch.equal(found, backbone.prepare(batch[list(rows)]))


def test_a_path_that_runs_on_a_part_learns_from_the_answers_to_that_part():
    backbone, labels, batch = small.backbone("multipath", "bare"), torch.tensor([0, 1, 2, 0, 1, 1]), small.pixels(6)
    schedule = replace(SCHEDULE, uniform_paths=1, random_paths=0, distill=0.25, share=0.5)
    full, *lesser = (loss.item() for loss in training.sandwich_loss(backbone, batch, labels, schedule, torch.Generator()))
    teacher = small.travel(backbone, batch, np.full((6, 3), 2)).logits.detach()
    assert full == pytest.approx(float(F.cross_entropy(teacher, labels)), rel=1e-5)
    for loss, sub_path, rows in zip(lesser, (0, 1), (slice(0, 3), slice(3, 6)), strict=True):
        student = small.travel(backbone, batch[rows], np.full((3, 3), sub_path)).logits.detach()
        soft = -(teacher[rows].softmax(1) * student.log_softmax(1)).sum(1).mean()
        assert loss == pytest.approx(float(0.75 * F.cross_entropy(student, labels[rows]) + 0.25 * soft), rel=1e-4)


@pytest.mark.parametrize(("kind", "exits"), [(kind, exits) for kind in small.KINDS for exits in ("bare", "glance and exits")])
def test_the_lesser_paths_are_the_cheapest_then_uniform_then_random_ones(kind, exits):
    backbone, schedule = fresh(kind, exits), replace(SCHEDULE, uniform_paths=20, random_paths=30)
    cheapest, *others = training.lesser_paths(backbone, schedule, torch.Generator().manual_seed(0))
    least, full = int(backbone.has_exits), backbone.full_path
    uniform, random = others[:20], others[20:]
    assert cheapest == [least] * 3
    assert all(len(set(path)) == 1 for path in uniform)
    assert {path[0] for path in uniform} == (set(range(least + 1, full)) or {full})  # what lies between, if anything does
    assert len(random) == 30
    assert {sub_path for path in random for sub_path in path} == set(range(least, full + 1))
    assert any(len(set(path)) > 1 for path in random)


def test_without_paths_asked_for_only_the_cheapest_is_left():
    assert training.lesser_paths(fresh(), replace(SCHEDULE, random_paths=0), torch.Generator()) == [[1, 1, 1]]


@pytest.mark.parametrize(("shrunk", "sides"), [(0.0, [8, 8, 8, 8]), (0.5, [6, 6, 8, 8]), (0.6, [6, 6, 6, 8]), (1.0, [6, 6, 6, 6])])
def test_the_leading_epochs_see_images_of_three_quarters_the_side(shrunk, sides):
    work = work_on(fresh(), replace(SCHEDULE, epochs=4, random_paths=0, shrunk=shrunk))
    seen = watched(work.backbone)
    for side in sides:
        work.run_epoch()
        assert {images.shape[1:] for images in seen} == {(1, side, side)}
        seen.clear()


def test_shrunk_images_are_as_bright_as_the_images_and_come_after_augmentation():
    shades = np.repeat(np.arange(0, 240, 6, dtype=np.uint8), 64).reshape(40, 1, 8, 8)
    train = replace(small.images(40), images=shades)
    work = Pretraining(fresh(), train, lambda images, generator: images + 10, replace(SCHEDULE, batch_size=40, random_paths=0, shrunk=1.0))
    seen = watched(work.backbone)
    work.run_epoch()
    wanted = work.backbone.prepare(torch.from_numpy(shades + 10)).amax((1, 2, 3)).sort().values
    for corner in (seen[0].amax((1, 2, 3)), seen[0].amin((1, 2, 3))):
        torch.testing.assert_close(corner.sort().values, wanted)


@KINDS
def test_the_teacher_is_not_taught_by_its_students(kind):
    backbone, labels = fresh(kind, "bare").train(), torch.tensor([0, 1, 2, 0])
    losses = training.sandwich_loss(backbone, small.pixels(4), labels, replace(SCHEDULE, distill=1.0, random_paths=0), torch.Generator())
    next(losses)
    next(losses).backward()
    if kind == "multipath":
        assert all(parameter.grad is None for layer in backbone.layers for parameter in layer.branches[1].parameters())
    assert backbone.head.linear.weight.grad is not None


@KINDS
def test_an_epoch_lowers_the_loss_on_what_can_be_learnt(kind):
    images = small.images(60)
    patterns = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    easy = type(images).of(patterns[images.labels], images.labels)
    backbone = fresh(kind)
    work = Pretraining(backbone, easy, lambda batch, generator: batch, replace(SCHEDULE, epochs=6))
    losses = [work.run_epoch() for _ in range(6)]
    assert losses[-1] < 0.7 * losses[0]
    calibration.calibrate(backbone, easy, easy)
    assert calibration.evaluate_full_path(backbone, easy) == 1.0


@KINDS
@SCHEDULES
def test_going_on_from_a_file_is_bitwise_going_on(kind, schedule, tmp_path):
    straight = work_on(fresh(kind), schedule)
    for _ in range(3):
        straight.run_epoch()
    stopped = work_on(fresh(kind), schedule)
    stopped.run_epoch()
    stopped.save(tmp_path / "file")
    resumed = work_on(fresh(kind, seed=1), schedule)
    resumed.resume(tmp_path / "file")
    assert resumed.epoch == 1
    for _ in range(2):
        resumed.run_epoch()
    assert same_weights(straight.backbone, resumed.backbone)
    assert straight.cycle.get_last_lr() == resumed.cycle.get_last_lr()


def test_saving_changes_nothing(tmp_path):
    quiet, saving = work_on(fresh()), work_on(fresh())
    for work in (quiet, saving):
        for _ in range(2):
            work.run_epoch()
            if work is saving:
                work.save(tmp_path / "file")
    assert same_weights(quiet.backbone, saving.backbone)


@pytest.mark.parametrize(
    "change",
    [{"epochs": 4}, {"seed": 1}, {"learning_rate": 0.1}, {"bf16": True}, {"distill": 0.0}, {"share": 0.5}, {"uniform_paths": 1}, {"shrunk": 0.3}],
    ids=str,
)
def test_another_schedule_cannot_be_taken_up(tmp_path, change):
    work_on(fresh()).save(tmp_path / "file")
    with pytest.raises(ValueError, match="`schedule`"):
        work_on(fresh(), replace(SCHEDULE, **change)).resume(tmp_path / "file")


def test_another_architecture_cannot_be_taken_up(tmp_path):
    work_on(fresh()).save(tmp_path / "file")
    with pytest.raises(ValueError, match="`config`"):
        work_on(fresh(exits="exits")).resume(tmp_path / "file")


def test_a_seed_decides_everything():
    first, again, other = work_on(fresh()), work_on(fresh()), work_on(fresh(), replace(SCHEDULE, seed=1))
    assert first.run_epoch() == again.run_epoch() != other.run_epoch()
    assert same_weights(first.backbone, again.backbone)


def splits():
    return {"train": small.images(40), "route": small.images(20, seed=1)}


def test_pretraining_calibrates_returns_the_backbone_and_leaves_no_checkpoint(tmp_path):
    backbone = fresh()
    done = training.pretrain(backbone, Dataset(None, moved), splits(), SCHEDULE, tmp_path / "part", every=0.0)
    assert done is backbone
    assert not any(module.training for module in done.modules())
    assert list(tmp_path.iterdir()) == []
    logits = done.plain()(done.prepare(torch.from_numpy(np.array(splits()["route"].images)))).detach()
    loss = F.cross_entropy(logits, torch.from_numpy(np.array(splits()["route"].labels)))
    assert float(done.loss_scale) == pytest.approx(1 / float(loss), rel=1e-4)
    scaled = splits()["train"].images / 255.0
    assert done.image_mean.item() == pytest.approx(scaled.mean(), rel=1e-5)
    assert done.image_std.item() == pytest.approx(scaled.std(), rel=1e-5)


@KINDS
def test_weights_are_rounded_so_that_half_precision_holds_them(kind, tmp_path):
    done = training.pretrain(fresh(kind), Dataset(None, moved), splits(), THRIFTY, tmp_path / "part")
    assert all(torch.equal(parameter, parameter.half().float()) for parameter in done.parameters())
    pretrained.save(done, tmp_path / "file")
    assert same_weights(pretrained.load(tmp_path / "file"), done)


def test_statistics_and_the_loss_scale_are_those_of_the_rounded_weights(tmp_path):
    done = training.pretrain(fresh(), Dataset(None, moved), splits(), SCHEDULE, tmp_path / "part")
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
@SCHEDULES
def test_a_killed_run_ends_as_one_that_was_not_killed(kind, schedule, tmp_path):
    straight, killed = fresh(kind), fresh(kind)
    training.pretrain(straight, Dataset(None, moved), splits(), schedule, tmp_path / "other", every=0.0)
    with pytest.raises(Killed):  # in the second epoch of 3 steps
        training.pretrain(killed, Dataset(None, killer(4)), splits(), schedule, tmp_path / "part", every=0.0)
    assert (tmp_path / "part").is_file()
    killed = fresh(kind, seed=1)
    training.pretrain(killed, Dataset(None, moved), splits(), schedule, tmp_path / "part", every=0.0)
    assert same_weights(straight, killed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("every", "saved"), [(0.0, [1, 2, 3]), (float("inf"), [])])
def test_what_has_been_done_is_kept_after_an_epoch_that_ends_late_enough(every, saved, tmp_path, monkeypatch):
    found, save = [], Pretraining.save
    monkeypatch.setattr(Pretraining, "save", lambda work, path: (save(work, path), found.append(work.epoch)))
    training.pretrain(fresh(), Dataset(None, moved), splits(), SCHEDULE, tmp_path / "part", every=every)
    assert found == saved
    assert list(tmp_path.iterdir()) == []


def test_only_untouched_images_are_trained_on():
    images = small.images(40)
    severity = np.arange(40) % 4
    work = Pretraining(fresh(), replace(images, severity=severity), moved, SCHEDULE)
    np.testing.assert_array_equal(work.images, images.images[severity == 0])
    np.testing.assert_array_equal(work.labels, images.labels[severity == 0])
