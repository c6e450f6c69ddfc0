"""Condensed summaries: groups of channels and the last answer in whole steps, whether a network runs or a table is read."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from rnr_gym.backbones import zoo
from rnr_gym.routing import route_table
from rnr_gym.routing.live import Live
from rnr_gym.routing.observations import CLIP, LEVELS, steps
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from rnr_gym.training import calibration
from tests.fixtures import small

KINDS = pytest.mark.parametrize("kind", small.KINDS)
SIZE = 8 + 3 + 3
"""Groups of channels, classes, and three values of confidence."""
STEP = steps(SIZE, 8)
HALF = STEP / 2 + 1e-4


@KINDS
@pytest.mark.parametrize("exits", small.EXITS)
def test_every_value_is_a_whole_number_of_steps_within_bounds(kind, exits):
    backbone = small.backbone(kind, exits, summary_groups=8)
    ways = small.paths(RoutingSpec.of(backbone), 12)
    walk = Traversal.start(backbone, small.pixels(12))
    for layer in range(3):
        summary = walk.summary()
        assert (summary.shape, summary.dtype) == ((12, SIZE), np.float32)
        whole = np.rint(summary / STEP)
        np.testing.assert_array_equal(summary, whole * STEP)
        assert np.abs(whole).max() <= LEVELS
        assert whole[:, 8:].min() >= 0
        assert whole[~walk.done].any(1).all()
        walk = walk.step(ways[:, layer].astype(np.int64))
    assert (walk.summary() == 0).all()


@KINDS
@pytest.mark.parametrize("sub_path", [1, 2])
def test_pooled_values_are_averages_of_neighbouring_channels_z_scored(kind, sub_path):
    backbone = small.backbone(kind, summary_groups=8)
    walk = Traversal.start(backbone, small.pixels(5)).step(np.array([sub_path] * 4 + [0]))
    (group,) = walk.groups
    channels = group.features.mean((2, 3)).detach().numpy()
    together = channels.shape[1] // 8
    found = np.stack(
        [
            channels[:, low : low + together].mean(1)
            for low in range(0, channels.shape[1], together)
        ],
        1,
    )
    np.testing.assert_allclose(backbone.pool(group.features).detach(), found, rtol=1e-4, atol=1e-5)
    z = np.clip(
        (found - backbone.summary_mean[1].numpy()) / backbone.summary_std[1].numpy(), -CLIP, CLIP
    )
    summary = walk.summary()
    assert (np.abs(summary[:4, :8] - z) <= HALF[:8]).all()
    assert (summary[4] == 0).all()


@KINDS
def test_the_rest_is_the_last_answer_and_its_confidence(kind):
    backbone = small.backbone(kind, summary_groups=8)
    where = RoutingSpec.of(backbone).layout.summary
    walk = Traversal.start(backbone, small.pixels(5))
    for sub_path, answer in ((2, backbone.glance(backbone.prepare(small.pixels(5)))[1]), (1, None)):
        answer = walk.exit_logits if answer is None else answer
        shares = answer.softmax(1).detach().numpy()
        summary = walk.summary()
        assert (np.abs(summary[:, where.exit_probabilities] - shares) <= HALF[8:11]).all()
        ordered = np.sort(shares, 1)
        sure = np.stack(
            [
                ordered[:, -1],
                ordered[:, -1] - ordered[:, -2],
                -(shares * np.log(shares)).sum(1) / np.log(3),
            ],
            1,
        )
        assert (np.abs(summary[:, where.confidence] - sure) <= HALF[11:]).all()
        walk = walk.step(np.full(5, sub_path))


def test_extreme_values_are_the_outermost_steps():
    backbone = small.backbone("multipath", summary_groups=8)
    backbone.summary_std.fill_(1e-4)
    pooled = Traversal.start(backbone, small.pixels(4), ()).summary()[:, :8]
    assert set(np.abs(pooled).ravel().tolist()) == {CLIP}


@KINDS
def test_the_config_names_the_groups_only_where_there_are_some(kind):
    plain, summary_groups = small.backbone(kind), small.backbone(kind, summary_groups=8)
    assert "summary_groups" not in plain.config
    assert summary_groups.config == {**plain.config, "summary_groups": 8}
    assert summary_groups.summary_mean.shape == summary_groups.summary_std.shape == (3, 8)
    assert (summary_groups.pooled_width, summary_groups.glance_width) == (8, 0)


@KINDS
@pytest.mark.parametrize("summary_groups", [-1, -8, 5, 7, 48])
def test_groups_that_do_not_divide_the_channels_are_refused(kind, summary_groups):
    with pytest.raises(
        ValueError, match=f"`summary_groups` must be 0 or divide every .*, got {summary_groups}"
    ):
        zoo.from_config({**small.config(kind), "summary_groups": summary_groups})


@pytest.mark.parametrize("summary_groups", [12, 24])
def test_groups_that_do_not_divide_what_is_left_of_pruned_channels_are_refused(summary_groups):
    """24 divides both stages' widths, but of the first 8 or 16 channels may come."""
    with pytest.raises(
        ValueError, match=f"`summary_groups` must be 0 or divide every .*, got {summary_groups}"
    ):
        zoo.from_config({**small.config("vgg"), "summary_groups": summary_groups})


@KINDS
@pytest.mark.parametrize("summary_groups", [1, 2, 4])
def test_fewer_groups_give_shorter_summaries(kind, summary_groups):
    backbone = small.backbone(kind, summary_groups=summary_groups)
    walk = Traversal.start(backbone, small.pixels(3)).step(np.array([1, 2, 1]))
    assert walk.summary().shape == (3, summary_groups + 6)
    assert RoutingSpec.of(backbone).layout.summary.size == summary_groups + 6


@KINDS
def test_a_saved_backbone_sums_up_the_same(tmp_path, kind):
    ours = small.backbone(kind, summary_groups=8)
    zoo.save(ours, tmp_path / "file")
    again = zoo.load(tmp_path / "file", ours.config)
    assert again.config == ours.config
    assert RoutingSpec.of(again).digest == RoutingSpec.of(ours).digest
    assert RoutingSpec.of(again).facts == RoutingSpec.of(ours).facts
    one, other = (
        Traversal.start(network, small.pixels(6)).step(np.array([1, 2, 1, 2, 1, 2]))
        for network in (ours, again)
    )
    np.testing.assert_array_equal(one.summary(), other.summary())
    with pytest.raises(ValueError, match=r"summary_groups: needs None, has 8"):
        zoo.load(tmp_path / "file", small.backbone(kind).config)


@torch.no_grad()
def test_statistics_are_measured_on_the_groups():
    backbone, images = small.backbone("multipath", summary_groups=8), small.images(40)
    calibration.measure_summaries(backbone, images, torch.Generator().manual_seed(0), batch_size=16)
    pooled = backbone.pool(
        backbone.stem(backbone.prepare(torch.from_numpy(np.array(images.images))))
    )
    torch.testing.assert_close(backbone.summary_mean[0], pooled.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        backbone.summary_std[0], pooled.std(0, correction=0), rtol=1e-3, atol=1e-5
    )


@KINDS
@pytest.mark.parametrize("on", [True, False])
def test_a_table_says_what_the_live_network_says(kind, on):
    """But for values halfway between two steps, which may be rounded either way."""
    backbone, images = small.backbone(kind, summary_groups=8), small.images(12)
    spec = RoutingSpec.of(backbone, on)
    table = route_table.build(backbone, images, spec, batch_size=5, progress=False)
    assert table.summary.shape[1:] == (12, SIZE)
    live, walk, ways = (
        Live(backbone, images, spec).start(np.arange(12)),
        table.start(np.arange(12)),
        small.paths(spec, 12),
    )
    apart = []
    for layer in range(3):
        apart.append(np.rint((live.summary() - walk.summary()) / STEP))
        np.testing.assert_array_equal(live.macs, walk.macs)
        live, walk = (part.step(ways[:, layer].astype(np.int64)) for part in (live, walk))
    assert np.abs(apart).max() <= 1
    assert np.count_nonzero(apart) <= 3


@pytest.mark.parametrize("backend", ["live", "table"])
@pytest.mark.parametrize("exits", [True, False])
def test_observations_lie_in_their_space(backend, exits, images):
    env = gym.make(
        "RNR-v0",
        dataset=images,
        backbone=small.backbone("multipath", summary_groups=8),
        backend=backend,
        exits=exits,
        tradeoff=(0.1, 2.0),
    )
    where, rng = env.unwrapped.routing.layout, np.random.default_rng(0)
    assert env.observation_space.shape == (where.size,)
    for seed in range(5):
        (observation, _), over = env.reset(seed=seed), False
        while not over:
            assert env.observation_space.contains(observation)
            whole = observation[: where.summary.size] / STEP
            np.testing.assert_allclose(whole, np.rint(whole), atol=1e-4)
            observation, _, over, _, _ = env.step(rng.integers(env.action_space.n))
        assert env.observation_space.contains(observation)
