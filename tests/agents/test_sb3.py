"""Learners as routers: what they learn, what they read, and how they are saved and restored."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from rnr_gym import agents
from rnr_gym.agents import AGENTS, RECIPES, FitConfig, dqn, ppo
from rnr_gym.agents.sb3 import BY_DATASET, RoutingFeatures, Sb3Router
from rnr_gym.envs.routing import observation_space
from rnr_gym.experiments.evaluation import evaluate
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.rollout import route
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small
from tests.fixtures.observations import random_observations
from tests.fixtures.paper_problem import BEST, paper, spec
from tests.fixtures.returns import routing_return
from tests.fixtures.routers import (
    CONTRIB,
    fit_agent,
    fit_with,
    new_model,
    same_tensors,
    untrained_router,
)

EVERY_LEARNER = pytest.mark.parametrize("name", [*RECIPES])
PPO_AND_DQN = pytest.mark.parametrize("name", ["ppo", "dqn"])
# A higher learning rate and fewer episodes in parallel: eight images take no more than seconds.
QUICK_PPO = replace(
    ppo.PPO,
    num_envs=64,
    learning_rate=3e-3,
    kwargs={**ppo.PPO.kwargs, "ent_coef": 0.01},
)
QUICK_DQN = replace(
    dqn.DQN,
    num_envs=32,
    learning_rate=3e-3,
    kwargs={
        **dqn.DQN.kwargs,
        "batch_size": 256,
        "learning_starts": 1_000,
        "target_update_interval": 300,
    },
)

pytestmark = pytest.mark.usefixtures("early_learning")


def weights(router):
    """What the router has learned, by name."""
    tensors, _ = router.state_dict()
    return tensors


def untrained(name="ppo", **changes):
    """A router on paper that has learned nothing, by a changed recipe."""
    table = paper()
    recipe = replace(RECIPES[name], num_envs=32, **changes)
    return untrained_router(name, recipe, table.spec, backend=table)


@pytest.mark.parametrize(
    ("name", "recipe", "steps"),
    [
        ("ppo", QUICK_PPO, 100_000),
        ("dqn", QUICK_DQN, 80_000),
    ],
    ids=["ppo", "dqn"],
)
def test_learner_nears_optimum_known_on_paper(monkeypatch, name, recipe, steps):
    """By at least half of what the optimum is above the best path for all images.

    Which images a learner gets right in the end depends on rounding, and so on the machine.
    """
    # On paper nothing but the raw summary tells images apart.
    monkeypatch.setitem(RECIPES, name, replace(recipe, summary_scale=1.0))
    table = paper()
    router = fit_agent(name, table, steps, tradeoffs=(0.1, 3.0))

    for tradeoff, (best_return, _) in BEST.items():
        returns = table.returns(tradeoff)
        assert returns.max(0).mean() == pytest.approx(best_return)
        evaluation = evaluate(table, router, tradeoff)
        actual = routing_return(table.spec, evaluation, tradeoff)
        assert actual >= (best_return + returns.mean(1).max()) / 2


def test_learning_starts_near_the_full_path():
    recipe = replace(RECIPES["ppo"], num_envs=32, full_path_bias=3.0)
    problem = spec()
    model = new_model(recipe, problem, backend=paper(), tradeoff=(0.1, 2.0))
    obs = torch.from_numpy(random_observations(problem))
    probabilities = model.policy.get_distribution(obs).distribution.probs.detach()
    model.env.close()

    # Its logit is 3 above the others, which are about 0.
    expected = np.exp(3.0) / (np.exp(3.0) + problem.num_paths - 1)
    np.testing.assert_allclose(probabilities[:, problem.full_path], expected, atol=0.02)


@EVERY_LEARNER
def test_learner_survives_save_and_load(tmp_path, name):
    table = paper()
    router = fit_agent(name, table)
    metadata = {"agent": name, "problem": table.spec.digest}
    agents.save(router, tmp_path / "router", metadata)
    loaded, stored = agents.load(tmp_path / "router", table.spec)
    assert stored["agent"] == name
    assert same_tensors(weights(router), weights(loaded))

    obs = random_observations(table.spec)
    actions, _ = router.predict(obs)
    loaded_actions, _ = loaded.predict(obs)
    assert actions.tolist() == loaded_actions.tolist()
    assert actions.dtype == np.int64
    assert actions.shape == (200,)


@EVERY_LEARNER
def test_seed_determines_the_learner(name):
    learned = weights(fit_agent(name, paper(), seed=3))
    again = weights(fit_agent(name, paper(), seed=3))
    other = weights(fit_agent(name, paper(), seed=4))
    assert same_tensors(learned, again)
    assert not same_tensors(learned, other)


@EVERY_LEARNER
def test_more_steps_change_the_learner(name):
    learned = weights(fit_agent(name, paper(), steps=1024))
    longer = weights(fit_agent(name, paper(), steps=2048))
    assert not same_tensors(learned, longer)


def test_features_have_tradeoff_on_two_scales():
    problem = spec()
    layout = problem.layout
    obs = torch.from_numpy(random_observations(problem, 4))
    obs[:, -1] = torch.tensor([0.01, 0.1, 1.0, 0.0])
    extractor = RoutingFeatures(observation_space(problem), layout, summary_scale=0.1)
    inputs = extractor(obs)
    assert inputs.shape == (4, extractor.features_dim)

    # On the logarithmic scale, 0 is taken for 0.001.
    log_tradeoff = torch.tensor([-1.0, 0.0, 1.0, -2.0])
    torch.testing.assert_close(inputs[:, -2], log_tradeoff)
    torch.testing.assert_close(inputs[:, -1], obs[:, -1])


def test_features_scale_only_the_raw_summary():
    problem = spec()
    layout = problem.layout
    obs = torch.from_numpy(random_observations(problem, 4))
    extractor = RoutingFeatures(observation_space(problem), layout, summary_scale=0.1)
    observed = extractor(obs)[:, -2 - layout.tradeoff.start : -2]
    width = layout.summary.confidence.start
    torch.testing.assert_close(observed[:, :width], 0.1 * obs[:, :width])
    assert torch.equal(observed[:, width:], obs[:, width:-1])


def test_maskable_learner_takes_valid_sub_paths():
    backbone = small.backbone("multipath", "one exit")
    kwargs = {"dataset": small.images(), "backbone": backbone, "backend": "table"}
    problem = RoutingSpec.of(backbone)
    obs = random_observations(problem, 500)
    layers = layers_of(problem.layout, obs)

    masked = fit_with("maskable-ppo", kwargs)
    actions, _ = masked.predict(obs, deterministic=False)
    assert problem.valid[layers, actions].all()
    unmasked = fit_with("ppo", kwargs)
    actions, _ = unmasked.predict(obs, deterministic=False)
    assert not problem.valid[layers, actions].all()


@pytest.mark.parametrize("name", CONTRIB)
def test_missing_sb3_contrib_error_names_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    fit_config = FitConfig("RNR-v0", {"backend": paper()}, steps=1024, progress=False)
    with pytest.raises(ValueError, match=r"sb3-contrib; install rnr-gym\[contrib\]"):
        AGENTS[name].fit(fit_config)


def test_learner_routes_without_a_state():
    table = paper()
    router = fit_agent("ppo", table)
    state = route(table.start(np.arange(8)), table.spec, router, 0.5)
    assert state.done.all()
    _, memory = router.predict(random_observations(table.spec, 1))
    assert memory is None


def test_fit_uses_recipe_of_the_dataset(tmp_path, monkeypatch):
    own = replace(RECIPES["ppo"], net_arch=(8, 4), num_envs=32)
    # The digits are what RNR-v0 routes by name.
    monkeypatch.setitem(BY_DATASET, "ppo", {"digits": own})
    table = paper()
    router = fit_agent("ppo", table, steps=256)
    assert router.recipe is own

    # The loaded router has that network, also where the recipe is gone.
    agents.save(router, tmp_path / "router", {"agent": "ppo"})
    monkeypatch.setitem(BY_DATASET, "ppo", {})
    loaded, _ = agents.load(tmp_path / "router", table.spec)
    assert loaded.recipe == replace(RECIPES["ppo"], net_arch=(8, 4))
    assert same_tensors(weights(router), weights(loaded))
    obs = random_observations(table.spec)
    actions, _ = router.predict(obs)
    loaded_actions, _ = loaded.predict(obs)
    assert actions.tolist() == loaded_actions.tolist()

    assert fit_agent("ppo", table).recipe is RECIPES["ppo"]


@PPO_AND_DQN
def test_state_dict_names_recipe_and_network(name):
    _, config = untrained(name, net_arch=(24,)).state_dict()
    assert config == {
        "recipe": name,
        "net": [24],
        "summary_scale": RECIPES[name].summary_scale,
    }


@PPO_AND_DQN
def test_router_restores_after_recipe_changes(monkeypatch, name):
    tensors, config = untrained(name).state_dict()
    wider = replace(RECIPES[name], net_arch=(50, 40))
    monkeypatch.setitem(RECIPES, name, wider)
    restored = Sb3Router.from_state_dict(spec(), tensors, config)
    restored_tensors, restored_config = restored.state_dict()
    assert same_tensors(tensors, restored_tensors)
    assert restored_config == config


def test_restored_class_is_not_chosen_by_the_file():
    tensors, config = untrained().state_dict()
    forged = {**config, "algorithm": "os:system", "policy": {"activation_fn": "os.system"}}
    restored = Sb3Router.from_state_dict(spec(), tensors, forged)
    assert restored.recipe.algorithm == RECIPES["ppo"].algorithm
    unknown = {**config, "recipe": "os:system"}
    with pytest.raises(KeyError):
        Sb3Router.from_state_dict(spec(), tensors, unknown)


def test_restore_rejects_other_network():
    tensors, config = untrained().state_dict()
    wider = {**config, "net": [17]}
    with pytest.raises(RuntimeError, match="size mismatch"):
        Sb3Router.from_state_dict(spec(), tensors, wider)
