"""Scalar environments, Gymnasium's vector of them and the native vector: number for number the same.

On the table backend every number is equal to the last bit. Live, observations and losses agree to 1e-4, since batches of
different sizes round differently; all else is exact (no two classes tie so closely in these episodes that rounding
could turn a prediction).
"""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from tests.fixtures import small

IDS = ["RNR-Digits-v0", "RNR-Digits-Channels-v0"]
EVERY = pytest.mark.parametrize("name", IDS)
BACKENDS = pytest.mark.parametrize("backend", ["live", "table"])
MODES = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
NUM = 3
ROUNDED = ("observation", "loss", "final_obs", "reward")
ALL = {"action_mask", "layer", "compute", "macs", "index", "tradeoff"}
END = {"is_success", "label", "prediction", "loss", "path"}


class Pair:
    """A native vector environment and Gymnasium's own, driven by the same calls and compared after each."""

    def __init__(self, name, backend, mode, num=NUM, **arguments):
        arguments |= {"weights": None, "backend": backend, "num_envs": num}
        self.native = gym.make_vec(name, autoreset_mode=mode, **arguments)
        self.sync = gym.make_vec(
            name, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **arguments
        )
        self.exact, self.mode, self.num = backend == "table", mode, num
        self.rounded = ROUNDED[:3] if arguments.get("reward", "accuracy") == "accuracy" else ROUNDED
        self.ended, self.seen = np.zeros(num, np.bool_), set()

    def reset(self, **arguments):
        def copied():
            options = arguments.get("options")
            return {
                **arguments,
                "options": None if options is None else dict(options),
            }  # Gymnasium takes the mask out of them

        (ours, our_infos), (theirs, their_infos) = (
            self.native.reset(**copied()),
            self.sync.reset(**copied()),
        )
        self.same("observation", ours, theirs)
        self.same_infos(our_infos, their_infos)
        self.ended[:] = False
        return our_infos

    def step(self, actions):
        ours, theirs = self.native.step(actions), self.sync.step(actions)
        for name, one, other in zip(
            ("observation", "reward", "terminated", "truncated"), ours, theirs, strict=False
        ):
            self.same(name, one, other)
        self.same_infos(ours[4], theirs[4])
        self.ended = ours[2].copy()
        if self.mode is AutoresetMode.DISABLED and self.ended.any():
            self.reset(options={"reset_mask": self.ended.copy()})
        return ours

    def same_infos(self, ours, theirs, prefix=""):
        assert ours.keys() == theirs.keys()
        for name in ours:
            self.seen.add(prefix + name)
            if isinstance(theirs[name], dict):
                self.same_infos(ours[name], theirs[name], f"{prefix}{name}.")
            else:
                self.same(name, ours[name], theirs[name])

    def same(self, name, ours, theirs):
        assert (type(ours), ours.dtype, ours.shape) == (type(theirs), theirs.dtype, theirs.shape), (
            name
        )
        if ours.dtype == object:
            for one, other in zip(ours, theirs, strict=True):
                assert (one is None) == (other is None), name
                if one is not None:
                    self.same(name, one, other)
        elif self.exact or name not in self.rounded:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4, err_msg=name)


def actions(pair, steps, seed=0):
    """Random actions, masked ones among them."""
    return np.random.default_rng(seed).integers(
        0, pair.native.single_action_space.n, (steps, pair.num)
    )


@EVERY
@BACKENDS
@MODES
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_the_native_vector_does_what_gymnasiums_does(name, backend, mode, seed, some_digits):
    pair = Pair(name, backend, mode, dataset=some_digits, tradeoff=(0.1, 2.0))
    pair.reset(seed=seed)
    for step in actions(pair, 24, seed):
        pair.step(step)
    everything = {"executed", *ALL, *END}
    ended = (
        {f"final_info.{key}" for key in everything} | ALL
        if mode is AutoresetMode.SAME_STEP
        else everything
    )
    assert ended <= pair.seen
    assert {f"_{key}" for key in ALL} <= pair.seen
    if mode is AutoresetMode.SAME_STEP:
        assert {"final_obs", "_final_obs", "final_info", "_final_info"} <= pair.seen


@EVERY
@BACKENDS
@MODES
@pytest.mark.parametrize("arguments", [{"exits": False}, {"reward": "cross_entropy"}], ids=str)
def test_so_it_does_whatever_the_arguments(name, backend, mode, arguments, some_digits):
    pair = Pair(name, backend, mode, dataset=some_digits, **arguments)
    pair.reset(seed=5)
    for step in actions(pair, 15):
        pair.step(step)


@BACKENDS
@MODES
def test_so_it_does_when_reset_again_with_and_without_a_seed(backend, mode, some_digits):
    pair = Pair(IDS[0], backend, mode, dataset=some_digits, tradeoff=(0.1, 2.0))
    for arguments in (
        {"seed": 3},
        {},
        {"seed": [9, None, 4]},
        {"seed": 7, "options": {}},
        {"options": {"index": 11, "tradeoff": 1.25}},
        {},
    ):
        pair.reset(**arguments)
        for step in actions(pair, 7):
            pair.step(step)


@BACKENDS
@MODES
def test_so_it_does_when_only_some_are_reset(backend, mode, some_digits):
    pair = Pair(IDS[0], backend, mode, dataset=some_digits, tradeoff=(0.1, 2.0))
    pair.reset(seed=3)
    masks = [[True, False, False], [False, True, True], [True, True, True], [False, False, True]]
    for number, (mask, step) in enumerate(zip(masks, actions(pair, 4), strict=True)):
        pair.step(step)
        pair.reset(options={"reset_mask": np.array(mask)}, seed=number if number % 2 else None)
    for step in actions(pair, 6):
        pair.step(step)


@pytest.mark.parametrize("num", [1, 8])
def test_so_it_does_for_one_and_for_many(num, some_digits):
    pair = Pair(IDS[0], "table", AutoresetMode.NEXT_STEP, num, dataset=some_digits)
    pair.reset(seed=3)
    for step in actions(pair, 60):
        pair.step(step)


@MODES
@pytest.mark.parametrize("kind", small.KINDS)
def test_so_it_does_where_summaries_are_quantised(mode, kind, images):
    """On the table only: live, a value halfway between two steps may be rounded either way."""
    pair = Pair(
        "RNR-v0",
        "table",
        mode,
        dataset=images,
        backbone=small.backbone(kind, summary_groups=8),
        tradeoff=(0.1, 2.0),
    )
    pair.reset(seed=3)
    for step in actions(pair, 15):
        pair.step(step)
    assert pair.native.single_observation_space.shape == (
        8 + 3 + 3 + 3 + 1 + pair.native.single_action_space.n + 1,
    )


@MODES
def test_so_it_does_past_the_end_of_the_deck(mode, some_digits):
    pair = Pair(IDS[0], "table", mode, dataset=some_digits.take(np.arange(5)))
    pair.reset(seed=3)
    for step in actions(pair, 60):
        pair.step(step)


@MODES
@pytest.mark.parametrize("value", [1.5, [1.5] * NUM])
def test_so_it_does_after_a_tradeoff_was_set(mode, value, some_digits):
    pair = Pair(IDS[0], "table", mode, dataset=some_digits, tradeoff=0.5)
    pair.reset(seed=3)
    for step in actions(pair, 3):
        pair.step(step)
    for envs in (pair.native, pair.sync):
        envs.set_attr("tradeoff", value)
    for step in actions(pair, 9):
        pair.step(step)
    assert (pair.reset(seed=4)["tradeoff"] == 1.5).all()
    assert pair.native.get_attr("tradeoff") == pair.sync.get_attr("tradeoff")


def test_calls_and_attributes_answer_alike(some_digits):
    pair = Pair(IDS[0], "table", AutoresetMode.NEXT_STEP, dataset=some_digits)
    pair.reset(seed=3)
    pair.step(np.array([0, 1, 2]))
    for name in ("action_masks", "tradeoff", "source", "vector_reward"):
        ours, theirs = pair.native.call(name), pair.sync.call(name)
        assert len(ours) == len(theirs) == NUM
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
        assert len(pair.native.get_attr(name)) == NUM


@EVERY
@BACKENDS
def test_scalar_environments_one_by_one_do_what_the_native_vector_does(name, backend, some_digits):
    arguments = {
        "weights": None,
        "backend": backend,
        "dataset": some_digits,
        "tradeoff": (0.1, 2.0),
    }
    envs = gym.make_vec(name, num_envs=NUM, autoreset_mode=AutoresetMode.SAME_STEP, **arguments)
    scalars = [gym.make(name, **arguments) for _ in range(NUM)]
    observations, infos = envs.reset(seed=21)
    tolerance = 0 if backend == "table" else 1e-4
    for row, env in enumerate(scalars):
        observation, info = env.reset(seed=21 + row)
        np.testing.assert_allclose(observations[row], observation, rtol=0, atol=tolerance)
        assert info["index"] == infos["index"][row]
    for step in np.random.default_rng(0).integers(0, envs.single_action_space.n, (20, NUM)):
        observations, rewards, ended, _, infos = envs.step(step)
        for row, env in enumerate(scalars):
            observation, reward, over, _, info = env.step(step[row])
            assert (reward, over) == (rewards[row], ended[row])
            if over:
                np.testing.assert_allclose(
                    infos["final_obs"][row], observation, rtol=0, atol=tolerance
                )
                assert infos["final_info"]["path"][row].tolist() == info["path"].tolist()
                assert infos["final_info"]["prediction"][row] == info["prediction"]
                observation, info = env.reset()
            np.testing.assert_allclose(observations[row], observation, rtol=0, atol=tolerance)
            assert {key: infos[key][row] for key in ALL - {"action_mask"}} == {
                key: info[key] for key in ALL - {"action_mask"}
            }
            assert infos["action_mask"][row].tolist() == info["action_mask"].tolist()


@EVERY
def test_live_and_table_do_the_same(name, some_digits):
    live, table = (
        gym.make(name, weights=None, dataset=some_digits, backend=backend, tradeoff=(0.1, 2.0))
        for backend in ("live", "table")
    )
    (one, info), (other, info_there) = live.reset(seed=2), table.reset(seed=2)
    for action in np.random.default_rng(1).integers(0, live.action_space.n, 60):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
        assert (info["index"], info["macs"], info["layer"]) == (
            info_there["index"],
            info_there["macs"],
            info_there["layer"],
        )
        (one, reward, over, _, info), (other, reward_there, over_there, _, info_there) = (
            live.step(action),
            table.step(action),
        )
        assert (reward, over) == (reward_there, over_there)
        assert info.keys() == info_there.keys()
        if over:
            assert info["loss"] == pytest.approx(info_there["loss"], abs=1e-4)
            assert (info["prediction"], info["is_success"]) == (
                info_there["prediction"],
                info_there["is_success"],
            )
            (one, info), (other, info_there) = live.reset(), table.reset()
