"""Routers, one file for each agent, and the table by which they are fitted, saved and loaded.

They may import everything before them in the import order, from `storage` to the adapter
`rnr_gym.sb3`, but neither the classifier nor the experiments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from rnr_gym import checks, storage
from rnr_gym.agents import (
    blind,
    blockdrop,
    confidence,
    eenet,
    fqi,
    rnr_dqn,
    sb3,
    skipnet,
    static,
    thresholds,
    uniform,
)
from rnr_gym.agents.base import FitConfig, RouterBase, needs_table
from rnr_gym.agents.blind import BlindRouter
from rnr_gym.agents.blockdrop import BlockDropRouter
from rnr_gym.agents.confidence import ConfidenceRouter
from rnr_gym.agents.eenet import EenetRouter
from rnr_gym.agents.fqi import FqiRouter
from rnr_gym.agents.rnr_dqn import RnrDqnRouter
from rnr_gym.agents.sb3 import RECIPES, Sb3Router
from rnr_gym.agents.skipnet import SkipNetRouter
from rnr_gym.agents.static import StaticRouter
from rnr_gym.agents.thresholds import ThresholdsRouter
from rnr_gym.agents.uniform import UniformRouter
from rnr_gym.routing.protocols import FittedRouter
from rnr_gym.routing.spec import RoutingSpec

__all__ = [
    "AGENTS",
    "DEFAULT_AGENTS",
    "RECIPES",
    "Agent",
    "FitConfig",
    "RouterBase",
    "agent",
    "check",
    "load",
    "save",
]


class Agent(NamedTuple):
    """How a router is fitted and restored, and what sort of router it is.

    Attributes:
        fit: makes a router from a configuration.
        from_state_dict: restores a router from the routing problem and its `state_dict`.
        seeded: whether another seed gives another router.
        kind: `"fixed"` has one compute whatever λ is; `"imageless"` treats all images alike;
            `"rule"` compares confidence, or a score, to thresholds; `"fqi"` estimates returns from
            a route table; `"learner"` learns from episodes.
        needs_table: whether it can only be fitted where there is a route table.
    """

    fit: Callable[[FitConfig], FittedRouter]
    from_state_dict: Callable[[RoutingSpec, dict[str, Tensor], dict[str, Any]], FittedRouter]
    seeded: bool
    kind: Literal["fixed", "imageless", "rule", "fqi", "learner"]
    needs_table: bool = False


AGENTS: dict[str, Agent] = {
    "random": Agent(
        fit=uniform.fit,
        from_state_dict=UniformRouter.from_state_dict,
        seeded=True,
        kind="fixed",
    ),
    "full": Agent(
        fit=static.fit_full,
        from_state_dict=StaticRouter.from_state_dict,
        seeded=False,
        kind="fixed",
    ),
    "cheapest": Agent(
        fit=static.fit_cheapest,
        from_state_dict=StaticRouter.from_state_dict,
        seeded=False,
        kind="fixed",
    ),
    "static": Agent(
        fit=static.fit,
        from_state_dict=StaticRouter.from_state_dict,
        seeded=False,
        kind="imageless",
    ),
    "confidence": Agent(
        fit=confidence.fit,
        from_state_dict=ConfidenceRouter.from_state_dict,
        seeded=False,
        kind="rule",
    ),
    "thresholds": Agent(
        fit=thresholds.fit,
        from_state_dict=ThresholdsRouter.from_state_dict,
        seeded=False,
        kind="rule",
    ),
    "eenet": Agent(
        fit=eenet.fit,
        from_state_dict=EenetRouter.from_state_dict,
        seeded=True,
        kind="rule",
    ),
    "fqi": Agent(
        fit=fqi.fit,
        from_state_dict=FqiRouter.from_state_dict,
        seeded=True,
        kind="fqi",
        needs_table=True,
    ),
    "blockdrop": Agent(
        fit=blockdrop.fit,
        from_state_dict=BlockDropRouter.from_state_dict,
        seeded=True,
        kind="learner",
    ),
    "skipnet": Agent(
        fit=skipnet.fit,
        from_state_dict=SkipNetRouter.from_state_dict,
        seeded=True,
        kind="learner",
        needs_table=True,
    ),
    "rnr-dqn": Agent(
        fit=rnr_dqn.fit,
        from_state_dict=RnrDqnRouter.from_state_dict,
        seeded=True,
        kind="learner",
    ),
    "blind": Agent(
        fit=blind.fit,
        from_state_dict=BlindRouter.from_state_dict,
        seeded=True,
        kind="imageless",
    ),
}
for _name in rnr_dqn.ABLATIONS:
    AGENTS[_name] = Agent(
        fit=partial(rnr_dqn.fit_ablation, name=_name),
        from_state_dict=RnrDqnRouter.from_state_dict,
        seeded=True,
        kind="learner",
    )
# Stable-Baselines3's learners differ in nothing but their recipes.
for _name in RECIPES:
    AGENTS[_name] = Agent(
        fit=partial(sb3.fit, name=_name),
        from_state_dict=Sb3Router.from_state_dict,
        seeded=True,
        kind="learner",
    )

DEFAULT_AGENTS = (
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
)
"""What `rnr-gym compare` compares by default.

Agents that need a route table are left out where there is none. Where there is one, the oracle's
paths are always added.
"""


def agent(name: str) -> Agent:
    """The agent of that name; raises `ValueError`, which lists the names, if there is none."""
    return AGENTS[checks.choice("agent", name, AGENTS)]


def check(name: str, fit_config: FitConfig) -> None:
    """Raise `ValueError` if there is no agent of that name, or no table where it needs one."""
    if agent(name).needs_table and not fit_config.has_table("route"):
        raise ValueError(needs_table(name, fit_config.env))


def save(router: FittedRouter, path: Path, metadata: dict[str, Any]) -> None:
    """Write a router as a safetensors file.

    Args:
        router: to be saved.
        path: of the file.
        metadata: JSON-able; it must hold the agent's name as `agent`, and may hold anything else.
    """
    tensors, config = router.state_dict()
    storage.save_tensors(path, tensors, {**metadata, "router": config})


def load(path: Path, spec: RoutingSpec) -> tuple[FittedRouter, dict[str, Any]]:
    """The router that `save` wrote, and its metadata.

    Raises:
        ValueError: the file is damaged, holds no router, or one for another routing problem.
        FileNotFoundError: there is no file.
    """
    tensors, metadata = storage.load_tensors(path)
    if not {"agent", "router"} <= metadata.keys():
        raise ValueError(
            f"`path` must be a router file as `rnr-gym train` writes it, got {str(path)!r}"
        )
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"`{name}` of {str(path)!r} must be finite, got NaN or infinity")
    # The problem is optional: a router may be saved with nothing but its agent's name.
    if metadata.get("problem") not in (None, spec.digest):
        raise ValueError(
            f"`path` must be a router for this backbone, got {str(path)!r}, fitted to problem "
            f"{metadata['problem']}, not {spec.digest}"
        )
    try:
        restore = agent(metadata["agent"]).from_state_dict
        router = restore(spec, tensors, metadata["router"])
    except KeyError as error:
        raise ValueError(
            f"`path` must be a router file that has {error}, got {str(path)!r}"
        ) from error
    # What torch says of tensors that do not fit has several long lines.
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"`path` must be a router file that its agent can read, got {str(path)!r} ({reason})"
        ) from error
    return router, metadata
