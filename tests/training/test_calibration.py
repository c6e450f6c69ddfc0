"""What is measured beside the weights: batch-norm and summary statistics, accuracy of the full path."""

import numpy as np
import pytest
import torch
from torch import nn

from rnr_gym.training import calibration
from tests.fixtures import small

KINDS = pytest.mark.parametrize("kind", small.KINDS)


def in_use(backbone):
    """The norms that some path runs: layer 0 is always come by from the full path's side."""
    first, idle = backbone.layers[0], []
    if backbone.kind == "multipath":
        for branch in first.branches:
            idle += [*list(branch.norms1)[:-1], *list(branch.norms2)[:-1]]
    elif backbone.reads_prev_sub_path:
        idle = list(first.norms)[:-1]
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    return [norm for norm in norms if norm not in idle]


def output(backbone):
    """Logits of the full path."""
    return small.travel(backbone, small.pixels(5), np.full((5, 3), backbone.full_path)).logits


@pytest.mark.parametrize(
    ("kind", "exits"),
    [(kind, exits) for kind in small.KINDS for exits in ("bare", "glance and exits")],
)
@torch.no_grad()
def test_the_full_path_does_not_depend_on_other_paths(kind, exits):
    recalibrated, full_only = small.backbone(kind, exits), small.backbone(kind, exits)
    with pytest.MonkeyPatch.context() as patch:
        calibration.recalibrate(
            recalibrated, small.images(40), torch.Generator().manual_seed(0), batch_size=40
        )
        patch.setattr(calibration, "spread_paths", lambda backbone, generator: [])
        calibration.recalibrate(
            full_only, small.images(40), torch.Generator().manual_seed(0), batch_size=40
        )
    assert torch.equal(output(recalibrated), output(full_only))
    assert not torch.equal(output(recalibrated), output(small.backbone(kind, exits)))


@torch.no_grad()
def test_statistics_are_measured_on_so_many_images(monkeypatch):
    seen = []
    monkeypatch.setattr(calibration, "MEASURED", 12)
    monkeypatch.setattr(calibration, "MEASURED_ON_EACH", 20)
    monkeypatch.setattr(
        calibration, "answers", lambda backbone, images, path, exits: seen.append(len(images))
    )
    monkeypatch.setattr(calibration, "full_path_norms", lambda backbone, images: set())
    calibration.recalibrate(
        small.backbone("multipath"), small.images(40), torch.Generator(), batch_size=8
    )
    assert sum(seen[:2]) == 16
    assert set(seen) == {8}
    assert len(seen) == 2 + 3 * (9 + calibration.UNIFORM_SHARE)


def test_whitening_filters_whiten_the_training_patches():
    backbone, train = small.backbone("whitened", shape=(3, 8, 8)), small.images(400, (3, 8, 8))
    calibration.measure_whitening(backbone, train)
    x = backbone.prepare(torch.from_numpy(np.array(train.images)))
    for stem in (backbone.stem, backbone.glance.stem):
        found = nn.functional.conv2d(x, stem.filters)  # (N, 24, 7, 7)
        flat = found.transpose(0, 1).flatten(1)
        torch.testing.assert_close(flat[:12], -flat[12:])
        torch.testing.assert_close(flat[:12].cov(), torch.eye(12), atol=0.02, rtol=0)


def test_whitening_leaves_an_ordinary_backbone_alone():
    backbone, before = small.backbone("multipath"), small.backbone("multipath")
    calibration.measure_whitening(backbone, small.images(40))
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            backbone.state_dict().values(), before.state_dict().values(), strict=True
        )
    )


@KINDS
@torch.no_grad()
def test_measuring_the_glance_touches_only_the_glance(kind):
    backbone, before = small.backbone(kind), small.backbone(kind).state_dict()
    calibration.measure_glance(
        backbone, small.images(40), torch.Generator().manual_seed(0), batch_size=40
    )
    changed = {
        name
        for name, value in backbone.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed
    assert all(name.startswith("glance.") for name in changed)
    assert any(name.endswith("running_mean") for name in changed)


@KINDS
@torch.no_grad()
def test_recalibration_measures_each_norm_on_what_passes_through_it(kind):
    backbone = small.backbone(kind)
    images = small.images(40)
    calibration.recalibrate(backbone, images, torch.Generator().manual_seed(0), batch_size=40)
    batch = torch.from_numpy(np.array(images.images))
    arriving = []
    norm = next(module for module in backbone.stem.modules() if isinstance(module, nn.BatchNorm2d))
    hook = norm.register_forward_pre_hook(lambda module, inputs: arriving.append(inputs[0]))
    backbone.stem(backbone.prepare(batch))
    hook.remove()
    torch.testing.assert_close(norm.running_mean, arriving[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, arriving[0].var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    arrived = backbone.stem(backbone.prepare(batch))
    if kind == "multipath":  # layer 0's narrow branch, whatever random paths follow
        branch = backbone.layers[0].branches[0]
        inner = branch.conv1(arrived)
        torch.testing.assert_close(
            branch.norms1[-1].running_mean, inner.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            branch.norms1[-1].running_var, inner.var((0, 2, 3)), rtol=1e-4, atol=1e-5
        )
    assert not any(module.training for module in backbone.modules())


@pytest.mark.parametrize("seed", range(5))
@KINDS
@torch.no_grad()
def test_recalibration_leaves_no_norm_unmeasured_even_on_one_batch(kind, seed):
    backbone = small.backbone(kind)
    calibration.recalibrate(
        backbone, small.images(40), torch.Generator().manual_seed(seed), batch_size=40
    )
    for norm in in_use(backbone):
        assert (norm.running_mean != 0).any()


@KINDS
def test_recalibration_outside_no_grad_leaves_statistics_free_of_the_graph(kind):
    backbone = small.backbone(kind)
    calibration.recalibrate(
        backbone, small.images(16), torch.Generator().manual_seed(0), batch_size=8
    )
    assert not any(buffer.requires_grad for buffer in backbone.buffers())


@KINDS
@torch.no_grad()
def test_norms_keep_their_momentum_through_recalibration(kind):
    backbone = small.backbone(kind)
    calibration.recalibrate(backbone, small.images(16), torch.Generator().manual_seed(0))
    assert {
        module.momentum for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)
    } == {0.1}


@KINDS
@torch.no_grad()
def test_summary_statistics_make_training_summaries_standard(kind):
    backbone, images = small.backbone(kind), small.images(40)
    calibration.measure_summaries(backbone, images, torch.Generator().manual_seed(0), batch_size=16)
    x = backbone.prepare(torch.from_numpy(np.array(images.images)))
    arrived, (glanced, _) = backbone.stem(x).mean((2, 3)), backbone.glance(x)
    torch.testing.assert_close(
        backbone.summary_mean[0, : arrived.shape[1]], arrived.mean(0), rtol=1e-4, atol=1e-5
    )
    spread = arrived.std(0, correction=0)
    spread[spread < 1e-6] = 1.0  # a channel that never fires
    torch.testing.assert_close(
        backbone.summary_std[0, : arrived.shape[1]], spread, rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(backbone.glance_mean, glanced.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.glance_std, glanced.std(0), rtol=1e-4, atol=1e-5)
    assert (backbone.summary_std > 0).all()
    assert torch.isfinite(backbone.summary_mean).all()


def test_accuracy_of_the_full_path_is_the_plain_networks():
    backbone, images = small.backbone("residual"), small.images(40)
    with torch.no_grad():
        guess = (
            backbone.plain()(backbone.prepare(torch.from_numpy(np.array(images.images))))
            .argmax(1)
            .numpy()
        )
    assert calibration.evaluate_full_path(backbone, images, batch_size=16) == pytest.approx(
        (guess == images.labels).mean()
    )
