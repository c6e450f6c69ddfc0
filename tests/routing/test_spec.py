"""The routing problem: masks, the nearest valid action, shares of compute, the digest."""

from dataclasses import replace

import numpy as np
import pytest

from rnr_gym.backbones import zoo
from rnr_gym.backbones.macs import MacTable, TimeTable
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small
from tests.fixtures.profiles import profile_of
from tests.fixtures.routing import assert_same_arrays, scalars

KINDS = pytest.mark.parametrize("kind", small.KINDS)
EXITS = pytest.mark.parametrize("exits", small.EXITS)


def spec_of(valid):
    """A problem with these valid sub-paths, in which everything costs 1 MAC."""
    num_layers, num_paths = np.shape(valid)
    mac_table = MacTable(
        stem=1,
        layers=np.ones((num_layers, num_paths, num_paths), np.int64),
        exits=np.ones((num_layers, num_paths), np.int64),
        head=np.ones(num_paths, np.int64),
    )
    return RoutingSpec(
        valid=np.array(valid, np.bool_),
        mac_table=mac_table,
        num_classes=3,
        pooled_width=4,
        glance_width=2,
        has_exits=True,
        loss_scale=0.5,
    )


def test_nearest_of_valid_action_is_itself():
    spec = spec_of(np.ones((2, 4)))
    assert (spec.nearest == [0, 1, 2, 3]).all()


def test_nearest_of_masked_action_prefers_cheaper():
    spec = spec_of(
        [
            [0, 1, 0, 1, 0],
            [1, 0, 0, 0, 1],
            [0, 0, 1, 0, 0],
        ]
    )
    assert spec.nearest.tolist() == [
        [1, 1, 1, 3, 3],
        [0, 0, 0, 4, 4],
        [2, 2, 2, 2, 2],
    ]


def test_onward_is_nearest_that_is_no_exit():
    spec = spec_of(
        [
            [1, 0, 0, 1],
            [1, 1, 1, 1],
            [0, 1, 0, 1],
        ]
    )
    assert spec.nearest[0].tolist() == [0, 0, 3, 3]
    assert spec.onward.tolist() == [
        [3, 3, 3, 3],
        [1, 1, 2, 3],
        [1, 1, 1, 3],
    ]


def test_onward_equals_nearest_without_exits():
    spec = RoutingSpec.of(small.backbone("multipath", "bare"))
    assert spec.onward.tolist() == spec.nearest.tolist()


def test_executable_is_nearest_at_each_layer():
    spec = spec_of(
        [
            [0, 1, 0, 1],
            [1, 0, 0, 0],
            [0, 0, 1, 1],
        ]
    )
    layer = np.array([0, 0, 1, 2])
    actions = np.array([0, 2, 3, 0])
    assert spec.executable(layer, actions).tolist() == [1, 1, 0, 2]


def test_executable_accepts_answered_images():
    spec = spec_of(np.ones((2, 3)))
    # Layer T has no sub-paths, so the last layer's stand in; states ignore these entries.
    executed = spec.executable(np.array([1, 2]), np.array([2, 1]))
    assert executed.dtype == np.int64
    assert executed.tolist() == [2, 1]


def test_masks_offer_everything_once_answered():
    spec = spec_of([[0, 1, 1], [1, 1, 1]])
    assert spec.masks.dtype == np.int8
    assert spec.masks.tolist() == [
        [0, 1, 1],
        [1, 1, 1],
        [1, 1, 1],
    ]


def test_compute_is_share_of_plain_macs():
    spec = spec_of(np.ones((2, 4)))
    # Stem, two layers and head.
    assert spec.plain_macs == 4
    compute = spec.compute(np.array([0, 1, 4, 6]))
    assert compute.dtype == np.float64
    assert compute.tolist() == [0.0, 0.25, 1.0, 1.5]


def test_time_is_charged_where_there_is_a_time_table():
    spec = spec_of(np.ones((2, 4)))
    times = TimeTable(
        stem=10,
        layers=np.broadcast_to([0, 20, 30, 50], (2, 4, 4)),
        exits=np.array([[5, 5, 5, 5], [0, 6, 7, 8]]),
        head=np.array([0, 2, 3, 4]),
    )
    timed = spec.timed(times)
    assert timed.plain_cost == 10 + 50 + 50 + 4
    assert timed.compute(np.array([57])).tolist() == [0.5]
    assert timed.ceiling == (10 + 5 + 50 + 8 + 50 + 4) / 114
    # MACs are what they were.
    assert timed.plain_macs == spec.plain_macs == spec.plain_cost

    paths = np.array([[-1, -1], [0, -1], [2, -1], [2, 0], [3, 1]])
    glance = 5
    prefix = glance + 10 + 30 + 7
    expected = [glance, glance, prefix, prefix, glance + 10 + 50 + 8 + 20 + 2]
    assert timed.path_cost(paths, timed.costs).tolist() == expected
    assert timed.path_cost(paths, timed.mac_table).tolist() == [1, 1, 4, 4, 6]

    # A static network runs no exit but the one that answers.
    static = [timed.static_cost(path) for path in paths[1:]]
    assert static == [glance, 10 + 30 + 50 + 4, 10 + 30 + 7, 10 + 50 + 20 + 2]
    assert spec.static_cost(paths[3]) == spec.static_macs(paths[3]) == timed.static_macs(paths[3])


def test_exits_that_are_off_take_no_time():
    backbone = small.backbone("multipath")
    times = profile_of(backbone).times
    timed = RoutingSpec.of(backbone, exits=False).timed(times)
    assert not timed.costs.exits.any()
    assert timed.plain_cost == times.plain
    assert RoutingSpec.of(backbone).timed(times).costs.exits.any()


def test_decisions_take_the_time_of_as_many_macs():
    backbone = small.backbone("multipath")
    spec = RoutingSpec.of(backbone)
    macs = np.array([0, 1, spec.plain_macs, 3 * spec.plain_macs])
    assert spec.router_cost(macs) is macs
    timed = spec.timed(profile_of(backbone).times)
    plain = timed.plain_cost
    # Rounded up, so that no decision is free.
    assert timed.router_cost(macs).tolist() == [0, -(-plain // spec.plain_macs), plain, 3 * plain]


@pytest.mark.parametrize(
    ("name", "on", "off"),
    [
        ("rnr-digits", "46a7bf19bcf3", "c7d9b16f9061"),
        ("rnr-cifar10", "ac2ea5e5a54f", "25d2acd048ea"),
        ("rnr-cifar10-channels", "29f99bab1984", "55ab52ad2a19"),
        ("rnr-cifar10-small", "3bcbab953a95", "a0a4148451e8"),
    ],
)
def test_digest_is_that_of_files_that_were_written(name, on, off):
    backbone = zoo.named(name, weights=None)
    assert RoutingSpec.of(backbone).digest == on
    assert RoutingSpec.of(backbone, exits=False).digest == off


def test_digest_changes_with_times():
    backbone = small.backbone("multipath")
    spec = RoutingSpec.of(backbone)
    timed = [spec.timed(profile_of(backbone, seed).times) for seed in range(2)]
    assert len({problem.digest for problem in (spec, *timed)}) == 3


@KINDS
@pytest.mark.parametrize(
    ("exits", "column"),
    [
        ("one exit", [0, 0, 1]),
        ("exits", [0, 1, 1]),
        ("glance", [1, 0, 0]),
        ("glance and exits", [1, 1, 1]),
    ],
)
def test_exits_are_valid_where_there_is_a_head(kind, exits, column):
    backbone = small.backbone(kind, exits)
    spec = RoutingSpec.of(backbone)
    assert spec.valid[:, 0].tolist() == column
    assert spec.valid[:, 1:].all()
    assert backbone.exit_layers == set(np.flatnonzero(column).tolist())


@KINDS
@EXITS
def test_exit_layers_are_those_of_the_backbone(kind, exits):
    backbone = small.backbone(kind, exits)
    spec = RoutingSpec.of(backbone)
    assert spec.exit_layers == tuple(sorted(backbone.exit_layers))
    assert spec.first_sub_path == backbone.first_sub_path
    assert spec.stem_waits == (backbone.glance is not None)


@KINDS
@EXITS
def test_exit_layers_are_empty_with_exits_off(kind, exits):
    spec = RoutingSpec.of(small.backbone(kind, exits), exits=False)
    assert spec.exit_layers == ()
    assert not spec.stem_waits


@KINDS
def test_exits_off_masks_and_charges_none(kind):
    backbone = small.backbone(kind)
    on = RoutingSpec.of(backbone)
    off = RoutingSpec.of(backbone, exits=False)

    # Sub-path 0 keeps its number, so that sub-paths mean the same in both problems.
    assert off.num_paths == on.num_paths
    assert off.layout.size == on.layout.size
    assert not off.valid[:, 0].any()
    assert off.valid[:, 1:].all()

    assert (off.mac_table.exits == 0).all()
    assert (on.mac_table.exits > 0).any()


def test_backbone_without_exits_numbers_none():
    backbone = small.backbone("multipath", "bare")
    assert backbone.num_paths == 3
    assert not backbone.has_exits
    assert RoutingSpec.of(backbone).valid.all()


def test_spec_fields_are_those_of_the_backbone():
    spec = RoutingSpec.of(small.backbone("multipath"))
    assert scalars(spec) == {
        "num_classes": 3,
        "pooled_width": 16,
        "glance_width": 16,
        "has_exits": True,
        "loss_scale": 0.75,
        "quantised": False,
        "exits_read_glance": False,
    }
    assert spec.num_layers == 3
    assert spec.num_paths == 4
    assert spec.full_path == 3


@pytest.mark.parametrize("exits", [True, False])
def test_exits_read_glance_only_where_they_run(exits):
    spec = RoutingSpec.of(small.backbone("whitened"), exits)
    assert spec.exits_read_glance is exits


def test_digest_ignores_weights():
    digest = RoutingSpec.of(small.backbone("multipath")).digest
    assert digest == RoutingSpec.of(small.backbone("multipath", seed=1)).digest
    assert len(digest) == 12


@pytest.mark.parametrize(
    ("kind", "exits", "on"),
    [
        ("residual", "glance and exits", True),
        ("multipath", "exits", True),
        ("multipath", "glance and exits", False),
    ],
)
def test_digest_changes_with_the_problem(kind, exits, on):
    other = RoutingSpec.of(small.backbone(kind, exits), on)
    assert other.digest != RoutingSpec.of(small.backbone("multipath")).digest


@KINDS
@EXITS
def test_summary_groups_change_only_the_layout(kind, exits):
    spec = RoutingSpec.of(small.backbone(kind, exits, summary_groups=8))
    plain = RoutingSpec.of(small.backbone(kind, exits))
    changed = {"pooled_width": 8, "glance_width": 0, "quantised": True}
    assert scalars(spec) == scalars(plain) | changed
    assert not plain.quantised

    # 8 groups, 3 classes, 3 values of confidence; 3 layers, compute, sub-paths, trade-off.
    assert spec.layout.summary.size == 8 + 3 + 3
    assert spec.layout.size == 8 + 3 + 3 + 3 + 1 + spec.num_paths + 1

    assert spec.digest != plain.digest
    np.testing.assert_array_equal(spec.valid, plain.valid)
    assert_same_arrays(spec.mac_table, plain.mac_table)


def test_quantised_is_off_by_default():
    spec = spec_of(np.ones((2, 4)))
    assert not spec.quantised
    assert spec.layout.summary.size == 4 + 2 + 3 + 3 + 3


def test_quantised_drops_glance_probabilities():
    spec = spec_of(np.ones((2, 4)))
    quantised = replace(spec, quantised=True)
    assert quantised.layout.summary.size == 4 + 2 + 3 + 3
    assert quantised.digest != spec.digest
