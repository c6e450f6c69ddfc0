"""The table of agents: each can be fitted by name, saved and restored."""

from dataclasses import replace

import numpy as np
import pytest

from rnr_gym import agents
from rnr_gym.agents import AGENTS, DEFAULT_AGENTS, RECIPES, FitConfig, fqi, rnr_dqn
from rnr_gym.backbones import weights
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small
from tests.fixtures.observations import random_observations
from tests.fixtures.paper_problem import drawn, spec
from tests.fixtures.routers import fit_agent, same_tensors

EVERY_AGENT = pytest.mark.parametrize("name", [*AGENTS])

pytestmark = pytest.mark.usefixtures("early_learning")


@pytest.fixture(autouse=True)
def _few_fqi_steps(monkeypatch):
    monkeypatch.setattr(fqi, "CONFIG", replace(fqi.CONFIG, steps=50))


def fitted(name, seed=0):
    """A router of an agent, fitted to random outcomes."""
    return fit_agent(name, drawn(0), seed=seed)


def same_router(router, other):
    """Whether two routers have the same `state_dict`."""
    tensors, config = router.state_dict()
    other_tensors, other_config = other.state_dict()
    return config == other_config and same_tensors(tensors, other_tensors)


def test_default_agents_need_no_extra():
    assert set(DEFAULT_AGENTS) == {
        "random",
        "full",
        "cheapest",
        "static",
        "blind",
        "confidence",
        "thresholds",
        "eenet",
        "fqi",
        "blockdrop",
        "skipnet",
        "dqn",
        "rnr-dqn",
        "ppo",
    }


def test_learners_are_the_agents_with_recipe_and_those_with_own_code():
    learners = {name for name, agent in AGENTS.items() if agent.kind == "learner"}
    assert learners == {"blockdrop", "skipnet", "rnr-dqn", *rnr_dqn.ABLATIONS, *RECIPES}


def test_agent_is_looked_up_by_name():
    for name in AGENTS:
        assert agents.agent(name) is AGENTS[name]


def test_agent_rejects_unknown_name():
    message = f"`agent` must be one of {', '.join(AGENTS)}, got 'sarsa'"
    with pytest.raises(ValueError, match=message):
        agents.agent("sarsa")


def test_check_needs_known_name_and_table(images, backbone):
    live = {"dataset": images, "backbone": backbone, "backend": "live"}
    for name in AGENTS:
        agents.check(name, FitConfig("RNR-v0", {"backend": drawn(0)}))
    agents.check("ppo", FitConfig("RNR-v0", live))
    for name in ("fqi", "skipnet"):
        with pytest.raises(ValueError, match=f"`agent` {name} needs a route table, got RNR-v0"):
            agents.check(name, FitConfig("RNR-v0", live))
    with pytest.raises(ValueError, match=r"`agent` must be one of .*, got 'sarsa'"):
        agents.check("sarsa", FitConfig("RNR-v0", live))


@EVERY_AGENT
def test_seed_matters_only_where_table_says_so(name):
    router = fitted(name, seed=1)
    assert same_router(router, fitted(name, seed=1))
    assert same_router(router, fitted(name, seed=2)) is not AGENTS[name].seeded


@EVERY_AGENT
def test_router_survives_save_and_load(tmp_path, name):
    problem = spec()
    router = fitted(name)
    metadata = {"agent": name, "problem": problem.digest, "more": [1, None]}
    agents.save(router, tmp_path / "router", metadata)
    loaded, stored = agents.load(tmp_path / "router", problem)

    assert metadata.items() <= stored.items()
    assert type(loaded) is type(router)
    assert same_router(router, loaded)

    # A router that draws has drawn nothing yet, neither this one nor the loaded one.
    obs = random_observations(problem)
    actions, _ = router.predict(obs)
    loaded_actions, _ = loaded.predict(obs)
    for array in (actions, loaded_actions):
        assert array.dtype == np.int64
        assert array.shape == (200,)
    assert actions.tolist() == loaded_actions.tolist()
    assert set(actions.tolist()) <= {0, 1, 2}


@EVERY_AGENT
def test_load_rejects_router_of_other_problem(tmp_path, name):
    metadata = {"agent": name, "problem": spec().digest}
    agents.save(fitted(name), tmp_path / "router", metadata)
    other = RoutingSpec.of(small.backbone("multipath"))
    message = f"fitted to problem {spec().digest}, not {other.digest}"
    with pytest.raises(ValueError, match=message):
        agents.load(tmp_path / "router", other)


def test_load_rejects_backbone_file(tmp_path):
    weights.save(small.backbone("multipath"), tmp_path / "backbone")
    with pytest.raises(ValueError, match="must be a router file as `rnr-gym train` writes it"):
        agents.load(tmp_path / "backbone", spec())


def test_load_rejects_damaged_file(tmp_path):
    (tmp_path / "text").write_text("no safetensors")
    with pytest.raises(ValueError, match="cut off or damaged"):
        agents.load(tmp_path / "text", spec())


def test_load_rejects_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        agents.load(tmp_path / "nothing", spec())
