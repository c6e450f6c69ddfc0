"""The adapter does what Stable-Baselines3's own wrapping does, and its learners run through it."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from numpy.testing import assert_allclose, assert_array_equal
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, is_vecenv_wrapped

from rnr_gym.envs import RoutingVectorEnv
from rnr_gym.sb3 import RoutingVecEnv, make_vec_env
from tests.fixtures import small

IDS = ["RNR-Digits-v0", "RNR-Digits-Channels-v0"]
NUM_ENVS = 4
RANGE = (0.1, 2.0)
FINAL_KEYS = {
    "terminal_observation",
    "TimeLimit.truncated",
    "is_success",
    "episode",
    "path",
    "prediction",
    "loss",
}


class EnvPair:
    """The adapter and SB3's vector of scalar environments, driven alike and compared.

    Attributes:
        native: the adapter, monitored.
        dummy: SB3's vector, monitored.
        num_ends: how many episodes have terminated.
    """

    def __init__(self, env_id, backend, seed=3, **env_kwargs):
        env_kwargs |= {"weights": None, "backend": backend}
        makers = [lambda: gym.make(env_id, **env_kwargs)] * NUM_ENVS
        self.native = make_vec_env(env_id, NUM_ENVS, seed, env_kwargs=env_kwargs)
        self.dummy = VecMonitor(DummyVecEnv(makers))
        self.dummy.seed(seed)
        self.num_ends = 0
        # Batches of different sizes round differently.
        self.rounded = set()
        if backend == "live":
            self.rounded = {"observation", "loss", "terminal_observation"}

    def seed(self, seed):
        self.native.seed(seed)
        self.dummy.seed(seed)

    def set_options(self, options):
        self.native.set_options(options)
        self.dummy.set_options(options)

    def reset(self):
        self.assert_same("observation", self.native.reset(), self.dummy.reset())
        infos = self.native.venv.reset_infos
        expected_infos = self.dummy.venv.reset_infos
        for info, expected_info in zip(infos, expected_infos, strict=True):
            self.assert_same_info(info, expected_info)

    def step(self, actions):
        *arrays, infos = self.native.step(actions)
        *expected_arrays, expected_infos = self.dummy.step(actions)
        names = ("observation", "reward", "done")
        for name, actual, expected in zip(names, arrays, expected_arrays, strict=True):
            self.assert_same(name, actual, expected)

        dones = arrays[2]
        self.num_ends += dones.sum()
        for done, info, expected_info in zip(dones, infos, expected_infos, strict=True):
            if done:
                self.assert_same_info(info, expected_info)
            else:
                assert info == {}

    def random_steps(self, count, seed=0):
        rng = np.random.default_rng(seed)
        for actions in rng.integers(0, self.native.action_space.n, (count, NUM_ENVS)):
            self.step(actions)

    def assert_same_info(self, actual, expected):
        assert actual.keys() == expected.keys()
        for name, value in actual.items():
            if name == "episode":
                # The monitor adds the time that has passed, which is no two times the same.
                assert value["r"] == expected[name]["r"]
                assert value["l"] == expected[name]["l"]
            else:
                self.assert_same(name, np.asarray(value), np.asarray(expected[name]))

    def assert_same(self, name, actual, expected):
        assert actual.dtype == expected.dtype, name
        assert actual.shape == expected.shape, name
        tolerance = 0.0
        if name in self.rounded:
            tolerance = 1e-4
        assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=name)


@pytest.fixture
def digits_env(some_digits):
    """Makes adapters over a table of digits with random weights."""

    def make(num_envs=NUM_ENVS, seed=0, backend="table", **env_kwargs):
        env_kwargs |= {"weights": None, "backend": backend, "dataset": some_digits}
        return make_vec_env(IDS[0], num_envs, seed, env_kwargs=env_kwargs)

    return make


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("backend", ["live", "table"])
@pytest.mark.parametrize("seed", [0, 12345])
def test_make_vec_env_matches_dummy_vec_env(env_id, backend, seed, some_digits):
    pair = EnvPair(env_id, backend, seed, dataset=some_digits, tradeoff=RANGE)
    assert pair.native.observation_space == pair.dummy.observation_space
    assert pair.native.action_space == pair.dummy.action_space
    pair.reset()
    pair.random_steps(24, seed)
    assert pair.num_ends > NUM_ENVS


def test_make_vec_env_matches_without_exits(some_digits):
    env_kwargs = {"exits": False, "reward": "cross_entropy"}
    pair = EnvPair(IDS[0], "table", dataset=some_digits, **env_kwargs)
    pair.reset()
    pair.random_steps(12)
    # Four steps an episode.
    assert pair.num_ends == 3 * NUM_ENVS


def test_vec_env_matches_after_seeds_and_resets(some_digits):
    pair = EnvPair(IDS[0], "table", dataset=some_digits, tradeoff=RANGE)
    pair.reset()
    for seed in (None, 9, 9, None):
        # A seed holds for one reset; without one the generators continue.
        if seed is not None:
            pair.seed(seed)
        pair.reset()
        pair.random_steps(7)


@pytest.mark.parametrize(
    "options",
    [
        {"index": 11, "tradeoff": 1.25},
        [{"index": idx, "tradeoff": 0.5 + idx} for idx in range(NUM_ENVS)],
        [{"index": 5}, {}, {"tradeoff": 1.5}, {}],
    ],
    ids=["one for all", "one for each", "some"],
)
def test_make_vec_env_options_hold_for_one_reset(some_digits, options):
    pair = EnvPair(IDS[0], "table", dataset=some_digits, tradeoff=RANGE)
    pair.reset()
    pair.set_options(options)
    for _ in range(3):
        pair.reset()
        pair.random_steps(6)


def test_final_info_has_all_a_learner_asks_for(digits_env):
    env = digits_env()
    env.reset()
    _, _, _, infos = env.step(np.zeros(NUM_ENVS, np.int64))
    for info in infos:
        assert info.keys() >= FINAL_KEYS
        assert info["TimeLimit.truncated"] is False
        is_right = info["prediction"] == info["label"]
        assert info["is_success"] == is_right
        assert info["episode"]["l"] == 1


def test_learner_may_write_into_what_step_returns(digits_env):
    overwritten = digits_env(seed=5).venv
    untouched = digits_env(seed=5).venv
    overwritten.reset()
    untouched.reset()
    earlier_rewards = []
    rng = np.random.default_rng(0)
    for _ in range(12):
        actions = rng.integers(0, 4, NUM_ENVS)
        obs, rewards, dones, infos = overwritten.step(actions)
        expected_obs, expected_rewards, expected_dones, _ = untouched.step(actions)
        assert_array_equal(obs, expected_obs)
        assert_array_equal(rewards, expected_rewards)
        assert_array_equal(dones, expected_dones)
        assert not any(np.shares_memory(rewards, earlier) for earlier in earlier_rewards)
        earlier_rewards.append(rewards)

        # Stable-Baselines3 adds bootstrap values to the rewards in place.
        rewards += 100.0
        obs[:] = -7.0
        dones[:] = True
        for info in infos:
            info.clear()


def test_action_masks_are_those_of_each_layer():
    backbone = small.backbone("multipath", "exits")
    valid = backbone.valid
    env = make_vec_env(
        "RNR-v0", NUM_ENVS, 0, env_kwargs={"dataset": small.images(), "backbone": backbone}
    )
    env.reset()
    layers = np.zeros(NUM_ENVS, np.int64)
    differed = False
    for _ in range(7):
        masks = env.env_method("action_masks")
        assert len(masks) == NUM_ENVS
        assert np.array(masks).dtype == np.bool_
        assert_array_equal(masks, valid[layers])
        some_masks = env.env_method("action_masks", indices=[2, 0])
        assert_array_equal(some_masks, valid[layers[[2, 0]]])

        _, _, dones, _ = env.step(np.array([0, 1, 2, 3]))
        layers = np.where(dones, 0, layers + 1)
        differed |= len(set(layers.tolist())) > 1
    # So the masks were not those of the first environment only.
    assert differed


def test_make_vec_env_has_no_scalar_wrappers(digits_env):
    env = digits_env(backend="live")
    assert env.env_is_wrapped(Monitor) == [False] * NUM_ENVS
    assert env.env_is_wrapped(Monitor, indices=[1, 3]) == [False, False]
    assert env.env_is_wrapped(Monitor, indices=0) == [False]
    assert is_vecenv_wrapped(env, VecMonitor)


def test_id_may_name_its_module(some_digits):
    env_kwargs = {"dataset": some_digits, "weights": None}
    for env_id in (IDS[0], f"rnr_gym:{IDS[0]}"):
        env = make_vec_env(env_id, np.int64(2), seed=0, env_kwargs=env_kwargs)
        assert env.num_envs == 2


def test_monitor_writes_every_episode(some_digits, tmp_path):
    env_kwargs = {"dataset": some_digits, "weights": None}
    env = make_vec_env(IDS[0], 4, seed=0, monitor_dir=tmp_path / "logs", env_kwargs=env_kwargs)
    env.reset()
    # Everyone answers at the glance, twice.
    for _ in range(2):
        env.step(np.zeros(4, np.int64))
    env.close()
    results = load_results(str(tmp_path / "logs"))
    assert results["l"].tolist() == [1] * 8


def test_attributes_are_read_for_each(digits_env):
    env = digits_env(tradeoff=0.5)
    assert env.get_attr("tradeoff") == [(0.5, 0.5)] * NUM_ENVS
    assert env.get_attr("tradeoff", indices=[0, 2]) == [(0.5, 0.5)] * 2
    with pytest.raises(AttributeError):
        env.get_attr("nothing")


def test_methods_are_attributes_too(digits_env):
    """They are given, not called: asking for `reset` must restart no episode."""
    env = digits_env()
    assert env.has_attr("reset")
    assert env.has_attr("action_masks")
    (method,) = env.get_attr("action_masks", indices=0)
    assert callable(method)

    env.reset()
    env.step(np.full(NUM_ENVS, 3))
    before = env.env_method("action_masks")
    assert env.has_attr("reset")
    assert env.has_attr("step")
    assert_array_equal(env.env_method("action_masks"), before)


def test_generators_are_attributes_of_each(digits_env):
    env = digits_env()
    env.reset()
    generators = env.get_attr("np_random")
    assert len({id(generator) for generator in generators}) == NUM_ENVS


def test_attributes_are_set_for_all(digits_env):
    env = digits_env(tradeoff=0.5)
    env.reset()
    env.set_attr("tradeoff", 1.5)
    layout = env.get_attr("routing_spec")[0].layout
    obs = env.reset()
    assert (obs[:, layout.tradeoff] == 1.5).all()
    with pytest.raises(ValueError, match="`indices` must be None"):
        env.set_attr("tradeoff", 1.0, indices=[0])


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_an_error(mode):
    env = RoutingVectorEnv(
        num_envs=2,
        autoreset_mode=mode,
        dataset=small.images(),
        backbone=small.backbone("multipath"),
    )
    message = r"`env` must use AutoresetMode.SAME_STEP, got AutoresetMode\."
    with pytest.raises(ValueError, match=message):
        RoutingVecEnv(env)


def test_vector_rewards_are_an_error(digits_env):
    message = "`env` must give scalar rewards, got `vector_reward=True`"
    with pytest.raises(ValueError, match=message):
        digits_env(2, backend="live", vector_reward=True)


def test_get_images_gives_a_frame_for_each(digits_env):
    env = digits_env(backend="live", render_mode="rgb_array")
    env.reset()
    frames = env.get_images()
    assert len(frames) == NUM_ENVS
    for frame in frames:
        assert frame.dtype == np.uint8
        assert frame.ndim == 3

    # Two rows of two.
    height, width, channels = frames[0].shape
    assert env.render().shape == (2 * height, 2 * width, channels)
    env.close()


def test_get_images_without_a_mode_gives_none(digits_env):
    env = digits_env(backend="live")
    env.reset()
    assert env.get_images() == [None] * NUM_ENVS


class SuccessRecorder(BaseCallback):
    """Keeps which episodes were answered right, as the environment says."""

    def _on_training_start(self):
        self.successes = []

    def _on_step(self):
        for info in self.locals["infos"]:
            if info:
                self.successes.append(bool(info["is_success"]))
        return True


@pytest.mark.parametrize(
    ("learner", "hyperparameters"),
    [
        (PPO, {"n_steps": 16, "batch_size": 32}),
        (A2C, {}),
        (DQN, {"learning_starts": 64, "train_freq": 1}),
    ],
    ids=["PPO", "A2C", "DQN"],
)
def test_learner_counts_right_answers_as_success(learner, hyperparameters, digits_env):
    model = learner(
        "MlpPolicy",
        digits_env(tradeoff=RANGE),
        gamma=1.0,
        seed=0,
        stats_window_size=10_000,  # all episodes, so that they can be compared
        device="cpu",
        **hyperparameters,
    )
    recorder = SuccessRecorder()
    before = [parameter.clone() for parameter in model.policy.parameters()]
    # Enough for some gradient steps of each learner.
    model.learn(320, recorder)

    assert model.num_timesteps >= 320
    assert len(recorder.successes) > 60
    assert list(map(bool, model.ep_success_buffer)) == recorder.successes
    assert len(model.ep_info_buffer) == len(recorder.successes)
    num_steps = sum(episode["l"] for episode in model.ep_info_buffer)
    assert num_steps <= model.num_timesteps

    after = list(model.policy.parameters())
    changed = [(old != new).any() for old, new in zip(before, after, strict=True)]
    assert any(changed)
