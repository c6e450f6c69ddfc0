"""Pretraining: what learns in which part, what is stored, and resuming after a stop."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rnr_gym.backbones import weights, zoo
from rnr_gym.data import Dataset, ImageSet
from rnr_gym.training import calibration, pretraining
from rnr_gym.training.pretraining import Pretraining, Schedule
from tests.fixtures import small

KINDS = pytest.mark.parametrize("kind", small.KINDS)
SCHEDULE = Schedule(epochs=2, glance_epochs=1, batch_size=16, bf16=False)
"""Three epochs of three steps each, on 40 images."""


def shifted(images, generator):
    """An augmentation that draws from its generator."""
    pixels = int(torch.randint(0, 3, (), generator=generator))
    return images.roll(pixels, 3)


def unchanged(images, generator):
    return images


SHIFTED = Dataset(load=None, augment=shifted, mirrored=False, classes=())
MIRRORED = Dataset(load=None, augment=unchanged, mirrored=True, classes=())
STILL = Dataset(load=None, augment=unchanged, mirrored=False, classes=())


def start(backbone, schedule=SCHEDULE, dataset=SHIFTED):
    """The pretraining of a backbone on 40 images, before its first epoch."""
    return Pretraining(backbone, small.images(40), dataset, schedule)


def run_epochs(work, count):
    for _ in range(count):
        work.run_epoch()


@pytest.fixture
def splits():
    """Images for `pretrain`, by split."""
    return {"train": small.images(40), "route": small.images(20, seed=1)}


@pytest.fixture
def pretrain(splits, tmp_path):
    """Run `pretrain` on small data; the checkpoint is a file in `tmp_path`."""

    def run(backbone, dataset=SHIFTED, checkpoint="part", save_every=60.0):
        trained = pretraining.pretrain(
            backbone,
            dataset,
            splits,
            SCHEDULE,
            tmp_path / checkpoint,
            save_every=save_every,
        )
        # As callers do who have saved it.
        (tmp_path / checkpoint).unlink(missing_ok=True)
        return trained

    return run


def test_branches_that_never_ran_stay(monkeypatch):
    backbone = small.untrained()
    before = copy.deepcopy(backbone)
    # As an earlier step leaves them behind.
    for parameter in backbone.parameters():
        parameter.grad = torch.ones_like(parameter)

    # Identity at every layer, so that the narrow branches never run.
    monkeypatch.setattr(pretraining, "other_path", lambda backbone, generator: [1, 1, 1])
    start(backbone, replace(SCHEDULE, glance_epochs=0)).run_epoch()
    for layer, layer_before in zip(backbone.layers, before.layers, strict=True):
        narrow, full = layer.branches
        narrow_before, full_before = layer_before.branches
        assert small.same_weights(narrow, narrow_before)
        assert not small.same_weights(full, full_before)


@KINDS
def test_glance_learns_first_and_alone(kind):
    backbone = small.untrained(kind)
    before = copy.deepcopy(backbone)
    start(backbone).run_epoch()
    assert not small.same_weights(backbone.glance, before.glance)
    assert small.same_weights(backbone.stem, before.stem)
    assert small.same_weights(backbone.layers, before.layers)
    assert small.same_weights(backbone.head, before.head)


@KINDS
def test_glance_is_finished_when_paths_learn(kind):
    backbone = small.untrained(kind)
    work = start(backbone)
    work.run_epoch()
    before = copy.deepcopy(backbone)
    work.run_epoch()
    assert small.same_weights(backbone.glance, before.glance)
    assert not small.same_weights(backbone.stem, before.stem)
    assert not small.same_weights(backbone.layers, before.layers)
    assert not small.same_weights(backbone.head, before.head)


def test_paths_learn_at_once_without_glance():
    work = start(small.untrained(exits="exits"))
    assert work.epochs == 2
    assert not work.in_glance_part


def test_learning_rates_rise_then_fall_per_part():
    work = start(small.untrained(), replace(SCHEDULE, epochs=10, glance_epochs=5))
    muon_rates = []
    sgd_rates = []

    def record_rates():
        muon_rates.append(work.muon.param_groups[0]["lr"])
        sgd_rates.append(work.sgd.param_groups[0]["lr"])

    for _ in range(15):
        work.run_epoch(record_rates)

    first_of_paths = 5 * work.steps_per_epoch
    assert len(muon_rates) == 3 * first_of_paths
    for rates in (muon_rates[:first_of_paths], muon_rates[first_of_paths:]):
        peak = np.argmax(rates)
        assert max(rates) <= SCHEDULE.learning_rate
        assert peak <= max(1, round(0.1 * len(rates)))
        assert rates[-1] < 0.15 * max(rates)
        assert (np.diff(rates[peak:]) < 0).all()

    # The two optimizers share one curve.
    share = np.array(muon_rates) / SCHEDULE.learning_rate
    np.testing.assert_allclose(sgd_rates, share * SCHEDULE.norm_learning_rate)


def test_images_are_mirrored_in_every_other_epoch():
    work = start(small.untrained(exits="exits"), dataset=MIRRORED)
    idx = torch.arange(40)
    first = work._mirrored(idx)
    work.epoch += 1
    second = work._mirrored(idx)

    mirrored = work.images.flip(3)
    is_mirrored = (first == mirrored).flatten(1).all(1)  # (N,)
    assert 10 < is_mirrored.sum() < 30
    others = torch.where(is_mirrored[:, None, None, None], work.images, mirrored)
    assert torch.equal(second, others)


def test_images_are_unmirrored_where_forbidden():
    work = start(small.untrained(), dataset=SHIFTED)
    images = work._mirrored(torch.arange(40))
    assert torch.equal(images, work.images)


def test_pretraining_uses_only_untouched_images():
    images = small.images(40)
    severity = np.arange(40) % 4
    work = Pretraining(
        small.untrained(),
        replace(images, severity=severity),
        SHIFTED,
        SCHEDULE,
    )
    np.testing.assert_array_equal(work.images, images.images[severity == 0])
    np.testing.assert_array_equal(work.labels, images.labels[severity == 0])


@KINDS
def test_pretraining_learns_one_pattern_per_class(kind):
    labels = small.images(60).labels
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    images = ImageSet.of(patterns[labels], labels)

    backbone = small.untrained(kind)
    schedule = replace(SCHEDULE, epochs=10, glance_epochs=10)
    work = Pretraining(backbone, images, STILL, schedule)
    run_epochs(work, 20)
    calibration.calibrate(backbone, images, images)
    assert calibration.evaluate_full_path(backbone, images) == 1.0

    narrow_paths = np.full((60, 3), backbone.narrowest)
    state = small.travel(backbone, small.pixels_of(images), narrow_paths)
    for logits in (state.logits, state.glance_logits):
        np.testing.assert_array_equal(logits.argmax(1).numpy(), labels)


def test_seed_decides_everything():
    first = start(small.untrained())
    again = start(small.untrained())
    other = start(small.untrained(), replace(SCHEDULE, seed=1))
    loss = first.run_epoch()
    assert again.run_epoch() == loss
    assert other.run_epoch() != loss
    assert small.same_weights(first.backbone, again.backbone)


@KINDS
@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_resumed_pretraining_equals_uninterrupted(kind, epochs, tmp_path):
    straight = start(small.untrained(kind))
    run_epochs(straight, 3)

    stopped = start(small.untrained(kind))
    run_epochs(stopped, epochs)
    stopped.save(tmp_path / "file")

    resumed = start(small.untrained(kind, seed=1))
    resumed.resume(tmp_path / "file")
    assert resumed.epoch == epochs
    run_epochs(resumed, 3 - epochs)
    assert small.same_weights(resumed.backbone, straight.backbone)


def test_saving_leaves_pretraining_as_it_was(tmp_path):
    without = start(small.untrained())
    run_epochs(without, 3)

    saving = start(small.untrained())
    for _ in range(3):
        saving.run_epoch()
        saving.save(tmp_path / "file")
    assert small.same_weights(saving.backbone, without.backbone)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 4},
        {"seed": 1},
        {"learning_rate": 0.2},
        {"bf16": True},
        {"path_share": 0.3},
    ],
    ids=str,
)
def test_resume_rejects_another_schedule(tmp_path, change):
    file = tmp_path / "file"
    start(small.untrained()).save(file)
    work = start(small.untrained(), replace(SCHEDULE, **change))
    with pytest.raises(ValueError, match="`schedule` must be that of the checkpoint"):
        work.resume(file)


def test_resume_rejects_another_architecture(tmp_path):
    file = tmp_path / "file"
    start(small.untrained()).save(file)
    work = start(small.untrained(exits="exits"))
    with pytest.raises(ValueError, match="`config` must be that of the checkpoint"):
        work.resume(file)


def test_pretrain_returns_backbone_in_eval_mode(pretrain, tmp_path):
    backbone = small.untrained()
    assert pretrain(backbone, save_every=0.0) is backbone
    assert not any(module.training for module in backbone.modules())
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_pretrain_measures_pixels_and_loss_scale(pretrain, splits):
    backbone = pretrain(small.untrained())
    scaled = splits["train"].images / 255.0
    assert backbone.image_mean.item() == pytest.approx(scaled.mean(), rel=1e-5)
    assert backbone.image_std.item() == pytest.approx(scaled.std(), rel=1e-5)

    route = splits["route"]
    images = backbone.prepare(small.pixels_of(route))
    labels = torch.from_numpy(np.array(route.labels))
    loss = F.cross_entropy(backbone.plain()(images), labels)
    assert backbone.loss_scale.item() == pytest.approx(1 / loss.item(), rel=1e-4)


@KINDS
def test_pretrained_weights_are_stored_losslessly(kind, pretrain, tmp_path):
    backbone = pretrain(small.untrained(kind))
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    weights.save(backbone, tmp_path / "file")
    assert small.same_weights(zoo.load(tmp_path / "file"), backbone)


def test_pretrain_calibrates_the_rounded_weights(pretrain, splits):
    backbone = pretrain(small.untrained())
    again = copy.deepcopy(backbone)
    calibration.calibrate(again, splits["train"], splits["route"], SCHEDULE.seed)
    assert small.same_weights(again, backbone)


class Killed(Exception):
    """Stands for the end of the process."""


def killing_dataset(num_steps):
    """A data set whose augmentation stops the run after some steps."""
    remaining = iter(range(num_steps))

    def augment(images, generator):
        if next(remaining, None) is None:
            raise Killed
        return shifted(images, generator)

    return Dataset(load=None, augment=augment, mirrored=False, classes=())


@KINDS
def test_killed_pretrain_resumes_to_same_weights(kind, pretrain, tmp_path):
    straight = small.untrained(kind)
    pretrain(straight, checkpoint="other", save_every=0.0)

    # In the second epoch of 3 steps.
    with pytest.raises(Killed):
        pretrain(small.untrained(kind), killing_dataset(4), save_every=0.0)
    assert (tmp_path / "part").is_file()

    resumed = small.untrained(kind, seed=1)
    pretrain(resumed, save_every=0.0)
    assert small.same_weights(resumed, straight)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("save_every", "saved"),
    [
        pytest.param(0.0, [1, 2, 3], id="always"),
        pytest.param(float("inf"), [], id="never"),
    ],
)
def test_pretrain_saves_after_save_every_seconds(
    save_every, saved, pretrain, tmp_path, monkeypatch
):
    epochs = []
    save = Pretraining.save

    def recorded_save(work, path):
        save(work, path)
        epochs.append(work.epoch)

    monkeypatch.setattr(Pretraining, "save", recorded_save)
    pretrain(small.untrained(), save_every=save_every)
    assert epochs == saved


def test_glance_learns_from_the_full_path_where_asked_to():
    backbone = small.untrained()
    work = start(backbone, replace(SCHEDULE, glance_from_full_path=True))
    expected = pretraining.full_path_answers(backbone, work.images, mirrored=False, batch=7)
    targets = work._find_glance_targets()
    assert targets.shape == (len(work.images), backbone.num_classes)
    assert torch.allclose(targets, expected, atol=1e-6)
    assert torch.allclose(targets.sum(1), torch.ones(len(targets)))


def test_full_path_answers_are_its_probabilities():
    backbone = small.shaken(small.untrained()).eval()
    images = small.pixels(5)
    answers = pretraining.full_path_answers(backbone, images, mirrored=False, batch=2)
    expected = small.travel_full_path(backbone, images, ()).logits.softmax(1)
    assert torch.allclose(answers, expected, atol=1e-5)


def test_answers_to_mirrored_images_are_averaged():
    backbone = small.untrained()
    images = small.pixels(5)
    both = pretraining.full_path_answers(backbone, images, mirrored=True, batch=5)
    once = pretraining.full_path_answers(backbone, images, mirrored=False, batch=5)
    flipped = pretraining.full_path_answers(backbone, images.flip(3), mirrored=False, batch=5)
    assert torch.allclose(both, (once + flipped) / 2)


def test_glance_learns_smoothed_labels_otherwise():
    work = start(small.untrained())
    targets = work._find_glance_targets()
    right = targets.gather(1, work.labels[:, None])[:, 0]
    assert torch.allclose(right, torch.full_like(right, 0.9 + 0.1 / targets.shape[1]))
    assert torch.allclose(targets.sum(1), torch.ones(len(targets)))


def test_rates_of_paths_are_lower_where_asked_to():
    work = start(small.untrained(exits="exits"), replace(SCHEDULE, path_rate=0.5))
    work._set_learning_rates(1)
    lower = work.muon.param_groups[0]["lr"]
    work.schedule = SCHEDULE
    work._set_learning_rates(1)
    assert lower == 0.5 * work.muon.param_groups[0]["lr"]
