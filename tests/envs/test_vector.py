"""What the native vector environment has of its own; that it does what scalar ones do is in test_parity.py."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from rnr_gym.envs import RoutingEnv, RoutingVectorEnv
from rnr_gym.envs.routing import check_index
from tests.fixtures import small

MODES = pytest.mark.parametrize("mode", list(AutoresetMode))


def native(num_envs=3, exits_of="glance and exits", **arguments):
    """A vector environment over a small backbone and 24 random images."""
    return RoutingVectorEnv(
        num_envs,
        dataset=small.images(),
        backbone=small.backbone("multipath", exits_of),
        **arguments,
    )


@pytest.mark.parametrize("backend", ["live", "table"])
def test_many_environments_share_one_source(backend, some_digits):
    arguments = {"weights": None, "backend": backend, "dataset": some_digits}
    many = gym.make_vec("RNR-Digits-v0", num_envs=64, **arguments)
    sync = gym.make_vec("RNR-Digits-v0", num_envs=64, vectorization_mode="sync", **arguments)
    one = gym.make("RNR-Digits-v0", **arguments)
    assert all(env.unwrapped.source is many.source for env in (*sync.envs, one))


def test_images_and_backbone_are_one_object_for_all_backends():
    live = gym.make_vec("RNR-Digits-v0", num_envs=64, weights=None).source
    off = gym.make("RNR-Digits-v0", weights=None, exits=False).unwrapped.source
    assert off is not live
    assert off.backbone is live.backbone
    assert off.images is live.images


def test_spaces_are_batches_of_the_scalar_ones():
    envs, env = native(), RoutingEnv(dataset=small.images(), backbone=small.backbone("multipath"))
    assert envs.single_observation_space == env.observation_space
    assert envs.single_action_space == env.action_space
    assert envs.observation_space.shape == (3, *env.observation_space.shape)
    assert envs.action_space.shape == (3,)
    assert native(vector_reward=True).reward_space.shape == (3, 2)


@pytest.mark.parametrize("mode", [*AutoresetMode, *(mode.value for mode in AutoresetMode)])
def test_the_autoreset_mode_is_said_as_an_enum(mode):
    assert native(autoreset_mode=mode).metadata["autoreset_mode"] is AutoresetMode(mode)


def test_the_autoreset_mode_is_gymnasiums_own_by_default():
    assert native().metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@MODES
def test_vector_rewards_weighted_are_the_scalar_ones(mode):
    scalar, pairs = (
        native(tradeoff=(0.1, 2.0), autoreset_mode=mode, vector_reward=vector)
        for vector in (False, True)
    )
    scalar.reset(seed=0)
    pairs.reset(seed=0)
    for actions in np.random.default_rng(0).integers(0, 4, (12, 3)):
        tradeoffs = scalar.episodes.tradeoff.copy()
        _, rewards, ended, _, _ = scalar.step(actions)
        _, found, _, _, _ = pairs.step(actions)
        assert (rewards.dtype, rewards.shape, found.dtype, found.shape) == (
            np.float64,
            (3,),
            np.float64,
            (3, 2),
        )
        assert pairs.reward_space.contains(found)
        np.testing.assert_array_equal(found[:, 0] + tradeoffs * found[:, 1], rewards)
        if mode is AutoresetMode.DISABLED and ended.any():
            for envs in (scalar, pairs):
                envs.reset(options={"reset_mask": ended})


def test_options_give_each_sub_environment_its_own():
    envs = native()
    _, infos = envs.reset(options={"index": np.array([5, 0, 23]), "tradeoff": [0.5, 1.0, 2.0]})
    assert infos["index"].tolist() == [5, 0, 23]
    assert infos["tradeoff"].tolist() == [0.5, 1.0, 2.0]
    _, infos = envs.reset(options={"index": 4, "tradeoff": 0.25})
    assert infos["index"].tolist() == [4, 4, 4]
    assert infos["tradeoff"].tolist() == [0.25] * 3


def test_options_reach_only_those_that_are_reset():
    envs = native(tradeoff=0.5)
    before = envs.reset(seed=0)[1]["index"]
    envs.reset(
        options={
            "index": np.array([7, 8, 9]),
            "tradeoff": np.array([1.0, 2.0, 3.0]),
            "reset_mask": np.array([False, True, False]),
        }
    )
    _, _, _, _, infos = envs.step(np.array([1, 1, 1]))
    assert infos["index"].tolist() == [before[0], 8, before[2]]
    assert infos["tradeoff"].tolist() == [0.5, 2.0, 0.5]


def test_each_sub_environment_has_its_own_generator():
    envs = native(2)
    envs.reset(seed=0)
    assert len({id(random) for random in envs.np_random}) == 2
    alone = native(1)
    indices = [[envs.reset()[1]["index"][0] for _ in range(5)]]
    alone.reset(seed=0)
    indices.append([alone.reset()[1]["index"][0] for _ in range(5)])
    assert indices[0] == indices[1]


def test_attributes_are_read_once_for_each_sub_environment():
    envs = native(tradeoff=0.5)
    envs.reset()
    assert envs.get_attr("tradeoff") == ((0.5, 0.5),) * 3
    assert envs.get_attr("routing") == (envs.routing,) * 3
    assert envs.call("tradeoff") == ((0.5, 0.5),) * 3
    masks = envs.call("action_masks")
    assert len(masks) == 3
    assert all(mask.shape == (4,) and mask.dtype == np.bool_ for mask in masks)


@pytest.mark.parametrize("value", [1.5, [1.5, 1.5, 1.5], (0.5, 2.0)])
def test_a_tradeoff_set_holds_from_the_next_episode_on(value):
    envs = native(tradeoff=0.5)
    envs.reset(seed=0)
    envs.set_attr("tradeoff", value)
    low, high = value if isinstance(value, tuple) else (1.5, 1.5)
    for seed in (None, 0):
        tradeoffs = envs.reset(seed=seed)[1]["tradeoff"]
        assert ((tradeoffs >= low) & (tradeoffs <= high)).all()
    assert envs.get_attr("tradeoff")[0] == (low, high)


@pytest.mark.parametrize("value", [[1.0, 2.0, 3.0], [1.0, 1.0]])
def test_sub_environments_share_their_attributes(value):
    with pytest.raises(ValueError, match="`values`"):
        native().set_attr("tradeoff", value)


@pytest.mark.parametrize("value", [-1.0, 5.0, float("nan"), "1", (2.0, 1.0)])
def test_a_bad_tradeoff_cannot_be_set(value):
    envs = native(tradeoff=0.5)
    with pytest.raises(ValueError, match="`tradeoff`"):
        envs.set_attr("tradeoff", value)
    assert envs.get_attr("tradeoff")[0] == (0.5, 0.5)


@MODES
def test_nothing_that_is_handed_out_is_shared(mode):
    envs, arrays = native(autoreset_mode=mode), []

    def collect(value):
        if isinstance(value, dict):
            for part in value.values():
                collect(part)
        elif isinstance(value, np.ndarray) and value.dtype == object:
            for part in value:
                collect(part)
        elif isinstance(value, np.ndarray):
            arrays.append(value)

    observations, infos = envs.reset(seed=0)
    collect({**infos, "observations": observations})
    for _ in range(4):
        observations, rewards, ended, cut, infos = envs.step(np.array([1, 2, 0]))
        collect(
            {**infos, "observations": observations, "rewards": rewards, "ended": ended, "cut": cut}
        )
        if mode is AutoresetMode.DISABLED:
            observations, infos = envs.reset(options={"reset_mask": ended})
            collect({**infos, "observations": observations})
    arrays += [envs.routing.masks, envs.routing.valid]
    assert len(arrays) > 50
    assert not any(
        np.shares_memory(one, other)
        for number, one in enumerate(arrays)
        for other in arrays[:number]
    )


BAD_ACTIONS = [
    [0, 1, 4], [0, -1, 1], [0.0, 1.0, 2.0], [True, False, True], [0, 1], [0, 1, 2, 3], [[0, 1, 2]], 1, None, ["0", "1", "2"],
]  # fmt: skip


@pytest.mark.parametrize("actions", BAD_ACTIONS, ids=repr)
def test_actions_outside_the_space_are_refused(actions):
    envs = native()
    envs.reset()
    with pytest.raises(ValueError, match="`actions`"):
        envs.step(np.array(actions))
    envs.step(np.array([1, 2, 3]))


@MODES
def test_a_step_needs_a_reset_first(mode):
    with pytest.raises(gym.error.ResetNeeded, match="`step`"):
        native(autoreset_mode=mode).step(np.zeros(3, np.int64))


def test_without_autoreset_a_step_after_an_end_is_refused():
    envs = native(autoreset_mode=AutoresetMode.DISABLED)
    envs.reset()
    envs.step(np.array([0, 1, 1]))
    with pytest.raises(gym.error.ResetNeeded, match="`step`"):
        envs.step(np.array([1, 1, 1]))
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    envs.step(np.array([1, 1, 1]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("options", {"label": 1}),
        ("options", {"index": 24}),
        ("options", {"index": [0, 1, -1]}),
        ("options", {"index": [0.0, 1.0, 2.0]}),
        ("options", {"index": [0, 1]}),
        ("tradeoff", {"tradeoff": -1.0}),
        ("tradeoff", {"tradeoff": [0.1, 0.2, float("nan")]}),
        ("options", {"tradeoff": [0.1, 0.2]}),
        ("options", {"reset_mask": [True, False, True]}),
        ("options", {"reset_mask": np.array([1, 0, 1])}),
        ("options", {"reset_mask": np.array([True, False])}),
        ("options", {"reset_mask": np.zeros(3, np.bool_)}),
    ],
    ids=str,
)
def test_bad_options_are_refused_by_name(name, options):
    envs = native()
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=f"`{name}"):
        envs.reset(options=options)


def test_refused_options_change_nothing():
    envs, other = native(), native()
    for each in (envs, other):
        each.reset(seed=0)
    with pytest.raises(ValueError, match="`options"):
        envs.reset(options={"index": [0, 1, 99]})
    np.testing.assert_array_equal(
        envs.step(np.array([1, 2, 3]))[0], other.step(np.array([1, 2, 3]))[0]
    )
    np.testing.assert_array_equal(envs.reset()[1]["index"], other.reset()[1]["index"])


@pytest.mark.parametrize("num_envs", [0, -1, 1.0, True, "2", None], ids=repr)
def test_a_number_of_environments_that_is_none_is_refused(num_envs):
    with pytest.raises(ValueError, match="`num_envs`"):
        native(num_envs)


@pytest.mark.parametrize("mode", ["human", "ansi", "depth"])
def test_an_unknown_render_mode_is_refused(mode):
    with pytest.raises(ValueError, match="`render_mode`"):
        native(render_mode=mode)


def test_a_list_of_seeds_must_have_one_for_each():
    with pytest.raises(ValueError, match="`seed`"):
        native().reset(seed=[1, 2])


def test_each_sub_environment_is_rendered():
    envs = native(2, render_mode="rgb_array")
    with pytest.raises(gym.error.ResetNeeded, match="`render`"):
        envs.render()
    envs.reset(seed=0)
    frames = envs.render()
    assert [(frame.shape, frame.dtype) for frame in frames] == [((270, 720, 3), np.uint8)] * 2
    assert len(envs.call("render")) == 2
    assert native().render() is None


def test_an_index_is_checked_whatever_its_kind():
    assert check_index(np.int8(3), 4) == 3
    assert type(check_index(np.uint16(3), 4)) is int


def test_a_tradeoff_that_is_assigned_is_checked_and_holds_from_the_next_episode_on():
    env = RoutingVectorEnv(
        num_envs=2, backbone=small.backbone("multipath"), dataset=small.images(8)
    )
    env.reset(seed=0)
    env.tradeoff = 0.9
    assert env.reset()[1]["tradeoff"].tolist() == [0.9, 0.9]
    with pytest.raises(ValueError, match="`tradeoff`"):
        env.tradeoff = 99


def test_a_keyword_that_is_none_is_named():
    with pytest.raises(TypeError, match="`tradeof` is no argument"):
        gym.make_vec("RNR-Digits-v0", 2, tradeof=0.1)


def test_gymnasiums_own_option_is_accepted():
    gym.make_vec("RNR-Digits-v0", 2, weights=None, disable_env_checker=True).close()
