"""The contract, over every registered id: live with random weights, and as it ships where it does."""

import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordVideo
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from rnr_gym.backbones import zoo
from rnr_gym.registration import IDS, registered_kwargs

RANDOM = {"weights": None, "backend": "live"}
TABLES = {name for name, arguments in IDS.items() if arguments.get("backend") == "shipped"}
SHIPPED = [
    name
    for name, arguments in IDS.items()
    if zoo.bundled(
        arguments["backbone"], "frozen.route" if name in TABLES else "pretrained"
    ).is_file()
]
EVERY = pytest.mark.parametrize("name", IDS)
EVERY_WEIGHTS = pytest.mark.parametrize(
    ("name", "weights"),
    [*((name, RANDOM) for name in IDS), *((name, {}) for name in SHIPPED)],
    ids=lambda value: value if isinstance(value, str) else "random" if value else "shipped",
)
SOME = pytest.mark.parametrize(
    "name", ["RNR-Digits-Channels-v0", "RNR-CIFAR10-v0", "RNR-CIFAR100-Channels-v0"]
)
"""Every data set and both kinds of backbone, where each id takes seconds."""

pytestmark = pytest.mark.usefixtures("small_cifar")


def make(name, **arguments):
    return gym.make(name, **{**RANDOM, **arguments})


def rollout(env, seed, steps=40):
    """Observations, rewards, flags and infos of random actions; a fresh episode after each end."""
    env.action_space.seed(seed)
    trail = [env.reset(seed=seed)]
    for _ in range(steps):
        found = env.step(env.action_space.sample())
        trail.append(found)
        if found[2] or found[3]:
            trail.append(env.reset())
    return trail


def assert_same(one, other):
    """Equal to the last bit, through tuples and dicts."""
    assert type(one) is type(other)
    if isinstance(one, tuple | list):
        assert len(one) == len(other)
        for ours, theirs in zip(one, other, strict=True):
            assert_same(ours, theirs)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


@EVERY_WEIGHTS
def test_gymnasium_checks_pass(name, weights):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(name, **weights).unwrapped)


@EVERY_WEIGHTS
@pytest.mark.parametrize(
    "changes",
    [{}, {"exits": False}, {"reward": "cross_entropy"}, {"tradeoff": (0.1, 1.0)}],
    ids=str,
)
def test_sb3_checks_pass_without_a_warning(name, weights, changes):
    if name in TABLES and not weights and "exits" in changes:
        pytest.skip("a table that ships has its exits")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(gym.make(name, **weights, **changes).unwrapped, warn=True)


@EVERY
@pytest.mark.parametrize("backend", ["live", "table"])
def test_two_environments_with_one_seed_do_the_same(name, backend, few_images):
    arguments = {"backend": backend, "tradeoff": (0.1, 2.0), "dataset": few_images(name)}
    one, other = make(name, **arguments), make(name, **arguments)
    assert_same(rollout(one, 7), rollout(other, 7))
    assert_same(rollout(one, 7), rollout(one, 7))


@EVERY
def test_another_seed_gives_other_images(name):
    env = make(name)
    indices = [
        [env.reset(seed=seed)[1]["index"], *(env.reset()[1]["index"] for _ in range(4))]
        for seed in (1, 2)
    ]
    assert indices[0] != indices[1]


@EVERY
def test_a_spec_survives_json(name):
    env = make(name, tradeoff=(0.1, 1.0), split="test")
    text = env.spec.to_json()
    again = gym.make(EnvSpec.from_json(text))
    assert again.spec.to_json() == text
    assert_same(rollout(env, 3), rollout(again, 3))


@EVERY
def test_a_spec_survives_pickling(name):
    env = make(name, tradeoff=0.7, exits=False)
    assert_same(rollout(env, 3), rollout(gym.make(pickle.loads(pickle.dumps(env.spec))), 3))


@EVERY
def test_the_id_makes_the_environment_its_table_says(name):
    env = make(name).unwrapped
    assert env.source.backbone is make(name).unwrapped.source.backbone
    assert (
        env.source.backbone.config
        == zoo.from_config(zoo.ARCHITECTURES[registered_kwargs(name)["backbone"]].config).config
    )
    assert env.spec.max_episode_steps is None


@SOME
def test_the_id_imports_by_itself_in_a_fresh_process(name):
    code = f"import gymnasium; print(gymnasium.make('rnr_gym:{name}', **{RANDOM}).reset(seed=5)[1]['index'])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == make(name).reset(seed=5)[1]["index"]


@pytest.mark.slow
@SOME
def test_spawned_workers_of_gymnasium_do_what_one_process_does(name):
    envs = gym.make_vec(
        name, num_envs=2, vectorization_mode="async", vector_kwargs={"context": "spawn"}, **RANDOM
    )
    here = gym.make_vec(name, num_envs=2, **RANDOM)
    try:
        observations, infos = envs.reset(seed=3)
        wanted, wanted_infos = here.reset(seed=3)
        for _ in range(6):
            np.testing.assert_allclose(observations, wanted, rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(infos["index"], wanted_infos["index"])
            np.testing.assert_array_equal(infos["macs"], wanted_infos["macs"])
            observations, _, _, _, infos = envs.step(np.array([1, 2]))
            wanted, _, _, _, wanted_infos = here.step(np.array([1, 2]))
    finally:
        envs.close()


@pytest.mark.slow
@SOME
def test_spawned_workers_of_sb3_play_whole_episodes(name):
    kwargs = {
        "vec_env_cls": SubprocVecEnv,
        "vec_env_kwargs": {"start_method": "spawn"},
        "env_kwargs": RANDOM,
    }
    envs = make_vec_env(f"rnr_gym:{name}", n_envs=2, seed=0, **kwargs)
    try:
        observations = envs.reset()
        assert observations.shape == (2, *envs.observation_space.shape)
        done, successes = np.zeros(2, np.bool_), []
        while not done.any():
            _, _, done, infos = envs.step(np.array([2, 2]))
            successes += [info["is_success"] for info in infos if "terminal_observation" in info]
        assert all(isinstance(success, bool) for success in successes)
        assert successes
        assert envs.env_method("action_masks")[0].dtype == np.bool_
    finally:
        envs.close()


@EVERY
def test_episodes_can_be_filmed(name, tmp_path):
    env = RecordVideo(
        make(name, render_mode="rgb_array"),
        tmp_path / "videos",
        episode_trigger=lambda episode: True,
        disable_logger=True,
    )
    env.reset(seed=0)
    while not env.step(np.int64(2))[2]:
        pass
    env.close()
    (film,) = (tmp_path / "videos").glob("*.mp4")
    assert film.stat().st_size > 0


@EVERY
def test_observations_stay_within_their_bounds(name):
    env = make(name, tradeoff=(0.01, 4.0)).unwrapped
    full, random = (
        np.full(20, env.action_space.n - 1),
        np.random.default_rng(0).integers(0, env.action_space.n, 60),
    )
    observation, _ = env.reset(seed=0)
    for action in [*full, *random]:
        assert env.observation_space.contains(observation)
        assert np.isfinite(observation).all()
        observation, _, ended, _, _ = env.step(action)
        if ended:
            assert env.observation_space.contains(observation)
            observation, _ = env.reset()


@EVERY
@pytest.mark.parametrize("backend", ["live", "table"])
def test_labels_change_no_observation(name, backend, few_images):
    images = few_images(name)
    shifted = type(images).of(
        images.images, (images.labels + 3) % len(images.classes), images.classes
    )
    trails = [
        rollout(make(name, backend=backend, dataset=labelled), 1) for labelled in (images, shifted)
    ]
    for one, other in zip(*trails, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[-1]["index"] == other[-1]["index"]
        assert ("label" not in one[-1]) or one[-1]["label"] != other[-1]["label"]


@EVERY
def test_the_native_vector_environment_is_what_make_vec_gives(name):
    envs = gym.make_vec(name, num_envs=3, **RANDOM)
    assert type(envs.unwrapped).__name__ == "RoutingVectorEnv"
    assert isinstance(envs.metadata["autoreset_mode"], gym.vector.AutoresetMode)
    assert envs.reset(seed=0)[0].shape == (3, *envs.single_observation_space.shape)
    assert envs.observation_space.contains(envs.reset(seed=0)[0])


def test_an_unknown_id_is_refused():
    with pytest.raises(gym.error.NameNotFound):
        gym.make("RNR-Nothing-v0")
    with pytest.raises(
        ValueError, match=r"`env` must be one of RNR-Digits-v0.*got 'RNR-Nothing-v0'"
    ):
        registered_kwargs("RNR-Nothing-v0")


@pytest.mark.parametrize(
    ("bad", "arguments"),
    [
        ("split", {"split": "val"}),
        ("backend", {"backend": "numpy"}),
        ("reward", {"reward": "top5"}),
        ("tradeoff", {"tradeoff": -0.1}),
        ("tradeoff", {"tradeoff": 4.5}),
        ("tradeoff", {"tradeoff": float("nan")}),
        ("tradeoff", {"tradeoff": "0.3"}),
        ("tradeoff", {"tradeoff": (0.5, 0.1)}),
        ("tradeoff", {"tradeoff": (0.1, 0.2, 0.3)}),
        ("weights", {"weights": "/no/such/file"}),
        ("backbone", {"backbone": "resnet"}),
        ("dataset", {"dataset": "mnist"}),
    ],
    ids=str,
)
@EVERY
def test_bad_arguments_are_refused_by_name(name, bad, arguments):
    for build in (gym.make, gym.make_vec):
        with pytest.raises(ValueError, match=f"`{bad}`"):
            build(name, **{**RANDOM, **arguments})


def test_weights_of_another_architecture_are_refused(tmp_path):
    other = zoo.ARCHITECTURES["rnr-digits-channels"].config
    zoo.save(zoo.from_config(other), tmp_path / "file")
    with pytest.raises(ValueError, match="`weights` must be of this id's architecture"):
        gym.make("RNR-Digits-v0", weights=str(tmp_path / "file"))


def test_a_truncated_weights_file_is_refused(tmp_path):
    path = tmp_path / "file"
    zoo.save(zoo.from_config(zoo.ARCHITECTURES["rnr-digits"].config), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="whole safetensors file"):
        gym.make("RNR-Digits-v0", weights=str(path))
