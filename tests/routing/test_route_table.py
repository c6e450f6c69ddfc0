"""The table of all paths: it says what the live network does, and its optimum is the optimum."""

import copy
import dataclasses
import itertools
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch.nn import functional as F

from rnr_gym import storage
from rnr_gym.backbones import base
from rnr_gym.backbones.macs import MacTable, TimeTable
from rnr_gym.routing import route_table
from rnr_gym.routing.live import Live
from rnr_gym.routing.path_tree import num_prefixes
from rnr_gym.routing.rollout import follow
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from tests.fixtures import small
from tests.fixtures.routing import (
    PROBLEMS,
    assert_near,
    assert_same_arrays,
    assert_same_spec,
    whole_paths,
)

EVERY = pytest.mark.parametrize(("kind", "exits", "on"), PROBLEMS)
KINDS = pytest.mark.parametrize("kind", small.KINDS)
EXITS_ON = pytest.mark.parametrize("on", [True, False])
REWARDS = pytest.mark.parametrize("reward", ["accuracy", "cross_entropy"])
ARRAYS = ("labels", "summary", "prediction", "loss")
STATE_ARRAYS = ("layer", "prev_sub_path", "macs", "path", "done")
EVERY_IMAGE = np.arange(10)
NOT_WHOLE = "`paths` must be whole paths of this backbone"
OTHER_VERSION = "`path` must be a route table as this version writes it"

STEM = 10
EXIT = 3
HEAD = 7
COSTS = (0, 5, 20)
"""MACs in the hand-made table: `COSTS` are those of both layers, by sub-path."""


def built(backbone, images, on=True):
    """The table of a backbone and images."""
    spec = RoutingSpec.of(backbone, on)
    return route_table.build(backbone, images, spec, progress=False)


def hand_made(seed=0):
    """Two layers with exits and sub-paths that cost 5 and 20; four images, answered at random."""
    # What was executed before does not matter here.
    mac_table = MacTable(
        stem=STEM,
        layers=np.tile(COSTS, (2, 3, 1)),
        exits=np.full((2, 3), EXIT),
        head=np.full(3, HEAD),
    )
    spec = RoutingSpec(
        valid=np.ones((2, 3), np.bool_),
        mac_table=mac_table,
        num_classes=2,
        pooled_width=1,
        glance_width=0,
        has_exits=True,
        loss_scale=0.5,
    )

    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 4)
    prediction = rng.integers(0, 2, (7, 4))
    loss = rng.exponential(size=(7, 4))
    return RouteTable(
        spec=spec,
        labels=labels,
        summary=np.zeros((3, 4, spec.layout.summary.size), np.float32),
        prediction=prediction.astype(np.int16),
        loss=loss.astype(np.float32),
    )


TIMES = TimeTable(
    stem=100,
    # The second sub-path takes hardly longer than the first, and exits take long.
    layers=np.tile((0, 180, 200), (2, 3, 1)),
    exits=np.full((2, 3), 150),
    head=np.full(3, 50),
)
"""Nanoseconds for the hand-made table."""


def compute_of(path):
    """Compute of a path of the hand-made table, counted here."""
    macs = EXIT
    for layer, sub_path in enumerate(path):
        if sub_path == 0:
            break

        macs += COSTS[sub_path]
        if layer == 0:
            # The stem runs only for images that stay, and the exit head on arrival.
            macs += STEM + EXIT
        else:
            macs += HEAD
    return macs / (STEM + 20 + 20 + HEAD)


def best_of(table, image_idx, tradeoff, reward):
    """The highest return of any path for one image, and the lowest compute that gives it."""
    candidates = []
    label = table.labels[image_idx]
    for answer, path in enumerate(table.paths.tolist()):
        if reward == "accuracy":
            task = float(table.prediction[answer, image_idx] == label)
        else:
            task = -0.5 * float(table.loss[answer, image_idx])

        compute = compute_of(path)
        candidates.append((task - tradeoff * compute, -compute))

    highest, minus_compute = max(candidates)
    return highest, -minus_compute


@EVERY
def test_table_states_match_live_states(kind, exits, on, monkeypatch):
    monkeypatch.setattr(base, "BATCH_SIZE", 4)
    backbone = small.backbone(kind, exits)
    table = built(backbone, small.images(10), on)
    live = Live(backbone, small.images(10), table.spec)

    for path in whole_paths(table.spec):
        live_state = live.start(EVERY_IMAGE)
        state = table.start(EVERY_IMAGE)
        for sub_path in path:
            for name in STATE_ARRAYS:
                expected = getattr(live_state, name)
                assert_array_equal(getattr(state, name), expected, name)
            assert_near(state.summary(), live_state.summary())

            # Both ignore what follows an exit.
            sub_paths = np.full(10, sub_path)
            live_state = live_state.step(sub_paths)
            state = state.step(sub_paths)

        assert state.done.all()
        assert (state.summary() == 0).all()
        assert_array_equal(state.macs, live_state.macs)


@EVERY
def test_table_answers_match_the_network(kind, exits, on):
    backbone = small.backbone(kind, exits)
    images = small.images(10)
    table = built(backbone, images, on)
    pixels = small.pixels_of(images)
    labels = torch.from_numpy(np.array(images.labels))
    exit_layers = None
    if not on:
        exit_layers = ()

    for path in whole_paths(table.spec):
        start = Traversal.start(backbone, pixels, exit_layers)
        traversal = follow(start, np.array(path))
        logits = traversal.logits.detach()
        state = follow(table.start(EVERY_IMAGE), np.array(path))
        outcome = table.outcome(state, EVERY_IMAGE, EVERY_IMAGE)
        loss = F.cross_entropy(logits, labels, reduction="none")
        assert_array_equal(outcome.prediction, logits.argmax(1))
        assert_near(outcome.loss, loss)

        (answer,) = np.flatnonzero((table.paths == path).all(1))
        compute = traversal.macs[0] / table.spec.plain_macs
        assert table.compute[answer] == compute
        is_right = outcome.prediction == images.labels
        assert_array_equal(table.correct[answer], is_right)


@pytest.fixture(params=["live", "table"])
def source(request, backbone, images):
    """The same problem as a network and as a table."""
    if request.param == "live":
        return Live(backbone, images, RoutingSpec.of(backbone))
    return built(backbone, images)


def test_states_have_the_documented_types(source):
    state = source.start(np.array([3, 5]))
    state = state.step(np.zeros(2, np.int64))
    assert state.layer.dtype == np.int64
    assert state.prev_sub_path.dtype == np.int64
    assert state.macs.dtype == np.int64
    assert state.path.dtype == np.int8
    assert state.summary().dtype == np.float32

    outcome = source.outcome(state, np.array([5]), np.array([1]))
    assert outcome.prediction.dtype == np.int64
    assert outcome.prediction.shape == (1,)
    assert outcome.loss.dtype == np.float64
    assert outcome.loss.shape == (1,)


def test_compute_of_hand_made_table():
    table = hand_made()
    assert len(table.paths) == 7
    for path, compute in zip(table.paths.tolist(), table.compute, strict=True):
        assert compute == compute_of(path)


@REWARDS
@pytest.mark.parametrize("tradeoff", [0.0, 0.1, 0.7, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_oracle_takes_best_path_of_each_image(seed, tradeoff, reward):
    table = hand_made(seed)
    paths = table.oracle(tradeoff, reward)
    assert paths.dtype == np.int8
    assert paths.shape == (4, 2)

    returns = table.returns(tradeoff, reward)
    answers = table.path_index(paths)
    for image_idx, path in enumerate(paths.tolist()):
        best_return, compute = best_of(table, image_idx, tradeoff, reward)
        actual = returns[answers[image_idx], image_idx]
        assert actual == pytest.approx(best_return, abs=1e-12)
        assert compute_of(path) == pytest.approx(compute, abs=1e-12)


def test_oracle_takes_cheaper_of_equal_paths():
    table = hand_made()
    # All paths are right, and compute costs nothing.
    table.prediction[:] = table.labels
    assert (table.oracle(0.0) == [0, -1]).all()

    # All but the glance are right.
    table.prediction[0] = 1 - table.labels
    assert (table.oracle(0.0) == [1, 0]).all()

    # All are wrong.
    table.prediction[:] = 1 - table.labels
    assert (table.oracle(0.0) == [0, -1]).all()


@REWARDS
@pytest.mark.parametrize("tradeoff", [0.0, 0.3, 2.0])
def test_regret_is_loss_against_the_oracle(tradeoff, reward):
    table = hand_made(1)
    oracle = table.oracle(tradeoff, reward)
    assert table.regret(oracle, tradeoff, reward) == 0.0

    returns = table.returns(tradeoff, reward)
    best_returns = []
    for image_idx in range(4):
        best_return, _ = best_of(table, image_idx, tradeoff, reward)
        best_returns.append(best_return)

    # Two images take any path, the other two always the same.
    for first, second in itertools.product(range(7), repeat=2):
        answers = [first, second, 3, 5]
        regret = table.regret(table.paths[answers], tradeoff, reward)
        assert regret >= 0.0
        taken = returns[answers, np.arange(4)]
        lost = np.mean(best_returns) - np.mean(taken)
        assert regret == pytest.approx(lost, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_discounted_front_is_best_of_all_choices(seed):
    table = hand_made(seed)
    gamma = 0.7
    worth = []
    charge = []
    for path in table.paths.tolist():
        steps = [sub_path for sub_path in path if sub_path >= 0]
        after = [compute_of(steps[: number + 1]) for number in range(len(steps))]
        spent = np.diff([0.0, *after])
        charge.append(sum(gamma**step * part for step, part in enumerate(spent)))
        worth.append(gamma ** (len(steps) - 1))
    task = np.array(worth)[:, None] * (table.prediction == table.labels)
    compute, accuracy = table.front(gamma)
    for price in np.geomspace(0.01, 10.0, 30):
        best = (task - price * np.array(charge)[:, None]).max(0).mean()
        assert (accuracy - price * compute).max() == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_front_is_best_of_all_choices(seed):
    table = hand_made(seed)
    # Mean compute and accuracy of each way to choose one path per image.
    choices = np.array(list(itertools.product(range(7), repeat=4)))
    path_compute = [compute_of(path) for path in table.paths.tolist()]
    compute = np.array(path_compute)[choices].mean(1)
    is_right = table.prediction == table.labels
    accuracy = is_right[choices, np.arange(4)].mean(1)

    front_compute, front_accuracy = table.front()
    for lowest, highest in zip(front_compute, front_accuracy, strict=True):
        as_accurate = accuracy >= highest - 1e-12
        assert compute[as_accurate].min() == pytest.approx(lowest, abs=1e-12)
        as_cheap = compute <= lowest + 1e-12
        assert accuracy[as_cheap].max() >= highest - 1e-12

    assert front_accuracy[-1] == accuracy.max()
    assert front_compute[0] == pytest.approx(compute.min())
    assert (np.diff(front_compute) >= 0).all()
    assert (np.diff(front_accuracy) > 0).all()


@pytest.mark.parametrize(
    "path",
    [
        [1, -1],
        [-1, -1],
        [3, 1],
    ],
    ids=str,
)
def test_path_index_rejects_partial_paths(path):
    table = hand_made()
    paths = table.paths[[6, 0, 1, 2]]
    paths[1] = path
    with pytest.raises(ValueError, match=NOT_WHOLE):
        table.path_index(paths)


def test_path_index_ignores_what_follows_an_exit():
    table = hand_made()
    paths = np.array([[2, 2], [0, 1]], np.int8)
    answers = table.path_index(paths)
    assert table.paths[answers].tolist() == [[2, 2], [0, -1]]


@pytest.fixture(scope="module")
def masked():
    """A table in which only layer 2 has an exit."""
    backbone = small.backbone("multipath", "one exit")
    return built(backbone, small.images(4))


@pytest.mark.parametrize(
    "path",
    [
        [0, -1, -1],
        [1, 0, -1],
        [0, 1, 1],
        [1, 0, 0],
    ],
    ids=str,
)
def test_path_index_rejects_masked_sub_paths(masked, path):
    paths = np.array([path], np.int8)
    with pytest.raises(ValueError, match=NOT_WHOLE):
        masked.path_index(paths)


@pytest.mark.parametrize("sub_path", [0, -1, 4])
def test_table_step_rejects_invalid_sub_path(masked, sub_path):
    start = masked.start(np.arange(2))
    message = rf"`sub_paths` must be valid at their layers \[0, 0\], got \[1, {sub_path}\]"
    with pytest.raises(ValueError, match=message):
        start.step(np.array([1, sub_path]))


def test_table_state_replaces_some_images():
    table = hand_made()
    state = table.start(np.array([0, 1, 2]))
    state = state.step(np.array([1, 0, 2]))
    newcomers = table.start(np.array([3, 2]))
    newcomers = newcomers.step(np.array([2, 1]))

    state = state.replaced(np.array([1, 0]), newcomers)
    assert state.image_idx.tolist() == [2, 3, 2]
    assert state.path[:, 0].tolist() == [1, 2, 2]
    assert (state.path[:, 1] == -1).all()

    state = state.step(np.array([0, 1, 2]))
    batch_idx = np.array([1, 2])
    image_idx = state.image_idx[batch_idx]
    outcome = table.outcome(state, image_idx, batch_idx)
    answers = table.path_index(np.array([[2, 1], [2, 2]]))
    assert_array_equal(outcome.prediction, table.prediction[answers, [3, 2]])


def test_build_rejects_too_large_tables(monkeypatch, backbone, images):
    # The limit is one that a table may reach.
    size = num_prefixes(RoutingSpec.of(backbone)) * len(images)
    monkeypatch.setattr(route_table, "LIMIT", size - 1)
    with pytest.raises(ValueError, match='`backend="table"` holds at most'):
        built(backbone, images)

    monkeypatch.setattr(route_table, "LIMIT", size)
    assert len(built(backbone, images).labels) == len(images)


@pytest.mark.parametrize("batch_size", [5, 24])
def test_build_batch_size_does_not_matter(monkeypatch, backbone, images, batch_size):
    whole = built(backbone, images)
    monkeypatch.setattr(base, "BATCH_SIZE", batch_size)
    table = built(backbone, images)
    assert_near(table.summary, whole.summary)
    assert_near(table.loss, whole.loss)


@pytest.mark.parametrize(
    "idx",
    [
        np.array([5, 2, 2]),
        np.arange(24) % 7 == 1,
    ],
    ids=["indices", "mask"],
)
def test_take_equals_table_of_those_images(backbone, images, idx):
    part = built(backbone, images).take(idx)
    expected = built(backbone, images.take(idx))
    assert_array_equal(part.labels, expected.labels)
    assert_array_equal(part.prediction, expected.prediction)
    assert_near(part.loss, expected.loss)
    assert_near(part.summary, expected.summary)


@pytest.fixture
def saved(tmp_path):
    """Where a table is saved."""
    return tmp_path / "table.safetensors"


@EXITS_ON
@KINDS
def test_saved_table_is_read_back_exactly(saved, kind, on):
    table = built(small.backbone(kind), small.images(6), on)
    table.save(saved)
    loaded = RouteTable.load(saved)
    for name in ARRAYS:
        expected = getattr(table, name)
        actual = getattr(loaded, name)
        assert actual.dtype == expected.dtype
        assert_array_equal(actual, expected, name)

    assert_same_arrays(loaded.tree, table.tree)
    assert_same_spec(loaded.spec, table.spec)


@EXITS_ON
@KINDS
def test_quantised_table_is_read_back_exactly(saved, kind, on):
    backbone = small.backbone(kind, summary_groups=8)
    table = built(backbone, small.images(6), on)
    table.save(saved)
    loaded = RouteTable.load(saved)
    assert loaded.summary.dtype == np.float32
    for name in ARRAYS:
        expected = getattr(table, name)
        assert_array_equal(getattr(loaded, name), expected, name)

    assert loaded.spec.quantised
    assert_same_spec(loaded.spec, table.spec)
    # To the last bit: 0.0 has not become -0.0.
    assert loaded.summary.tobytes() == table.summary.tobytes()

    written = saved.read_bytes()
    loaded.save(saved)
    assert saved.read_bytes() == written


@KINDS
def test_quantised_summaries_take_one_byte(saved, kind):
    backbone = small.backbone(kind, summary_groups=8)
    table = built(backbone, small.images(6))
    table.save(saved)
    tensors, _ = storage.load_tensors(saved)
    assert tensors["summary"].dtype == torch.int8
    assert tuple(tensors["summary"].shape) == table.summary.shape


def test_other_summaries_are_stored_in_float32(saved):
    hand_made().save(saved)
    tensors, _ = storage.load_tensors(saved)
    assert tensors["summary"].dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    ["unknown field", "missing field", "missing origin", "missing array", "missing spec"],
)
def test_load_rejects_tables_of_other_versions(saved, change):
    hand_made().save(saved)
    tensors, metadata = storage.load_tensors(saved)
    if change == "unknown field":
        metadata["spec"]["colour"] = "red"
    elif change == "missing origin":
        del metadata["origin"]
    elif change == "missing array":
        del tensors["loss"]
    elif change == "missing field":
        del metadata["spec"]["num_classes"]
    else:
        metadata["problem"] = metadata.pop("spec")

    storage.save_tensors(saved, tensors, metadata)
    with pytest.raises(ValueError, match=OTHER_VERSION):
        RouteTable.load(saved)


def test_load_rejects_files_that_hold_no_table(saved):
    storage.save_tensors(saved, {"weight": torch.zeros(3)}, {"config": {}})
    with pytest.raises(ValueError, match=OTHER_VERSION):
        RouteTable.load(saved)


def test_load_reports_a_missing_file(saved):
    with pytest.raises(FileNotFoundError, match="`path`"):
        RouteTable.load(saved)


def test_timed_table_charges_nanoseconds():
    table = hand_made()
    timed = table.timed(TIMES)
    plain = 100 + 200 + 200 + 50
    expected = {
        (0, -1): 150,
        (1, 0): 150 + 100 + 180 + 150,
        (2, 0): 150 + 100 + 200 + 150,
        (1, 1): 150 + 100 + 180 + 150 + 180 + 50,
        (1, 2): 150 + 100 + 180 + 150 + 200 + 50,
        (2, 1): 150 + 100 + 200 + 150 + 180 + 50,
        (2, 2): 150 + 100 + 200 + 150 + 200 + 50,
    }
    for path, compute in zip(timed.paths.tolist(), timed.compute, strict=True):
        assert compute == expected[tuple(path)] / plain
        returns = timed.returns(0.7)[timed.path_index(np.array([path]))[0]]
        correct = table.correct[table.path_index(np.array([path]))[0]]
        np.testing.assert_allclose(returns, correct - 0.7 * expected[tuple(path)] / plain)

    # MACs are still counted, and the outcomes are shared.
    assert_array_equal(timed.tree.macs, table.tree.macs)
    assert timed.loss is table.loss
    front_compute, _ = timed.front()
    assert front_compute[0] == pytest.approx(150 / plain)


def test_oracle_follows_what_is_charged():
    table = hand_made()
    # Two paths are right: to leave after the cheap sub-path, and to stay at the glance's expense.
    prediction = np.repeat(1 - table.labels[None], 7, axis=0).astype(np.int16)
    for path in ([1, 0], [0, -1]):
        prediction[table.path_index(np.array([path]))] = table.labels
    table = dataclasses.replace(table, prediction=prediction)
    assert (table.oracle(0.1) == [0, -1]).all()

    # The glance now takes longer than all the rest together.
    slow = np.full((2, 3), 1)
    slow[0] = 10_000
    timed = table.timed(TIMES._replace(exits=slow))
    assert (timed.oracle(0.01) == [0, -1]).all()
    # Whoever pays for the glance anyway is answered by it; above a compute of 1 / λ nothing pays.
    returns = timed.returns(0.05)
    assert (returns.max(0) == returns[timed.path_index(np.array([[0, -1]]))[0]]).all()
    assert timed.regret(np.tile([1, 0], (4, 1)), 0.01) == pytest.approx(0.01 * 281 / 550)


def test_timed_table_is_pickled_as_its_file(tmp_path):
    path = tmp_path / "table.safetensors"
    hand_made().save(path)
    timed = RouteTable.load(path).timed(TIMES)
    sent = pickle.dumps(timed)
    assert timed.summary.tobytes() not in sent
    received = pickle.loads(sent)
    assert_array_equal(received.compute, timed.compute)
    assert received.spec.digest == timed.spec.digest


def test_table_is_saved_without_times(tmp_path):
    path = tmp_path / "table.safetensors"
    table = hand_made()
    table.timed(TIMES).save(path)
    loaded = RouteTable.load(path)
    assert loaded.spec.time_table is None
    assert loaded.spec.digest == table.spec.digest


def test_loaded_table_is_pickled_as_its_file(tmp_path):
    path = tmp_path / "table.safetensors"
    table = hand_made(0)
    table.save(path)
    loaded = RouteTable.load(path)
    sent = pickle.dumps(loaded)
    assert str(path).encode() in sent
    assert loaded.summary.tobytes() not in sent

    received = pickle.loads(sent)
    assert_array_equal(received.prediction, table.prediction)
    assert_array_equal(received.loss, table.loss)
    # All that arrives in one process is the same table.
    assert pickle.loads(sent) is received


@pytest.mark.parametrize("kind", ["made", "part", "changed file"])
def test_other_tables_are_pickled_whole(tmp_path, kind):
    path = tmp_path / "table.safetensors"
    table = hand_made(0)
    table.save(path)
    if kind == "part":
        table = RouteTable.load(path).take(np.array([0, 2]))
    elif kind == "changed file":
        table = RouteTable.load(path)
        hand_made(1).save(path)
    received = pickle.loads(pickle.dumps(table))
    assert received.file is None or kind == "changed file"
    assert_array_equal(received.prediction, table.prediction)
    assert_array_equal(received.tree.path, table.tree.path)


def test_sent_table_is_refused_if_its_file_is_changed(tmp_path):
    path = tmp_path / "table.safetensors"
    hand_made(0).save(path)
    sent = pickle.dumps(RouteTable.load(path))
    path.unlink()
    with pytest.raises(ValueError, match=r"sent as the file .*table.safetensors', which is not"):
        pickle.loads(sent)


def test_copies_of_a_table_are_the_table():
    table = hand_made(0)
    assert copy.copy(table) is table
    assert copy.deepcopy({"backend": table})["backend"] is table


def test_each_image_may_have_its_own_tradeoff():
    table = hand_made(0)
    tradeoffs = np.array([0.0, 0.1, 0.5, 2.0])
    returns = table.returns(tradeoffs)
    paths = table.oracle(tradeoffs)
    for image, tradeoff in enumerate(tradeoffs.tolist()):
        assert_array_equal(returns[:, image], table.returns(tradeoff)[:, image])
        assert_array_equal(paths[image], table.oracle(tradeoff)[image])
    with pytest.raises(ValueError, match="`tradeoff` must have shape"):
        table.returns(tradeoffs[:2])
