"""The adapter does what Stable-Baselines3's own wrapping of scalar environments does, and its learners run through it."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, is_vecenv_wrapped

from rnr_gym.envs import RoutingVectorEnv
from rnr_gym.sb3 import RoutingVecEnv, vec_env
from tests.fixtures import small

IDS = ["RNR-Digits-v0", "RNR-Digits-Channels-v0"]
NUM = 4
EVERY = pytest.mark.parametrize("name", IDS)
BACKENDS = pytest.mark.parametrize("backend", ["live", "table"])


class Pair:
    """The adapter and SB3's vector of scalar environments, both monitored, driven alike and compared after each call."""

    def __init__(self, name, backend, seed=3, **arguments):
        arguments |= {"weights": None, "backend": backend}
        self.ours = vec_env(name, NUM, seed, **arguments)
        self.theirs = VecMonitor(DummyVecEnv([lambda: gym.make(name, **arguments)] * NUM))
        self.theirs.seed(seed)
        self.tolerance = 0 if backend == "table" else 1e-4
        self.ends = 0

    def each(self, method, *parts):
        for env in (self.ours, self.theirs):
            getattr(env, method)(*parts)

    def reset(self):
        self.same("observation", self.ours.reset(), self.theirs.reset())
        for ours, theirs in zip(
            self.ours.venv.reset_infos, self.theirs.venv.reset_infos, strict=True
        ):
            self.same_infos(ours, theirs)

    def step(self, actions):
        (ours, rewards, dones, infos), (theirs, their_rewards, their_dones, their_infos) = (
            self.ours.step(actions),
            self.theirs.step(actions),
        )
        self.same("observation", ours, theirs)
        self.same("reward", rewards, their_rewards)
        self.same("done", dones, their_dones)
        for row, done in enumerate(dones):
            if done:
                self.ends += 1
                self.same_infos(infos[row], their_infos[row])
            else:
                assert infos[row] == {}

    def same_infos(self, ours, theirs):
        assert ours.keys() == theirs.keys()
        if "episode" in ours:
            assert {key: ours["episode"][key] for key in ("r", "l")} == {
                key: theirs["episode"][key] for key in ("r", "l")
            }
        for name in ours.keys() - {"episode"}:
            self.same(name, np.asarray(ours[name]), np.asarray(theirs[name]))

    def same(self, name, ours, theirs):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        rounded = name in ("observation", "loss", "terminal_observation")
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=self.tolerance if rounded else 0, err_msg=name
        )


def actions(pair, steps, seed=0):
    return np.random.default_rng(seed).integers(0, pair.ours.action_space.n, (steps, NUM))


@EVERY
@BACKENDS
@pytest.mark.parametrize("seed", [0, 12345])
def test_it_does_what_sb3s_vector_of_scalar_environments_does(name, backend, seed, some_digits):
    pair = Pair(name, backend, seed, dataset=some_digits, tradeoff=(0.1, 2.0))
    assert pair.ours.observation_space == pair.theirs.observation_space
    assert pair.ours.action_space == pair.theirs.action_space
    pair.reset()
    for step in actions(pair, 24, seed):
        pair.step(step)
    assert pair.ends > NUM


def test_so_it_does_when_rewards_are_losses_and_exits_are_off(some_digits):
    pair = Pair(IDS[0], "table", dataset=some_digits, exits=False, reward="cross_entropy")
    pair.reset()
    for step in actions(pair, 12):
        pair.step(step)
    assert pair.ends == 3 * NUM


def test_the_end_of_an_episode_says_all_that_a_learner_asks_for(some_digits):
    env = vec_env(IDS[0], NUM, 0, weights=None, backend="table", dataset=some_digits)
    env.reset()
    infos = env.step(np.zeros(NUM, np.int64))[3]
    for info in infos:
        assert {
            "terminal_observation",
            "TimeLimit.truncated",
            "is_success",
            "episode",
            "path",
            "prediction",
            "loss",
        } <= info.keys()
        assert info["TimeLimit.truncated"] is False
        assert info["is_success"] == (info["prediction"] == info["label"])
        assert info["episode"]["l"] == 1


def test_so_it_does_when_seeded_and_reset_again(some_digits):
    pair = Pair(IDS[0], "table", dataset=some_digits, tradeoff=(0.1, 2.0))
    pair.reset()
    for seed in (None, 9, 9, None):
        if seed is not None:
            pair.each("seed", seed)
        pair.reset()
        for step in actions(pair, 7):
            pair.step(step)


@pytest.mark.parametrize(
    "options",
    [
        {"index": 11, "tradeoff": 1.25},
        [{"index": row, "tradeoff": 0.5 + row} for row in range(NUM)],
        [{"index": 5}, {}, {"tradeoff": 1.5}, {}],
    ],
    ids=["one for all", "one for each", "some"],
)
def test_so_it_does_with_options_which_hold_for_one_reset(some_digits, options):
    pair = Pair(IDS[0], "table", dataset=some_digits, tradeoff=(0.1, 2.0))
    pair.reset()
    pair.each("set_options", options)
    for _ in range(3):
        pair.reset()
        for step in actions(pair, 6):
            pair.step(step)


def twins(some_digits, **arguments):
    return [
        vec_env(
            IDS[0], NUM, 5, weights=None, backend="table", dataset=some_digits, **arguments
        ).venv
        for _ in range(2)
    ]


def test_a_learner_may_write_into_what_a_step_returns(some_digits):
    """Stable-Baselines3 adds bootstrap values to the rewards in place."""
    touched, untouched = twins(some_digits)
    kept = []
    for env in (touched, untouched):
        env.reset()
    for step in np.random.default_rng(0).integers(0, 4, (12, NUM)):
        observation, rewards, dones, infos = touched.step(step)
        wanted = untouched.step(step)
        np.testing.assert_array_equal(observation, wanted[0])
        np.testing.assert_array_equal(rewards, wanted[1])
        np.testing.assert_array_equal(dones, wanted[2])
        assert not any(np.shares_memory(rewards, earlier) for earlier in kept)
        kept.append(rewards)
        rewards += 100.0
        observation[:] = -7.0
        dones[:] = True
        for info in infos:
            info.clear()


def test_action_masks_are_one_row_an_environment():
    arguments = {"dataset": small.images(), "backbone": small.backbone("multipath", "exits")}
    env = vec_env("RNR-v0", NUM, 0, **arguments)
    env.reset()
    valid = arguments["backbone"].valid
    layers, apart = np.zeros(NUM, np.int64), False
    for _ in range(7):
        masks = env.env_method("action_masks")
        assert len(masks) == NUM
        assert np.array(masks).dtype == np.bool_
        np.testing.assert_array_equal(masks, valid[layers])
        np.testing.assert_array_equal(
            env.env_method("action_masks", indices=[2, 0]), valid[layers[[2, 0]]]
        )
        dones = env.step(np.array([0, 1, 2, 3]))[2]
        layers = np.where(dones, 0, layers + 1)
        apart |= len(set(layers.tolist())) > 1
    assert apart


def test_it_answers_what_wraps_it(some_digits):
    env = vec_env(IDS[0], NUM, weights=None, dataset=some_digits)
    assert env.env_is_wrapped(Monitor) == [False] * NUM
    assert env.env_is_wrapped(Monitor, indices=[1, 3]) == [False] * 2
    assert env.env_is_wrapped(Monitor, indices=0) == [False]
    assert is_vecenv_wrapped(env, VecMonitor)


def test_attributes_are_read_for_each_and_set_for_all(some_digits):
    env = vec_env(IDS[0], NUM, 0, weights=None, backend="table", dataset=some_digits, tradeoff=0.5)
    assert env.get_attr("tradeoff") == [(0.5, 0.5)] * NUM
    assert len(env.get_attr("tradeoff", indices=[0, 2])) == 2
    env.reset()
    env.set_attr("tradeoff", 1.5)
    where = env.get_attr("routing")[0].layout
    assert (env.reset()[:, where.tradeoff] == 1.5).all()
    with pytest.raises(ValueError, match="`indices` must be None"):
        env.set_attr("tradeoff", 1.0, indices=[0])
    with pytest.raises(AttributeError):
        env.get_attr("nothing")


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused(mode):
    env = RoutingVectorEnv(
        2, autoreset_mode=mode, dataset=small.images(), backbone=small.backbone("multipath")
    )
    with pytest.raises(
        ValueError, match=r"`env` must use AutoresetMode.SAME_STEP, got AutoresetMode\."
    ):
        RoutingVecEnv(env)


def test_vector_rewards_are_refused(some_digits):
    with pytest.raises(
        ValueError, match="`env` must give scalar rewards, got `vector_reward=True`"
    ):
        vec_env(IDS[0], 2, weights=None, dataset=some_digits, vector_reward=True)


def test_it_renders_a_picture_for_each_where_it_was_asked_to(some_digits):
    env = vec_env(IDS[0], NUM, 0, weights=None, dataset=some_digits, render_mode="rgb_array")
    env.reset()
    frames = env.get_images()
    assert len(frames) == NUM
    assert all(frame.dtype == np.uint8 and frame.ndim == 3 for frame in frames)
    assert env.render().shape == (2 * frames[0].shape[0], 2 * frames[0].shape[1], 3)
    env.close()
    plain = vec_env(IDS[0], NUM, 0, weights=None, dataset=some_digits)
    plain.reset()
    assert plain.get_images() == [None] * NUM


class Ends(BaseCallback):
    """Counts episodes and right answers as the environment tells of them."""

    def _on_training_start(self):
        self.right = []

    def _on_step(self):
        self.right += [bool(info["is_success"]) for info in self.locals["infos"] if info]
        return True


@pytest.mark.parametrize(
    ("learner", "arguments"),
    [
        (PPO, {"n_steps": 16, "batch_size": 32}),
        (A2C, {}),
        (DQN, {"learning_starts": 64, "train_freq": 1}),
    ],
    ids=["PPO", "A2C", "DQN"],
)
def test_sb3s_learners_run_through_it_and_count_right_answers_as_successes(
    learner, arguments, some_digits
):
    env = vec_env(
        IDS[0], NUM, 0, weights=None, backend="table", dataset=some_digits, tradeoff=(0.1, 2.0)
    )
    model, ends = (
        learner(
            "MlpPolicy", env, gamma=1.0, seed=0, stats_window_size=10_000, device="cpu", **arguments
        ),
        Ends(),
    )
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(320, ends)
    assert model.num_timesteps >= 320
    assert len(ends.right) > 60
    assert [bool(one) for one in model.ep_success_buffer] == ends.right
    assert sum(episode["l"] for episode in model.ep_info_buffer) <= model.num_timesteps
    assert len(model.ep_info_buffer) == len(ends.right)
    assert any(
        (old != new).any() for old, new in zip(before, model.policy.parameters(), strict=True)
    )


class Offered(BaseCallback):
    """Whether the actions a learner took were on offer."""

    def _on_rollout_start(self):
        self.masks = np.array(self.training_env.env_method("action_masks"))
        self.taken = getattr(self, "taken", [])

    def _on_step(self):
        self.taken += self.masks[
            np.arange(NUM), np.asarray(self.locals["actions"]).ravel()
        ].tolist()
        self.masks = np.array(self.training_env.env_method("action_masks"))
        return True


def test_maskable_ppo_runs_through_it_and_takes_only_what_is_offered():
    contrib = pytest.importorskip("sb3_contrib")
    arguments = {
        "dataset": small.images(),
        "backbone": small.backbone("multipath", "one exit"),
        "backend": "table",
    }
    offered = {}
    for learner in (contrib.MaskablePPO, PPO):
        model, seen = (
            learner(
                "MlpPolicy",
                vec_env("RNR-v0", NUM, 0, **arguments),
                n_steps=16,
                batch_size=32,
                seed=0,
                device="cpu",
            ),
            Offered(),
        )
        model.learn(256, seen)
        offered[learner] = seen.taken
    assert len(offered[PPO]) == len(offered[contrib.MaskablePPO]) == 256
    assert all(offered[contrib.MaskablePPO])
    assert not all(offered[PPO])
