"""Routers: whatever picks sub-paths. A table of those that can be fitted by name, and how they are kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rnr_gym import storage
from rnr_gym.agents import confidence, fqi, sb3_router, static, thresholds, uniform
from rnr_gym.agents.recipes import RECIPES
from rnr_gym.agents.base import FitConfig
from rnr_gym.routing.protocols import FittedRouter
from rnr_gym.routing.spec import RoutingSpec

__all__ = ["AGENTS", "DEFAULT_AGENTS", "Agent", "FitConfig", "agent", "load", "save"]


class Agent(NamedTuple):
    """How a router is fitted and restored.

    Attributes:
        fit: from a fit_config to a router.
        restore: from the routing problem and what the router's `state()` said.
        seeded: whether another seed gives another router.
        needs_table: whether it can only be fitted where there is a route table.
    """

    fit: Callable[[FitConfig], FittedRouter]
    restore: Callable[[RoutingSpec, dict[str, Any], dict[str, Any]], FittedRouter]
    seeded: bool
    needs_table: bool = False


AGENTS: dict[str, Agent] = {
    "random": Agent(uniform.fit, uniform.UniformRouter.restore, True),
    "full": Agent(static.fit_full, static.StaticRouter.restore, False),
    "cheapest": Agent(static.fit_cheapest, static.StaticRouter.restore, False),
    "static": Agent(static.fit, static.StaticRouter.restore, False),
    "confidence": Agent(confidence.fit, confidence.ConfidenceRouter.restore, False),
    "thresholds": Agent(thresholds.fit, thresholds.ThresholdsRouter.restore, False),
    "fqi": Agent(fqi.fit, fqi.FqiRouter.restore, True, needs_table=True),
    "blind": Agent(partial(sb3_router.fit_blind, recipe="ppo"), sb3_router.restore_blind, True),
    **{name: Agent(partial(sb3_router.fit, recipe=name), sb3_router.restore, True) for name in RECIPES},
}
DEFAULT_AGENTS = (
    "random",
    "full",
    "cheapest",
    "static",
    "blind",
    "confidence",
    "thresholds",
    "fqi",
    "dqn",
    "ppo",
)
"""What `rnr-gym compare` compares unless told otherwise; where there is no route table, without those that need one.

The oracle's paths are always added where there is a table.
"""


def agent(name: str) -> Agent:
    """The agent of that name, else a `ValueError` that lists the names."""
    if name not in AGENTS:
        raise ValueError(f"`agent` must be one of {', '.join(AGENTS)}, got {name!r}")
    return AGENTS[name]


def check(name: str, fit_config: FitConfig) -> None:
    """A `ValueError` if there is no agent of that name, or it cannot be fitted to that fit_config."""
    if agent(name).needs_table and not fit_config.has_table("route"):
        raise ValueError(fqi.needs_table(name, fit_config.env))


def save(router: FittedRouter, path: Path, facts: dict[str, Any]) -> None:
    """Write a router as safetensors; `facts` must hold `agent`, its name, and may hold anything JSON can."""
    tensors, own = router.state()
    storage.save_tensors(path, tensors, {**facts, "router": own})


def load(path: Path, spec: RoutingSpec) -> tuple[FittedRouter, dict[str, Any]]:
    """The router that `save` wrote, and its facts; a `ValueError` if the file is damaged or for another routing problem."""
    tensors, facts = storage.load_tensors(path)
    if "agent" not in facts or "router" not in facts:
        raise ValueError(f"`path` must be a router file as `rnr-gym train` writes it, got {str(path)!r}")
    if facts.get("problem") not in (None, spec.digest):
        raise ValueError(f"`path` must be a router for this backbone, got {str(path)!r}, fitted to problem {facts['problem']}, not {spec.digest}")
    return agent(facts["agent"]).restore(spec, tensors, facts["router"]), facts
