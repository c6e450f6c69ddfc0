"""The MAC tables against torch's own counter, on what really ran."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rnr_gym.backbones.macs import conv_macs, linear_macs
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from tests.fixtures import small

SHAPES = [(1, 8, 8), (2, 9, 7), (3, 32, 32)]
EVERY = pytest.mark.parametrize(
    ("kind", "exits", "shape"),
    [(kind, exits, shape) for kind in small.KINDS for exits in small.EXITS for shape in SHAPES],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else value,
)


def counted(run):
    """MACs of what `run` does, by torch's counter."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


@EVERY
def test_charged_macs_are_those_that_ran(kind, exits, shape):
    backbone, batch = small.backbone(kind, exits, shape), small.pixels(1, shape)
    for path in small.paths(RoutingSpec.of(backbone), 6):
        walks = []
        ran = counted(
            lambda path=path, walks=walks: walks.append(small.travel(backbone, batch, path[None]))
        )
        assert walks[0].macs.tolist() == [ran]


@EVERY
def test_charged_macs_are_those_that_ran_with_exits_off(kind, exits, shape):
    backbone, batch = small.backbone(kind, exits, shape), small.pixels(1, shape)
    for path in small.paths(RoutingSpec.of(backbone, exits=False), 3):
        walks = []
        ran = counted(
            lambda path=path, walks=walks: walks.append(
                small.travel(backbone, batch, path[None], exits=())
            )
        )
        assert walks[0].macs.tolist() == [ran]
        assert RoutingSpec.of(backbone, exits=False).static_macs(path) == ran


@pytest.mark.parametrize("kind", small.KINDS)
def test_a_mixed_batch_is_charged_what_it_ran(kind):
    backbone, batch = small.backbone(kind), small.pixels(9)
    ways, walks = small.paths(RoutingSpec.of(backbone), 9), []
    ran = counted(lambda: walks.append(small.travel(backbone, batch, ways)))
    assert walks[0].macs.sum() == ran


@EVERY
def test_static_macs_are_those_of_a_network_that_runs_only_the_exit_it_answers_with(
    kind, exits, shape
):
    backbone, batch = small.backbone(kind, exits, shape), small.pixels(1, shape)
    for path in small.paths(RoutingSpec.of(backbone), 6):
        exit_layer = path.tolist().index(0) if backbone.has_exits and 0 in path else None
        if exit_layer == 0:
            ran = counted(lambda: backbone.glance(backbone.prepare(batch)))
        else:
            on = () if exit_layer is None else (exit_layer,)
            if exit_layer is not None and backbone.exits_read_glance:
                on = (0, exit_layer)
            ran = counted(lambda path=path, on=on: small.travel(backbone, batch, path[None], on))
        assert RoutingSpec.of(backbone).static_macs(path) == ran


@EVERY
def test_plain_macs_are_those_of_the_plain_network(kind, exits, shape):
    backbone = small.backbone(kind, exits, shape)
    ran = counted(lambda: backbone.plain()(backbone.prepare(small.pixels(1, shape))))
    assert (
        backbone.mac_table.plain
        == ran
        == RoutingSpec.of(backbone, exits=False).static_macs(np.full(3, backbone.full_path))
    )


@pytest.mark.parametrize("kind", small.KINDS)
def test_the_full_path_with_everything_run_costs_the_ceiling(kind):
    backbone = small.backbone(kind)
    walk = small.travel(backbone, small.pixels(1), np.full((1, 3), backbone.full_path))
    assert walk.macs[0] / backbone.mac_table.plain == pytest.approx(
        backbone.mac_table.ceiling, rel=1e-12
    )
    assert backbone.mac_table.ceiling > 1.0
    assert RoutingSpec.of(backbone, exits=False).ceiling == 1.0


def test_macs_counted_by_hand():
    """Stem on 8 x 8; layers 0 and 1 16 wide on 8 x 8, layer 2 from 16 to 32 channels on 4 x 4; exit, exit, full path ..."""
    backbone = small.backbone("multipath")
    stem = 1 * 16 * 9 * 64  # 1 channel to 16, 3 x 3, 64 pixels
    glance = (
        1 * 8 * 9 * 16 + 8 * 16 * 9 * 16 + 16 * 3
    )  # stride 2 leaves 4 x 4; then 16 features to 3 classes
    exit_head = 16 * 3
    half = 16 * 8 * 9 * 64 + 8 * 16 * 9 * 64  # sub-path 2: inner width 8
    full = 16 * 16 * 9 * 64 + 16 * 16 * 9 * 64  # sub-path 3: inner width 16
    last_half = 16 * 16 * 9 * 16 + 16 * 32 * 9 * 16  # layer 2, inner width 16 of 32, on 4 x 4
    head = 32 * 3
    walk = small.travel(
        backbone, small.pixels(4), np.array([[0, -1, -1], [2, 0, -1], [1, 3, 0], [2, 3, 2]])
    )
    assert walk.macs.tolist() == [
        glance,
        stem + glance + half + exit_head,
        stem + glance + 0 + exit_head + full + exit_head,
        stem + glance + half + exit_head + full + exit_head + last_half + head,
    ]
    assert [RoutingSpec.of(backbone).static_macs(path) for path in walk.path] == [
        glance,
        stem + half + exit_head,
        stem + 0 + full + exit_head,
        stem + half + full + last_half + head,
    ]


def test_a_whitened_backbone_counted_by_hand():
    """Stem and glance halve 8 x 8 to 4 x 4; layer 0 is 16 wide there; the exit reads 16 + 16 + 3 values."""
    backbone = small.backbone("whitened")
    stem = 1 * 8 * 4 * 16 + 8 * 16 * 9 * 16  # 2 x 2 patches to 8 filters, then 3 x 3 to 16 channels
    glance_stem = 1 * 8 * 4 * 16 + 8 * 8 * 9 * 16
    glance = glance_stem + 8 * 16 * 9 * 4 + 16 * 16 * 9 * 4 + 16 * 3
    full = 2 * 16 * 16 * 9 * 16
    exit_head = (16 + 16 + 3) * 3
    walk = small.travel(backbone, small.pixels(1), np.array([[3, 0, -1]]))
    assert walk.macs.tolist() == [stem + glance + full + exit_head]
    assert RoutingSpec.of(backbone).static_macs(walk.path[0]) == stem + glance + full + exit_head


def test_pruned_stream_counted_by_hand():
    """VGG-like, groups of 8 of 24 and of 16 of 48 channels: what a layer costs depends on how the image came."""
    backbone = small.backbone("vgg", "bare")
    walk = small.travel(backbone, small.pixels(1), np.array([[0, 2, 1]]))
    stem, first, second, third = 1 * 24 * 9 * 64, 24 * 8 * 9 * 64, 8 * 48 * 9 * 16, 48 * 32 * 9 * 16
    assert walk.macs.tolist() == [stem + first + second + third + 32 * 3]


@pytest.mark.parametrize("kind", small.KINDS)
def test_sub_path_numbers_grow_with_cost(kind):
    table = small.backbone(kind).mac_table.layers
    assert (np.diff(table[:, 1:, 1:], axis=2) > 0).all()
    assert (table[:, :, 0] == 0).all()


def test_no_exit_is_charged_before_its_layer_is_reached():
    backbone = small.backbone("multipath", "exits")
    walk = Traversal.start(backbone, small.pixels(1))
    assert walk.macs[0] == backbone.mac_table.stem
    assert walk.step(np.array([1])).macs[0] == backbone.mac_table.stem + 16 * 3


def test_formulas():
    assert conv_macs(3, 16, (32, 30)) == 3 * 16 * 9 * 960
    assert conv_macs(3, 16, (32, 30), kernel=1) == 3 * 16 * 960
    assert linear_macs(64, 10) == 640
