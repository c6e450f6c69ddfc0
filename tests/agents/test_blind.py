"""The blind router: whatever depends on the image is hidden from it, and nothing else is."""

from dataclasses import replace

import numpy as np
import pytest

from rnr_gym.agents import RECIPES
from rnr_gym.agents.blind import BlindRouter, BlindVecEnv, blinded
from rnr_gym.experiments.evaluation import evaluate
from rnr_gym.sb3 import make_vec_env
from tests.fixtures.observations import random_observations
from tests.fixtures.paper_problem import BEST, BEST_STATIC, opinionated, paper, spec
from tests.fixtures.returns import routing_return
from tests.fixtures.routers import fit_agent

LAYOUT = spec().layout


class Recorder:
    """A router that keeps what it is given."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.observation = observation
        self.state = state
        self.episode_start = episode_start
        self.deterministic = deterministic
        return np.zeros(len(observation), np.int64), "next"

    def state_dict(self):
        return {}, {"recorder": True}


@pytest.fixture(scope="module")
def router():
    """A blind router that takes many sub-paths."""
    router = fit_agent("blind", paper())
    opinionated(router.router)
    return router


def test_blinded_zeroes_only_the_summary():
    obs = random_observations(spec())
    before = obs.copy()
    hidden = blinded(LAYOUT, obs)
    assert (obs == before).all()
    for part in LAYOUT.summary:
        assert (hidden[:, part] == 0).all()

    others = (LAYOUT.layer, LAYOUT.compute, LAYOUT.prev_sub_path, LAYOUT.tradeoff)
    for part in others:
        assert (hidden[:, part] == obs[:, part]).all()
    # These are all parts of an observation.
    widths = [part.stop - part.start for part in others]
    assert LAYOUT.summary.size + sum(widths) == LAYOUT.size


def test_prediction_ignores_the_summary(router):
    obs = random_observations(spec(), seed=1)
    other_image = obs.copy()
    summary = slice(0, LAYOUT.summary.size)
    other_image[:, summary] = random_observations(spec(), seed=2)[:, summary]

    actions, _ = router.predict(obs)
    other_actions, _ = router.predict(other_image)
    assert actions.tolist() == other_actions.tolist()
    assert len(set(actions.tolist())) > 1

    # The inner policy would tell the images apart.
    inner_actions, _ = router.router.predict(obs)
    other_inner_actions, _ = router.router.predict(other_image)
    assert inner_actions.tolist() != other_inner_actions.tolist()


def test_inner_router_gets_blinded_observations():
    recorder = Recorder()
    obs = random_observations(spec())
    episode_start = np.ones(len(obs), np.bool_)
    router = BlindRouter(spec(), recorder)
    _, state = router.predict(obs, "state", episode_start, False)

    assert (recorder.observation == blinded(LAYOUT, obs)).all()
    assert recorder.state == "state"
    assert recorder.episode_start is episode_start
    assert recorder.deterministic is False
    assert state == "next"


def test_state_dict_is_that_of_inner_router():
    router = BlindRouter(spec(), Recorder())
    assert router.state_dict() == ({}, {"recorder": True})


def test_blind_env_hides_only_the_summary():
    kwargs = {
        "n_envs": 4,
        "seed": 7,
        "env_kwargs": {"backend": paper(), "tradeoff": (0.1, 2.0)},
    }
    seeing = make_vec_env("RNR-v0", **kwargs)
    hiding = BlindVecEnv(make_vec_env("RNR-v0", **kwargs), LAYOUT)
    assert (hiding.reset() == blinded(LAYOUT, seeing.reset())).all()

    rng = np.random.default_rng(0)
    summary_seen = False
    for _ in range(12):
        actions = rng.integers(0, 3, 4)
        obs, rewards, dones, _ = seeing.step(actions)
        hidden_obs, hidden_rewards, hidden_dones, _ = hiding.step(actions)
        assert (hidden_obs == blinded(LAYOUT, obs)).all()
        assert (hidden_rewards == rewards).all()
        assert (hidden_dones == dones).all()
        summary_seen |= bool((hidden_obs != obs).any())
    assert summary_seen


def test_blind_learns_the_best_static_path(monkeypatch):
    ppo = RECIPES["ppo"]
    quick = replace(
        ppo,
        num_envs=64,
        learning_rate=3e-3,
        kwargs={**ppo.kwargs, "ent_coef": 0.01},
    )
    monkeypatch.setitem(RECIPES, "ppo", quick)
    table = paper()
    router = fit_agent("blind", table, steps=70_000, tradeoffs=(0.1, 3.0))

    for tradeoff, (best_return, path) in BEST_STATIC.items():
        evaluation = evaluate(table, router, tradeoff)
        assert evaluation.path.tolist() == [path] * 8
        actual = routing_return(table.spec, evaluation, tradeoff)
        assert actual == pytest.approx(best_return)
        # What it lacks is what routing by image would gain.
        gap = BEST[tradeoff][0] - best_return
        assert table.regret(evaluation.path, tradeoff) == pytest.approx(gap)


def test_blind_pays_for_its_decisions(router):
    evaluation = evaluate(paper(), router, 0.5)
    assert (evaluation.router_macs > 0).all()
