"""What is measured beside the weights: batch-norm and summary statistics, accuracy of the full path."""

import numpy as np
import pytest
import torch
from torch import nn

from rnr_gym import calibration
from tests import small

KINDS = pytest.mark.parametrize("kind", small.KINDS)


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
    calibration.recalibrate(backbone, small.images(40), torch.Generator().manual_seed(0), batch_size=8, only_others=True)
    assert all(torch.equal(old, new) for old, new in zip(before, statistics(ran), strict=True))
    assert torch.equal(logits, small.travel(backbone, small.pixels(5), np.full((5, 3), backbone.full_path)).logits)
    assert others
    assert not any(torch.equal(old, norm.running_mean) for old, norm in zip(before_others, others, strict=True))


@KINDS
@torch.no_grad()
def test_recalibration_measures_each_norm_on_what_passes_through_it(kind):
    backbone = small.backbone(kind)
    images = small.images(40)
    calibration.recalibrate(backbone, images, torch.Generator().manual_seed(0), batch_size=40)
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
    calibration.recalibrate(backbone, small.images(40), torch.Generator().manual_seed(seed), batch_size=40)
    for norm in in_use(backbone):
        assert (norm.running_mean != 0).any()


@KINDS
def test_recalibration_outside_no_grad_leaves_statistics_free_of_the_graph(kind):
    backbone = small.backbone(kind)
    calibration.recalibrate(backbone, small.images(16), torch.Generator().manual_seed(0), batch_size=8)
    assert not any(buffer.requires_grad for buffer in backbone.buffers())


@KINDS
@torch.no_grad()
def test_norms_keep_their_momentum_through_recalibration(kind):
    backbone = small.backbone(kind)
    calibration.recalibrate(backbone, small.images(16), torch.Generator().manual_seed(0))
    assert {module.momentum for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


@KINDS
@torch.no_grad()
def test_summary_statistics_make_training_summaries_standard(kind):
    backbone, images = small.backbone(kind), small.images(40)
    calibration.measure_summaries(backbone, images, torch.Generator().manual_seed(0), batch_size=16)
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
    assert calibration.evaluate_full_path(backbone, images, batch_size=16) == pytest.approx((guess == images.labels).mean())
