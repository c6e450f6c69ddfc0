"""Scalar environments, Gymnasium's vector of them and the native one: number for number the same.

On the table backend every number is equal to the last bit. Live, observations and losses agree to
1e-4, since batches of different sizes round differently; all else is exact (no two classes tie so
closely in these episodes that rounding could turn a prediction).
"""

import copy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from numpy.testing import assert_allclose, assert_array_equal

from rnr_gym.backbones import zoo
from rnr_gym.registration import registered_kwargs
from tests.fixtures import small
from tests.fixtures.profiles import profile_of

IDS = ["RNR-Digits-v0", "RNR-Digits-Channels-v0"]
NUM_ENVS = 3
EVERY_ID = pytest.mark.parametrize("env_id", IDS)
BACKENDS = pytest.mark.parametrize("backend", ["live", "table"])
MODES = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)

KEYS = {
    "action_mask",
    "layer",
    "compute",
    "macs",
    "index",
    "tradeoff",
    "executed",
    "path",
    "is_success",
    "label",
    "prediction",
    "loss",
}
RANGE = (0.1, 2.0)


class EnvPair:
    """The native vector environment and Gymnasium's, driven alike and compared after each call.

    Attributes:
        native: the native vector environment.
        sync: Gymnasium's vector of scalar ones.
        rounded: the names of numbers that may differ by rounding.
        info_keys: the names of all entries of infos that were compared.
    """

    def __init__(self, env_id, backend, mode, num_envs=NUM_ENVS, **env_kwargs):
        env_kwargs |= {"weights": None, "backend": backend, "num_envs": num_envs}
        self.native = gym.make_vec(env_id, autoreset_mode=mode, **env_kwargs)
        self.sync = gym.make_vec(
            env_id,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": mode},
            **env_kwargs,
        )
        self.mode = mode
        self.info_keys = set()
        self.rounded = set()
        if backend == "live":
            self.rounded = {"observation", "final_obs", "loss"}
            if env_kwargs.get("reward") == "cross_entropy":
                self.rounded.add("reward")

    def reset(self, seed=None, options=None):
        # Copies, because Gymnasium takes the mask out of the options that it is given.
        obs, infos = self.native.reset(seed=seed, options=copy.copy(options))
        sync_obs, sync_infos = self.sync.reset(seed=seed, options=copy.copy(options))
        self.assert_same("observation", obs, sync_obs)
        self.assert_same_infos(infos, sync_infos)
        return infos

    def step(self, actions):
        *arrays, infos = self.native.step(actions)
        *sync_arrays, sync_infos = self.sync.step(actions)
        names = ("observation", "reward", "terminated", "truncated")
        for name, actual, expected in zip(names, arrays, sync_arrays, strict=True):
            self.assert_same(name, actual, expected)
        self.assert_same_infos(infos, sync_infos)

        # Without autoreset, a step after the end would be an error.
        terminated = arrays[2]
        if self.mode is AutoresetMode.DISABLED and terminated.any():
            self.reset(options={"reset_mask": terminated.copy()})

    def random_steps(self, count, seed=0):
        """Take random actions, masked ones among them."""
        size = (count, self.native.num_envs)
        rng = np.random.default_rng(seed)
        for actions in rng.integers(0, self.native.single_action_space.n, size):
            self.step(actions)

    def assert_same_infos(self, actual, expected, prefix=""):
        assert actual.keys() == expected.keys()
        for name, values in actual.items():
            self.info_keys.add(prefix + name)
            if isinstance(expected[name], dict):
                self.assert_same_infos(values, expected[name], f"{prefix}{name}.")
            else:
                self.assert_same(name, values, expected[name])

    def assert_same(self, name, actual, expected):
        assert type(actual) is type(expected), name
        if actual.dtype == np.bool_ and expected.dtype == object:
            # Gymnasium's own has no arrays of NumPy's bools: it keeps them as objects.
            expected = expected.astype(np.bool_)
        assert actual.dtype == expected.dtype, name
        assert actual.shape == expected.shape, name
        if actual.dtype == object:
            # One array for each episode that terminated, None for the others.
            for actual_part, expected_part in zip(actual, expected, strict=True):
                assert (actual_part is None) == (expected_part is None), name
                if actual_part is not None:
                    self.assert_same(name, actual_part, expected_part)
        elif name in self.rounded:
            assert_allclose(actual, expected, rtol=0, atol=1e-4, err_msg=name)
        else:
            assert_array_equal(actual, expected, err_msg=name)


@EVERY_ID
@BACKENDS
@MODES
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_native_matches_sync(env_id, backend, mode, seed, some_digits):
    pair = EnvPair(env_id, backend, mode, dataset=some_digits, tradeoff=RANGE)
    pair.reset(seed=seed)
    pair.random_steps(24, seed)

    # All kinds of entries have been compared.
    assert KEYS | {f"_{key}" for key in KEYS} <= pair.info_keys
    if mode is AutoresetMode.SAME_STEP:
        assert {f"final_info.{key}" for key in KEYS} <= pair.info_keys
        assert {"final_obs", "_final_obs"} <= pair.info_keys
        assert {"final_info", "_final_info"} <= pair.info_keys


@EVERY_ID
@BACKENDS
@MODES
@pytest.mark.parametrize(
    "env_kwargs",
    [
        {"exits": False},
        {"reward": "cross_entropy"},
    ],
    ids=["exits=False", "reward=cross_entropy"],
)
def test_native_matches_sync_with_arguments(env_id, backend, mode, env_kwargs, some_digits):
    pair = EnvPair(env_id, backend, mode, dataset=some_digits, **env_kwargs)
    pair.reset(seed=5)
    pair.random_steps(15)


@BACKENDS
@MODES
def test_native_matches_sync_over_resets(backend, mode, some_digits):
    pair = EnvPair(IDS[0], backend, mode, dataset=some_digits, tradeoff=RANGE)
    resets = [
        {"seed": 3},
        {},
        {"seed": [9, None, 4]},
        {"seed": 7, "options": {}},
        {"options": {"index": 11, "tradeoff": 1.25}},
        {},
    ]
    for reset_kwargs in resets:
        pair.reset(**reset_kwargs)
        pair.random_steps(7)


@BACKENDS
@MODES
def test_native_matches_sync_with_reset_masks(backend, mode, some_digits):
    pair = EnvPair(IDS[0], backend, mode, dataset=some_digits, tradeoff=RANGE)
    pair.reset(seed=3)
    resets = [
        (None, [True, False, False]),
        (1, [False, True, True]),
        (None, [True, True, True]),
        (3, [False, False, True]),
    ]
    for position, (seed, mask) in enumerate(resets):
        pair.random_steps(1, seed=position)
        pair.reset(seed=seed, options={"reset_mask": np.array(mask)})
    pair.random_steps(6)


@pytest.mark.parametrize("num_envs", [1, 8])
def test_native_matches_sync_for_any_count(num_envs, some_digits):
    mode = AutoresetMode.NEXT_STEP
    pair = EnvPair(IDS[0], "table", mode, num_envs, dataset=some_digits)
    pair.reset(seed=3)
    pair.random_steps(60)


@MODES
@pytest.mark.parametrize("kind", small.KINDS)
def test_native_matches_sync_if_quantised(mode, kind, images):
    backbone = small.backbone(kind, summary_groups=8)
    # On the table only: live, a value halfway between two steps may be rounded either way.
    pair = EnvPair(
        "RNR-v0",
        "table",
        mode,
        dataset=images,
        backbone=backbone,
        tradeoff=RANGE,
    )
    pair.reset(seed=3)
    pair.random_steps(15)
    # 8 groups, 3 classes, 3 values of confidence; 3 layers, compute, sub-paths, trade-off.
    size = 8 + 3 + 3 + 3 + 1 + backbone.num_paths + 1
    assert pair.native.single_observation_space.shape == (size,)


@MODES
def test_native_matches_sync_past_the_last_image(mode, some_digits):
    # All are seen after five episodes, and shuffled again.
    five_images = some_digits.take(np.arange(5))
    pair = EnvPair(IDS[0], "table", mode, dataset=five_images)
    pair.reset(seed=3)
    pair.random_steps(60)


@MODES
@pytest.mark.parametrize("value", [1.5, [1.5] * NUM_ENVS], ids=["number", "list"])
def test_native_matches_sync_after_set_attr(mode, value, some_digits):
    pair = EnvPair(IDS[0], "table", mode, dataset=some_digits, tradeoff=0.5)
    pair.reset(seed=3)
    pair.random_steps(3)
    pair.native.set_attr("tradeoff", value)
    pair.sync.set_attr("tradeoff", value)
    pair.random_steps(9)

    infos = pair.reset(seed=4)
    assert (infos["tradeoff"] == 1.5).all()
    assert pair.native.get_attr("tradeoff") == pair.sync.get_attr("tradeoff")


@pytest.mark.parametrize("name", ["action_masks", "tradeoff", "source", "vector_reward"])
def test_native_matches_sync_in_attributes(name, some_digits):
    pair = EnvPair(IDS[0], "table", AutoresetMode.NEXT_STEP, dataset=some_digits)
    pair.reset(seed=3)
    pair.step(np.array([0, 1, 2]))
    values = pair.native.call(name)
    expected = pair.sync.call(name)
    assert len(values) == NUM_ENVS
    assert len(pair.native.get_attr(name)) == NUM_ENVS
    for value, expected_value in zip(values, expected, strict=True):
        assert_array_equal(value, expected_value)


@EVERY_ID
@BACKENDS
def test_native_matches_scalar_environments(env_id, backend, some_digits):
    env_kwargs = {
        "weights": None,
        "backend": backend,
        "dataset": some_digits,
        "tradeoff": RANGE,
    }
    mode = AutoresetMode.SAME_STEP
    envs = gym.make_vec(env_id, num_envs=NUM_ENVS, autoreset_mode=mode, **env_kwargs)
    scalars = [gym.make(env_id, **env_kwargs) for _ in range(NUM_ENVS)]
    tolerance = 0.0
    if backend == "live":
        tolerance = 1e-4

    observations, infos = envs.reset(seed=21)
    # Gymnasium's vectors count on from the seed of the first.
    for idx, env in enumerate(scalars):
        obs, info = env.reset(seed=21 + idx)
        assert_allclose(observations[idx], obs, rtol=0, atol=tolerance)
        assert infos["index"][idx] == info["index"]

    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.integers(0, envs.single_action_space.n, NUM_ENVS)
        observations, rewards, terminations, _, infos = envs.step(actions)
        for idx, env in enumerate(scalars):
            obs, reward, terminated, _, info = env.step(actions[idx])
            assert rewards[idx] == reward
            assert terminations[idx] == terminated
            if terminated:
                final_obs = infos["final_obs"][idx]
                final_infos = infos["final_info"]
                assert_allclose(final_obs, obs, rtol=0, atol=tolerance)
                assert_array_equal(final_infos["path"][idx], info["path"])
                assert final_infos["prediction"][idx] == info["prediction"]
                obs, info = env.reset()

            assert_allclose(observations[idx], obs, rtol=0, atol=tolerance)
            for key in KEYS:
                assert_array_equal(infos[key][idx], info[key], key)


@pytest.mark.parametrize("charge", ["macs", "time"])
@EVERY_ID
def test_live_matches_table(env_id, some_digits, charge):
    cost = "macs"
    if charge == "time":
        cost = profile_of(zoo.named(registered_kwargs(env_id)["backbone"], None))
    env_kwargs = {"weights": None, "dataset": some_digits, "tradeoff": RANGE, "cost": cost}
    live = gym.make(env_id, backend="live", **env_kwargs)
    table = gym.make(env_id, backend="table", **env_kwargs)
    live_obs, live_info = live.reset(seed=2)
    table_obs, table_info = table.reset(seed=2)
    rng = np.random.default_rng(1)
    for action in rng.integers(0, live.action_space.n, 60):
        assert_allclose(live_obs, table_obs, rtol=0, atol=1e-4)
        assert live_info["index"] == table_info["index"]
        assert live_info["macs"] == table_info["macs"]
        assert live_info["layer"] == table_info["layer"]

        live_obs, live_reward, live_terminated, _, live_info = live.step(action)
        table_obs, table_reward, table_terminated, _, table_info = table.step(action)
        assert live_reward == table_reward
        assert live_terminated == table_terminated
        assert live_info.keys() == table_info.keys()
        if live_terminated:
            assert live_info["loss"] == pytest.approx(table_info["loss"], abs=1e-4)
            assert live_info["prediction"] == table_info["prediction"]
            assert live_info["is_success"] == table_info["is_success"]
            live_obs, live_info = live.reset()
            table_obs, table_info = table.reset()
