"""The table of all paths: it says what the live network does, and its optimum is the optimum."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rnr_gym import storage
from rnr_gym.backbones.macs import MacTable
from rnr_gym.routing import route_table
from rnr_gym.routing.live import Live
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from tests import small

EVERY = pytest.mark.parametrize(
    ("kind", "exits", "on"),
    [(kind, exits, on) for kind in small.KINDS for exits in small.EXITS for on in ((True, False) if exits != "bare" else (True,))],
)


def whole_paths(spec):
    """Every whole path, by brute force over all strings of sub-paths."""
    found = set()
    for path in itertools.product(range(spec.num_paths), repeat=spec.num_layers):
        end = path.index(0) + 1 if spec.has_exits and 0 in path else spec.num_layers
        if all(spec.valid[layer, path[layer]] for layer in range(end)):
            found.add(path[:end] + (-1,) * (spec.num_layers - end))
    return found


@EVERY
def test_paths_are_all_whole_paths_each_once(kind, exits, on):
    spec = small.backbone(kind, exits).spec(on)
    tree = route_table.tree(spec)
    inner = len(tree.child)
    assert inner == route_table.num_prefixes(spec)
    answered = [tuple(path) for path in tree.path[inner:].tolist()]
    assert len(answered) == len(set(answered))
    assert set(answered) == whole_paths(spec)
    assert len({tuple(path) for path in tree.path[:inner].tolist()}) == inner


@EVERY
def test_children_continue_their_prefix(kind, exits, on):
    spec = small.backbone(kind, exits).spec(on)
    tree = route_table.tree(spec)
    np.testing.assert_array_equal(tree.child[0] >= 0, spec.valid[0])
    assert sorted(tree.child[tree.child >= 0]) == list(range(1, len(tree.layer)))  # each but the root has one parent
    for place, row in enumerate(tree.child):
        layer = tree.layer[place]
        np.testing.assert_array_equal(row >= 0, spec.valid[layer])
        for sub_path in np.flatnonzero(row >= 0):
            child, wanted = row[sub_path], tree.path[place].copy()
            wanted[layer] = sub_path
            assert tree.path[child].tolist() == wanted.tolist()
            assert tree.prev_sub_path[child] == sub_path
            assert (child >= len(tree.child)) == (layer + 1 == spec.num_layers or (spec.has_exits and sub_path == 0))


@EVERY
def test_a_table_says_what_the_live_network_does_on_every_path(kind, exits, on):
    backbone, images = small.backbone(kind, exits), small.images(10)
    spec = backbone.spec(on)
    table = route_table.build(backbone, images, spec, batch_size=4, progress=False)
    batch, labels = torch.from_numpy(np.array(images.images)), torch.from_numpy(np.array(images.labels))
    for path in whole_paths(spec):
        live = Traversal.start(backbone, batch, None if on else ())
        walk = table.start(np.arange(10))
        for sub_path in path:
            for name in ("layer", "prev_sub_path", "macs", "path", "done"):
                np.testing.assert_array_equal(getattr(walk, name), getattr(live, name))
            np.testing.assert_allclose(walk.summary(), live.summary(), rtol=1e-4, atol=1e-4)
            live, walk = live.step(np.full(10, sub_path)), walk.step(np.full(10, sub_path))
        assert walk.done.all()
        np.testing.assert_array_equal(walk.macs, live.macs)
        assert (walk.summary() == 0).all()
        outcome = table.outcome(walk, np.arange(10), np.arange(10))
        np.testing.assert_allclose(outcome.loss, F.cross_entropy(live.logits, labels, reduction="none").detach(), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(outcome.prediction, live.logits.argmax(1))
        (number,) = np.flatnonzero((table.paths == path).all(1))
        assert table.compute[number] == live.macs[0] / spec.plain_macs
        np.testing.assert_array_equal(table.correct[number], outcome.prediction == images.labels)


def test_outcomes_have_the_types_that_live_ones_have(backbone, images):
    live, table = Live(backbone, images, backbone.spec()), route_table.build(backbone, images, backbone.spec(), progress=False)
    for source in (live, table):
        walk = source.start(np.array([3, 5])).step(np.array([0, 0]))
        outcome = source.outcome(walk, np.array([5]), np.array([1]))
        assert (outcome.prediction.dtype, outcome.loss.dtype) == (np.int64, np.float64)
        assert outcome.prediction.shape == outcome.loss.shape == (1,)
        assert (walk.macs.dtype, walk.layer.dtype, walk.prev_sub_path.dtype, walk.path.dtype) == (np.int64, np.int64, np.int64, np.int8)
        assert walk.summary().dtype == np.float32


STEM, EXIT, HEAD, COSTS = 10, 3, 7, {0: 0, 1: 5, 2: 20}


def hand_made(seed=0, images=4):
    """Two layers, exits everywhere, sub-paths that cost 5 and 20; predictions and losses at random."""
    table = MacTable(STEM, np.tile(np.array(list(COSTS.values())), (2, 3, 1)), np.full((2, 3), EXIT), np.full(3, HEAD))
    facts = {"pooled": 1, "glance": 0, "classes": 2, "has_exits": True, "loss_scale": 0.5}
    rng, answers = np.random.default_rng(seed), 7
    labels, summary = rng.integers(0, 2, images), np.zeros((3, images, 1 + 2 + 2 + 3), np.float32)
    prediction, loss = rng.integers(0, 2, (answers, images)).astype(np.int16), rng.exponential(size=(answers, images)).astype(np.float32)
    return RouteTable(RoutingSpec(facts, np.ones((2, 3), np.bool_), table), labels, summary, prediction, loss)


def cost_of(path):
    """Compute of a path of the hand-made table, counted here."""
    macs = EXIT
    for layer, sub_path in enumerate(path):
        if sub_path == 0:
            break
        macs += STEM + COSTS[sub_path] + EXIT if layer == 0 else COSTS[sub_path] + HEAD
    return macs / (STEM + 20 + 20 + HEAD)


def test_compute_of_a_hand_made_table():
    table = hand_made()
    assert len(table.paths) == 7
    for path, compute in zip(table.paths.tolist(), table.compute, strict=True):
        assert compute == cost_of(path)


def best_return(table, image, tradeoff, reward):
    """The most return of any path for one image, path by path, and the cheapest compute that brings it."""
    found = []
    for number, path in enumerate(table.paths.tolist()):
        right = table.prediction[number, image] == table.labels[image]
        task = float(right) if reward == "accuracy" else -0.5 * float(table.loss[number, image])
        found.append((task - tradeoff * cost_of(path), -cost_of(path)))
    return max(found)


@pytest.mark.parametrize("reward", ["accuracy", "cross_entropy"])
@pytest.mark.parametrize("tradeoff", [0.0, 0.1, 0.7, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_oracle_is_the_best_path_of_each_image(seed, tradeoff, reward):
    table = hand_made(seed)
    paths = table.oracle(tradeoff, reward)
    assert (paths.dtype, paths.shape) == (np.int8, (4, 2))
    chosen = table.answers(paths)
    for image in range(4):
        best, minus_cost = best_return(table, image, tradeoff, reward)
        assert table.returns(tradeoff, reward)[chosen[image], image] == pytest.approx(best, abs=1e-12)
        assert cost_of(paths[image].tolist()) == pytest.approx(-minus_cost, abs=1e-12)


def test_of_two_equal_paths_the_oracle_takes_the_cheaper():
    table = hand_made()
    table.prediction[:] = table.labels  # all paths are right, and compute costs nothing
    assert table.oracle(0.0).tolist() == [[0, -1]] * 4
    table.prediction[0] = 1 - table.labels  # but the glance
    assert table.oracle(0.0).tolist() == [[1, 0]] * 4
    table.prediction[:] = 1 - table.labels
    assert table.oracle(0.0).tolist() == [[0, -1]] * 4


@pytest.mark.parametrize("reward", ["accuracy", "cross_entropy"])
@pytest.mark.parametrize("tradeoff", [0.0, 0.3, 2.0])
def test_the_oracle_has_no_regret_and_nobody_has_less(tradeoff, reward):
    table = hand_made(1)
    assert table.regret(table.oracle(tradeoff, reward), tradeoff, reward) == 0.0
    for choice in itertools.product(range(7), repeat=2):
        paths = table.paths[[*choice, 3, 5]]
        regret = table.regret(paths, tradeoff, reward)
        assert regret >= 0.0
        best = [best_return(table, image, tradeoff, reward)[0] for image in range(4)]
        taken = [table.returns(tradeoff, reward)[number, image] for image, number in enumerate([*choice, 3, 5])]
        assert regret == pytest.approx(np.mean(best) - np.mean(taken), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_the_front_is_the_best_of_all_choices(seed):
    table = hand_made(seed)
    choices = np.array(list(itertools.product(range(7), repeat=4)))
    compute = np.array([cost_of(path) for path in table.paths.tolist()])[choices].mean(1)
    accuracy = (table.prediction == table.labels)[choices, np.arange(4)].mean(1)
    found_compute, found_accuracy = table.front()
    for least, share in zip(found_compute, found_accuracy, strict=True):
        assert compute[accuracy >= share - 1e-12].min() == pytest.approx(least, abs=1e-12)
        assert accuracy[compute <= least + 1e-12].max() >= share - 1e-12
    assert found_accuracy[-1] == accuracy.max()
    assert found_compute[0] == pytest.approx(compute.min())
    assert (np.diff(found_compute) >= 0).all()
    assert (np.diff(found_accuracy) > 0).all()


@pytest.mark.parametrize("path", [[1, -1], [-1, -1], [0, 1], [3, 1]])
def test_paths_that_are_not_whole_are_refused(path):
    table = hand_made()
    paths = np.array([[2, 2], path, [0, -1], [1, 0]], np.int8)
    if path == [0, 1]:  # what stands after an exit is never read
        assert table.answers(paths)[1] == table.answers(np.array([[0, -1]]))[0]
    else:
        with pytest.raises(ValueError, match="`paths`"):
            table.answers(paths)


@pytest.fixture(scope="module")
def masked():
    """A table in which only layer 2 has an exit."""
    backbone = small.backbone("multipath", "one exit")
    return route_table.build(backbone, small.images(4), backbone.spec(), progress=False)


@pytest.mark.parametrize("path", [[0, -1, -1], [1, 0, -1], [0, 1, 1], [1, 0, 0]])
def test_paths_through_masked_sub_paths_are_refused(masked, path):
    with pytest.raises(ValueError, match="`paths`"):
        masked.answers(np.array([path], np.int8))


@pytest.mark.parametrize("bad", [0, -1, 4])
def test_a_table_walk_refuses_a_sub_path_that_is_not_there(masked, bad):
    with pytest.raises(ValueError, match="`sub_paths`"):
        masked.start(np.arange(2)).step(np.array([1, bad]))


def test_table_walks_are_replaced_image_by_image():
    table = hand_made()
    walk = table.start(np.array([0, 1, 2])).step(np.array([1, 0, 2]))
    walk = walk.replaced(np.array([1, 0]), table.start(np.array([3, 2])).step(np.array([2, 1])))
    assert walk.path.tolist() == [[1, -1], [2, -1], [2, -1]]
    assert walk.index.tolist() == [2, 3, 2]
    walk = walk.step(np.array([0, 1, 2]))
    outcome = table.outcome(walk, walk.index[[1, 2]], np.array([1, 2]))
    numbers = table.answers(np.array([[2, 1], [2, 2]]))
    assert outcome.prediction.tolist() == table.prediction[numbers, [3, 2]].tolist()


def test_a_table_that_would_be_too_large_is_refused_before_it_is_built(monkeypatch, backbone, images):
    spec = backbone.spec()
    monkeypatch.setattr(route_table, "LIMIT", route_table.num_prefixes(spec) * len(images) - 1)
    with pytest.raises(ValueError, match='`backend="table"` holds at most'):
        route_table.build(backbone, images, spec, progress=False)
    monkeypatch.setattr(route_table, "LIMIT", route_table.num_prefixes(spec) * len(images))
    assert len(route_table.build(backbone, images, spec, progress=False).labels) == len(images)


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("kind", small.KINDS)
def test_a_table_comes_back_from_disk_bit_for_bit(tmp_path, kind, on):
    backbone = small.backbone(kind)
    table = route_table.build(backbone, small.images(6), backbone.spec(on), progress=False)
    table.save(tmp_path / "file")
    again = RouteTable.load(tmp_path / "file")
    for name in ("labels", "summary", "prediction", "loss"):
        ours, theirs = getattr(table, name), getattr(again, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip((*table.tree, *table.spec.mac_table), (*again.tree, *again.spec.mac_table), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert again.spec.facts == table.spec.facts
    assert again.spec.digest == table.spec.digest
    np.testing.assert_array_equal(again.spec.valid, table.spec.valid)


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("kind", small.KINDS)
def test_quantised_summaries_take_a_byte_a_value_and_come_back_the_same(tmp_path, kind, on):
    backbone = small.backbone(kind, summary_groups=8)
    table = route_table.build(backbone, small.images(6), backbone.spec(on), progress=False)
    table.save(tmp_path / "file")
    stored, again = storage.load_tensors(tmp_path / "file")[0]["summary"], RouteTable.load(tmp_path / "file")
    assert (stored.dtype, tuple(stored.shape)) == (torch.int8, table.summary.shape)
    assert again.summary.dtype == np.float32
    for name in ("labels", "summary", "prediction", "loss"):
        np.testing.assert_array_equal(getattr(table, name), getattr(again, name))
    assert again.spec.quantised
    assert again.spec.digest == table.spec.digest
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()


def test_quantised_summaries_come_back_bit_for_bit(tmp_path):
    backbone = small.backbone("multipath", summary_groups=8)
    table = route_table.build(backbone, small.images(6), backbone.spec(), progress=False)
    table.save(tmp_path / "file")
    assert RouteTable.load(tmp_path / "file").summary.tobytes() == table.summary.tobytes()


def test_other_summaries_keep_their_precision_on_disk(tmp_path):
    hand_made().save(tmp_path / "file")
    assert storage.load_tensors(tmp_path / "file")[0]["summary"].dtype == torch.float32


def test_batch_size_does_not_matter(backbone, images):
    one, other = (route_table.build(backbone, images, backbone.spec(), batch_size=size, progress=False) for size in (5, 24))
    np.testing.assert_allclose(one.summary, other.summary, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [np.array([5, 2, 2]), np.arange(24) % 7 == 1])
def test_a_part_of_a_table_is_the_table_of_that_part(backbone, images, rows):
    part = route_table.build(backbone, images, backbone.spec(), progress=False).take(rows)
    wanted = route_table.build(backbone, images.take(rows), backbone.spec(), progress=False)
    np.testing.assert_array_equal(part.labels, wanted.labels)
    np.testing.assert_array_equal(part.prediction, wanted.prediction)
    np.testing.assert_allclose(part.loss, wanted.loss, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(part.summary, wanted.summary, rtol=1e-4, atol=1e-4)
