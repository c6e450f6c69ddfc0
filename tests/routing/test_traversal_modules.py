"""What a traversal runs: nothing that is skipped, and each module once for all who need it."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from tests.fixtures import small

EVERY = pytest.mark.parametrize("exits", small.EXITS)
KINDS = pytest.mark.parametrize("kind", small.KINDS)


def batch_sizes(modules):
    """By name of a module: the sizes of the batches that pass through it, as they do."""
    sizes = {name: [] for name in modules}
    for name, module in modules.items():
        # Bound now: the loop changes what `name` is.
        def record(module, args, result, name=name):
            sizes[name].append(len(args[0]))

        module.register_forward_hook(record)
    return sizes


def exits_of(backbone):
    """The glance and the exit heads, by layer."""
    return {
        0: backbone.glance,
        1: backbone.layers[1].head,
        2: backbone.layers[2].head,
    }


def test_branches_run_only_where_they_are_taken():
    backbone = small.backbone("multipath")
    convolutions = {}
    for layer_idx, layer in enumerate(backbone.layers):
        for number, branch in enumerate(layer.branches):
            # Sub-paths 0 and 1 are the exit and the identity.
            convolutions[layer_idx, 2 + number] = branch.conv1

    sizes = batch_sizes(convolutions)
    paths = small.paths(RoutingSpec.of(backbone), 20)
    small.travel(backbone, small.pixels(20), paths)

    images = Counter()
    prev_sub_paths = {}
    for path in paths.tolist():
        for layer, sub_path in enumerate(path):
            if sub_path < 2:
                continue
            prev_sub_path = 3
            if layer > 0:
                prev_sub_path = path[layer - 1]
            images[layer, sub_path] += 1
            prev_sub_paths.setdefault((layer, sub_path), set()).add(prev_sub_path)

    assert len(images) == len(convolutions)
    for branch, batches in sizes.items():
        assert sum(batches) == images[branch]
        # One batch for each sub-path before, whose norms differ.
        assert len(batches) == len(prev_sub_paths[branch])


@KINDS
def test_layers_run_once_for_each_sub_path_pair(kind):
    backbone = small.backbone(kind, "bare")
    calls = [[], [], []]
    for layer_idx, layer in enumerate(backbone.layers):

        def record(module, args, result, layer_idx=layer_idx):
            features, sub_path, prev_sub_path = args
            calls[layer_idx].append((prev_sub_path, sub_path, len(features)))

        layer.register_forward_hook(record)

    paths = small.paths(RoutingSpec.of(backbone), 30)
    small.travel(backbone, small.pixels(30), paths)
    prev_sub_paths = np.full(30, backbone.full_path)
    for layer_idx, sub_paths in enumerate(paths.T):
        before = prev_sub_paths.tolist()
        if not backbone.reads_prev_sub_path:
            before = [None] * 30

        pairs = Counter(zip(before, sub_paths.tolist(), strict=True))
        expected = [(*pair, count) for pair, count in pairs.items()]
        assert len(calls[layer_idx]) == len(expected)
        assert set(calls[layer_idx]) == set(expected)
        prev_sub_paths = sub_paths


@KINDS
def test_answered_images_are_not_computed_further(kind):
    backbone = small.backbone(kind)
    modules = {
        "glance": backbone.glance,
        "layer 0": backbone.layers[0],
        "exit 1": backbone.layers[1].head,
        "layer 1": backbone.layers[1],
        "layer 2": backbone.layers[2],
        "head": backbone.head,
    }
    sizes = batch_sizes(modules)
    paths = np.array(
        [
            [0, -1, -1],
            [1, 0, -1],
            [1, 2, 0],
            [2, 2, 2],
        ]
    )
    small.travel(backbone, small.pixels(4), paths)
    assert {name: sum(batches) for name, batches in sizes.items()} == {
        "glance": 4,
        "layer 0": 3,
        "exit 1": 3,
        "layer 1": 2,
        "layer 2": 1,
        "head": 1,
    }


@KINDS
def test_no_exit_runs_with_exits_off(kind):
    backbone = small.backbone(kind)
    sizes = batch_sizes(exits_of(backbone))
    paths = np.full((4, 3), 2)
    state = small.travel(backbone, small.pixels(4), paths, exits=())
    assert sizes == {0: [], 1: [], 2: []}
    assert (state.exit_logits == 0).all()
    assert (state.glance_logits == 0).all()
    assert (state.glance_pooled == 0).all()


@KINDS
def test_only_requested_exits_run(kind):
    backbone = small.backbone(kind)
    requested = [2]
    if backbone.exits_read_glance:
        requested = [0, 2]

    sizes = batch_sizes(exits_of(backbone))
    paths = np.full((4, 3), 2)
    small.travel(backbone, small.pixels(4), paths, exits=requested)
    for layer, batches in sizes.items():
        assert sum(batches) == 4 * (layer in requested)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("multipath", [1, 2, 3]),
        ("residual", [6]),
        ("vgg", [1, 2, 3]),
    ],
)
def test_groups_are_images_that_run_together(kind, sizes):
    backbone = small.backbone(kind)
    full_path = backbone.full_path
    sub_paths = np.array([full_path, 1, 2, full_path, 2, full_path])
    start = Traversal.start(backbone, small.pixels(6))
    state = start.step(sub_paths)
    assert sorted(len(group.batch_idx) for group in state.groups) == sizes

    for group in state.groups:
        assert group.layer == 1
        assert len(group.features) == len(group.batch_idx)
        if backbone.reads_prev_sub_path:
            assert set(sub_paths[group.batch_idx]) == {group.prev_sub_path}
        if kind == "vgg":
            assert group.features.shape[1] == 8 * group.prev_sub_path

    grouped = np.concatenate([group.batch_idx for group in state.groups])
    assert sorted(grouped) == list(range(6))


@KINDS
def test_stem_runs_only_past_the_glance(kind):
    backbone = small.backbone(kind)
    layout = RoutingSpec.of(backbone).layout.summary
    glance_macs = backbone.mac_table.exits[0, -1]
    sizes = batch_sizes({"stem": backbone.stem})
    state = Traversal.start(backbone, small.pixels(4))
    assert state.stem_waits
    assert sizes["stem"] == []
    assert (state.macs == glance_macs).all()
    assert (state.summary()[:, layout.pooled] == 0).all()

    state = state.step(np.array([0, 2, 1, 2]))
    assert sizes["stem"] == [3]
    assert state.macs[0] == glance_macs
    assert (state.macs[1:] > backbone.mac_table.stem + glance_macs).all()


@pytest.mark.parametrize("exits", ["bare", "exits"])
def test_stem_runs_at_once_without_a_glance(exits):
    backbone = small.backbone("multipath", exits)
    layout = RoutingSpec.of(backbone).layout.summary
    sizes = batch_sizes({"stem": backbone.stem})
    state = Traversal.start(backbone, small.pixels(4))
    assert not state.stem_waits
    assert sizes["stem"] == [4]
    assert (state.macs == backbone.mac_table.stem).all()
    assert (state.summary()[:, layout.pooled] != 0).any()

    state.step(np.array([1, 2, 1, 2]))
    assert sizes["stem"] == [4]


@KINDS
@EVERY
def test_modules_stay_in_evaluation_mode(kind, exits):
    backbone = small.backbone(kind, exits)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    paths = small.paths(RoutingSpec.of(backbone), 4)
    small.travel(backbone, small.pixels(4), paths).summary()

    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
