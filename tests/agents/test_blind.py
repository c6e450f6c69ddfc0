"""The blind router: whatever depends on the image is out of its sight, and nothing else is."""

from dataclasses import replace

import numpy as np
import pytest

from rnr_gym.agents import RECIPES, FitConfig, sb3_router
from rnr_gym.agents.blind import BlindRouter, BlindVecEnv, blinded
from rnr_gym.envs.routing import observation_space
from rnr_gym.experiments.evaluation import evaluate
from rnr_gym.sb3 import vec_env
from tests.agents import BEST, BEST_STATIC, opinionated, paper, spec

WHERE = spec().layout


def observations(count=300, seed=0):
    """Random observations, each at some layer."""
    rng, box = np.random.default_rng(seed), observation_space(spec())
    seen = rng.uniform(box.low, box.high, (count, WHERE.size)).astype(np.float32)
    seen[:, WHERE.layer] = np.eye(2)[rng.integers(0, 2, count)]
    return seen


class Echo:
    """A router that keeps what it is shown."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.shown = observation, state, episode_start, deterministic
        return np.zeros(len(observation), np.int64), "next"

    def state(self):
        return {}, {"echo": True}


@pytest.fixture(scope="module")
def router():
    """A blind router that takes many sub-paths."""
    blind = sb3_router.fit_blind(FitConfig("RNR-v0", {"backend": paper()}, 0, 1024, progress=False), "ppo")
    opinionated(blind.router)
    return blind


def test_blinded_is_a_copy_without_the_summary():
    seen = observations()
    before = seen.copy()
    dark = blinded(WHERE, seen)
    assert (seen == before).all()
    for part in WHERE.summary:
        assert (dark[:, part] == 0).all()
    for part in (WHERE.layer, WHERE.compute, WHERE.prev_sub_path, WHERE.tradeoff):
        assert (dark[:, part] == seen[:, part]).all()
    assert WHERE.summary.size + sum(part.stop - part.start for part in WHERE[1:]) == WHERE.size


def test_predictions_stay_when_everything_about_the_image_changes(router):
    seen, other = observations(seed=1), observations(seed=2)
    changed = np.concatenate([other[:, : WHERE.summary.size], seen[:, WHERE.summary.size :]], 1)
    actions = router.predict(seen)[0]
    assert actions.tolist() == router.predict(changed)[0].tolist()
    assert len(set(actions.tolist())) > 1
    assert router.router.predict(seen)[0].tolist() != router.router.predict(changed)[0].tolist()  # the learner inside does see


def test_the_router_inside_is_shown_the_rest_as_it_is():
    inside, seen = Echo(), observations()
    start = np.ones(300, np.bool_)
    answer = BlindRouter(spec(), inside).predict(seen, "state", start, False)
    shown, state, begun, deterministic = inside.shown
    assert (shown == blinded(WHERE, seen)).all()
    assert (state, deterministic) == ("state", False)
    assert begun is start
    assert answer[1] == "next"
    assert BlindRouter(spec(), inside).state() == ({}, {"echo": True})


def test_a_blind_environment_is_the_seeing_one_without_the_summary():
    seeing, dark = (vec_env("RNR-v0", 4, 7, backend=paper(), tradeoff=(0.1, 2.0)) for _ in range(2))
    dark = BlindVecEnv(dark, WHERE)
    assert (dark.reset() == blinded(WHERE, seeing.reset())).all()
    rng, unlike = np.random.default_rng(0), False
    for _ in range(12):
        actions = rng.integers(0, 3, 4)
        ours, theirs = dark.step(actions), seeing.step(actions)
        assert (ours[0] == blinded(WHERE, theirs[0])).all()
        assert (ours[1] == theirs[1]).all()
        assert (ours[2] == theirs[2]).all()
        unlike |= bool((ours[0] != theirs[0]).any())
    assert unlike


def test_it_finds_the_best_static_path_and_no_better(monkeypatch):
    arguments = {**RECIPES["ppo"].arguments, "ent_coef": 0.01}
    monkeypatch.setitem(RECIPES, "ppo", replace(RECIPES["ppo"], num_envs=64, learning_rate=3e-3, arguments=arguments))
    table = paper()
    router = sb3_router.fit_blind(FitConfig("RNR-v0", {"backend": table}, 0, 70_000, tradeoffs=(0.1, 3.0), progress=False), "ppo")
    for tradeoff, (value, path) in BEST_STATIC.items():
        found = evaluate(table, router, tradeoff)
        assert found.path.tolist() == [path] * 8
        mean = (found.correct - tradeoff * (found.macs - found.router_macs) / table.spec.plain_macs).mean()
        assert mean == pytest.approx(value)
        assert table.regret(found.path, tradeoff) == pytest.approx(BEST[tradeoff][0] - value)


def test_it_is_charged_as_the_router_that_it_is(router):
    found = evaluate(paper(), router, 0.5)
    assert (found.router_macs > 0).all()
