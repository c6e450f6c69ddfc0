"""Taking a batch of images to their answers, along given paths or by a router."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rnr_gym.routing import rollout, route_table
from rnr_gym.routing.live import Live
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from tests.fixtures import paper_problem, small

EVERY_IMAGE = np.arange(4)
PATH = [2, 1, 3]


@pytest.fixture(scope="module", params=["live", "table"])
def source(request):
    """Four images with a small backbone, or the table of all its paths."""
    backbone = small.backbone("multipath")
    images = small.images(4)
    spec = RoutingSpec.of(backbone)
    if request.param == "live":
        return Live(backbone, images, spec)
    return route_table.build(backbone, images, spec, progress=False)


@pytest.fixture
def start(source):
    """All images, waiting at layer 0."""
    return source.start(EVERY_IMAGE)


class Recorder:
    """A router that takes a given sub-path at each layer, and keeps what it was given."""

    def __init__(self, sub_paths):
        self.sub_paths = iter(sub_paths)
        self.observations = []
        self.memories = []
        self.episode_starts = []
        self.modes = set()

    def predict(
        self,
        observation,
        state=None,
        episode_start=None,
        deterministic=True,
    ):
        self.observations.append(observation)
        self.memories.append(state)
        self.episode_starts.append(episode_start.tolist())
        self.modes.add(deterministic)
        actions = np.full(len(observation), next(self.sub_paths))
        return actions, f"memory {len(self.memories)}"


class FeatureReader:
    """Takes the full path, keeps what it observes, and says whether it reads pooled features."""

    def __init__(self, spec, reads_features):
        self.full_path = spec.full_path
        self.reads_features = reads_features
        self.seen = []

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.seen.append(observation)
        return np.full(len(observation), self.full_path), state


@pytest.mark.parametrize("kind", small.KINDS)
def test_only_pooled_features_are_left_out_for_who_does_not_read_them(kind):
    backbone = small.backbone(kind)
    source = Live(backbone, small.images(4), RoutingSpec.of(backbone))
    routers = [FeatureReader(source.spec, reads) for reads in (True, False)]
    for router in routers:
        rollout.route(source.start(np.arange(4)), source.spec, router, 0.1)

    where = source.spec.layout.summary
    for whole, without in zip(*(router.seen for router in routers), strict=True):
        assert whole[:, where.pooled].any() or whole[:, where.glance].any()
        expected = whole.copy()
        expected[:, where.pooled] = 0.0
        expected[:, where.glance] = 0.0
        assert_array_equal(without, expected)


def test_follow_gives_each_image_its_path(source, start):
    paths = small.paths(source.spec, 4)
    state = rollout.follow(start, paths)
    assert state.done.all()
    assert_array_equal(state.path, paths)


def test_follow_sends_all_down_one_path(start):
    path = np.array(PATH, np.int8)
    together = rollout.follow(start, path)
    one_by_one = rollout.follow(start, np.tile(path, (4, 1)))
    assert_array_equal(together.path, one_by_one.path)
    assert_array_equal(together.macs, one_by_one.macs)


def test_follow_stops_at_the_end_of_a_path(start):
    state = rollout.follow(start, np.array(PATH[:2]))
    assert not state.done.any()
    assert (state.layer == 2).all()
    assert (state.path == [2, 1, -1]).all()


def test_follow_of_empty_path_takes_no_step(start):
    no_path = np.zeros(0, np.int8)
    state = rollout.follow(start, no_path)
    assert (state.layer == 0).all()
    assert_array_equal(state.summary(), start.summary())


def test_follow_rejects_unknown_sub_paths(start):
    path = np.array([2, 4, 1])
    with pytest.raises(ValueError, match="`sub_paths` must be valid"):
        rollout.follow(start, path)


@pytest.mark.parametrize("exits", small.EXITS)
def test_follow_equals_single_steps(exits):
    backbone = small.backbone("vgg", exits)
    paths = small.paths(RoutingSpec.of(backbone), 8)
    start = Traversal.start(backbone, small.pixels(8))
    followed = rollout.follow(start, paths)

    stepped = start
    for sub_paths in paths.T.astype(np.int64):
        # -1 follows an exit, where entries are ignored.
        stepped = stepped.step(sub_paths)
    assert (followed.logits == stepped.logits).all()
    assert_array_equal(followed.macs, stepped.macs)


def test_observation_holds_state_and_tradeoff(source, start):
    layout = source.spec.layout
    paths = np.array(
        [
            [2, 1],
            [0, -1],
            [1, 2],
            [3, 3],
        ]
    )
    state = rollout.follow(start, paths)
    tradeoff = np.array([0.5, 1.0, 2.0, 0.25])
    observation = rollout.observation(state, source.spec, tradeoff)
    assert observation.dtype == np.float32
    assert observation.shape == (4, layout.size)

    summary = observation[:, : layout.summary.size]
    assert_array_equal(summary, state.summary())
    assert_array_equal(observation[:, layout.tradeoff.start], tradeoff)
    compute = np.float32(state.macs / source.spec.plain_macs)
    assert_array_equal(observation[:, layout.compute.start], compute)

    # The second image has been answered at the glance, so it has no layer.
    one_hot = observation[:, layout.layer]
    assert_array_equal(one_hot, np.eye(4, 3)[[2, 3, 2, 2]])


def test_route_executes_the_routers_actions(source, start):
    layout = source.spec.layout
    router = Recorder(PATH)
    state = rollout.route(start, source.spec, router, tradeoff=0.5)
    assert state.done.all()
    assert (state.path == PATH).all()

    assert router.modes == {True}
    for layer, observation in enumerate(router.observations):
        assert (observation[:, layout.tradeoff] == 0.5).all()
        assert (layers_of(layout, observation) == layer).all()


def test_route_hands_memory_to_the_router(source, start):
    router = Recorder(PATH)
    rollout.route(start, source.spec, router, tradeoff=0.5)
    assert router.memories == [None, "memory 1", "memory 2"]
    # Every episode starts with its first decision.
    assert router.episode_starts == [
        [True] * 4,
        [False] * 4,
        [False] * 4,
    ]


def test_route_ends_once_all_have_exited(source, start):
    router = Recorder([2, 0])
    state = rollout.route(start, source.spec, router, tradeoff=0.5)
    assert (state.path == [2, 0, -1]).all()
    assert len(router.observations) == 2


def test_route_replaces_masked_actions():
    backbone = small.backbone("multipath", "one exit")
    source = Live(backbone, small.images(4), RoutingSpec.of(backbone))
    router = Recorder([0, 0, 0])
    start = source.start(EVERY_IMAGE)
    state = rollout.route(start, source.spec, router, tradeoff=0.5)
    # Only layer 2 has an exit; elsewhere sub-path 1 is nearest.
    assert (state.path == [1, 1, 0]).all()


def test_decision_macs_of_a_rule_are_zero():
    router = Recorder([1])
    assert rollout.decision_macs(router, paper_problem.spec()) == 0
    assert router.episode_starts == [[True]]
