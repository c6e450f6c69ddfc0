"""Episodes of behaviour routers as Minari data sets."""

import re

import gymnasium as gym
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rnr_gym.agents import FitConfig
from rnr_gym.experiments import offline
from tests.fixtures.commands import fails, succeeds
from tests.fixtures.digits import ENV, use_few_digits

minari = pytest.importorskip("minari", reason="offline data sets need the extra `minari`")
BEHAVIOURS = ("random", "confidence", "static", "oracle")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The normalised scores of data sets in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        yield offline.export(FitConfig(ENV, seed=3, progress=False), BEHAVIOURS)


def dataset_of(behaviour):
    return minari.load_dataset(f"rnr/digits/{behaviour}-v0")


def test_data_sets_are_named_by_environment_and_behaviour(exported):
    assert list(exported) == [f"rnr/digits/{name}-v0" for name in BEHAVIOURS]
    assert minari.list_local_datasets().keys() == exported.keys()


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_scores_are_those_that_minari_computes(exported, behaviour):
    dataset = dataset_of(behaviour)
    returns = np.array([episode.rewards.sum() for episode in dataset.iterate_episodes()])
    scores = minari.get_normalized_score(dataset, returns)
    assert scores.mean() == pytest.approx(exported[f"rnr/digits/{behaviour}-v0"], abs=1e-9)


def test_random_scores_nothing_and_the_oracle_most(exported):
    assert exported["rnr/digits/random-v0"] == pytest.approx(0.0, abs=1e-12)
    assert exported["rnr/digits/oracle-v0"] == pytest.approx(1.0)
    for behaviour in ("confidence", "static"):
        assert 0.0 < exported[f"rnr/digits/{behaviour}-v0"] < 1.0


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_episodes_are_those_of_the_environment(exported, behaviour):
    """Played again from the options that an episode was started with, it is the same."""
    dataset = dataset_of(behaviour)
    env = gym.make(ENV, split="route", backend="table", tradeoff=FitConfig(ENV).tradeoffs)
    assert dataset.total_episodes == len(env.unwrapped.source.labels)
    for episode in dataset.iterate_episodes(range(0, dataset.total_episodes, 7)):
        options = dataset.storage.get_episode_metadata([episode.id])
        (options,) = [metadata["options"] for metadata in options]
        obs, _ = env.reset(options=options)
        observations = [obs]
        rewards = []
        terminated = False
        for action in episode.actions:
            assert not terminated
            obs, reward, terminated, _, info = env.step(action)
            assert info["executed"] == action
            observations.append(obs)
            rewards.append(reward)
        assert terminated
        assert episode.terminations.tolist() == [False] * (len(rewards) - 1) + [True]
        assert_array_equal(episode.observations, observations)
        assert_allclose(episode.rewards, rewards, rtol=0, atol=1e-12)


def test_environments_are_recovered(exported):
    dataset = dataset_of("oracle")
    route = dataset.recover_environment()
    test = dataset.recover_environment(eval_env=True)
    assert route.observation_space == test.observation_space == dataset.spec.observation_space
    assert route.spec.kwargs["split"] == "route"
    assert test.spec.kwargs["split"] == "test"


def test_recovered_environments_have_a_limit_that_is_never_reached(exported):
    """d3rlpy's `get_minari` puts what it recovers into a `TimeLimit`, which needs a number."""
    dataset = dataset_of("oracle")
    for env in (dataset.recover_environment(), dataset.recover_environment(eval_env=True)):
        num_layers = env.unwrapped.routing_spec.num_layers
        assert env.spec.max_episode_steps > num_layers
        env.reset(seed=0)
        # The full path, the longest there is.
        for layer in range(num_layers):
            _, _, terminated, truncated, _ = env.step(env.action_space.n - 1)
            assert terminated == (layer == num_layers - 1)
            assert not truncated


def test_export_refuses_what_is_there(exported):
    message = "must be new data sets, got rnr/digits/oracle-v0, which Minari has"
    with pytest.raises(FileExistsError, match=message):
        offline.export(FitConfig(ENV), ("oracle",))


@pytest.mark.parametrize("behaviours", [(), ("sarsa",), ("random", "random")], ids=str)
def test_export_rejects_behaviours(exported, behaviours):
    with pytest.raises(ValueError, match="`behaviours` must be different ones of random, full"):
        offline.export(FitConfig(ENV), behaviours)


def test_export_needs_minari(monkeypatch):
    monkeypatch.setattr(offline, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'rnr-gym\[minari\]'"):
        offline.export(FitConfig(ENV), ("random",))


def test_mixture_takes_each_image_from_one_of_its_parts():
    parts = [
        offline.Behaviour(np.full((400, 2), number, np.int8), np.full(400, float(number)))
        for number in range(4)
    ]
    mixed = offline._mixed(parts, np.random.default_rng(0))
    assert_array_equal(mixed.paths[:, 0], mixed.returns)
    counts = np.bincount(mixed.paths[:, 0], minlength=4)
    assert counts.min() > 60


def test_command_shows_scores(tmp_path, monkeypatch):
    use_few_digits(monkeypatch)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    output = succeeds("export", ENV, "--behaviours", "full", "oracle", "--seed", 1)
    assert re.search(r"rnr/digits/full-v0 +0\.\d{3}", output)
    assert re.search(r"rnr/digits/oracle-v0 +1\.000", output)
    assert (tmp_path / "rnr" / "digits" / "full-v0").is_dir()


def test_command_reports_errors_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert "`behaviours` must be" in fails(tmp_path, "export", ENV, "--behaviours", "sarsa")
    assert "`env` must be one of" in fails(tmp_path, "export", "RNR-Letters-v0")
