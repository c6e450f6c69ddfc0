"""Training under random routing: what a step touches, what calibration measures, and going on after a stop."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnr_gym import training
from rnr_gym.backbones import pretrained
from rnr_gym.data import Dataset
from rnr_gym.training import Pretraining, Schedule
from tests import small

KINDS = pytest.mark.parametrize("kind", small.KINDS)
SCHEDULE = Schedule(epochs=3, batch_size=16, learning_rate=0.05, bf16=False)


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
def test_random_paths_reach_every_sub_path_but_never_exit(kind):
    backbone, generator = fresh(kind), torch.Generator().manual_seed(0)
    drawn = np.array([training.random_path(backbone, generator) for _ in range(200)])
    assert [set(column) for column in drawn.T] == [set(range(1, backbone.num_paths))] * 3
    bare = fresh(kind, "bare")
    assert np.array([training.random_path(bare, generator) for _ in range(200)]).min() == 0


@KINDS
def test_an_epoch_lowers_the_loss_on_what_can_be_learnt(kind):
    images = small.images(60)
    patterns = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    easy = type(images).of(patterns[images.labels], images.labels)
    backbone = fresh(kind)
    work = Pretraining(backbone, easy, lambda batch, generator: batch, replace(SCHEDULE, epochs=6))
    losses = [work.run_epoch() for _ in range(6)]
    assert losses[-1] < 0.7 * losses[0]
    training.calibrate(backbone, easy, easy)
    assert training.evaluate_full_path(backbone, easy) == 1.0


@KINDS
def test_going_on_from_a_file_is_bitwise_going_on(kind, tmp_path):
    straight = work_on(fresh(kind))
    for _ in range(3):
        straight.run_epoch()
    stopped = work_on(fresh(kind))
    stopped.run_epoch()
    stopped.save(tmp_path / "file")
    resumed = work_on(fresh(kind, seed=1))
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


@pytest.mark.parametrize("change", [{"epochs": 4}, {"seed": 1}, {"learning_rate": 0.1}, {"bf16": True}, {"distill": 0.0}], ids=str)
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
    done = training.pretrain(backbone, Dataset(None, moved), splits(), SCHEDULE, tmp_path / "part", every=1)
    assert done is backbone
    assert not any(module.training for module in done.modules())
    assert list(tmp_path.iterdir()) == []
    logits = done.plain()(done.prepare(torch.from_numpy(np.array(splits()["route"].images)))).detach()
    loss = F.cross_entropy(logits, torch.from_numpy(np.array(splits()["route"].labels)))
    assert float(done.loss_scale) == pytest.approx(1 / float(loss), rel=1e-4)
    scaled = splits()["train"].images / 255.0
    assert done.image_mean.item() == pytest.approx(scaled.mean(), rel=1e-5)
    assert done.image_std.item() == pytest.approx(scaled.std(), rel=1e-5)


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
    training.pretrain(straight, Dataset(None, moved), splits(), SCHEDULE, tmp_path / "other", every=1)
    with pytest.raises(Killed):  # in the second epoch of 3 steps
        training.pretrain(killed, Dataset(None, killer(4)), splits(), SCHEDULE, tmp_path / "part", every=1)
    assert (tmp_path / "part").is_file()
    killed = fresh(kind, seed=1)
    training.pretrain(killed, Dataset(None, moved), splits(), SCHEDULE, tmp_path / "part", every=1)
    assert same_weights(straight, killed)
    assert list(tmp_path.iterdir()) == []


def in_use(backbone):
    """The norms that some path runs: nothing comes pruned to a VGG-like network's first layer."""
    idle = list(backbone.layers[0].norms)[:-1] if backbone.reads_came_by else []
    return [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d) and module not in idle]


def statistics(norms):
    return [value.clone() for norm in norms for name, value in norm.state_dict().items() if name not in ("weight", "bias")]


@pytest.mark.parametrize(("kind", "exits"), [(kind, exits) for kind in small.KINDS for exits in ("bare", "glance and exits")])
@torch.no_grad()
def test_recalibrating_only_the_others_never_touches_the_full_path(kind, exits):
    backbone = small.backbone(kind, exits)
    batch, ran = small.pixels(1), []
    norms = in_use(backbone)
    hooks = [norm.register_forward_hook(lambda module, *_: ran.append(module)) for norm in norms]
    small.travel(backbone, batch, np.full((1, 3), backbone.full_path))
    for hook in hooks:
        hook.remove()
    others = [norm for norm in norms if norm not in ran]
    before, logits = statistics(ran), small.travel(backbone, small.pixels(5), np.full((5, 3), backbone.full_path)).logits
    before_others = [norm.running_mean.clone() for norm in others]
    training.recalibrate(backbone, small.images(40), torch.Generator().manual_seed(0), batch_size=8, only_others=True)
    assert all(torch.equal(old, new) for old, new in zip(before, statistics(ran), strict=True))
    assert torch.equal(logits, small.travel(backbone, small.pixels(5), np.full((5, 3), backbone.full_path)).logits)
    assert others
    assert not any(torch.equal(old, norm.running_mean) for old, norm in zip(before_others, others, strict=True))


@KINDS
@torch.no_grad()
def test_recalibration_measures_each_norm_on_what_passes_through_it(kind):
    backbone = small.backbone(kind)
    images = small.images(40)
    training.recalibrate(backbone, images, torch.Generator().manual_seed(0), batch_size=40)
    batch = torch.from_numpy(np.array(images.images))
    stem = backbone.stem[0](backbone.prepare(batch))
    torch.testing.assert_close(backbone.stem[1].running_mean, stem.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.stem[1].running_var, stem.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    arrived = backbone.stem(backbone.prepare(batch))
    if kind == "multipath":  # layer 0's narrow branch, whatever random paths follow
        branch = backbone.layers[0].branches[0]
        inner = branch[0](arrived)
        torch.testing.assert_close(branch[1].running_mean, inner.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(branch[1].running_var, inner.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in backbone.modules())


@pytest.mark.parametrize("seed", range(5))
@KINDS
@torch.no_grad()
def test_recalibration_leaves_no_norm_unmeasured_even_on_one_batch(kind, seed):
    backbone = small.backbone(kind)
    training.recalibrate(backbone, small.images(40), torch.Generator().manual_seed(seed), batch_size=40)
    for norm in in_use(backbone):
        assert (norm.running_mean != 0).any()


@KINDS
def test_recalibration_outside_no_grad_leaves_statistics_free_of_the_graph(kind):
    backbone = small.backbone(kind)
    training.recalibrate(backbone, small.images(16), torch.Generator().manual_seed(0), batch_size=8)
    assert not any(buffer.requires_grad for buffer in backbone.buffers())


@KINDS
@torch.no_grad()
def test_norms_keep_their_momentum_through_recalibration(kind):
    backbone = small.backbone(kind)
    training.recalibrate(backbone, small.images(16), torch.Generator().manual_seed(0))
    assert {module.momentum for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


@KINDS
@torch.no_grad()
def test_summary_statistics_make_training_summaries_standard(kind):
    backbone, images = small.backbone(kind), small.images(40)
    training.measure_summaries(backbone, images, torch.Generator().manual_seed(0), batch_size=16)
    x = backbone.prepare(torch.from_numpy(np.array(images.images)))
    arrived, (glanced, _) = backbone.stem(x).mean((2, 3)), backbone.glance(x)
    torch.testing.assert_close(backbone.summary_mean[0, : arrived.shape[1]], arrived.mean(0), rtol=1e-4, atol=1e-5)
    spread = arrived.std(0, correction=0)
    spread[spread < 1e-6] = 1.0  # a channel that never fires
    torch.testing.assert_close(backbone.summary_std[0, : arrived.shape[1]], spread, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(backbone.glance_mean, glanced.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.glance_std, glanced.std(0), rtol=1e-4, atol=1e-5)
    assert (backbone.summary_std > 0).all()
    assert torch.isfinite(backbone.summary_mean).all()


def test_accuracy_of_the_full_path_is_the_plain_networks():
    backbone, images = small.backbone("residual"), small.images(40)
    with torch.no_grad():
        guess = backbone.plain()(backbone.prepare(torch.from_numpy(np.array(images.images)))).argmax(1).numpy()
    assert training.evaluate_full_path(backbone, images, batch_size=16) == pytest.approx((guess == images.labels).mean())


def test_only_untouched_images_are_trained_on():
    images = small.images(40)
    severity = np.arange(40) % 4
    work = Pretraining(fresh(), replace(images, severity=severity), moved, SCHEDULE)
    np.testing.assert_array_equal(work.images, images.images[severity == 0])
    np.testing.assert_array_equal(work.labels, images.labels[severity == 0])
