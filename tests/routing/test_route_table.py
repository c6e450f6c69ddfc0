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
from rnr_gym.routing.path_tree import num_prefixes
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from tests.fixtures import small
from tests.fixtures.specs import PROBLEMS, assert_same_arrays, assert_same_spec, whole_paths

EVERY = pytest.mark.parametrize(("kind", "exits", "on"), PROBLEMS)
KINDS = pytest.mark.parametrize("kind", small.KINDS)
EXITS_ON = pytest.mark.parametrize("on", [True, False])
REWARDS = pytest.mark.parametrize("reward", ["accuracy", "cross_entropy"])
ARRAYS = ("labels", "summary", "prediction", "loss")
STATE_ARRAYS = ("layer", "prev_sub_path", "macs", "path", "done")

STEM = 10
EXIT = 3
HEAD = 7
COSTS = (0, 5, 20)
"""MACs of the hand-made table: of both layers, by sub-path."""


def built(backbone, images, on=True):
    """The table of a backbone and images."""
    return route_table.build(backbone, images, RoutingSpec.of(backbone, on), progress=False)


def hand_made(seed=0, num_images=4):
    """Two layers with exits and sub-paths that cost 5 and 20; predictions and losses are random."""
    mac_table = MacTable(
        stem=STEM,
        layers=np.tile(np.array(COSTS), (2, 3, 1)),
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
    labels = rng.integers(0, 2, num_images)
    prediction = rng.integers(0, 2, (7, num_images)).astype(np.int16)
    loss = rng.exponential(size=(7, num_images)).astype(np.float32)
    return RouteTable(
        spec=spec,
        labels=labels,
        summary=np.zeros((3, num_images, spec.layout.summary.size), np.float32),
        prediction=prediction,
        loss=loss,
    )


def cost_of(path):
    """Compute of a path of the hand-made table, counted here."""
    macs = EXIT
    for layer, sub_path in enumerate(path):
        if sub_path == 0:
            break
        macs += COSTS[sub_path]
        # The stem runs only for images that stay.
        macs += STEM + EXIT if layer == 0 else HEAD
    return macs / (STEM + 20 + 20 + HEAD)


def best_of(table, image_idx, tradeoff, reward):
    """The highest return of any path for one image, and the lowest compute that gives it."""
    candidates = []
    for answer, path in enumerate(table.paths.tolist()):
        if reward == "accuracy":
            task = float(table.prediction[answer, image_idx] == table.labels[image_idx])
        else:
            task = -0.5 * float(table.loss[answer, image_idx])
        candidates.append((task - tradeoff * cost_of(path), -cost_of(path)))

    highest, minus_compute = max(candidates)
    return highest, -minus_compute


@EVERY
def test_table_states_match_live_on_every_path(kind, exits, on, monkeypatch):
    monkeypatch.setattr(route_table, "BATCH_SIZE", 4)
    backbone = small.backbone(kind, exits)
    table = built(backbone, small.images(10), on)
    live = Live(backbone, small.images(10), table.spec)
    for path in whole_paths(table.spec):
        live_state = live.start(np.arange(10))
        table_state = table.start(np.arange(10))
        for sub_path in path:
            for name in STATE_ARRAYS:
                expected = getattr(live_state, name)
                np.testing.assert_array_equal(getattr(table_state, name), expected)
            summary = live_state.summary()
            np.testing.assert_allclose(table_state.summary(), summary, rtol=1e-4, atol=1e-4)

            # Sub-paths after an exit are ignored.
            live_state = live_state.step(np.full(10, sub_path))
            table_state = table_state.step(np.full(10, sub_path))

        assert table_state.done.all()
        assert (table_state.summary() == 0).all()
        np.testing.assert_array_equal(table_state.macs, live_state.macs)


@EVERY
def test_table_answers_match_live_on_every_path(kind, exits, on):
    backbone = small.backbone(kind, exits)
    images = small.images(10)
    table = built(backbone, images, on)
    pixels = torch.from_numpy(np.array(images.images))
    labels = torch.from_numpy(np.array(images.labels))

    for path in whole_paths(table.spec):
        traversal = Traversal.start(backbone, pixels, None if on else ())
        state = table.start(np.arange(10))
        for sub_path in path:
            traversal = traversal.step(np.full(10, sub_path))
            state = state.step(np.full(10, sub_path))

        prediction = traversal.logits.argmax(1)
        loss = F.cross_entropy(traversal.logits, labels, reduction="none").detach()
        outcome = table.outcome(state, np.arange(10), np.arange(10))
        np.testing.assert_array_equal(outcome.prediction, prediction)
        np.testing.assert_allclose(outcome.loss, loss, rtol=1e-4, atol=1e-4)

        (answer,) = np.flatnonzero((table.paths == path).all(1))
        assert table.compute[answer] == traversal.macs[0] / table.spec.plain_macs
        np.testing.assert_array_equal(table.correct[answer], outcome.prediction == images.labels)


@pytest.mark.parametrize("backend", ["live", "table"])
def test_states_have_the_documented_types(backend, backbone, images):
    if backend == "live":
        source = Live(backbone, images, RoutingSpec.of(backbone))
    else:
        source = built(backbone, images)

    state = source.start(np.array([3, 5])).step(np.array([0, 0]))
    assert state.layer.dtype == np.int64
    assert state.prev_sub_path.dtype == np.int64
    assert state.macs.dtype == np.int64
    assert state.path.dtype == np.int8
    assert state.summary().dtype == np.float32

    outcome = source.outcome(state, np.array([5]), np.array([1]))
    assert (outcome.prediction.dtype, outcome.prediction.shape) == (np.int64, (1,))
    assert (outcome.loss.dtype, outcome.loss.shape) == (np.float64, (1,))


def test_compute_of_hand_made_table():
    table = hand_made()
    assert len(table.paths) == 7
    assert table.compute.tolist() == [cost_of(path) for path in table.paths.tolist()]


@REWARDS
@pytest.mark.parametrize("tradeoff", [0.0, 0.1, 0.7, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_oracle_takes_best_path_of_each_image(seed, tradeoff, reward):
    table = hand_made(seed)
    paths = table.oracle(tradeoff, reward)
    assert (paths.dtype, paths.shape) == (np.int8, (4, 2))

    returns = table.returns(tradeoff, reward)
    answers = table.path_index(paths)
    for image_idx in range(4):
        best_return, compute = best_of(table, image_idx, tradeoff, reward)
        actual = returns[answers[image_idx], image_idx]
        assert actual == pytest.approx(best_return, abs=1e-12)
        assert cost_of(paths[image_idx].tolist()) == pytest.approx(compute, abs=1e-12)


def test_oracle_takes_cheaper_of_equal_paths():
    table = hand_made()
    # All paths are right, and compute costs nothing.
    table.prediction[:] = table.labels
    assert table.oracle(0.0).tolist() == [[0, -1]] * 4

    # All but the glance are right.
    table.prediction[0] = 1 - table.labels
    assert table.oracle(0.0).tolist() == [[1, 0]] * 4

    # All are wrong.
    table.prediction[:] = 1 - table.labels
    assert table.oracle(0.0).tolist() == [[0, -1]] * 4


@REWARDS
@pytest.mark.parametrize("tradeoff", [0.0, 0.3, 2.0])
def test_regret_is_zero_for_oracle_alone(tradeoff, reward):
    table = hand_made(1)
    assert table.regret(table.oracle(tradeoff, reward), tradeoff, reward) == 0.0

    returns = table.returns(tradeoff, reward)
    best = [best_of(table, image_idx, tradeoff, reward)[0] for image_idx in range(4)]
    # Two images take any path, the other two always the same.
    for choice in itertools.product(range(7), repeat=2):
        answers = [*choice, 3, 5]
        regret = table.regret(table.paths[answers], tradeoff, reward)
        assert regret >= 0.0
        taken = returns[answers, np.arange(4)]
        assert regret == pytest.approx(np.mean(best) - np.mean(taken), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_front_is_best_of_all_choices(seed):
    table = hand_made(seed)
    # Mean compute and accuracy of each way to choose one path per image.
    choices = np.array(list(itertools.product(range(7), repeat=4)))
    path_compute = np.array([cost_of(path) for path in table.paths.tolist()])
    compute = path_compute[choices].mean(1)
    is_right = table.prediction == table.labels
    accuracy = is_right[choices, np.arange(4)].mean(1)

    front_compute, front_accuracy = table.front()
    for lowest, highest in zip(front_compute, front_accuracy, strict=True):
        assert compute[accuracy >= highest - 1e-12].min() == pytest.approx(lowest, abs=1e-12)
        assert accuracy[compute <= lowest + 1e-12].max() >= highest - 1e-12

    assert front_accuracy[-1] == accuracy.max()
    assert front_compute[0] == pytest.approx(compute.min())
    assert (np.diff(front_compute) >= 0).all()
    assert (np.diff(front_accuracy) > 0).all()


@pytest.mark.parametrize("path", [[1, -1], [-1, -1], [3, 1]], ids=str)
def test_path_index_rejects_partial_paths(path):
    paths = np.array([[2, 2], path, [0, -1], [1, 0]], np.int8)
    with pytest.raises(ValueError, match="`paths` must be whole paths of this backbone"):
        hand_made().path_index(paths)


def test_path_index_ignores_what_follows_an_exit():
    table = hand_made()
    paths = np.array([[2, 2], [0, 1], [0, -1]], np.int8)
    answers = table.path_index(paths)
    assert answers[1] == answers[2]
    assert table.paths[answers].tolist() == [[2, 2], [0, -1], [0, -1]]


@pytest.fixture(scope="module")
def masked():
    """A table in which only layer 2 has an exit."""
    return built(small.backbone("multipath", "one exit"), small.images(4))


@pytest.mark.parametrize("path", [[0, -1, -1], [1, 0, -1], [0, 1, 1], [1, 0, 0]], ids=str)
def test_path_index_rejects_masked_sub_paths(masked, path):
    with pytest.raises(ValueError, match="`paths` must be whole paths of this backbone"):
        masked.path_index(np.array([path], np.int8))


@pytest.mark.parametrize("sub_path", [0, -1, 4])
def test_table_step_rejects_invalid_sub_path(masked, sub_path):
    message = rf"`sub_paths` must be valid at their layers \[0, 0\], got \[1, {sub_path}\]"
    with pytest.raises(ValueError, match=message):
        masked.start(np.arange(2)).step(np.array([1, sub_path]))


def test_table_state_replaces_some_images():
    table = hand_made()
    state = table.start(np.array([0, 1, 2])).step(np.array([1, 0, 2]))
    newcomers = table.start(np.array([3, 2])).step(np.array([2, 1]))
    state = state.replaced(np.array([1, 0]), newcomers)
    assert state.path.tolist() == [[1, -1], [2, -1], [2, -1]]
    assert state.image_idx.tolist() == [2, 3, 2]

    state = state.step(np.array([0, 1, 2]))
    batch_idx = np.array([1, 2])
    outcome = table.outcome(state, state.image_idx[batch_idx], batch_idx)
    answers = table.path_index(np.array([[2, 1], [2, 2]]))
    assert outcome.prediction.tolist() == table.prediction[answers, [3, 2]].tolist()


def test_build_rejects_too_large_tables(monkeypatch, backbone, images):
    size = num_prefixes(RoutingSpec.of(backbone)) * len(images)
    monkeypatch.setattr(route_table, "LIMIT", size - 1)
    with pytest.raises(ValueError, match='`backend="table"` holds at most'):
        built(backbone, images)

    monkeypatch.setattr(route_table, "LIMIT", size)
    assert len(built(backbone, images).labels) == len(images)


@pytest.mark.parametrize("batch_size", [5, 24])
def test_build_batch_size_does_not_matter(monkeypatch, backbone, images, batch_size):
    whole = built(backbone, images)
    monkeypatch.setattr(route_table, "BATCH_SIZE", batch_size)
    table = built(backbone, images)
    np.testing.assert_allclose(table.summary, whole.summary, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(table.loss, whole.loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "idx",
    [np.array([5, 2, 2]), np.arange(24) % 7 == 1],
    ids=["indices", "mask"],
)
def test_take_equals_table_of_those_images(backbone, images, idx):
    part = built(backbone, images).take(idx)
    expected = built(backbone, images.take(idx))
    np.testing.assert_array_equal(part.labels, expected.labels)
    np.testing.assert_array_equal(part.prediction, expected.prediction)
    np.testing.assert_allclose(part.loss, expected.loss, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(part.summary, expected.summary, rtol=1e-4, atol=1e-4)


@EXITS_ON
@KINDS
def test_saved_table_is_read_back_exactly(tmp_path, kind, on):
    table = built(small.backbone(kind), small.images(6), on)
    table.save(tmp_path / "table")
    loaded = RouteTable.load(tmp_path / "table")
    for name in ARRAYS:
        expected = getattr(table, name)
        actual = getattr(loaded, name)
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)

    assert_same_arrays(loaded.tree, table.tree)
    assert_same_spec(loaded.spec, table.spec)


@EXITS_ON
@KINDS
def test_quantised_table_is_read_back_exactly(tmp_path, kind, on):
    table = built(small.backbone(kind, summary_groups=8), small.images(6), on)
    table.save(tmp_path / "table")
    loaded = RouteTable.load(tmp_path / "table")
    assert loaded.summary.dtype == np.float32
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(table, name))
    # To the last bit, so that 0.0 has not become -0.0.
    assert loaded.summary.tobytes() == table.summary.tobytes()

    assert loaded.spec.quantised
    assert_same_spec(loaded.spec, table.spec)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "table").read_bytes()


def test_quantised_summaries_take_one_byte(tmp_path):
    table = built(small.backbone("multipath", summary_groups=8), small.images(6))
    table.save(tmp_path / "table")
    tensors, _ = storage.load_tensors(tmp_path / "table")
    assert tensors["summary"].dtype == torch.int8
    assert tuple(tensors["summary"].shape) == table.summary.shape


def test_other_summaries_are_stored_in_float32(tmp_path):
    hand_made().save(tmp_path / "table")
    tensors, _ = storage.load_tensors(tmp_path / "table")
    assert tensors["summary"].dtype == torch.float32


def test_load_rejects_tables_of_other_versions(tmp_path):
    hand_made().save(tmp_path / "table")
    tensors, metadata = storage.load_tensors(tmp_path / "table")
    storage.save_tensors(tmp_path / "same", tensors, metadata)
    RouteTable.load(tmp_path / "same")

    unknown = metadata | {"spec": metadata["spec"] | {"unknown": 1}}
    without = {name: value for name, value in metadata.items() if name != "spec"}
    for other in (unknown, without):
        storage.save_tensors(tmp_path / "other", tensors, other)
        with pytest.raises(ValueError, match="`path` must be a route table as this version"):
            RouteTable.load(tmp_path / "other")


def test_load_rejects_files_that_hold_no_table(tmp_path):
    storage.save_tensors(tmp_path / "file", {"weight": torch.zeros(3)}, {"config": {}})
    with pytest.raises(ValueError, match="`path` must be a route table as this version"):
        RouteTable.load(tmp_path / "file")


def test_load_reports_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path`"):
        RouteTable.load(tmp_path / "nowhere")
