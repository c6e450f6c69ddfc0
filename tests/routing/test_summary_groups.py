"""Summaries by groups of channels: quantised, whether a network runs or a table is read."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from rnr_gym.backbones import base, zoo
from rnr_gym.backbones import weights as weight_files
from rnr_gym.routing import route_table
from rnr_gym.routing.live import Live
from rnr_gym.routing.observations import CLIP, LEVELS, quantisation_steps
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from rnr_gym.training import calibration
from tests.fixtures import small
from tests.fixtures.routing import assert_near, assert_same_spec, confidence_of, step

KINDS = pytest.mark.parametrize("kind", small.KINDS)
GROUPS = 8
SIZE = GROUPS + 3 + 3
"""Groups of channels, classes, and three values of confidence."""
STEP = quantisation_steps(SIZE, GROUPS)
HALF_STEP = STEP / 2 + 1e-4
POOLED = slice(0, GROUPS)
PROBABILITIES = slice(GROUPS, GROUPS + 3)
CONFIDENCE = slice(GROUPS + 3, SIZE)
BAD_GROUPS = "`summary_groups` must be 0 or divide every .*, got "


def grouped(kind, exits="glance and exits"):
    """A network with summaries by eight groups."""
    return small.backbone(kind, exits, summary_groups=GROUPS)


def assert_rounded(summary, exact, part):
    """A part of a summary is what was computed, up to half a step."""
    apart = np.abs(summary[:, part] - exact)
    assert (apart <= HALF_STEP[part]).all()


@KINDS
@pytest.mark.parametrize("exits", small.EXITS)
def test_summary_values_are_whole_steps(kind, exits):
    backbone = grouped(kind, exits)
    paths = small.paths(RoutingSpec.of(backbone), 12)
    state = Traversal.start(backbone, small.pixels(12))
    for sub_paths in paths.T.astype(np.int64):
        summary = state.summary()
        assert summary.shape == (12, SIZE)
        assert summary.dtype == np.float32

        counts = np.rint(summary / STEP)
        assert_array_equal(summary, counts * STEP)
        assert np.abs(counts).max() <= LEVELS
        assert counts[:, GROUPS:].min() >= 0
        assert counts[~state.done].any(1).all()
        state = state.step(sub_paths)
    assert (state.summary() == 0).all()


@KINDS
@pytest.mark.parametrize("sub_path", [1, 2])
def test_pooled_values_are_means_of_neighbours(kind, sub_path):
    backbone = grouped(kind)
    start = Traversal.start(backbone, small.pixels(5))
    # The last image exits.
    state = start.step(np.array([sub_path] * 4 + [0]))
    (group,) = state.groups

    channels = group.features.mean((2, 3)).detach().numpy()  # (4, C)
    means = [part.mean(1) for part in np.split(channels, GROUPS, axis=1)]
    pooled = np.stack(means, 1)  # (4, 8)
    assert_near(backbone.pool(group.features).detach(), pooled, atol=1e-5)

    mean = backbone.summary_mean[1].numpy()
    std = backbone.summary_std[1].numpy()
    z_scores = np.clip((pooled - mean) / std, -CLIP, CLIP)
    summary = state.summary()
    assert_rounded(summary[:4], z_scores, POOLED)
    assert (summary[4] == 0).all()


@KINDS
def test_other_values_are_of_the_last_answer(kind):
    backbone = grouped(kind)
    layout = RoutingSpec.of(backbone).layout.summary
    assert layout.exit_probabilities == PROBABILITIES
    assert layout.confidence == CONFIDENCE

    start = Traversal.start(backbone, small.pixels(5))
    _, glance_logits = backbone.glance(backbone.prepare(small.pixels(5)))
    later = start.step(np.full(5, 2))
    for state, logits in ((start, glance_logits), (later, later.exit_logits)):
        probabilities = logits.softmax(1).detach().numpy()
        summary = state.summary()
        assert_rounded(summary, probabilities, PROBABILITIES)
        assert_rounded(summary, confidence_of(probabilities), CONFIDENCE)


def test_extreme_values_are_the_outermost_steps():
    backbone = grouped("multipath")
    # So that every z-score is far out.
    backbone.summary_std.fill_(1e-4)
    summary = Traversal.start(backbone, small.pixels(4), ()).summary()
    pooled = np.abs(summary[:, POOLED])
    assert (pooled == CLIP).all()


@KINDS
def test_config_names_groups_only_if_any(kind):
    plain = small.backbone(kind)
    backbone = grouped(kind)
    assert "summary_groups" not in plain.config
    assert backbone.config == plain.config | {"summary_groups": GROUPS}
    assert backbone.summary_mean.shape == (3, GROUPS)
    assert backbone.summary_std.shape == (3, GROUPS)
    assert backbone.pooled_width == GROUPS
    assert backbone.glance_width == 0


@KINDS
@pytest.mark.parametrize("summary_groups", [-1, -8])
def test_groups_must_not_be_negative(kind, summary_groups):
    config = small.config(kind) | {"summary_groups": summary_groups}
    message = f"`summary_groups` must be a whole number of at least 0, got {summary_groups}"
    with pytest.raises(ValueError, match=message):
        zoo.from_config(config)


@KINDS
@pytest.mark.parametrize("summary_groups", [5, 7, 48])
def test_groups_must_divide_the_channels(kind, summary_groups):
    config = small.config(kind) | {"summary_groups": summary_groups}
    with pytest.raises(ValueError, match=f"{BAD_GROUPS}{summary_groups}"):
        zoo.from_config(config)


@pytest.mark.parametrize("summary_groups", [12, 24])
def test_groups_must_divide_pruned_channels(summary_groups):
    # 24 divides the widths of both stages, but only the first 8 or 16 channels may arrive.
    config = small.config("vgg") | {"summary_groups": summary_groups}
    with pytest.raises(ValueError, match=f"{BAD_GROUPS}{summary_groups}"):
        zoo.from_config(config)


@KINDS
@pytest.mark.parametrize("summary_groups", [1, 2, 4])
def test_fewer_groups_give_shorter_summaries(kind, summary_groups):
    backbone = small.backbone(kind, summary_groups=summary_groups)
    start = Traversal.start(backbone, small.pixels(3))
    state = step(start, 1, 2, 1)
    size = summary_groups + 3 + 3
    assert state.summary().shape == (3, size)
    assert RoutingSpec.of(backbone).layout.summary.size == size


@KINDS
def test_saved_backbone_gives_the_same_summaries(tmp_path, kind):
    backbone = grouped(kind)
    path = tmp_path / "weights.safetensors"
    weight_files.save(backbone, path)
    loaded = zoo.load(path, backbone.config)
    assert loaded.config == backbone.config
    assert_same_spec(RoutingSpec.of(loaded), RoutingSpec.of(backbone))

    summaries = []
    for network in (backbone, loaded):
        start = Traversal.start(network, small.pixels(6))
        state = step(start, 1, 2, 1, 2, 1, 2)
        summaries.append(state.summary())
    assert_array_equal(*summaries)


@KINDS
def test_saved_groups_are_of_the_architecture(tmp_path, kind):
    path = tmp_path / "weights.safetensors"
    weight_files.save(grouped(kind), path)
    plain = small.backbone(kind)
    with pytest.raises(ValueError, match="summary_groups: needs None, has 8"):
        zoo.load(path, plain.config)


@torch.no_grad()
def test_statistics_are_measured_on_groups():
    backbone = grouped("multipath")
    images = small.images(40)
    generator = torch.Generator().manual_seed(0)
    calibration.measure_summaries(backbone, images, generator, batch_size=16)

    pixels = backbone.prepare(small.pixels_of(images))
    features = backbone.stem(pixels)
    pooled = backbone.pool(features)  # (40, 8)
    mean = backbone.summary_mean[0]
    std = backbone.summary_std[0]
    assert_near(mean, pooled.mean(0), atol=1e-5)
    assert_allclose(std, pooled.std(0, correction=0), rtol=1e-3, atol=1e-5)


@KINDS
@pytest.mark.parametrize("exits", [True, False])
def test_table_matches_live_up_to_rounding(monkeypatch, kind, exits):
    monkeypatch.setattr(base, "BATCH_SIZE", 5)
    backbone = grouped(kind)
    images = small.images(12)
    spec = RoutingSpec.of(backbone, exits)
    table = route_table.build(backbone, images, spec, progress=False)
    assert table.summary.shape[1:] == (12, SIZE)

    live_state = Live(backbone, images, spec).start(np.arange(12))
    table_state = table.start(np.arange(12))
    apart = []
    for sub_paths in small.paths(spec, 12).T.astype(np.int64):
        difference = live_state.summary() - table_state.summary()
        apart.append(np.rint(difference / STEP))
        assert_array_equal(live_state.macs, table_state.macs)
        live_state = live_state.step(sub_paths)
        table_state = table_state.step(sub_paths)

    # Values halfway between two steps may be rounded either way.
    assert np.abs(apart).max() <= 1
    assert np.count_nonzero(apart) <= 3


@pytest.mark.parametrize("backend", ["live", "table"])
@pytest.mark.parametrize("exits", [True, False])
def test_observations_are_whole_steps(backend, exits, images):
    env = gym.make(
        "RNR-v0",
        dataset=images,
        backbone=grouped("multipath"),
        backend=backend,
        exits=exits,
        tradeoff=(0.1, 2.0),
    )
    layout = env.unwrapped.routing_spec.layout
    assert env.observation_space.shape == (layout.size,)

    rng = np.random.default_rng(0)
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        terminated = False
        while not terminated:
            assert env.observation_space.contains(obs)
            counts = obs[: layout.summary.size] / STEP
            assert_allclose(counts, np.rint(counts), atol=1e-4)
            action = rng.integers(env.action_space.n)
            obs, _, terminated, _, _ = env.step(action)
        assert env.observation_space.contains(obs)
