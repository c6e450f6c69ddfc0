"""The environment for one image at a time: returns, observations, infos, draws."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.nn import functional as F

from rnr_gym.data import ImageSet
from tests.fixtures import small
from tests.fixtures.episodes import make_env, play, reset_infos
from tests.fixtures.profiles import keep

EVERY = pytest.mark.parametrize("exits_of", small.EXITS)
KINDS = pytest.mark.parametrize("kind", small.KINDS)
BACKENDS = pytest.mark.parametrize("backend", ["live", "table"])
REWARDS = pytest.mark.parametrize("reward", ["accuracy", "cross_entropy"])

TYPES = {
    "action_mask": np.ndarray,
    "layer": np.int64,
    "compute": np.float64,
    "macs": np.int64,
    "index": np.int64,
    "tradeoff": np.float64,
    "executed": np.int64,
    "path": np.ndarray,
    "is_success": np.bool_,
    "label": np.int64,
    "prediction": np.int64,
    "loss": np.float64,
}


@KINDS
@EVERY
@BACKENDS
@REWARDS
@pytest.mark.parametrize("tradeoff", [0.0, 0.3, 4.0])
def test_return_is_task_minus_priced_compute(kind, exits_of, backend, reward, tradeoff):
    env = make_env(kind, exits_of, backend=backend, reward=reward, tradeoff=tradeoff)
    for index, path in enumerate(small.paths(env.routing_spec, 6)):
        episode = play(env, path, options={"index": index})
        last_info = episode.last_info
        task = float(last_info["is_success"])
        if reward == "cross_entropy":
            # 0.75 is the loss scale of small backbones.
            task = -0.75 * last_info["loss"]
        expected = task - tradeoff * last_info["compute"]
        assert sum(episode.rewards) == pytest.approx(expected, abs=1e-12)


@KINDS
@EVERY
def test_live_episode_is_the_networks_answer(kind, exits_of):
    env = make_env(kind, exits_of, backend="live")
    for index, path in enumerate(small.paths(env.routing_spec, 6)):
        last_info = play(env, path, options={"index": index}).last_info
        batch = small.pixels_of(env.source.images.take([index]))
        state = small.travel(env.source.backbone, batch, path[None])
        assert last_info["macs"] == state.macs[0]
        assert last_info["prediction"] == state.logits.argmax().item()

        label = torch.tensor([last_info["label"]])
        loss = F.cross_entropy(state.logits, label).item()
        assert last_info["loss"] == pytest.approx(loss, abs=1e-4)


@REWARDS
@pytest.mark.parametrize(
    "path",
    [
        [2, 1, 3],
        [1, 0],
        [0],
        [3, 3, 3],
    ],
    ids=str,
)
def test_vector_reward_weighted_is_the_scalar(reward, path):
    env_kwargs = {"reward": reward, "tradeoff": (0.1, 2.0)}
    scalar_env = make_env(**env_kwargs)
    pair_env = make_env(**env_kwargs, vector_reward=True)
    assert scalar_env.get_wrapper_attr("vector_reward") is False

    scalar = play(scalar_env, path, seed=len(path))
    pair = play(pair_env, path, seed=len(path))
    tradeoff = scalar.infos[0]["tradeoff"]
    assert pair.infos[0]["tradeoff"] == tradeoff
    for reward_number, reward_pair in zip(scalar.rewards, pair.rewards, strict=True):
        assert type(reward_number) is float
        assert reward_pair.dtype == np.float64
        assert reward_pair.shape == (2,)
        assert pair_env.reward_space.contains(reward_pair)
        assert reward_pair.shape == (pair_env.reward_dim,)
        assert reward_pair[0] + tradeoff * reward_pair[1] == reward_number


def test_task_term_is_in_the_last_reward_only():
    env = make_env(vector_reward=True, reward="cross_entropy")
    episode = play(env, [2, 1, 3])
    task = [pair[0] for pair in episode.rewards]
    assert task[:2] == [0.0, 0.0]
    assert task[2] < 0.0


def test_first_reward_pays_for_the_arrival():
    env = make_env(vector_reward=True)
    mac_table = env.routing_spec.mac_table
    episode = play(env, [2, 1, 3])
    macs = [info["macs"] for info in episode.infos]
    assert macs[0] == mac_table.exits[0, -1]
    assert macs[1] > mac_table.stem + mac_table.exits[0, -1]

    # Nothing is charged at reset, so the first difference is taken to zero.
    charged = np.diff([0, *macs[1:]]) / env.routing_spec.plain_macs
    assert_allclose([-pair[1] for pair in episode.rewards], charged, atol=1e-12)


@BACKENDS
@EVERY
def test_rewards_charge_time(exits_of, backend, tmp_path, monkeypatch):
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path))
    keep(small.backbone("multipath", exits_of))
    kwargs = {"exits_of": exits_of, "backend": backend, "tradeoff": 0.5}
    env = make_env(**kwargs, cost="time")
    counting = make_env(**kwargs)
    spec = env.routing_spec
    assert spec.plain_cost != spec.plain_macs
    for path in small.paths(spec, 8):
        options = {"index": 3}
        episode = play(env, path, options=options)
        nanoseconds = np.array([info["nanoseconds"] for info in episode.infos])
        prefixes = np.array([info["path"] for info in episode.infos])
        assert_array_equal(nanoseconds, spec.path_cost(prefixes, spec.time_table))
        compute = nanoseconds / spec.time_table.plain
        assert_array_equal([info["compute"] for info in episode.infos], compute)
        charged = np.diff([0.0, *compute[1:]])
        task = np.zeros(len(charged))
        task[-1] = episode.last_info["is_success"]
        assert_allclose(episode.rewards, task - 0.5 * charged, atol=1e-12)
        for obs, share in zip(episode.observations, compute, strict=True):
            assert obs[spec.layout.compute.start] == np.float32(share)
            assert env.observation_space.contains(obs)

        # All else is as where MACs are charged.
        other = play(counting, path, options=options)
        assert "nanoseconds" not in other.last_info
        for name in ("macs", "path", "prediction", "loss", "is_success"):
            assert_array_equal(episode.last_info[name], other.last_info[name])


@KINDS
@EVERY
def test_observation_holds_decisions_and_costs(kind, exits_of):
    env = make_env(kind, exits_of, tradeoff=(0.1, 2.0))
    spec = env.routing_spec
    layout = spec.layout
    for path in small.paths(spec, 8):
        episode = play(env, path)
        # Zeros before layer 0 and after the end.
        layers = np.zeros((len(episode.observations), 3))
        prev_sub_paths = np.zeros((len(episode.observations), spec.num_paths))
        for layer in range(len(episode.rewards)):
            layers[layer, layer] = 1
            prev_sub_paths[layer + 1, path[layer]] = 1

        observations = np.array(episode.observations)
        assert observations.dtype == np.float32
        assert all(env.observation_space.contains(obs) for obs in episode.observations)
        assert_array_equal(observations[:, layout.layer], layers)
        assert_array_equal(observations[:, layout.prev_sub_path], prev_sub_paths)

        summary = observations[:, : layout.summary.size]
        assert summary[:-1].any(1).all()
        assert not summary[-1].any()

        for obs, info in zip(observations, episode.infos, strict=True):
            assert obs[layout.compute.start] == np.float32(info["compute"])
            assert obs[layout.tradeoff.start] == np.float32(info["tradeoff"])
            assert info["compute"] == info["macs"] / spec.plain_macs


@pytest.fixture
def played(kind, exits_of, backend):
    """An environment, a path, and the episode of image 4 along it."""
    env = make_env(kind, exits_of, backend=backend)
    (path,) = small.paths(env.routing_spec, 1, seed=3)
    options = {"index": 4, "tradeoff": 1.5}
    return env, path, play(env, path, options=options)


@KINDS
@EVERY
@BACKENDS
def test_info_of_each_step(played):
    env, path, episode = played
    for layer, info in enumerate(episode.infos[:-1]):
        assert info["layer"] == layer
        assert_array_equal(info["action_mask"], env.routing_spec.valid[layer])
    assert episode.last_info["layer"] == 3
    # A policy that is asked once more has something to choose from.
    assert episode.last_info["action_mask"].all()

    for info in episode.infos:
        assert info["index"] == 4
        assert info["tradeoff"] == 1.5
        assert info["action_mask"].dtype == np.int8
        assert info["action_mask"].shape == (env.routing_spec.num_paths,)
    for info, sub_path in zip(episode.infos[1:], path, strict=False):
        assert info["executed"] == sub_path


@KINDS
@EVERY
@BACKENDS
def test_info_keys_and_types(played):
    _, _, episode = played
    for info in episode.infos:
        assert {name: type(value) for name, value in info.items()} == TYPES


@KINDS
@EVERY
@BACKENDS
def test_info_says_nothing_of_the_outcome_before_the_end(played):
    _, path, episode = played
    for layer, info in enumerate(episode.infos[:-1]):
        assert not info["is_success"]
        assert info["label"] == info["prediction"] == info["loss"] == -1
        expected = [*path[:layer], *[-1] * (len(path) - layer)]
        assert_array_equal(info["path"], expected)
    assert episode.infos[0]["executed"] == -1


@KINDS
@EVERY
@BACKENDS
def test_info_at_the_end_tells_the_outcome(played):
    _, path, episode = played
    last_info = episode.last_info
    assert last_info["label"] == small.images().labels[4]
    is_right = last_info["prediction"] == last_info["label"]
    assert last_info["is_success"] == is_right
    assert last_info["path"].dtype == np.int8
    assert_array_equal(last_info["path"], path)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_exit_ends_the_episode_at_no_cost(layer):
    path = [2] * layer + [0]
    episode = play(make_env(), path)
    assert episode.infos[-1]["macs"] == episode.infos[-2]["macs"]
    rest = [-1] * (2 - layer)
    assert episode.last_info["path"].tolist() == path + rest


@KINDS
@BACKENDS
def test_exits_off_take_a_step_at_every_layer(kind, backend):
    env = make_env(kind, exits=False, backend=backend)
    for action in range(env.routing_spec.num_paths):
        episode = play(env, [action] * 3)
        # The exit is replaced by the cheapest sub-path.
        executed = max(action, 1)
        assert episode.last_info["path"].tolist() == [executed] * 3
        assert all(info["executed"] == executed for info in episode.infos[1:])
        assert not any(info["action_mask"][0] for info in episode.infos[:-1])

    # The last was the full path.
    assert episode.infos[0]["macs"] == env.routing_spec.mac_table.stem
    assert episode.last_info["compute"] == 1.0


@KINDS
@BACKENDS
def test_exits_off_leave_only_pooled_features(kind, backend):
    env = make_env(kind, exits=False, backend=backend)
    observations = []
    for index in range(5):
        episode = play(env, [2, 1, 2], options={"index": index})
        observations += episode.observations[:-1]

    layout = env.routing_spec.layout.summary
    spread = np.ptp(observations, axis=0)
    assert spread[layout.pooled].max() > 0
    assert not spread[layout.glance].any()
    assert not spread[layout.glance_probabilities].any()
    assert not spread[layout.exit_probabilities].any()
    assert not spread[layout.confidence].any()

    # Every class is as likely.
    probabilities = observations[0][layout.exit_probabilities]
    assert np.ptp(probabilities) == 0


def test_masked_action_executes_the_nearest():
    env = make_env(exits_of="one exit")
    masked = play(env, [0, 0, 0])
    assert [info["executed"] for info in masked.infos[1:]] == [1, 1, 0]
    assert masked.last_info["path"].tolist() == [1, 1, 0]
    layout = env.routing_spec.layout
    prev_sub_path = masked.observations[1][layout.prev_sub_path]
    assert prev_sub_path.tolist() == [0, 1, 0, 0]

    options = {"index": masked.infos[0]["index"]}
    chosen = play(env, [1, 1, 0], options=options)
    assert_array_equal(masked.observations, chosen.observations)
    assert masked.last_info["macs"] == chosen.last_info["macs"]


def test_action_mask_is_one_to_sample_by():
    env = make_env(exits_of="one exit")
    _, info = env.reset(seed=0)
    env.action_space.seed(0)
    samples = set()
    for _ in range(50):
        samples.add(int(env.action_space.sample(mask=info["action_mask"])))
    assert samples == {1, 2, 3}


def test_action_masks_are_those_of_info_as_bools():
    env = make_env(exits_of="one exit")
    _, info = env.reset()
    for action in (1, 2):
        assert env.action_masks().dtype == np.bool_
        assert_array_equal(env.action_masks(), info["action_mask"])
        _, _, _, _, info = env.step(np.int64(action))
    assert env.action_masks().tolist() == [True] * 4


def test_images_are_drawn_without_replacement():
    infos = reset_infos(make_env(), 72, seed=0)
    indices = [info["index"] for info in infos]
    # 24 images, three times.
    rounds = [indices[:24], indices[24:48], indices[48:]]
    for part in rounds:
        assert sorted(part) == list(range(24))
    assert rounds[0] != rounds[1]
    assert rounds[1] != rounds[2]


def test_seed_decides_images_and_tradeoffs():
    env = make_env(tradeoff=(0.1, 1.0))

    def draws(seed):
        infos = reset_infos(env, 6, seed=seed)
        return [(info["index"], info["tradeoff"]) for info in infos]

    first = draws(3)
    assert draws(3) == first
    assert draws(4) != first


def test_given_index_stays_among_those_to_draw():
    env = make_env()
    infos = reset_infos(env, 1, seed=0)
    _, given = env.reset(options={"index": 7})
    assert given["index"] == 7
    infos += reset_infos(env, 23)

    # It has taken nothing from the images that are still to be drawn.
    drawn = [info["index"] for info in infos]
    others = reset_infos(make_env(), 24, seed=0)
    assert drawn == [info["index"] for info in others]


def test_given_tradeoff_holds_for_one_episode():
    env = make_env(tradeoff=0.5)
    tradeoffs = []
    for options in ({"tradeoff": 2}, None, {"tradeoff": 0.0}, {}):
        _, info = env.reset(options=options)
        tradeoffs.append(info["tradeoff"])
    assert tradeoffs == [2.0, 0.5, 0.0, 0.5]

    episode = play(env, [0], options={"tradeoff": 2})
    last_info = episode.last_info
    assert episode.rewards == [float(last_info["is_success"]) - 2 * last_info["compute"]]


def test_tradeoffs_are_drawn_log_uniformly():
    env = make_env(tradeoff=(0.01, 1.0))
    infos = reset_infos(env, 800, seed=0)
    tradeoffs = np.array([info["tradeoff"] for info in infos])
    assert tradeoffs.min() >= 0.01
    assert tradeoffs.max() <= 1.0
    assert len(set(tradeoffs)) == 800
    # Half of them on each side of the geometric mean.
    assert abs((tradeoffs < 0.1).mean() - 0.5) < 0.07


def test_changed_tradeoff_holds_from_next_episode():
    env = make_env(tradeoff=0.5)
    env.reset(seed=0)
    env.tradeoff = 1.5
    for info in reset_infos(env, 1) + reset_infos(env, 1, seed=0):
        assert info["tradeoff"] == 1.5


@BACKENDS
def test_returned_arrays_share_no_memory(backend):
    env = make_env(backend=backend)
    first = play(env, [2, 1, 3])
    second = play(env, [2, 1, 3], options={"index": first.infos[0]["index"]})
    arrays = [
        env.observation_space.low,
        env.routing_spec.masks,
        env.routing_spec.valid,
    ]
    for episode in (first, second):
        arrays += episode.observations
        arrays += [info["action_mask"] for info in episode.infos]
        arrays.append(episode.last_info["path"])

    for position, array in enumerate(arrays):
        for earlier in arrays[:position]:
            assert not np.shares_memory(array, earlier)


@BACKENDS
def test_returned_arrays_may_be_overwritten(backend):
    env = make_env(backend=backend)
    options = {"index": 3}
    episode = play(env, [2, 1, 3], options=options)
    obs, info = env.reset(options=options)
    for layer, action in enumerate([2, 1, 3]):
        assert_array_equal(obs, episode.observations[layer])
        assert_array_equal(info["action_mask"], episode.infos[layer]["action_mask"])
        # As a careless caller might.
        obs[:] = 9
        info["action_mask"][:] = 0
        obs, _, _, _, info = env.step(np.int64(action))


def test_labels_do_not_reach_observations():
    images = small.images()
    shifted = ImageSet.of(images.images, (images.labels + 1) % 3, images.classes)
    env = make_env(images=images)
    other_env = make_env(images=shifted)
    for index, path in enumerate(small.paths(env.routing_spec, 6)):
        episode = play(env, path, options={"index": index})
        other = play(other_env, path, options={"index": index})
        assert_array_equal(episode.observations, other.observations)
        assert episode.last_info["label"] != other.last_info["label"]


def test_pareto_front_is_that_of_the_table():
    env = make_env(backend="table", vector_reward=True)
    front = env.pareto_front()
    compute, accuracy = env.source.front()
    assert_array_equal(np.array(front), np.stack([accuracy, -compute], 1))
    assert len(env.pareto_front(gamma=0.9)) > 1


@pytest.mark.parametrize(
    ("argument", "env_kwargs"),
    [("backend", {}), ("reward", {"backend": "table", "reward": "cross_entropy"})],
)
def test_pareto_front_needs_table_and_accuracy(argument, env_kwargs):
    with pytest.raises(ValueError, match=f"`{argument}` must be"):
        make_env(vector_reward=True, **env_kwargs).pareto_front()
