"""The environment for one image at a time."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rnr_gym.data import ImageSet
from rnr_gym.envs import RoutingEnv
from tests.fixtures import small

EVERY = pytest.mark.parametrize(
    ("kind", "exits"), [(kind, exits) for kind in small.KINDS for exits in small.EXITS]
)
BACKENDS = pytest.mark.parametrize("backend", ["live", "table"])


def routing(kind="multipath", exits_of="glance and exits", images=None, **arguments):
    """An environment over a small backbone and 24 random images."""
    return RoutingEnv(
        dataset=images or small.images(), backbone=small.backbone(kind, exits_of), **arguments
    )


def play(env, path, **reset):
    """An episode along a path: observations, rewards and infos, the first reset's among them."""
    observation, info = env.reset(**reset)
    observations, rewards, infos, ended = [observation], [], [info], False
    for action in path:
        assert not ended
        observation, reward, ended, truncated, info = env.step(np.int64(action))
        assert truncated is False
        observations.append(observation)
        rewards.append(reward)
        infos.append(info)
    assert ended
    return observations, rewards, infos


def trimmed(path):
    return [int(sub_path) for sub_path in path if sub_path >= 0]


@EVERY
@BACKENDS
@pytest.mark.parametrize("reward", ["accuracy", "cross_entropy"])
@pytest.mark.parametrize("tradeoff", [0.0, 0.3, 4.0])
def test_an_episodes_return_is_task_minus_tradeoff_times_compute(
    kind, exits, backend, reward, tradeoff
):
    env = routing(kind, exits, backend=backend, reward=reward, tradeoff=tradeoff)
    batch = torch.from_numpy(np.array(small.images().images))
    for index, path in enumerate(small.paths(env.routing, 6)):
        _, rewards, infos = play(env, trimmed(path), options={"index": index})
        last = infos[-1]
        task = float(last["is_success"]) if reward == "accuracy" else -0.75 * last["loss"]
        assert sum(rewards) == pytest.approx(task - tradeoff * last["compute"], abs=1e-12)
        walk = (
            small.travel(env.source.backbone, batch[[index]], path[None])
            if backend == "live"
            else None
        )
        if walk is not None:
            assert last["macs"] == walk.macs[0]
            assert last["prediction"] == walk.logits.argmax().item()
            assert last["loss"] == pytest.approx(
                F.cross_entropy(walk.logits, torch.tensor([last["label"]])).item(), abs=1e-4
            )


@pytest.mark.parametrize("reward", ["accuracy", "cross_entropy"])
def test_a_vector_reward_weighted_is_the_scalar_one(reward):
    scalar = routing(reward=reward, tradeoff=(0.1, 2.0))
    pair = routing(reward=reward, tradeoff=(0.1, 2.0), vector_reward=True)
    for path in ([2, 1, 3], [1, 0], [0], [3, 3, 3]):
        _, rewards, infos = play(scalar, path, seed=len(path))
        _, pairs, pair_infos = play(pair, path, seed=len(path))
        assert pair_infos[0]["tradeoff"] == infos[0]["tradeoff"]
        for one, other in zip(rewards, pairs, strict=True):
            assert type(one) is float
            assert (other.dtype, other.shape) == (np.float64, (2,))
            assert pair.reward_space.contains(other)
            assert other[0] + infos[0]["tradeoff"] * other[1] == one
    assert scalar.get_wrapper_attr("vector_reward") is False


def test_only_the_last_step_has_a_task_term_and_the_first_pays_for_the_arrival():
    env = routing(vector_reward=True, reward="cross_entropy")
    _, pairs, infos = play(env, [2, 1, 3])
    assert [pair[0] == 0 for pair in pairs] == [True, True, False]
    spent = np.diff([0.0, *(info["macs"] / env.routing.plain_macs for info in infos[1:])])
    np.testing.assert_allclose([-pair[1] for pair in pairs], spent, atol=1e-12)
    assert infos[0]["macs"] == env.routing.mac_table.exits[0, -1]
    assert infos[1]["macs"] > env.routing.mac_table.stem + env.routing.mac_table.exits[0, -1]


@EVERY
def test_what_an_observation_says_beside_the_summary(kind, exits):
    env = routing(kind, exits, tradeoff=(0.1, 2.0))
    where = env.routing.layout
    for path in small.paths(env.routing, 8):
        observations, _, infos = play(env, trimmed(path))
        for layer, (observation, info) in enumerate(zip(observations, infos, strict=True)):
            ended = layer == len(observations) - 1
            assert observation.dtype == np.float32
            assert env.observation_space.contains(observation)
            at = np.zeros(3) if ended else np.eye(3)[layer]
            came = (
                np.eye(env.routing.num_paths)[path[layer - 1]]
                if layer
                else np.zeros(env.routing.num_paths)
            )
            np.testing.assert_array_equal(observation[where.layer], at)
            np.testing.assert_array_equal(observation[where.prev_sub_path], came)
            assert observation[where.compute.start] == np.float32(info["compute"])
            assert observation[where.tradeoff.start] == np.float32(info["tradeoff"])
            assert info["compute"] == info["macs"] / env.routing.plain_macs
            summary = observation[: where.summary.size]
            assert (summary == 0).all() == ended


@EVERY
@pytest.mark.parametrize("backend", ["live", "table"])
def test_what_info_says(kind, exits, backend):
    env = routing(kind, exits, backend=backend)
    path = trimmed(small.paths(env.routing, 1, seed=3)[0])
    _, _, infos = play(env, path, options={"index": 4, "tradeoff": 1.5})
    for layer, info in enumerate(infos):
        ended = layer == len(infos) - 1
        assert info["layer"] == (3 if ended else layer)
        assert (info["index"], info["tradeoff"]) == (4, 1.5)
        assert (info["action_mask"].dtype, info["action_mask"].shape) == (
            np.int8,
            (env.routing.num_paths,),
        )
        np.testing.assert_array_equal(
            info["action_mask"],
            np.zeros(env.routing.num_paths) if ended else env.routing.valid[layer],
        )
        types = {
            "layer": int,
            "compute": float,
            "macs": int,
            "index": int,
            "tradeoff": float,
            "executed": int,
        }
        types |= {"is_success": bool, "label": int, "prediction": int, "loss": float}
        assert all(type(value) is types[name] for name, value in info.items() if name in types)
        going = {"action_mask", "layer", "compute", "macs", "index", "tradeoff"}
        last = {"is_success", "label", "prediction", "loss", "path"}
        assert info.keys() == going | ({"executed"} if layer else set()) | (
            last if ended else set()
        )
        if layer:
            assert info["executed"] == path[layer - 1]
    end = infos[-1]
    assert end["label"] == small.images().labels[4]
    assert end["is_success"] == (end["prediction"] == end["label"])
    assert end["path"].dtype == np.int8
    assert end["path"].tolist() == path + [-1] * (3 - len(path))


def test_an_exit_ends_the_episode_at_once_and_costs_nothing_more():
    env = routing()
    for layer in range(3):
        _, _, infos = play(env, [2] * layer + [0])
        assert infos[-1]["macs"] == infos[-2]["macs"]
        assert infos[-1]["path"].tolist() == [2] * layer + [0] + [-1] * (2 - layer)


@pytest.mark.parametrize("kind", small.KINDS)
@BACKENDS
def test_without_exits_an_episode_has_always_as_many_steps_as_layers(kind, backend):
    env = routing(kind, exits=False, backend=backend)
    for action in range(env.routing.num_paths):
        _, _, infos = play(env, [action] * 3)
        assert infos[-1]["path"].tolist() == [max(action, 1)] * 3
        assert all(info["executed"] == max(action, 1) for info in infos[1:])
        assert all(not info["action_mask"][0] for info in infos)
    assert infos[0]["macs"] == env.routing.mac_table.stem
    assert infos[-1]["compute"] == 1.0


@pytest.mark.parametrize("kind", small.KINDS)
@BACKENDS
def test_without_exits_nothing_is_known_from_glance_and_exits(kind, backend):
    env = routing(kind, exits=False, backend=backend)
    where = env.routing.layout.summary
    seen = [
        observation
        for index in range(5)
        for observation in play(env, [2, 1, 2], options={"index": index})[0][:-1]
    ]
    for part in (
        where.glance,
        where.glance_probabilities,
        where.exit_probabilities,
        where.confidence,
    ):
        assert np.ptp([observation[part] for observation in seen], axis=0).max() == 0
    assert np.ptp([observation[where.exit_probabilities] for observation in seen]) == 0
    assert np.ptp([observation[where.pooled] for observation in seen], axis=0).max() > 0


def test_a_masked_action_is_executed_as_the_nearest_and_recorded_as_such():
    env = routing(exits_of="one exit")
    observations, _, infos = play(env, [0, 0, 0])
    assert [info["executed"] for info in infos[1:]] == [1, 1, 0]
    assert infos[-1]["path"].tolist() == [1, 1, 0]
    assert observations[1][env.routing.layout.prev_sub_path].tolist() == [0, 1, 0, 0]
    wanted = play(env, [1, 1, 0], options={"index": infos[0]["index"]})
    np.testing.assert_array_equal(observations, wanted[0])
    assert infos[-1]["macs"] == wanted[2][-1]["macs"]


def test_actions_can_be_sampled_by_the_mask():
    env = routing(exits_of="one exit")
    _, info = env.reset(seed=0)
    env.action_space.seed(0)
    assert {int(env.action_space.sample(mask=info["action_mask"])) for _ in range(50)} == {1, 2, 3}


def test_action_masks_are_those_of_info_as_bools():
    env = routing(exits_of="one exit")
    _, info = env.reset()
    for action in (1, 2):
        assert env.action_masks().dtype == np.bool_
        assert env.action_masks().tolist() == info["action_mask"].astype(bool).tolist()
        _, _, _, _, info = env.step(np.int64(action))
    assert env.action_masks().tolist() == [True] * 4


def test_images_are_drawn_without_replacement():
    env = routing()
    drawn = [env.reset(seed=0)[1]["index"], *(env.reset()[1]["index"] for _ in range(71))]
    rounds = [drawn[:24], drawn[24:48], drawn[48:]]
    assert all(sorted(part) == list(range(24)) for part in rounds)
    assert rounds[0] != rounds[1] != rounds[2]


def test_a_seed_starts_the_deal_anew():
    env = routing(tradeoff=(0.1, 1.0))

    def deal(seed):
        infos = [env.reset(seed=seed)[1], *(env.reset()[1] for _ in range(5))]
        return [(info["index"], info["tradeoff"]) for info in infos]

    assert deal(3) == deal(3) != deal(4)


def test_a_given_index_is_not_dealt_and_takes_nothing_from_the_deck():
    env, other = routing(), routing()
    drawn = (
        [env.reset(seed=0)[1]["index"]]
        + [env.reset(options={"index": 7})[1]["index"]]
        + [env.reset()[1]["index"] for _ in range(23)]
    )
    assert drawn[1] == 7
    assert drawn[:1] + drawn[2:] == [
        other.reset(seed=0)[1]["index"],
        *(other.reset()[1]["index"] for _ in range(23)),
    ]


def test_a_given_tradeoff_holds_for_one_episode():
    env = routing(tradeoff=0.5)
    assert [
        env.reset(options=options)[1]["tradeoff"]
        for options in ({"tradeoff": 2}, None, {"tradeoff": 0.0}, {})
    ] == [2.0, 0.5, 0.0, 0.5]
    _, rewards, infos = play(env, [0], options={"tradeoff": 2})
    assert rewards == [float(infos[-1]["is_success"]) - 2 * infos[-1]["compute"]]


def test_tradeoffs_are_drawn_log_uniformly_from_their_range():
    env = routing(tradeoff=(0.01, 1.0))
    drawn = np.array(
        [env.reset(seed=0)[1]["tradeoff"], *(env.reset()[1]["tradeoff"] for _ in range(799))]
    )
    assert drawn.min() >= 0.01
    assert drawn.max() <= 1.0
    assert len(set(drawn)) == 800
    assert abs((drawn < 0.1).mean() - 0.5) < 0.07  # half of them on each side of the geometric mean


def test_a_changed_tradeoff_holds_from_the_next_episode_on():
    env = routing(tradeoff=0.5)
    env.reset(seed=0)
    env.tradeoff = 1.5
    assert env.reset()[1]["tradeoff"] == 1.5
    assert env.reset(seed=0)[1]["tradeoff"] == 1.5


@BACKENDS
def test_nothing_that_is_handed_out_is_shared(backend):
    env = routing(backend=backend)
    observations, _, infos = play(env, [2, 1, 3])
    again, _, more = play(env, [2, 1, 3], options={"index": infos[0]["index"]})
    arrays = [
        *observations,
        *again,
        *(info["action_mask"] for info in infos + more),
        infos[-1]["path"],
        more[-1]["path"],
    ]
    arrays += [env.observation_space.low, env.routing.masks, env.routing.valid]
    assert not any(
        np.shares_memory(one, other)
        for number, one in enumerate(arrays)
        for other in arrays[:number]
    )


@BACKENDS
def test_writing_into_what_was_handed_out_spoils_nothing(backend):
    env = routing(backend=backend)
    wanted, _, infos = play(env, [2, 1, 3], options={"index": 3})
    observation, info = env.reset(options={"index": 3})
    for layer, action in enumerate([2, 1, 3]):
        np.testing.assert_array_equal(observation, wanted[layer])
        np.testing.assert_array_equal(info["action_mask"], infos[layer]["action_mask"])
        observation[:], info["action_mask"][:] = 9, 0
        observation, _, _, _, info = env.step(np.int64(action))


def test_labels_do_not_reach_observations():
    images = small.images()
    shifted = ImageSet.of(images.images, (images.labels + 1) % 3, images.classes)
    for index, path in enumerate(small.paths(routing().routing, 6)):
        one, other = (
            play(routing(images=part), trimmed(path), options={"index": index})
            for part in (images, shifted)
        )
        np.testing.assert_array_equal(one[0], other[0])
        assert one[2][-1]["label"] != other[2][-1]["label"]


@pytest.mark.parametrize(
    "action", [-1, 4, 1.0, np.float32(1), "1", None, np.array([1]), np.array([[1]]), [1]], ids=repr
)
def test_an_action_outside_the_space_is_refused(action):
    env = routing()
    env.reset()
    with pytest.raises(ValueError, match="`action`"):
        env.step(action)
    env.step(1)  # and the episode goes on as if nothing had happened


@pytest.mark.parametrize("action", [1, np.int64(1), np.int8(1), np.array(1)], ids=repr)
def test_whole_numbers_of_any_kind_are_actions(action):
    env = routing()
    env.reset()
    assert env.step(action)[4]["executed"] == 1


def test_a_step_needs_an_episode_under_way():
    env = routing()
    with pytest.raises(gym.error.ResetNeeded, match="`step`"):
        env.step(1)
    play(env, [0])
    with pytest.raises(gym.error.ResetNeeded, match="`step`"):
        env.step(1)


@pytest.mark.parametrize("index", [-1, 24, 1.0, "3", None, True, np.float64(2)], ids=repr)
def test_an_index_outside_the_images_is_refused(index):
    with pytest.raises(ValueError, match='`options\\["index"\\]`'):
        routing().reset(options={"index": index})


@pytest.mark.parametrize("tradeoff", [-0.1, 4.5, float("nan"), "0.3", None, (0.1, 1.0)], ids=repr)
def test_a_tradeoff_that_is_no_number_is_refused_at_reset(tradeoff):
    with pytest.raises(ValueError, match="tradeoff"):
        routing().reset(options={"tradeoff": tradeoff})


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match="`options` may hold index, tradeoff, got image, label"):
        routing().reset(options={"label": 1, "image": 2, "index": 3})


@pytest.mark.parametrize("mode", ["depth", "rgb", True])
def test_an_unknown_render_mode_is_refused(mode):
    with pytest.raises(ValueError, match="`render_mode`"):
        routing(render_mode=mode)


@pytest.mark.parametrize("reward", ["top5", None])
def test_an_unknown_reward_is_refused(reward):
    with pytest.raises(ValueError, match="`reward`"):
        routing(reward=reward)


def test_a_table_that_would_be_too_large_is_refused(monkeypatch):
    monkeypatch.setattr("rnr_gym.routing.route_table.LIMIT", 100)
    with pytest.raises(ValueError, match='`backend="table"`'):
        routing(backend="table", images=small.images(seed=99))


@BACKENDS
def test_rendering_as_text_follows_the_episode(backend):
    env = routing(render_mode="ansi", backend=backend)
    _, info = env.reset(seed=0)
    assert env.render().startswith(f"layer 0   λ = 0.3   compute {info['compute']:.3f}")
    _, _, _, _, info = env.step(np.int64(2))
    assert env.render().startswith(f"layer 1   λ = 0.3   compute {info['compute']:.3f}")
    assert "   2  @  o  o" in env.render().splitlines()
    _, _, _, _, info = env.step(np.int64(0))
    assert env.render().startswith(
        f"answer: {'abc'[info['prediction']]} ({'right' if info['is_success'] else 'wrong'}"
    )


@BACKENDS
def test_rendering_shows_the_belief_of_the_last_exit(backend):
    env = routing(render_mode="rgb_array", backend=backend)
    observation, _ = env.reset(seed=0)
    for action in (2, 3):
        where = env.routing.layout.summary.exit_probabilities
        np.testing.assert_allclose(env.scene().belief, observation[where], rtol=1e-4, atol=1e-5)
        assert env.render().shape == (270, 720, 3)
        observation = env.step(np.int64(action))[0]
    before = env.scene().belief
    env.step(np.int64(0))
    np.testing.assert_allclose(env.scene().belief, before, rtol=1e-4, atol=1e-5)


def test_rendering_for_people_prints_where_there_is_no_screen(capsys):
    env = routing(render_mode="human")
    env.reset(seed=0)
    env.step(np.int64(0))
    assert env.render() is None
    env.close()
    env.close()
    shown = capsys.readouterr().out
    assert "layer 0   λ = 0.3" in shown
    assert "answer: " in shown


def test_rendering_needs_an_episode_and_a_mode():
    with pytest.raises(gym.error.ResetNeeded, match="`render`"):
        routing(render_mode="ansi").render()
    env = routing()
    env.reset()
    with pytest.warns(UserWarning, match="`render_mode`"):
        assert env.render() is None


def test_rendering_changes_no_episode():
    silent, shown = (
        routing(tradeoff=(0.1, 1.0)),
        routing(tradeoff=(0.1, 1.0), render_mode="rgb_array"),
    )
    for env in (silent, shown):
        env.reset(seed=0)
    for action in (2, 3, 1):
        shown.render()
        one, other = silent.step(np.int64(action)), shown.step(np.int64(action))
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1] == other[1]
    shown.render()
    assert silent.reset()[1]["index"] == shown.reset()[1]["index"]
