"""The table of routers: each can be fitted by name, kept and restored; and what a fit_config opens."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from rnr_gym import agents
from rnr_gym.agents import AGENTS, DEFAULT_AGENTS, RECIPES, FitConfig, fqi
from rnr_gym.backbones import zoo
from rnr_gym.routing import route_table
from rnr_gym.routing.live import Live
from rnr_gym.routing.route_table import RouteTable
from tests import small
from tests.agents import drawn, paper, spec

EVERY = pytest.mark.parametrize("name", [*AGENTS])


@pytest.fixture(autouse=True)
def _light(monkeypatch):
    """DQN and QR-DQN begin to learn after 256 steps, so that short fits learn something, and from small batches.

    FittedRouter Q iteration takes few steps.
    """
    monkeypatch.setattr(fqi, "CONFIG", replace(fqi.CONFIG, steps=50))
    for name in ("dqn", "qr-dqn"):
        arguments = {**RECIPES[name].arguments, "learning_starts": 256, "batch_size": 32}
        monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], arguments=arguments))


def fitted(name, seed=0, table=None):
    if name in ("maskable-ppo", "qr-dqn"):
        pytest.importorskip("sb3_contrib")
    return AGENTS[name].fit(FitConfig("RNR-v0", {"backend": table or drawn(0)}, seed, 1024, progress=False))


def observations(problem, count=200, seed=0):
    """Random observations, each at some layer."""
    rng = np.random.default_rng(seed)
    seen = rng.random((count, problem.layout.size)).astype(np.float32)
    seen[:, problem.layout.layer] = np.eye(problem.num_layers)[rng.integers(0, problem.num_layers, count)]
    return seen


def same(one, other):
    """Whether two routers say the same of themselves."""
    (tensors, facts), (others, other_facts) = one.state(), other.state()
    return facts == other_facts and tensors.keys() == others.keys() and all(torch.equal(tensors[key], others[key]) for key in tensors)


def test_the_default_is_all_but_the_last_three():
    assert set(DEFAULT_AGENTS) == set(list(AGENTS)[:-3])
    assert {"random", "full", "cheapest", "static", "blind", "confidence", "thresholds", "fqi", "dqn", "ppo"} == set(DEFAULT_AGENTS)


def test_every_recipe_is_an_agent():
    assert RECIPES.keys() <= AGENTS.keys()


def test_an_unknown_agent_is_refused_by_the_names_of_all():
    with pytest.raises(ValueError, match=f"`agent` must be one of {', '.join(AGENTS)}, got 'sarsa'"):
        agents.agent("sarsa")
    for name in AGENTS:
        assert agents.agent(name) is AGENTS[name]


@EVERY
def test_another_seed_gives_another_router_only_where_the_table_says_so(name):
    one, again, other = fitted(name, 1), fitted(name, 1), fitted(name, 2)
    assert same(one, again)
    assert same(one, other) is not AGENTS[name].seeded


@EVERY
def test_a_router_comes_back_from_disk(tmp_path, name):
    router, problem = fitted(name), spec()
    agents.save(router, tmp_path / "router", {"agent": name, "problem": problem.digest, "more": [1, None]})
    again, facts = agents.load(tmp_path / "router", problem)
    assert (facts["agent"], facts["problem"], facts["more"]) == (name, problem.digest, [1, None])
    assert type(again) is type(router)
    assert same(router, again)
    actions, found = (part.predict(observations(problem))[0] for part in (fitted(name), again))
    assert (actions.dtype, actions.shape) == (found.dtype, found.shape) == (np.int64, (200,))
    assert actions.tolist() == found.tolist()
    assert set(actions.tolist()) <= {0, 1, 2}


@EVERY
def test_a_router_for_another_problem_is_refused(tmp_path, name):
    agents.save(fitted(name), tmp_path / "router", {"agent": name, "problem": spec().digest})
    other = small.backbone("multipath").spec()
    with pytest.raises(ValueError, match=f"fitted to problem {spec().digest}, not {other.digest}"):
        agents.load(tmp_path / "router", other)


def test_a_file_that_is_no_router_is_refused(tmp_path):
    zoo.save(small.backbone("multipath"), tmp_path / "backbone")
    with pytest.raises(ValueError, match="must be a router file as `rnr-gym train` writes it"):
        agents.load(tmp_path / "backbone", spec())
    (tmp_path / "text").write_text("no safetensors")
    with pytest.raises(ValueError, match="cut off or damaged"):
        agents.load(tmp_path / "text", spec())
    with pytest.raises(FileNotFoundError, match="does not exist"):
        agents.load(tmp_path / "nothing", spec())


def test_a_setting_opens_a_table_where_it_fits_and_else_the_live_network(monkeypatch, images, backbone):
    arguments = {"dataset": images, "backbone": backbone}
    fit_config, held = FitConfig("RNR-v0", arguments), route_table.num_prefixes(backbone.spec()) * len(images)
    monkeypatch.setattr(route_table, "LIMIT", held)
    assert isinstance(fit_config.source("route"), RouteTable)
    assert fit_config.table("route") is fit_config.source("route")
    monkeypatch.setattr(route_table, "LIMIT", held - 1)
    assert isinstance(fit_config.source("route"), Live)
    assert fit_config.table("route") is None


def test_a_setting_hands_on_what_it_was_told(images, backbone):
    fit_config = FitConfig("RNR-v0", {"dataset": images, "backbone": backbone, "exits": False, "backend": "live"})
    assert fit_config.env_kwargs("test") == {"dataset": images, "backbone": backbone, "exits": False, "backend": "live", "split": "test"}
    assert not fit_config.source("route").spec.valid[:, 0].any()
    table = paper()
    assert FitConfig("RNR-v0", {"backend": table}).table("route") is table


def test_a_setting_is_for_a_registered_id_and_does_not_change():
    with pytest.raises(ValueError, match="`env` must be one of RNR-Digits-v0"):
        FitConfig("RNR-v1").source("route")
    with pytest.raises(FrozenInstanceError):
        FitConfig("RNR-v0").seed = 1
