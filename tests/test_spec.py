"""The routing problem: masks, the nearest valid action, static costs."""

import numpy as np
import pytest

from rnr_gym.backbones.macs import MacTable
from rnr_gym.routing.spec import RoutingSpec
from tests import small


def spec_of(valid, has_exits=True):
    layers, paths = np.shape(valid)
    table = MacTable(1, np.ones((layers, paths, paths), np.int64), np.ones((layers, paths), np.int64), np.ones(paths, np.int64))
    facts = {"pooled": 4, "glance": 2, "classes": 3, "has_exits": has_exits, "loss_scale": 0.5}
    return RoutingSpec(facts, np.array(valid, np.bool_), table)


def test_a_valid_action_is_its_own_nearest():
    assert spec_of(np.ones((2, 4))).nearest.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_a_masked_action_becomes_the_nearest_valid_one_cheaper_first():
    spec = spec_of([[0, 1, 0, 1, 0], [1, 0, 0, 0, 1], [0, 0, 1, 0, 0]])
    assert spec.nearest.tolist() == [[1, 1, 1, 3, 3], [0, 0, 0, 4, 4], [2, 2, 2, 2, 2]]


def test_masks_have_a_row_for_the_end_in_which_nothing_is_offered():
    spec = spec_of([[0, 1, 1], [1, 1, 1]])
    assert spec.masks.tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert spec.masks.dtype == np.int8


@pytest.mark.parametrize("kind", small.KINDS)
@pytest.mark.parametrize(("exits", "column"), [("one exit", [0, 0, 1]), ("exits", [0, 1, 1]), ("glance", [1, 0, 0]), ("glance and exits", [1, 1, 1])])
def test_exits_are_offered_where_there_is_a_head(kind, exits, column):
    backbone = small.backbone(kind, exits)
    assert backbone.spec().valid[:, 0].tolist() == column
    assert backbone.spec().valid[:, 1:].all()
    assert backbone.exit_layers == {layer for layer, there in enumerate(column) if there}


@pytest.mark.parametrize("kind", small.KINDS)
def test_without_exits_number_zero_stays_but_is_never_offered(kind):
    backbone = small.backbone(kind)
    on, off = backbone.spec(), backbone.spec(exits=False)
    assert off.num_paths == on.num_paths
    assert not off.valid[:, 0].any()
    assert off.valid[:, 1:].all()
    assert (off.mac_table.exits == 0).all()
    assert (on.mac_table.exits > 0).any()
    assert off.layout.size == on.layout.size


def test_a_backbone_without_exits_has_no_number_for_them():
    backbone = small.backbone("multipath", "bare")
    assert backbone.num_paths == 3
    assert not backbone.has_exits
    assert backbone.spec().valid.all()


def test_facts_are_what_the_backbone_says():
    spec = small.backbone("multipath").spec()
    assert spec.facts == {"pooled": 16, "glance": 16, "classes": 3, "has_exits": True, "loss_scale": 0.75}
    assert (spec.num_layers, spec.num_paths, spec.full_path) == (3, 4, 3)


def test_the_digest_is_that_of_the_problem_not_of_the_weights():
    digest = small.backbone("multipath").spec().digest
    assert digest == small.backbone("multipath", seed=1).spec().digest
    assert len(digest) == 12
    others = [small.backbone("residual").spec(), small.backbone("multipath", "exits").spec(), small.backbone("multipath").spec(exits=False)]
    assert digest not in {other.digest for other in others}


@pytest.mark.parametrize("kind", small.KINDS)
@pytest.mark.parametrize("exits", small.EXITS)
def test_a_condensed_backbone_says_so_and_its_summary_has_no_glance(kind, exits):
    spec, plain = small.backbone(kind, exits, summary_groups=8).spec(), small.backbone(kind, exits).spec()
    assert spec.facts == {**plain.facts, "pooled": 8, "glance": 0, "quantised": True}
    assert (spec.quantised, plain.quantised) == (True, False)
    assert spec.layout.summary.size == 8 + 3 + 3
    assert spec.layout.size == 8 + 3 + 3 + 3 + 1 + spec.num_paths + 1
    assert spec.digest != plain.digest
    np.testing.assert_array_equal(spec.valid, plain.valid)
    for ours, theirs in zip(spec.mac_table, plain.mac_table, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_problem_that_says_nothing_of_it_is_not_quantised():
    spec = spec_of(np.ones((2, 4)))
    assert not spec.quantised
    assert spec.layout.summary.size == 4 + 2 + 3 + 3 + 3
    rounded = RoutingSpec({**spec.facts, "quantised": True}, spec.valid, spec.mac_table)
    assert rounded.layout.summary.size == 4 + 2 + 3 + 3
    assert rounded.digest != spec.digest


def test_onward_is_the_nearest_sub_path_but_no_exit():
    valid = np.array([[True, False, False, True], [True, True, True, True], [False, True, False, True]])
    spec = spec_of(valid)
    assert spec.nearest[0].tolist() == [0, 0, 3, 3]
    assert spec.onward.tolist() == [[3, 3, 3, 3], [1, 1, 2, 3], [1, 1, 1, 3]]


def test_onward_without_exits_is_the_nearest_sub_path():
    spec = small.backbone("multipath", "bare").spec()
    assert spec.onward.tolist() == spec.nearest.tolist()
