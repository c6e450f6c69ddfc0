"""One batch under way: each image alone, nothing skipped is computed, gradients pass."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnr_gym.routing.observations import CLIP
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from tests.fixtures import small

EVERY = pytest.mark.parametrize(
    ("kind", "exits"), [(kind, exits) for kind in small.KINDS for exits in small.EXITS]
)
KINDS = pytest.mark.parametrize("kind", small.KINDS)
BOOKKEEPING = ("layer", "prev_sub_path", "macs", "path", "done")
TENSORS = ("logits", "exit_logits", "glance_pooled", "glance_logits")


def assert_same_images(one, other, rows=slice(None)):
    """Images `rows` of one walk stand where those of the other, which holds no more, stand."""
    for name in BOOKKEEPING:
        np.testing.assert_array_equal(getattr(one, name)[rows], getattr(other, name))
    for name in TENSORS:
        torch.testing.assert_close(
            getattr(one, name)[rows], getattr(other, name), rtol=1e-9, atol=1e-9
        )
    np.testing.assert_allclose(one.summary()[rows], other.summary(), rtol=1e-5, atol=1e-5)


def steps(walk, ways):
    """The walk before each decision and after the last."""
    yield walk
    for layer in range(ways.shape[1]):
        walk = walk.step(ways[:, layer].astype(np.int64))
        yield walk


@EVERY
def test_an_image_does_not_depend_on_its_batch_mates(kind, exits):
    backbone = small.backbone(kind, exits).double()
    batch, ways = small.pixels(8), small.paths(RoutingSpec.of(backbone), 8)
    together = list(steps(Traversal.start(backbone, batch), ways))
    for row in range(8):
        alone = steps(Traversal.start(backbone, batch[row : row + 1]), ways[row : row + 1])
        for one, other in zip(together, alone, strict=True):
            assert_same_images(one, other, slice(row, row + 1))


@EVERY
def test_what_a_batch_says_of_its_images(kind, exits):
    backbone = small.backbone(kind, exits)
    ways = small.paths(RoutingSpec.of(backbone), 12)
    for layer, walk in enumerate(steps(Traversal.start(backbone, small.pixels(12)), ways)):
        taken = ways.copy()
        taken[:, layer:] = -1
        np.testing.assert_array_equal(walk.path, taken)
        exited = ((taken == 0) & backbone.has_exits).any(1)
        np.testing.assert_array_equal(walk.done, exited | (layer == backbone.num_layers))
        np.testing.assert_array_equal(walk.layer, np.where(exited, backbone.num_layers, layer))
        last = [[*path[path >= 0], backbone.full_path][len(path[path >= 0]) - 1] for path in taken]
        np.testing.assert_array_equal(walk.prev_sub_path, last)


@KINDS
def test_exits_and_head_answer_with_what_arrives(kind):
    backbone = small.backbone(kind)
    x = backbone.prepare(small.pixels(2))
    walk = Traversal.start(backbone, small.pixels(2))
    pooled, glanced = backbone.glance(x)
    torch.testing.assert_close(walk.glance_pooled, pooled)
    torch.testing.assert_close(walk.exit_logits, glanced)
    torch.testing.assert_close(walk.glance_logits, glanced)
    y, prev_sub_path = backbone.stem(x), None
    for layer, sub_path in enumerate([2, 1, 2]):
        if layer:
            context = (
                torch.cat([pooled, glanced.softmax(1)], 1) if backbone.exits_read_glance else None
            )
            torch.testing.assert_close(walk.exit_logits, backbone.layers[layer].exit(y, context))
            torch.testing.assert_close(
                walk.step(np.array([0, 0])).logits, backbone.layers[layer].exit(y, context)
            )
        assert (walk.logits == 0).all()
        walk = walk.step(np.full(2, sub_path))
        y, prev_sub_path = (
            backbone.layers[layer](y, sub_path, prev_sub_path),
            sub_path if backbone.reads_prev_sub_path else None,
        )
    torch.testing.assert_close(walk.logits, backbone.head(y))
    torch.testing.assert_close(walk.glance_logits, glanced)


def test_an_answered_image_stands_still(backbone):
    answered = Traversal.start(backbone, small.pixels(2)).step(np.array([0, 2]))
    further = answered.step(np.array([99, 2])).step(
        np.array([-7, 2])
    )  # entries of answered images are ignored
    for name in BOOKKEEPING:
        np.testing.assert_array_equal(getattr(answered, name)[0], getattr(further, name)[0])
    assert torch.equal(answered.logits[0], further.logits[0])
    assert further.done.tolist() == [True, True]


def test_a_step_leaves_the_walk_before_it_as_it_was(backbone):
    walk = Traversal.start(backbone, small.pixels(4)).step(np.array([1, 2, 3, 0]))
    before = {name: np.array(getattr(walk, name)) for name in BOOKKEEPING} | {
        name: getattr(walk, name).clone() for name in TENSORS
    }
    features = [group.features.clone() for group in walk.groups]
    once, again = walk.step(np.array([3, 0, 1, 0])), walk.step(np.array([3, 0, 1, 0]))
    assert torch.equal(once.exit_logits, again.exit_logits)
    for name, value in before.items():
        assert (getattr(walk, name) == value).all()
    assert all(
        torch.equal(group.features, was) for group, was in zip(walk.groups, features, strict=True)
    )


@EVERY
def test_gradients_of_the_full_path_are_those_of_the_plain_network(kind, exits):
    backbone = small.backbone(kind, exits).double()
    floats, labels = small.pixels(4).double() / 255, torch.tensor([0, 1, 2, 0])
    ours, theirs = floats.clone().requires_grad_(), floats.clone().requires_grad_()
    walk = small.travel(backbone, ours, np.full((4, 3), backbone.full_path))
    F.cross_entropy(walk.logits, labels).backward()
    F.cross_entropy(backbone.plain().double()(backbone.prepare(theirs)), labels).backward()
    assert (theirs.grad != 0).any()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@KINDS
def test_gradients_reach_every_image_of_a_mixed_batch_and_only_its_own(kind):
    backbone = small.backbone(kind).double()
    floats, ways = small.pixels(8).double() / 255, small.paths(RoutingSpec.of(backbone), 8)
    ways[0] = [0, -1, -1]  # the glance's gradient too
    together = floats.clone().requires_grad_()
    small.travel(backbone, together, ways).logits.square().sum().backward()
    for row in range(8):
        alone = floats[row : row + 1].clone().requires_grad_()
        small.travel(backbone, alone, ways[row : row + 1]).logits.square().sum().backward()
        assert (alone.grad != 0).any()
        torch.testing.assert_close(together.grad[row : row + 1], alone.grad, rtol=1e-9, atol=1e-12)


@KINDS
def test_gradients_pass_through_a_replacement(kind):
    backbone = small.backbone(kind).double()
    old, new = ((small.pixels(3, seed=seed).double() / 255).requires_grad_() for seed in (1, 2))
    walk = Traversal.start(backbone, old).step(np.array([1, 2, 2]))
    walk = walk.replaced(np.array([1]), Traversal.start(backbone, new[:1]))
    for _ in range(3):
        walk = walk.step(np.array([2, 2, 2]))
    walk.logits.square().sum().backward()
    assert old.grad.flatten(1).any(1).tolist() == [True, False, True]
    assert new.grad.flatten(1).any(1).tolist() == [True, False, False]


@EVERY
def test_a_replaced_image_starts_anew_while_the_others_go_on(kind, exits):
    backbone = small.backbone(kind, exits).double()
    first = int(backbone.has_exits)
    old, new = small.pixels(5, seed=1), small.pixels(2, seed=2)
    ways = first + np.array([[0, 1, 0], [1, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 0]])
    fresh = first + np.array([[1, 0, 1], [0, 1, 1]])
    walk = list(steps(Traversal.start(backbone, old), ways[:, :1]))[-1]
    rows = np.array([3, 1])  # in this order
    walk = walk.replaced(rows, Traversal.start(backbone, new))
    for layer in range(3):
        assert walk.layer[rows].tolist() == [layer] * 2
        move = np.full(5, -1)
        stay = [0, 2, 4]
        if layer < 2:
            move[stay] = ways[stay, layer + 1]
        move[rows] = fresh[:, layer]
        walk = walk.step(move)
    assert_same_images(walk, small.travel(backbone, old[stay], ways[stay]), stay)
    assert_same_images(walk, small.travel(backbone, new, fresh), rows)


def test_answered_images_can_be_replaced_by_walks_at_any_layer(backbone):
    backbone = small.backbone("vgg").double()
    old, new = small.pixels(3, seed=1), small.pixels(2, seed=2)
    walk = Traversal.start(backbone, old).step(np.array([0, 3, 0]))
    ahead = Traversal.start(backbone, new).step(np.array([2, 1])).step(np.array([3, 0]))
    walk = walk.replaced(np.array([0, 2]), ahead)
    assert walk.layer.tolist() == [2, 1, 3]
    walk = walk.step(np.array([1, 1, 0])).step(np.array([0, 2, 0]))
    ways = np.array([[2, 3, 1], [3, 1, 2], [1, 0, -1]])
    assert_same_images(walk, small.travel(backbone, torch.stack([new[0], old[1], new[1]]), ways))


def rows_seen(modules):
    """Count the images that pass through each named module; the counter fills as they run."""
    seen, calls = Counter(), Counter()

    def hook(name):
        def count(module, args, result):
            seen[name] += len(args[0])
            calls[name] += 1

        return count

    for name, module in modules.items():
        module.register_forward_hook(hook(name))
    return seen, calls


def test_only_chosen_branches_run_and_only_for_those_who_chose_them():
    backbone = small.backbone("multipath")
    seen, calls = rows_seen(
        {
            (t, 2 + number): branch.conv1
            for t, layer in enumerate(backbone.layers)
            for number, branch in enumerate(layer.branches)
        }
    )
    ways = small.paths(RoutingSpec.of(backbone), 20)
    small.travel(backbone, small.pixels(20), ways)
    chosen = Counter(
        (layer, int(sub_path))
        for way in ways
        for layer, sub_path in enumerate(way)
        if sub_path >= 2
    )
    assert seen == chosen
    prev_sub_path = {
        (layer, int(way[layer - 1]) if layer else 3, int(way[layer]))
        for way in ways
        for layer in range(3)
        if way[layer] >= 2
    }
    assert calls == Counter((layer, sub_path) for layer, _, sub_path in prev_sub_path)


@KINDS
def test_a_layer_runs_once_for_each_sub_path_and_came_by(kind):
    backbone = small.backbone(kind, "bare")
    calls = [[], [], []]
    for layer, found in zip(backbone.layers, calls, strict=True):
        layer.register_forward_hook(
            lambda module, args, result, found=found: found.append((args[1:], len(args[0])))
        )
    ways = small.paths(RoutingSpec.of(backbone), 30)
    small.travel(backbone, small.pixels(30), ways)
    for layer, found in enumerate(calls):
        prev_sub_path = ways[:, layer - 1].tolist() if layer else [backbone.full_path] * 30
        wanted = Counter(
            (way if backbone.reads_prev_sub_path else None, sub_path)
            for way, sub_path in zip(prev_sub_path, ways[:, layer].tolist(), strict=True)
        )
        assert {(args[1], args[0]): count for args, count in found} == wanted
        assert len(found) == len(wanted)


@KINDS
def test_answered_images_are_not_computed_further(kind):
    backbone = small.backbone(kind)
    seen, _ = rows_seen(
        {
            **dict(enumerate(backbone.layers)),
            "head": backbone.head,
            "glance": backbone.glance,
            "exit 1": backbone.layers[1].head,
        }
    )
    small.travel(
        backbone, small.pixels(4), np.array([[0, -1, -1], [1, 0, -1], [1, 2, 0], [2, 2, 2]])
    )
    assert seen == {"glance": 4, 0: 3, "exit 1": 3, 1: 2, 2: 1, "head": 1}


@KINDS
def test_with_exits_off_neither_heads_nor_glance_run(kind):
    backbone = small.backbone(kind)
    seen, _ = rows_seen(
        {"glance": backbone.glance, 1: backbone.layers[1].head, 2: backbone.layers[2].head}
    )
    walk = small.travel(backbone, small.pixels(4), np.full((4, 3), 2), exits=())
    assert not seen
    for name in ("exit_logits", "glance_logits", "glance_pooled"):
        assert (getattr(walk, name) == 0).all()


@KINDS
def test_only_the_exits_asked_for_run(kind):
    backbone = small.backbone(kind)
    seen, _ = rows_seen(
        {"glance": backbone.glance, 1: backbone.layers[1].head, 2: backbone.layers[2].head}
    )
    asked = [0, 2] if backbone.exits_read_glance else [2]
    small.travel(backbone, small.pixels(4), np.full((4, 3), 2), exits=asked)
    assert seen == {"glance": 4, 2: 4} if backbone.exits_read_glance else {2: 4}


@pytest.mark.parametrize(
    ("kind", "sizes"), [("multipath", [1, 2, 3]), ("residual", [6]), ("vgg", [1, 2, 3])]
)
def test_images_are_grouped_by_layer_and_where_it_matters_by_came_by(kind, sizes):
    backbone = small.backbone(kind)
    highest = backbone.full_path
    prev_sub_path = (
        np.array([highest, 1, 2, highest, 2, highest])
        if kind != "residual"
        else np.array([1, 2, 1, 2, 2, 1])
    )
    walk = Traversal.start(backbone, small.pixels(6)).step(prev_sub_path)
    assert sorted(len(group.rows) for group in walk.groups) == sizes
    for group in walk.groups:
        assert group.layer == 1
        assert len(group.features) == len(group.rows)
        if backbone.reads_prev_sub_path:
            assert set(prev_sub_path[group.rows]) == {group.prev_sub_path}
        if kind == "vgg":
            assert group.features.shape[1] == 8 * group.prev_sub_path
    assert sorted(row for group in walk.groups for row in group.rows) == list(range(6))


@EVERY
@pytest.mark.parametrize("bad", [-1, 4])
def test_a_sub_path_that_is_not_there_is_refused(kind, exits, bad):
    backbone = small.backbone(kind, exits)
    walk = Traversal.start(backbone, small.pixels(2))
    with pytest.raises(ValueError, match="`sub_paths`"):
        walk.step(np.array([backbone.full_path, bad if bad < 0 else backbone.num_paths]))


def test_an_exit_that_a_layer_lacks_is_refused():
    walk = Traversal.start(small.backbone("multipath", "one exit"), small.pixels(2))
    with pytest.raises(ValueError, match="`sub_paths` must be valid"):
        walk.step(np.array([1, 0]))


@KINDS
def test_an_exit_that_was_not_run_is_refused(kind):
    walk = Traversal.start(small.backbone(kind), small.pixels(2), exits=[0, 2]).step(
        np.array([1, 1])
    )
    with pytest.raises(ValueError, match=r"`sub_paths` may exit at layers \[0, 2\] only"):
        walk.step(np.array([1, 0]))


@pytest.mark.parametrize(
    ("exits", "asked"),
    [("bare", [1]), ("exits", [0]), ("one exit", [1, 2]), ("glance and exits", [3])],
)
def test_exits_that_are_not_there_cannot_be_asked_for(exits, asked):
    with pytest.raises(ValueError, match="`exits`"):
        Traversal.start(small.backbone("multipath", exits), small.pixels(2), asked)


@KINDS
def test_a_summary_is_made_of_what_its_layout_says(kind):
    backbone = small.backbone(kind)
    where = RoutingSpec.of(backbone).layout.summary
    walk = (
        Traversal.start(backbone, small.pixels(5))
        .step(np.array([2, 2, 2, 2, 0]))
        .step(np.array([1, 1, 1, 0, 0]))
    )
    summary = walk.summary()
    assert (summary.shape, summary.dtype) == ((5, where.size), np.float32)
    assert (summary[3:] == 0).all()
    (group,) = walk.groups
    width = group.features.shape[1]
    features = group.features.mean((2, 3)).detach().numpy()
    z = (features - backbone.summary_mean[2, :width].numpy()) / backbone.summary_std[
        2, :width
    ].numpy()
    np.testing.assert_allclose(
        summary[:3, where.pooled][:, :width], np.clip(z, -CLIP, CLIP), rtol=1e-4, atol=1e-5
    )
    assert (summary[:3, where.pooled][:, width:] == 0).all()
    pooled, logits = (
        part.detach() for part in backbone.glance(backbone.prepare(small.pixels(5)[:3]))
    )
    glance = ((pooled - backbone.glance_mean) / backbone.glance_std).clamp(-CLIP, CLIP)
    np.testing.assert_allclose(summary[:3, where.glance], glance, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        summary[:3, where.glance_probabilities], logits.softmax(1), rtol=1e-4, atol=1e-5
    )
    context = torch.cat([pooled, logits.softmax(1)], 1) if backbone.exits_read_glance else None
    answer = backbone.layers[2].exit(group.features, context).softmax(1).detach().numpy()
    np.testing.assert_allclose(summary[:3, where.exit_probabilities], answer, rtol=1e-4, atol=1e-5)
    ordered = np.sort(answer, 1)
    entropy = -(answer * np.log(answer)).sum(1) / np.log(3)
    wanted = np.stack([ordered[:, -1], ordered[:, -1] - ordered[:, -2], entropy], 1)
    np.testing.assert_allclose(summary[:3, where.confidence], wanted, rtol=1e-4, atol=1e-4)


def test_summaries_are_clipped(backbone):
    backbone = small.backbone("multipath")
    backbone.summary_std.fill_(1e-4)
    backbone.glance_std.fill_(1e-4)
    where = RoutingSpec.of(backbone).layout.summary
    summary = Traversal.start(backbone, small.pixels(4)).step(np.full(4, 2)).summary()
    for part in (where.pooled, where.glance):
        assert np.abs(summary[:, part]).max() == CLIP


@KINDS
def test_the_stem_runs_only_for_images_that_go_on_past_the_glance(kind):
    backbone = small.backbone(kind)
    seen, _ = rows_seen({"stem": backbone.stem})
    walk = Traversal.start(backbone, small.pixels(4))
    assert walk.stem_waits
    assert not seen
    assert (walk.macs == backbone.mac_table.exits[0, -1]).all()
    assert (walk.summary()[:, RoutingSpec.of(backbone).layout.summary.pooled] == 0).all()
    walk = walk.step(np.array([0, 2, 1, 2]))
    assert seen == {"stem": 3}
    assert walk.macs[0] == backbone.mac_table.exits[0, -1]
    assert (walk.macs[1:] > backbone.mac_table.stem + backbone.mac_table.exits[0, -1]).all()


@pytest.mark.parametrize("exits", ["bare", "exits"])
def test_without_a_glance_the_stem_runs_at_once(exits):
    backbone = small.backbone("multipath", exits)
    seen, _ = rows_seen({"stem": backbone.stem})
    walk = Traversal.start(backbone, small.pixels(4))
    assert not walk.stem_waits
    assert seen == {"stem": 4}
    assert (walk.macs == backbone.mac_table.stem).all()
    assert (walk.summary()[:, RoutingSpec.of(backbone).layout.summary.pooled] != 0).any()
    walk.step(np.array([1, 2, 1, 2]))
    assert seen == {"stem": 4}


@EVERY
def test_modules_of_a_backbone_are_never_put_into_training_mode_by_walking(kind, exits):
    backbone = small.backbone(kind, exits)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    small.travel(backbone, small.pixels(4), small.paths(RoutingSpec.of(backbone), 4)).summary()
    assert not any(
        module.training for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)
    )
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_exits_that_read_the_glance_need_it():
    with pytest.raises(ValueError, match=r"`exits` must include 0, the glance.*got \[2\]"):
        Traversal.start(small.backbone("whitened"), small.pixels(2), [2])


def test_exit_heads_send_no_gradients_into_the_glance():
    backbone = small.backbone("whitened")
    walk = Traversal.start(backbone, small.pixels(4)).step(np.full(4, 3))
    walk.exit_logits.sum().backward()
    assert backbone.layers[1].head.context.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.glance.parameters())
