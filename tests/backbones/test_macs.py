"""The MAC tables against torch's own counter, on what really ran."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rnr_gym.backbones.macs import conv_macs, linear_macs
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from tests.fixtures import small

SHAPES = {
    "1x8x8": (1, 8, 8),
    "2x9x7": (2, 9, 7),
    "3x32x32": (3, 32, 32),
}
KINDS = pytest.mark.parametrize("kind", small.KINDS)


@pytest.fixture(params=itertools.product(small.KINDS, small.EXITS), ids="-".join)
def kind_and_exits(request):
    """Keys of `small.KINDS` and `small.EXITS`."""
    return request.param


@pytest.fixture(params=SHAPES)
def shape(request):
    """`(C, H, W)` of an image."""
    return SHAPES[request.param]


@pytest.fixture
def backbone(kind_and_exits, shape):
    """Each kind of network with each selection of exits, for images of each shape."""
    kind, exits = kind_and_exits
    return small.backbone(kind, exits, shape)


@pytest.fixture
def image(shape):
    """A batch of one image."""
    return small.pixels(1, shape)


def count_macs(function, *args):
    """MACs of a call by torch's counter, and what the call returned."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        result = function(*args)

    # torch counts a multiply and an add as two.
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2, result


def count_static_macs(backbone, image, path):
    """MACs of a network that runs no exit but the one that a path `(T,)` ends with."""
    exits = ()
    if backbone.has_exits and 0 in path:
        exit_layer = path.tolist().index(0)
        exits = (exit_layer,)
        if exit_layer == 0:
            macs, _ = count_macs(backbone.glance, backbone.prepare(image))
            return macs
        if backbone.exits_read_glance:
            exits = (0, exit_layer)

    macs, _ = count_macs(small.travel, backbone, image, path[None], exits)
    return macs


def test_charged_macs_are_those_that_ran(backbone, image):
    spec = RoutingSpec.of(backbone)
    for path in small.paths(spec, 6):
        macs, state = count_macs(small.travel, backbone, image, path[None])
        assert state.macs.tolist() == [macs]


def test_charged_macs_with_exits_off(backbone, image):
    spec = RoutingSpec.of(backbone, exits=False)
    for path in small.paths(spec, 3):
        macs, state = count_macs(small.travel, backbone, image, path[None], ())
        assert state.macs.tolist() == [macs]
        assert spec.static_macs(path) == macs


@KINDS
def test_charged_macs_of_mixed_batch(kind):
    backbone = small.backbone(kind)
    paths = small.paths(RoutingSpec.of(backbone), 9)
    macs, state = count_macs(small.travel, backbone, small.pixels(9), paths)
    assert state.macs.sum() == macs


def test_static_macs_count_only_the_exit_taken(backbone, image):
    spec = RoutingSpec.of(backbone)
    for path in small.paths(spec, 6):
        macs = count_static_macs(backbone, image, path)
        assert spec.static_macs(path) == macs


def test_plain_macs_are_those_of_plain_network(backbone, image):
    macs, _ = count_macs(backbone.plain(), backbone.prepare(image))
    assert backbone.mac_table.plain == macs

    spec = RoutingSpec.of(backbone, exits=False)
    full_path = np.full(3, backbone.full_path)
    assert spec.static_macs(full_path) == macs


@KINDS
def test_full_path_with_all_exits_costs_ceiling(kind):
    backbone = small.backbone(kind)
    table = backbone.mac_table
    state = small.travel_full_path(backbone, small.pixels(1))
    assert state.macs[0] / table.plain == pytest.approx(table.ceiling, rel=1e-12)
    assert table.ceiling > 1.0
    assert RoutingSpec.of(backbone, exits=False).ceiling == 1.0


def test_multipath_macs_counted_by_hand():
    """The stem runs on 8 x 8 pixels.

    Layers 0 and 1 are 16 wide on 8 x 8, and layer 2 goes from 16 to 32 channels on 4 x 4. Sub-path
    0 is the exit, 1 identity, 2 the branch of half the width, 3 the full path.
    """
    stem = 1 * 16 * 9 * 64  # 1 channel to 16, 3 x 3, 64 pixels
    # Stride 2 leaves 4 x 4; then 16 features to 3 classes.
    first_conv = 1 * 8 * 9 * 16
    second_conv = 8 * 16 * 9 * 16
    glance = first_conv + second_conv + 16 * 3
    exit_head = 16 * 3
    half = 16 * 8 * 9 * 64 + 8 * 16 * 9 * 64  # inner width 8
    full = 16 * 16 * 9 * 64 + 16 * 16 * 9 * 64  # inner width 16
    last_half = 16 * 16 * 9 * 16 + 16 * 32 * 9 * 16  # inner width 16 of 32, on 4 x 4
    head = 32 * 3

    backbone = small.backbone("multipath")
    paths = [
        [0, -1, -1],
        [2, 0, -1],
        [1, 3, 0],
        [2, 3, 2],
    ]
    state = small.travel(backbone, small.pixels(4), np.array(paths))
    # Every exit head on the way is charged, and the glance always.
    assert state.macs.tolist() == [
        glance,
        stem + glance + half + exit_head,
        stem + glance + 0 + exit_head + full + exit_head,
        stem + glance + half + exit_head + full + exit_head + last_half + head,
    ]

    spec = RoutingSpec.of(backbone)
    assert [spec.static_macs(path) for path in state.path] == [
        glance,
        stem + half + exit_head,
        stem + 0 + full + exit_head,
        stem + half + full + last_half + head,
    ]


def test_whitened_macs_counted_by_hand():
    """Stem and glance halve 8 x 8 pixels to 4 x 4, and layer 0 is 16 wide there."""
    # 2 x 2 patches to 8 filters, then 3 x 3 to the width of the stem.
    whitening = 1 * 8 * 4 * 16
    stem = whitening + 8 * 16 * 9 * 16
    glance_stem = whitening + 8 * 8 * 9 * 16
    # One block, which halves the resolution again; then 16 features to 3 classes.
    block = 8 * 16 * 9 * 4 + 16 * 16 * 9 * 4
    glance = glance_stem + block + 16 * 3
    full = 2 * 16 * 16 * 9 * 16
    # The exit head reads 16 features, and 16 features and 3 probabilities of the glance.
    exit_head = (16 + 16 + 3) * 3
    expected = stem + glance + full + exit_head

    backbone = small.backbone("whitened")
    path = np.array([3, 0, -1])
    state = small.travel(backbone, small.pixels(1), path[None])
    assert state.macs.tolist() == [expected]
    assert RoutingSpec.of(backbone).static_macs(path) == expected


def test_vgg_macs_counted_by_hand():
    """Groups of 8 of 24 and of 16 of 48 channels: a layer's cost depends on the one before."""
    stem = 1 * 24 * 9 * 64
    first = 24 * 8 * 9 * 64
    second = 8 * 48 * 9 * 16
    third = 48 * 32 * 9 * 16
    head = 32 * 3

    backbone = small.backbone("vgg", "bare")
    path = np.array([0, 2, 1])
    state = small.travel(backbone, small.pixels(1), path[None])
    assert state.macs.tolist() == [stem + first + second + third + head]


@KINDS
def test_sub_path_numbers_grow_with_cost(kind):
    layers = small.backbone(kind).mac_table.layers  # (T, K, K)
    increases = np.diff(layers[:, 1:, 1:], axis=2)
    assert (increases > 0).all()
    # The exit is charged by its head, not as a layer.
    assert (layers[:, :, 0] == 0).all()


def test_exit_is_charged_on_arrival():
    backbone = small.backbone("multipath", "exits")
    stem = backbone.mac_table.stem
    state = Traversal.start(backbone, small.pixels(1))
    assert state.macs[0] == stem
    # Identity costs nothing.
    assert state.step(np.array([1])).macs[0] == stem + 16 * 3


def test_mac_formulas_of_convolution_and_linear():
    assert conv_macs(3, 16, (32, 30)) == 3 * 16 * 9 * 960
    assert conv_macs(3, 16, (32, 30), kernel=1) == 3 * 16 * 960
    assert linear_macs(64, 10) == 640
