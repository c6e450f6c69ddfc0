"""Does a router that is fitted under time spend time better than one that is fitted under MACs?

Both are charged time on `test`, by the same profile, and compared at equal mean time.

Run: `python benchmarks/time_as_cost.py --out benchmarks/time_as_cost.json`; five minutes, no images
needed. Times are those of the machine that runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from rnr_gym import agents, storage
from rnr_gym.agents import FitConfig
from rnr_gym.experiments.evaluation import (
    EVAL_TRADEOFFS,
    Evaluation,
    evaluate,
    evaluate_paths,
)
from rnr_gym.experiments.statistics import RouterOutcomes, accuracy_at
from rnr_gym.registration import registered_kwargs
from rnr_gym.routing import profiling
from rnr_gym.routing.profiles import Profile
from rnr_gym.routing.protocols import RoutingSource


@dataclass
class Args:
    """Which environments and routers."""

    out: Path
    """The JSON file to write."""
    envs: tuple[str, ...] = ("RNR-Digits-v0", "RNR-CIFAR10-Table-v0")
    """Environments whose route tables are at hand."""
    agents: tuple[str, ...] = ("static", "thresholds", "fqi")
    """Routers; those here have no randomness that matters."""
    budgets: tuple[float, ...] = (0.2, 0.3, 0.45, 0.6)
    """Mean times, as shares of the plain network's."""


def main(args: Args) -> None:
    """Measure profiles, fit every router under both costs, and write what both get for time."""
    results: list[dict[str, Any]] = []
    for env in args.envs:
        profile = profiling.profile(registered_kwargs(env)["backbone"])
        times = profile.times
        shares = {
            "glance": [table.exits[0, -1] / table.plain for table in (times, profile.macs)],
            "stem": [table.stem / table.plain for table in (times, profile.macs)],
        }
        print(env, profile, shares)
        for name in args.agents:
            row = {"env": env, "router": name, "profile": measured_on(profile)}
            row["shares"] = {part: list(map(float, pair)) for part, pair in shares.items()}
            row["budgets"] = list(args.budgets)
            for cost in ("macs", "time"):
                accuracies, cheapest = charged_time(env, name, cost, args.budgets)
                row[cost] = {"accuracy": accuracies, "cheapest": cheapest}
                print(env, name, cost, [f"{value:.3f}" for value in accuracies], f"{cheapest:.3f}")
            results.append(row)
    storage.save_json(args.out, results)


def measured_on(profile: Profile) -> dict[str, Any]:
    """What a profile was measured on."""
    content = profile.to_json()
    return {key: value for key, value in content.items() if key not in ("nanoseconds", "macs")}


def charged_time(
    env: str,
    name: str,
    cost: str,
    budgets: tuple[float, ...],
) -> tuple[list[float], float]:
    """Accuracies at mean times of a router that was fitted under a cost, and its least time."""
    fit_config = FitConfig(env, {"cost": cost}, progress=False)
    router = agents.agent(name).fit(fit_config)
    observed = fit_config.source("test")
    timed = FitConfig(env, {"cost": "time"}).source("test")
    evaluations = [
        in_time(timed, evaluate(observed, router, tradeoff), name == "static")
        for tradeoff in EVAL_TRADEOFFS
    ]
    outcomes = RouterOutcomes.of([evaluations], timed.spec.plain_cost)
    cheapest = float(outcomes.compute.mean(2).min())
    return accuracy_at(outcomes, budgets)[0].tolist(), cheapest


def in_time(timed: RoutingSource, evaluation: Evaluation, static: bool) -> Evaluation:
    """The same paths, charged time, with the router's own decisions."""
    paths = evaluate_paths(timed, evaluation.path, static)
    cost = paths.cost + timed.spec.router_cost(evaluation.router_macs)
    return paths._replace(cost=cost)


if __name__ == "__main__":
    main(tyro.cli(Args))
