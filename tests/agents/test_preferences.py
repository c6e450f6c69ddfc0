"""What routers think of each sub-path."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rnr_gym.agents import AGENTS, fqi
from rnr_gym.agents.sb3 import RECIPES
from rnr_gym.routing.preferences import preferences_of
from rnr_gym.routing.rollout import observation
from tests.fixtures import routers
from tests.fixtures.paper_problem import drawn
from tests.fixtures.routing import assert_near

TELLING = {
    "ppo": "probability",
    "a2c": "probability",
    "maskable-ppo": "probability",
    "blind": "probability",
    "skipnet": "probability",
    "dqn": "Q-value",
    "qr-dqn": "Q-value",
    "rnr-dqn": "Q-value",
    "fqi": "advantage",
}
"""Agents whose routers can tell, and what."""


pytestmark = pytest.mark.usefixtures("early_learning")


@pytest.fixture(autouse=True)
def _few_fqi_steps(monkeypatch):
    monkeypatch.setattr(fqi, "CONFIG", replace(fqi.CONFIG, steps=50))


@pytest.fixture
def table():
    return drawn(0)


def observed(table, count=16):
    """Observations `(count, D)` of images that wait at layer 0."""
    state = table.start(np.arange(count))
    return observation(state, table.spec, np.full(count, 0.3))


@pytest.mark.parametrize("name", TELLING)
def test_best_preference_is_what_a_router_chooses(name, table):
    if name in RECIPES:
        routers.require_contrib(name)
    router = routers.fit_agent(name, table, steps=256)
    obs = observed(table)
    start = np.ones(len(obs), np.bool_)
    told = preferences_of(router, obs, None, start)
    assert told.kind == TELLING[name]
    assert told.values.shape == (len(obs), table.spec.num_paths)
    assert told.values.dtype == np.float64

    if told.kind == "probability":
        assert_near(told.values.sum(1), np.ones(len(obs)), atol=1e-5)
    # fqi departs from its fallback by a margin only.
    if name != "fqi":
        actions, _ = router.predict(obs, None, start)
        best = told.values
        if name in ("maskable-ppo", "skipnet", "rnr-dqn"):
            best = np.where(table.spec.valid[0], best, -np.inf)
        assert_array_equal(best.argmax(1), actions)


def test_agents_that_cannot_tell_give_none(table):
    obs = observed(table)
    for name in ("static", "confidence", "thresholds", "blockdrop"):
        assert name in AGENTS
        router = routers.fit_agent(name, table, steps=256)
        assert preferences_of(router, obs) is None


def test_memory_is_part_of_what_a_router_thinks(table):
    router = routers.fit_agent("rnr-dqn", table, steps=256)
    state = table.start(np.arange(8))
    tradeoff = np.full(8, 0.3)
    obs = observation(state, table.spec, tradeoff)
    _, memory = router.predict(obs)
    following = observation(state.step(np.full(8, table.spec.full_path)), table.spec, tradeoff)

    with_memory = preferences_of(router, following, memory).values
    without = preferences_of(router, following).values
    assert (with_memory != without).any()


def test_models_of_sb3_are_read(table):
    model = routers.new_model(RECIPES["ppo"], table.spec, backend=table)
    obs = observed(table)
    told = preferences_of(model, obs)
    assert told.kind == "probability"
    assert_array_equal(told.values.argmax(1), model.predict(obs, deterministic=True)[0])


def test_masked_sub_paths_have_no_probability(table):
    routers.require_contrib("maskable-ppo")
    router = routers.fit_agent("maskable-ppo", table, steps=256)
    valid = table.spec.valid.copy()
    valid[0, 1] = False
    router.spec = replace(table.spec, valid=valid)
    told = preferences_of(router, observed(table))
    assert (told.values[:, 1] == 0.0).all()
    assert_near(told.values.sum(1), np.ones(len(told.values)), atol=1e-6)
