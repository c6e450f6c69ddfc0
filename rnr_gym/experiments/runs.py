"""A fitted router in a folder: written once, taken up again if it was cut off, loaded for evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rnr_gym import agents, storage
from rnr_gym.agents import FitConfig
from rnr_gym.agents.sb3_router import CHECKPOINT
from rnr_gym.agents.static import StaticRouter
from rnr_gym.backbones import zoo
from rnr_gym.classifier import ROUTER, BudgetCurve, RoutedClassifier
from rnr_gym.experiments.evaluation import measure_curve
from rnr_gym.registration import registered_kwargs
from rnr_gym.routing.protocols import FittedRouter
from rnr_gym.routing.sources import digest_of

CONFIG = "config.json"


class Run(NamedTuple):
    """A fitted router and what it was fitted to."""

    agent: str
    fit_config: FitConfig
    router: FittedRouter
    curve: BudgetCurve | None


def identity(agent: str, fit_config: FitConfig) -> dict[str, Any]:
    """What makes one run differ from another, as JSON holds it."""
    facts = {"agent": agent, "env": fit_config.env, "arguments": dict(fit_config.arguments), "seed": fit_config.seed, "steps": fit_config.steps}
    return facts | {"tradeoffs": list(fit_config.tradeoffs), "source": digest_of(fit_config.source("route"))}


def claim(folder: Path, facts: dict[str, Any], finished: str) -> None:
    """Begin work in a new folder, or take up unfinished work of the same configuration; else a clear error, nothing touched."""
    if (folder / finished).exists():
        raise FileExistsError(f"`out` must be a new folder or unfinished work, got {str(folder)!r}, which is finished; choose another")
    if (folder / CONFIG).exists():
        begun = json.loads((folder / CONFIG).read_text())
        if begun != facts:
            different = sorted(name for name in begun.keys() | facts.keys() if begun.get(name) != facts.get(name))
            raise ValueError(f"`out` must be taken up as it was begun, got {str(folder)!r}, where {', '.join(different)} differ; choose another")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"`out` must be a new folder, got {str(folder)!r}, which exists and holds something else; choose another")
    storage.save_json(folder / CONFIG, facts)


def fit(agent: str, fit_config: FitConfig, folder: Path) -> Path:
    """Fit a router into a folder, from its checkpoint if it was cut off; returns the router's file."""
    agents.check(agent, fit_config)
    chosen, facts = agents.agent(agent), identity(agent, fit_config)
    claim(folder, facts, ROUTER)
    router = chosen.fit(replace(fit_config, folder=folder))
    source = fit_config.source("route")
    curve = None if isinstance(router, StaticRouter) else measure_curve(source, router)._asdict()
    agents.save(router, folder / ROUTER, {**facts, "problem": source.spec.digest, "curve": curve})
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return folder / ROUTER


def load(folder: Path) -> Run:
    """The run in a folder; an error that says what to do if there is none, or it is unfinished."""
    if not (folder / ROUTER).exists():
        state = "is unfinished; give the same command again" if (folder / CONFIG).exists() else "holds no run; make one with `rnr-gym train`"
        raise FileNotFoundError(f"`run` must be the folder of a fitted router, got {str(folder)!r}, which {state}")
    _, facts = storage.load_tensors(folder / ROUTER)
    fit_config = FitConfig(facts["env"], facts["arguments"], facts["seed"], facts["steps"], tuple(facts["tradeoffs"]))
    source = fit_config.source("route")
    router, _ = agents.load(folder / ROUTER, source.spec)
    if facts["source"] != digest_of(source):
        raise ValueError(f"`run` must be fitted to these weights and images ({digest_of(source)}), got {str(folder)!r}, fitted to {facts['source']}")
    return Run(facts["agent"], fit_config, router, BudgetCurve(**facts["curve"]) if facts["curve"] else None)


def classifier(folder: Path, device: str = "cpu") -> RoutedClassifier:
    """The router of a run and the backbone it was fitted to, as one thing to deploy."""
    run = load(folder)
    arguments = {**registered_kwargs(run.fit_config.env), **run.fit_config.arguments}
    backbone = zoo.named(arguments["backbone"], arguments.get("weights", "frozen"), device=device)
    return RoutedClassifier(backbone, run.router, arguments.get("exits", True), run.curve, run.agent)
