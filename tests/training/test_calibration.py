"""What is measured besides the weights: statistics, and the accuracy of the full path."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from rnr_gym.training import calibration
from tests.fixtures import small

KINDS = pytest.mark.parametrize("kind", small.KINDS)


def recalibrate(backbone, images, seed=0, batch_size=40):
    generator = torch.Generator().manual_seed(seed)
    calibration.recalibrate(backbone, images, generator, batch_size=batch_size)


def prepared(backbone, images):
    """The images of a set as the network reads them."""
    return backbone.prepare(small.pixels_of(images))


def norms_of(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def used_norms(backbone):
    """The norms that some path runs.

    Images arrive at layer 0 as if from the full path, so its norms for other previous sub-paths
    stay idle.
    """
    first = backbone.layers[0]
    idle = []
    if backbone.kind == "multipath":
        for branch in first.branches:
            idle += list(branch.norms1)[:-1]
            idle += list(branch.norms2)[:-1]
    elif backbone.reads_prev_sub_path:
        idle = list(first.norms)[:-1]
    return [norm for norm in norms_of(backbone) if norm not in idle]


def assert_measured(norm, features):
    """A norm has the mean and variance of the features `(N, C, H, W)` that reach it."""
    mean = features.mean((0, 2, 3))
    var = features.var((0, 2, 3))
    assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
    assert_close(norm.running_var, var, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "exits"),
    list(itertools.product(small.KINDS, ["bare", "glance and exits"])),
)
@torch.no_grad()
def test_full_path_ignores_other_paths(kind, exits, monkeypatch):
    images = small.images(40)
    batch = small.pixels(5)
    recalibrated = small.backbone(kind, exits)
    recalibrate(recalibrated, images)

    full_path_only = small.backbone(kind, exits)
    monkeypatch.setattr(calibration, "spread_paths", lambda backbone, generator: [])
    recalibrate(full_path_only, images)

    logits = small.travel_full_path(recalibrated, batch).logits
    assert torch.equal(logits, small.travel_full_path(full_path_only, batch).logits)

    # Recalibration did change something.
    before = small.travel_full_path(small.backbone(kind, exits), batch)
    assert not torch.equal(logits, before.logits)


@torch.no_grad()
def test_recalibration_stops_after_enough_images(monkeypatch):
    sizes = []

    def record_size(backbone, images, path, exits):
        sizes.append(len(images))

    monkeypatch.setattr(calibration, "MEASURED", 12)
    monkeypatch.setattr(calibration, "MEASURED_ON_EACH", 20)
    monkeypatch.setattr(calibration, "path_logits", record_size)
    monkeypatch.setattr(calibration, "full_path_norms", lambda backbone, images: set())
    recalibrate(small.backbone("multipath"), small.images(40), batch_size=8)

    # Two batches of 8 for the full path, three for each of the other paths.
    assert sum(sizes[:2]) == 16
    assert set(sizes) == {8}
    assert len(sizes) == 2 + 3 * (9 + calibration.UNIFORM_SHARE)


def test_whitening_filters_whiten_patches():
    train = small.images(400, (3, 8, 8))
    backbone = small.backbone("whitened", shape=(3, 8, 8))
    calibration.measure_whitening(backbone, train)

    images = prepared(backbone, train)
    for stem in (backbone.stem, backbone.glance.stem):
        whitened = F.conv2d(images, stem.filters)  # (N, 24, 7, 7)
        channels = whitened.transpose(0, 1).flatten(1)  # (24, N * 49)
        # The second half are the same filters with the other sign.
        positive = channels[:12]
        assert_close(positive, -channels[12:])
        assert_close(positive.cov(), torch.eye(12), atol=0.02, rtol=0)


def test_whitening_skips_ordinary_stems():
    backbone = small.backbone("multipath")
    calibration.measure_whitening(backbone, small.images(40))
    assert small.same_weights(backbone, small.backbone("multipath"))


@KINDS
@torch.no_grad()
def test_measure_glance_changes_only_the_glance(kind):
    backbone = small.backbone(kind)
    before = small.backbone(kind).state_dict()
    generator = torch.Generator().manual_seed(0)
    calibration.measure_glance(backbone, small.images(40), generator, batch_size=40)

    changed = []
    for name, tensor in backbone.state_dict().items():
        if not torch.equal(tensor, before[name]):
            changed.append(name)
    assert changed
    assert all(name.startswith("glance.") for name in changed)
    assert any(name.endswith("running_mean") for name in changed)


@KINDS
@torch.no_grad()
def test_recalibration_measures_the_stem(kind):
    backbone = small.backbone(kind)
    images = small.images(40)
    recalibrate(backbone, images)

    norm = norms_of(backbone.stem)[0]
    arriving = []
    hook = norm.register_forward_pre_hook(lambda module, inputs: arriving.append(inputs[0]))
    backbone.stem(prepared(backbone, images))
    hook.remove()
    assert_measured(norm, arriving[0])
    assert not any(module.training for module in backbone.modules())


@torch.no_grad()
def test_recalibration_measures_a_narrow_branch():
    backbone = small.backbone("multipath")
    images = small.images(40)
    recalibrate(backbone, images)

    # Layer 0's: whatever random paths follow, the same features arrive there.
    branch = backbone.layers[0].branches[0]
    features = backbone.stem(prepared(backbone, images))
    assert_measured(branch.norms1[-1], branch.conv1(features))


@pytest.mark.parametrize("seed", range(5))
@KINDS
@torch.no_grad()
def test_recalibration_measures_every_norm_in_use(kind, seed):
    backbone = small.backbone(kind)
    # One batch is enough.
    recalibrate(backbone, small.images(40), seed)
    for norm in used_norms(backbone):
        assert (norm.running_mean != 0).any()


@KINDS
def test_recalibrated_statistics_have_no_gradient(kind):
    backbone = small.backbone(kind)
    # Gradients are on here.
    recalibrate(backbone, small.images(16), batch_size=8)
    assert not any(buffer.requires_grad for buffer in backbone.buffers())


@KINDS
@torch.no_grad()
def test_recalibration_keeps_momentum_of_norms(kind):
    backbone = small.backbone(kind)
    recalibrate(backbone, small.images(16))
    assert {norm.momentum for norm in norms_of(backbone)} == {0.1}


@KINDS
@torch.no_grad()
def test_summary_statistics_are_those_of_training(kind):
    backbone = small.backbone(kind)
    images = small.images(40)
    generator = torch.Generator().manual_seed(0)
    calibration.measure_summaries(backbone, images, generator, batch_size=16)

    x = prepared(backbone, images)
    pooled = backbone.stem(x).mean((2, 3))  # (N, C)
    width = pooled.shape[1]
    std = pooled.std(0, correction=0)
    std[std < 1e-6] = 1.0  # a channel that is always zero
    assert_close(backbone.summary_mean[0, :width], pooled.mean(0), rtol=1e-4, atol=1e-5)
    assert_close(backbone.summary_std[0, :width], std, rtol=1e-3, atol=1e-5)

    glance_pooled, _ = backbone.glance(x)
    assert_close(backbone.glance_mean, glance_pooled.mean(0), rtol=1e-4, atol=1e-5)
    assert_close(backbone.glance_std, glance_pooled.std(0), rtol=1e-4, atol=1e-5)
    assert (backbone.summary_std > 0).all()
    assert torch.isfinite(backbone.summary_mean).all()


def test_full_path_accuracy_is_plain_networks():
    backbone = small.backbone("residual")
    images = small.images(40)
    with torch.no_grad():
        logits = backbone.plain()(prepared(backbone, images))

    expected = (logits.argmax(1).numpy() == images.labels).mean()
    accuracy = calibration.evaluate_full_path(backbone, images, batch_size=16)
    assert accuracy == pytest.approx(expected)
