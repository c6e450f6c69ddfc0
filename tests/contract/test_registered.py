"""The contract of the registered ids: live with random weights, and as bundled where it is."""

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
from numpy.testing import assert_allclose, assert_array_equal
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from rnr_gym.backbones import weights as weight_files
from rnr_gym.backbones import zoo
from rnr_gym.data import ImageSet
from rnr_gym.envs import RoutingVectorEnv
from rnr_gym.registration import IDS, registered_kwargs
from tests.fixtures.registered import LIGHT_IDS

RANDOM = {"weights": None, "backend": "live"}
"""Arguments by which an id needs no bundled file."""


def is_bundled(env_id):
    """Whether an id works at once: its table, or the weights of its backbone, are bundled."""
    kwargs = IDS[env_id]
    path = weight_files.backbone_file(kwargs["backbone"])
    if kwargs.get("backend") == "table":
        path = weight_files.table_file(kwargs["backbone"], "route")
    return path.is_file()


EVERY_ID = pytest.mark.parametrize("env_id", LIGHT_IDS)
EVERY_WEIGHTS = pytest.mark.parametrize(
    ("env_id", "env_kwargs"),
    [
        *(pytest.param(env_id, RANDOM, id=f"{env_id}, random") for env_id in LIGHT_IDS),
        *(
            pytest.param(env_id, {}, id=f"{env_id}, bundled")
            for env_id in filter(is_bundled, LIGHT_IDS)
        ),
    ],
)
SOME_IDS = pytest.mark.parametrize(
    "env_id",
    [
        "RNR-Digits-Channels-v0",
        "RNR-CIFAR10-v0",
        "RNR-CIFAR100-Channels-v0",
    ],
)
"""Every data set and both kinds of backbone, for tests that take seconds."""
BACKENDS = pytest.mark.parametrize("backend", ["live", "table"])

pytestmark = pytest.mark.usefixtures("small_cifar")


def make(env_id, **env_kwargs):
    """An environment with random weights."""
    return gym.make(env_id, **RANDOM | env_kwargs)


def random_episodes(env, seed, steps=40):
    """What `reset` and `step` return for random actions, episode after episode."""
    env.action_space.seed(seed)
    results = [env.reset(seed=seed)]
    for _ in range(steps):
        result = env.step(env.action_space.sample())
        results.append(result)
        _, _, terminated, truncated, _ = result
        if terminated or truncated:
            results.append(env.reset())
    return results


def assert_identical(actual, expected):
    """Equal to the last bit, through lists, tuples and dicts."""
    assert type(actual) is type(expected)
    if isinstance(actual, tuple | list):
        assert len(actual) == len(expected)
        for actual_part, expected_part in zip(actual, expected, strict=True):
            assert_identical(actual_part, expected_part)
    elif isinstance(actual, dict):
        assert actual.keys() == expected.keys()
        for key in actual:
            assert_identical(actual[key], expected[key])
    elif isinstance(actual, np.ndarray):
        assert actual.dtype == expected.dtype
        assert_array_equal(actual, expected)
    else:
        assert actual == expected


@EVERY_WEIGHTS
def test_gymnasium_check_env_passes(env_id, env_kwargs):
    # The checker reports most of what it finds as warnings.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id, **env_kwargs).unwrapped)


@EVERY_WEIGHTS
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"exits": False},
        {"reward": "cross_entropy"},
        {"tradeoff": (0.1, 1.0)},
    ],
    ids=["defaults", "exits=False", "reward=cross_entropy", "tradeoff=(0.1, 1.0)"],
)
def test_sb3_check_env_passes(env_id, env_kwargs, change):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id, **env_kwargs | change)
        sb3_check_env(env.unwrapped, warn=True)


@EVERY_ID
@BACKENDS
def test_same_seed_gives_the_same_episodes(env_id, backend, few_images):
    env_kwargs = {
        "backend": backend,
        "tradeoff": (0.1, 2.0),
        "dataset": few_images(env_id),
    }
    env = make(env_id, **env_kwargs)
    other = make(env_id, **env_kwargs)
    episodes = random_episodes(env, seed=7)
    assert_identical(random_episodes(other, seed=7), episodes)
    # Nothing of the episodes before is left in an environment.
    assert_identical(random_episodes(env, seed=7), episodes)


@EVERY_ID
def test_another_seed_gives_other_images(env_id):
    env = make(env_id)
    indices = {}
    for seed in (1, 2):
        _, info = env.reset(seed=seed)
        indices[seed] = [info["index"]]
        for _ in range(4):
            _, info = env.reset()
            indices[seed].append(info["index"])
    assert indices[1] != indices[2]


@EVERY_ID
def test_spec_survives_json(env_id):
    env = make(env_id, tradeoff=(0.1, 1.0), split="test")
    text = env.spec.to_json()
    again = gym.make(EnvSpec.from_json(text))
    assert again.spec.to_json() == text
    assert_identical(random_episodes(env, seed=3), random_episodes(again, seed=3))


@EVERY_ID
def test_spec_survives_pickling(env_id):
    env = make(env_id, tradeoff=0.7, exits=False)
    # As it is sent to worker processes.
    again = gym.make(pickle.loads(pickle.dumps(env.spec)))
    assert_identical(random_episodes(env, seed=3), random_episodes(again, seed=3))


@EVERY_ID
def test_id_makes_the_registered_backbone(env_id):
    env = make(env_id).unwrapped
    backbone = env.source.backbone
    # One object for all environments of a process.
    assert make(env_id).unwrapped.source.backbone is backbone

    name = registered_kwargs(env_id)["backbone"]
    config = zoo.ARCHITECTURES[name].config
    assert backbone.config == zoo.from_config(config).config
    assert env.spec.max_episode_steps is None


@SOME_IDS
def test_id_can_be_made_in_a_fresh_process(env_id):
    code = f"""
import gymnasium
env = gymnasium.make("rnr_gym:{env_id}", **{RANDOM})
_, info = env.reset(seed=5)
print(info["index"])
"""
    # An import that warns fails here.
    command = [sys.executable, "-W", "error", "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    _, info = make(env_id).reset(seed=5)
    assert int(process.stdout) == info["index"]


@pytest.mark.slow
@SOME_IDS
def test_gymnasium_workers_match_one_process(env_id):
    workers = gym.make_vec(
        env_id,
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
        **RANDOM,
    )
    envs = gym.make_vec(env_id, num_envs=2, **RANDOM)
    try:
        worker_obs, worker_infos = workers.reset(seed=3)
        obs, infos = envs.reset(seed=3)
        for _ in range(6):
            assert_allclose(worker_obs, obs, rtol=1e-4, atol=1e-4)
            assert_array_equal(worker_infos["index"], infos["index"])
            assert_array_equal(worker_infos["macs"], infos["macs"])
            worker_obs, _, _, _, worker_infos = workers.step(np.array([1, 2]))
            obs, _, _, _, infos = envs.step(np.array([1, 2]))
    finally:
        # Or the processes would outlive a test that fails.
        workers.close()


@pytest.mark.slow
@SOME_IDS
def test_sb3_workers_play_whole_episodes(env_id):
    workers = make_vec_env(
        f"rnr_gym:{env_id}",
        n_envs=2,
        seed=0,
        env_kwargs=RANDOM,
        vec_env_cls=SubprocVecEnv,
        vec_env_kwargs={"start_method": "spawn"},
    )
    try:
        obs = workers.reset()
        assert obs.shape == (2, *workers.observation_space.shape)
        successes = []
        dones = np.zeros(2, np.bool_)
        while not dones.any():
            _, _, dones, infos = workers.step(np.array([2, 2]))
            for info in infos:
                if "terminal_observation" in info:
                    successes.append(info["is_success"])

        assert successes
        assert all(isinstance(success, np.bool_) for success in successes)
        masks = workers.env_method("action_masks")
        assert masks[0].dtype == np.bool_
    finally:
        workers.close()


@EVERY_ID
def test_episodes_can_be_recorded(env_id, tmp_path):
    env = RecordVideo(
        make(env_id, render_mode="rgb_array"),
        tmp_path / "videos",
        episode_trigger=lambda episode: True,
        disable_logger=True,
    )
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, _, terminated, _, _ = env.step(np.int64(2))
    env.close()

    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert video.stat().st_size > 0


@EVERY_ID
def test_observations_stay_within_their_bounds(env_id):
    env = make(env_id, tradeoff=(0.01, 4.0)).unwrapped
    num_actions = env.action_space.n
    full_path = [num_actions - 1] * 20
    random = np.random.default_rng(0).integers(0, num_actions, 60)
    obs, _ = env.reset(seed=0)
    # The full path is charged most.
    for action in [*full_path, *random]:
        assert env.observation_space.contains(obs)
        assert np.isfinite(obs).all()
        obs, _, terminated, _, _ = env.step(action)
        if terminated:
            assert env.observation_space.contains(obs)
            obs, _ = env.reset()


@EVERY_ID
@BACKENDS
def test_labels_change_no_observation(env_id, backend, few_images):
    images = few_images(env_id)
    # No image keeps its label, so whatever depends on labels changes.
    shifted_labels = (images.labels + 3) % len(images.classes)
    shifted = ImageSet.of(images.images, shifted_labels, images.classes)
    episodes = random_episodes(make(env_id, backend=backend, dataset=images), seed=1)
    other_episodes = random_episodes(make(env_id, backend=backend, dataset=shifted), seed=1)
    for result, other_result in zip(episodes, other_episodes, strict=True):
        assert_array_equal(result[0], other_result[0])
        info = result[-1]
        other_info = other_result[-1]
        assert info["index"] == other_info["index"]
        if info["label"] >= 0:
            assert info["label"] != other_info["label"]


@EVERY_ID
def test_make_vec_gives_the_native_environment(env_id):
    envs = gym.make_vec(env_id, num_envs=3, **RANDOM)
    assert isinstance(envs.unwrapped, RoutingVectorEnv)
    assert isinstance(envs.metadata["autoreset_mode"], gym.vector.AutoresetMode)
    obs, _ = envs.reset(seed=0)
    assert obs.shape == (3, *envs.single_observation_space.shape)
    assert envs.observation_space.contains(obs)


def test_unknown_id_is_an_error():
    with pytest.raises(gym.error.NameNotFound):
        gym.make("RNR-Nothing-v0")
    message = "`env` must be one of RNR-Digits-v0.*got 'RNR-Nothing-v0'"
    with pytest.raises(ValueError, match=message):
        registered_kwargs("RNR-Nothing-v0")


@EVERY_ID
@pytest.mark.parametrize("make_any", [gym.make, gym.make_vec])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("split", "val"),
        ("backend", "numpy"),
        ("reward", "top5"),
        ("tradeoff", -0.1),
        ("tradeoff", 4.5),
        ("tradeoff", float("nan")),
        ("tradeoff", "0.3"),
        ("tradeoff", (0.5, 0.1)),
        ("tradeoff", (0.1, 0.2, 0.3)),
        ("weights", "/no/such/file"),
        ("backbone", "resnet"),
        ("dataset", "mnist"),
    ],
    ids=str,
)
def test_bad_arguments_are_named_in_errors(env_id, make_any, name, value):
    env_kwargs = RANDOM | {name: value}
    with pytest.raises(ValueError, match=f"`{name}`"):
        make_any(env_id, **env_kwargs)


def test_other_architectures_weights_are_an_error(tmp_path):
    other = zoo.from_config(zoo.ARCHITECTURES["rnr-digits-channels"].config)
    path = tmp_path / "weights.safetensors"
    weight_files.save(other, path)
    message = "`weights` must have the architecture of the named backbone"
    with pytest.raises(ValueError, match=message):
        gym.make("RNR-Digits-v0", weights=str(path))


def test_truncated_weights_file_is_an_error(tmp_path):
    backbone = zoo.from_config(zoo.ARCHITECTURES["rnr-digits"].config)
    path = tmp_path / "weights.safetensors"
    weight_files.save(backbone, path)
    # As a download that was interrupted leaves it.
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="whole safetensors file"):
        gym.make("RNR-Digits-v0", weights=str(path))
