"""Fine-tuning: which paths images take, what learns on them, and resuming after a stop."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rnr_gym.backbones import weights
from rnr_gym.data import Dataset
from rnr_gym.training import finetuning
from rnr_gym.training.finetuning import InFullPrecision, RoutedPaths
from rnr_gym.training.pretraining import Pretraining, Schedule
from tests.fixtures import small
from tests.fixtures.profiles import profile_of
from tests.fixtures.routers import confidence_router

SCHEDULE = Schedule(epochs=2, glance_epochs=0, batch_size=16, bf16=False)
TRADEOFFS = (0.01, 1.0)
STILL = Dataset(load=None, augment=lambda images, generator: images, mirrored=False, classes=())


class Along:
    """A router that sends every image down one path, and notes what it was shown."""

    def __init__(self, *path):
        self.path = path
        self.observations = []

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        layer = 0 if state is None else state
        self.observations.append(observation)
        return np.full(len(observation), self.path[layer]), layer + 1


def generator():
    return torch.Generator().manual_seed(0)


def student(backbone, router, exits=True, exit_weight=0.3):
    return RoutedPaths(backbone, router, exits, TRADEOFFS, exit_weight)


def teacher_of(batch, classes=3):
    return torch.full((len(batch), classes), 1 / classes)


@pytest.mark.parametrize("kind", small.KINDS)
def test_images_learn_on_the_routers_paths(kind):
    backbone = small.shaken(small.untrained(kind)).eval()
    batch = small.pixels(6)
    full = backbone.full_path
    path = [full, full, full]
    teacher = teacher_of(batch)
    loss = student(backbone, Along(*path), exit_weight=0.0)(batch, teacher, generator())

    state = small.travel(backbone, batch, np.tile(path, (6, 1)))
    assert torch.isclose(loss, F.cross_entropy(state.logits, teacher))


def test_exits_that_are_passed_count():
    backbone = small.shaken(small.untrained()).eval()
    batch = small.pixels(6)
    teacher = teacher_of(batch)
    full = backbone.full_path
    # Layer 1's exit is passed; at layer 2 the images leave.
    loss = student(backbone, Along(full, full, 0))(batch, teacher, generator())

    at_1 = small.travel(backbone, batch, np.tile([full, 0, -1], (6, 1))).logits
    at_2 = small.travel(backbone, batch, np.tile([full, full, 0], (6, 1))).logits
    expected = 1.3 * F.cross_entropy(at_2, teacher) + 0.3 * F.cross_entropy(at_1, teacher)
    assert torch.isclose(loss, expected)


def test_without_exits_none_runs():
    backbone = small.shaken(small.untrained()).eval()
    batch = small.pixels(6)
    full = backbone.full_path
    router = Along(full, full, full)
    loss = student(backbone, router, exits=False)(batch, teacher_of(batch), generator())
    logits = small.travel_full_path(backbone, batch, ()).logits
    assert torch.isclose(loss, F.cross_entropy(logits, teacher_of(batch)))


def test_every_image_has_a_tradeoff_of_its_own():
    backbone = small.untrained()
    router = Along(2, 2, 2)
    routed = student(backbone, router)
    batch = small.pixels(200)
    routed.chosen(batch, generator())
    shown = router.observations[0][:, routed.spec.layout.tradeoff.start]
    assert len(set(shown.tolist())) == 200
    assert 0.01 <= shown.min() < 0.02
    assert 0.5 < shown.max() <= 1.0
    # Uniform on a logarithmic scale: half lie below the geometric mean.
    assert 70 < (shown < 0.1).sum() < 130


def test_router_observes_the_cost_that_it_was_fitted_under():
    backbone = small.untrained()
    times = profile_of(backbone).times
    router = Along(2, 3, 3)
    routed = RoutedPaths(backbone, router, True, TRADEOFFS, 0.3, time_table=times)
    routed.chosen(small.pixels(2), generator())
    column = routed.spec.layout.compute.start
    assert (router.observations[0][:, column] == np.float32(times.exits[0, 0] / times.plain)).all()


def test_modes_and_statistics_are_left_as_they_were():
    backbone = small.untrained().train()
    backbone.glance.eval()
    before = copy.deepcopy(backbone)
    batch = small.pixels(6)
    student(backbone, Along(2, 2, 2))(batch, teacher_of(batch), generator()).backward()
    assert small.same_weights(backbone, before)
    assert backbone.training
    assert not backbone.glance.training


def test_router_decides_in_full_precision():
    class Multiplying:
        def predict(self, observation, state, episode_start, deterministic):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
            return product.dtype, state

    with torch.autocast("cpu", torch.bfloat16):
        dtype, _ = InFullPrecision(Multiplying()).predict(np.zeros((1, 2), np.float32))
    assert dtype == torch.float32


def test_images_that_all_leave_at_the_glance_teach_nothing():
    backbone = small.untrained()
    work = Pretraining(
        backbone,
        small.images(40),
        STILL,
        replace(SCHEDULE, path_weight=0.0),
        students=[student(backbone, Along(0, 0, 0))],
    )
    glance = copy.deepcopy(backbone.glance.state_dict())
    work.run_epoch()
    for name, tensor in backbone.glance.state_dict().items():
        assert torch.equal(tensor, glance[name])


@pytest.fixture
def finetune(tmp_path):
    """Run `finetune` on small data; the checkpoint is a file in `tmp_path`."""

    def run(backbone, schedule=SCHEDULE):
        splits = {"train": small.images(40), "route": small.images(20, seed=1)}
        router = confidence_router(finetuning.RoutingSpec.of(backbone))
        trained = finetuning.finetune(
            backbone,
            router,
            exits=True,
            tradeoffs=TRADEOFFS,
            dataset=STILL,
            splits=splits,
            schedule=schedule,
            checkpoint=tmp_path / "part",
            save_every=0.0,
        )
        # As callers do who have saved it.
        (tmp_path / "part").unlink()
        return trained

    return run


@pytest.mark.parametrize("kind", ["multipath", "residual"])
def test_all_but_the_glance_learn(finetune, kind):
    backbone = small.untrained(kind)
    before = copy.deepcopy(backbone.state_dict())
    after = finetune(backbone).state_dict()
    for name, parameter in backbone.named_parameters():
        moved = not torch.equal(after[name], before[name])
        if name.startswith("glance") and "norm" not in name and parameter.ndim == 4:
            # Rounded to what is stored, and otherwise left alone.
            torch.testing.assert_close(after[name], before[name], atol=0.02, rtol=0.02)
        elif parameter.ndim == 4:
            assert moved


def test_result_loses_nothing_when_stored(finetune, tmp_path):
    backbone = finetune(small.untrained())
    assert not backbone.training
    weights.save(backbone, tmp_path / "file")
    state_dict, _ = weights.read(tmp_path / "file")
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, state_dict[name])


def test_interrupted_finetuning_resumes(finetune, tmp_path, monkeypatch):
    expected = finetune(small.untrained())
    run_epoch = Pretraining.run_epoch

    def stop_in_second(work, on_step):
        if work.epoch == 1:
            raise KeyboardInterrupt
        return run_epoch(work, on_step)

    monkeypatch.setattr(Pretraining, "run_epoch", stop_in_second)
    with pytest.raises(KeyboardInterrupt):
        finetune(small.untrained())
    assert (tmp_path / "part").exists()

    monkeypatch.setattr(Pretraining, "run_epoch", run_epoch)
    assert small.same_weights(finetune(small.untrained()), expected)
