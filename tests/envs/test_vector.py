"""What only the native vector environment has; `test_parity.py` compares it with scalar ones."""

import tracemalloc

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from numpy.testing import assert_array_equal

from rnr_gym.envs import RoutingVectorEnv
from rnr_gym.envs.routing import check_index
from tests.fixtures import small
from tests.fixtures.episodes import make_env

MODES = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
BAD_ACTIONS = [
    [0, 1, 4],
    [0, -1, 1],
    [0.0, 1.0, 2.0],
    [True, False, True],
    [0, 1],
    [0, 1, 2, 3],
    [[0, 1, 2]],
    1,
    None,
    ["0", "1", "2"],
]
BAD_OPTIONS = [
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
]


def make_envs(num_envs=3, **env_kwargs):
    """A vector environment over a small backbone and 24 random images."""
    return RoutingVectorEnv(
        num_envs=num_envs,
        dataset=small.images(),
        backbone=small.backbone("multipath"),
        **env_kwargs,
    )


def drawn_indices(envs, count):
    """The images of the first sub-environment over several resets."""
    indices = []
    for _ in range(count):
        _, infos = envs.reset()
        indices.append(infos["index"][0])
    return indices


@pytest.mark.parametrize("backend", ["live", "table"])
def test_many_environments_share_one_source(backend, some_digits):
    kwargs = {"weights": None, "backend": backend, "dataset": some_digits}
    native = gym.make_vec("RNR-Digits-v0", num_envs=64, **kwargs)
    sync = gym.make_vec("RNR-Digits-v0", num_envs=64, vectorization_mode="sync", **kwargs)
    scalar = gym.make("RNR-Digits-v0", **kwargs)
    assert len(sync.envs) == 64
    for env in (*sync.envs, scalar):
        assert env.unwrapped.source is native.source


def test_sources_share_images_and_backbone():
    on = gym.make_vec("RNR-Digits-v0", num_envs=64, weights=None).source
    off = gym.make("RNR-Digits-v0", weights=None, exits=False).unwrapped.source
    assert off is not on
    assert off.backbone is on.backbone
    assert off.images is on.images


def test_spaces_are_batches_of_the_scalar_ones():
    envs = make_envs()
    env = make_env()
    assert envs.single_observation_space == env.observation_space
    assert envs.single_action_space == env.action_space
    assert envs.observation_space.shape == (3, *env.observation_space.shape)
    assert envs.action_space.shape == (3,)
    # But for that of rewards, which MO-Gymnasium reads as one sub-environment's.
    pairs = make_envs(vector_reward=True)
    assert pairs.reward_space.shape == (2,)
    assert pairs.reward_dim == 2


@MODES
@pytest.mark.parametrize("form", ["enum", "value"])
def test_autoreset_mode_is_kept_as_an_enum(mode, form):
    given = mode
    if form == "value":
        given = mode.value
    envs = make_envs(autoreset_mode=given)
    assert envs.metadata["autoreset_mode"] is mode


def test_autoreset_mode_is_next_step_by_default():
    assert make_envs().metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@MODES
def test_vector_rewards_weighted_are_the_scalar(mode):
    env_kwargs = {"tradeoff": (0.1, 2.0), "autoreset_mode": mode}
    scalar_envs = make_envs(**env_kwargs)
    pair_envs = make_envs(**env_kwargs, vector_reward=True)
    scalar_envs.reset(seed=0)
    pair_envs.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(12):
        actions = rng.integers(0, 4, 3)
        # Those of the episodes that move now, before some begin again.
        tradeoff = scalar_envs.episodes.tradeoff.copy()
        _, rewards, terminated, _, _ = scalar_envs.step(actions)
        _, pairs, _, _, _ = pair_envs.step(actions)
        assert rewards.dtype == np.float64
        assert rewards.shape == (3,)
        assert pairs.dtype == np.float64
        assert pairs.shape == (3, 2)
        assert all(pair_envs.reward_space.contains(pair) for pair in pairs)
        assert_array_equal(pairs[:, 0] + tradeoff * pairs[:, 1], rewards)

        if mode is AutoresetMode.DISABLED and terminated.any():
            scalar_envs.reset(options={"reset_mask": terminated})
            pair_envs.reset(options={"reset_mask": terminated})


def test_options_are_for_each_or_for_all():
    envs = make_envs()
    options = {"index": np.array([5, 0, 23]), "tradeoff": [0.5, 1.0, 2.0]}
    _, infos = envs.reset(options=options)
    assert infos["index"].tolist() == [5, 0, 23]
    assert infos["tradeoff"].tolist() == [0.5, 1.0, 2.0]

    _, infos = envs.reset(options={"index": 4, "tradeoff": 0.25})
    assert (infos["index"] == 4).all()
    assert (infos["tradeoff"] == 0.25).all()


def test_options_reach_only_those_that_are_reset():
    envs = make_envs(tradeoff=0.5)
    _, infos = envs.reset(seed=0)
    before = infos["index"]
    options = {
        "index": np.array([7, 8, 9]),
        "tradeoff": np.array([1.0, 2.0, 3.0]),
        "reset_mask": np.array([False, True, False]),
    }
    envs.reset(options=options)
    # The infos of a step are of all, those of such a reset of the second only.
    _, _, _, _, infos = envs.step(np.array([1, 1, 1]))
    assert infos["index"].tolist() == [before[0], 8, before[2]]
    assert infos["tradeoff"].tolist() == [0.5, 2.0, 0.5]


def test_each_sub_environment_has_its_generator():
    pair = make_envs(2)
    pair.reset(seed=0)
    first, second = pair.np_random
    assert first is not second

    # So the images of one do not depend on how many there are.
    alone = make_envs(1)
    alone.reset(seed=0)
    assert drawn_indices(pair, 5) == drawn_indices(alone, 5)


def test_each_generator_has_its_seed():
    envs = make_envs()
    assert envs.np_random_seed == ()
    envs.reset(seed=7)
    assert envs.np_random_seed == (7, 8, 9)
    assert envs.call("np_random_seed") == (7, 8, 9)

    # One that was drawn leads to the same episodes, as Gymnasium's seeds do.
    envs = make_envs()
    envs.reset()
    again = make_envs()
    again.reset(seed=envs.np_random_seed)
    assert drawn_indices(again, 5) == drawn_indices(envs, 5)


def test_get_attr_gives_one_value_for_each():
    envs = make_envs(tradeoff=0.5)
    envs.reset()
    assert envs.get_attr("tradeoff") == ((0.5, 0.5),) * 3
    assert envs.call("tradeoff") == ((0.5, 0.5),) * 3
    assert envs.get_attr("routing_spec") == (envs.routing_spec,) * 3

    masks = envs.call("action_masks")
    assert len(masks) == 3
    for mask in masks:
        assert mask.shape == (4,)
        assert mask.dtype == np.bool_


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (1.5, (1.5, 1.5)),
        ([1.5, 1.5, 1.5], (1.5, 1.5)),
        ((0.5, 2.0), (0.5, 2.0)),
    ],
    ids=["number", "list", "range"],
)
def test_set_tradeoff_holds_from_next_episode(value, bounds):
    envs = make_envs(tradeoff=0.5)
    envs.reset(seed=0)
    envs.set_attr("tradeoff", value)
    low, high = bounds
    for seed in (None, 0):
        _, infos = envs.reset(seed=seed)
        assert (infos["tradeoff"] >= low).all()
        assert (infos["tradeoff"] <= high).all()
    assert envs.get_attr("tradeoff")[0] == bounds


def test_assigned_tradeoff_is_for_next_episodes():
    envs = make_envs(tradeoff=0.5)
    envs.reset(seed=0)
    envs.tradeoff = 0.9
    _, infos = envs.reset()
    assert (infos["tradeoff"] == 0.9).all()
    with pytest.raises(ValueError, match="`tradeoff` must lie in"):
        envs.tradeoff = 99


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [1.0, 1.0]], ids=str)
def test_set_attr_rejects_different_values(values):
    with pytest.raises(ValueError, match="`values` must be one value, or the same value 3 times"):
        make_envs().set_attr("tradeoff", values)


@pytest.mark.parametrize("value", [-1.0, 5.0, float("nan"), "1", (2.0, 1.0)], ids=repr)
def test_set_attr_rejects_bad_tradeoffs(value):
    envs = make_envs(tradeoff=0.5)
    with pytest.raises(ValueError, match="`tradeoff`"):
        envs.set_attr("tradeoff", value)
    assert envs.get_attr("tradeoff")[0] == (0.5, 0.5)


def arrays_in(value):
    """Every array of numbers in nested infos."""
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, np.ndarray) and value.dtype == object:
        parts = list(value)
    elif isinstance(value, np.ndarray):
        return [value]
    else:
        return []

    arrays = []
    for part in parts:
        arrays += arrays_in(part)
    return arrays


@MODES
def test_returned_arrays_share_no_memory(mode):
    envs = make_envs(autoreset_mode=mode)
    obs, infos = envs.reset(seed=0)
    arrays = [obs, *arrays_in(infos)]
    for _ in range(4):
        obs, rewards, terminated, truncated, infos = envs.step(np.array([1, 2, 0]))
        arrays += [obs, rewards, terminated, truncated]
        arrays += arrays_in(infos)
        if mode is AutoresetMode.DISABLED:
            obs, infos = envs.reset(options={"reset_mask": terminated})
            arrays += [obs, *arrays_in(infos)]

    arrays += [envs.routing_spec.masks, envs.routing_spec.valid]
    assert len(arrays) > 50
    for position, array in enumerate(arrays):
        for earlier in arrays[:position]:
            assert not np.shares_memory(array, earlier)


@pytest.mark.parametrize("actions", BAD_ACTIONS, ids=repr)
def test_step_rejects_actions_outside_the_space(actions):
    envs = make_envs()
    envs.reset()
    with pytest.raises(ValueError, match="`actions` must"):
        envs.step(np.array(actions))
    # The episodes continue.
    envs.step(np.array([1, 2, 3]))


@MODES
def test_step_needs_a_reset_first(mode):
    envs = make_envs(autoreset_mode=mode)
    with pytest.raises(gym.error.ResetNeeded, match="call `reset` before `step`"):
        envs.step(np.zeros(3, np.int64))


def test_disabled_autoreset_needs_active_episodes():
    envs = make_envs(autoreset_mode=AutoresetMode.DISABLED)
    envs.reset()
    envs.step(np.array([0, 1, 1]))
    message = r"the episodes of sub-environments \[0\] have terminated; call `reset` .* `step`"
    with pytest.raises(gym.error.ResetNeeded, match=message):
        envs.step(np.array([1, 1, 1]))

    envs.reset(options={"reset_mask": np.array([True, False, False])})
    envs.step(np.array([1, 1, 1]))


@pytest.mark.parametrize(("name", "options"), BAD_OPTIONS, ids=str)
def test_reset_rejects_bad_options(name, options):
    envs = make_envs()
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=f"`{name}"):
        envs.reset(options=options)


def test_rejected_options_change_nothing():
    envs = make_envs()
    other = make_envs()
    envs.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(ValueError, match="`options"):
        envs.reset(options={"index": [0, 1, 99]})

    actions = np.array([1, 2, 3])
    obs, _, _, _, _ = envs.step(actions)
    other_obs, _, _, _, _ = other.step(actions)
    assert_array_equal(obs, other_obs)
    _, infos = envs.reset()
    _, other_infos = other.reset()
    assert_array_equal(infos["index"], other_infos["index"])


def test_first_reset_must_start_all():
    mask = np.array([True, False, True])
    with pytest.raises(gym.error.ResetNeeded, match="must start every sub-environment"):
        make_envs().reset(options={"reset_mask": mask})


@pytest.mark.parametrize("num_envs", [0, -1, 1.0, True, "2", None], ids=repr)
def test_envs_reject_bad_counts(num_envs):
    with pytest.raises(ValueError, match="`num_envs` must be a whole number of at least 1"):
        make_envs(num_envs)


@MODES
def test_autoreset_mode_is_known_by_name_and_value(mode):
    for spelling in (mode, mode.name, mode.value):
        assert make_envs(autoreset_mode=spelling).metadata["autoreset_mode"] is mode


def test_metadata_has_the_render_modes_there_are():
    assert make_envs().metadata["render_modes"] == ["rgb_array"]


@pytest.mark.parametrize("mode", ["human", "ansi", "depth"])
def test_envs_reject_unknown_render_modes(mode):
    with pytest.raises(ValueError, match="`render_mode` must be one of rgb_array"):
        make_envs(render_mode=mode)


def test_envs_reject_unknown_keywords():
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'tradeof'"):
        gym.make_vec("RNR-Digits-v0", 2, tradeof=0.1)


def test_envs_accept_gymnasiums_own_option():
    # `make_vec` hands it on to native environments.
    gym.make_vec("RNR-Digits-v0", 2, weights=None, disable_env_checker=True).close()


def test_reset_rejects_too_few_seeds():
    with pytest.raises(ValueError, match=r"`seed` must be a number or 3 of them, got \[1, 2\]"):
        make_envs().reset(seed=[1, 2])


def test_render_gives_a_frame_for_each():
    envs = make_envs(2, render_mode="rgb_array")
    with pytest.raises(gym.error.ResetNeeded, match="`render`"):
        envs.render()

    envs.reset(seed=0)
    frames = envs.render()
    assert len(frames) == 2
    for frame in frames:
        assert frame.shape == (540, 960, 3)
        assert frame.dtype == np.uint8
    assert len(envs.call("render")) == 2


def test_render_without_a_mode_gives_none():
    assert make_envs().render() is None


@pytest.mark.parametrize("index", [3, np.int8(3), np.uint16(3)], ids=repr)
def test_check_index_gives_a_plain_int(index):
    checked = check_index(index, 4)
    assert type(checked) is int
    assert checked == 3


def test_long_run_keeps_memory_flat():
    envs = make_envs(num_envs=256, autoreset_mode="SAME_STEP", backend="table")
    envs.action_space.seed(0)
    envs.reset(seed=0)

    def take_steps(count):
        for _ in range(count // envs.num_envs):
            envs.step(envs.action_space.sample())
        current, _ = tracemalloc.get_traced_memory()
        return current

    tracemalloc.start()
    try:
        # By then every sub-environment has drawn the order of its images again.
        before = take_steps(25_000)
        after = take_steps(50_000)
    finally:
        tracemalloc.stop()
    # One step makes more than that.
    assert after - before < 50_000, f"{after - before} bytes"
