"""Random search for the PPO and DQN recipes, with as many trials and environment steps for both.

Routers learn on one half of the originals of `route` and are scored on the other half; `test` is
not touched. The score is the mean return over `EVAL_TRADEOFFS`.
Run: `python benchmarks/tune.py --env RNR-CIFAR10-v0 --out FILE`.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro

from rnr_gym.agents import AGENTS, RECIPES, FitConfig, sb3
from rnr_gym.agents.folds import originals
from rnr_gym.agents.recipes import Recipe
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS, evaluate
from rnr_gym.progress import progress_bar

NETS = ((16,), (32,), (64,), (32, 32), (64, 64))
LEARNING_RATES = (5e-4, 5e-3)
WEIGHT_DECAYS = (0.0, 1e-5, 1e-4, 1e-3)
SUMMARY_SCALES = (0.01, 0.03, 0.1)
SPACE: dict[str, dict[str, tuple[Any, ...]]] = {
    "ppo": {
        "n_steps": (8, 16, 32),
        "batch_size": (256, 512, 1024),
        "n_epochs": (4, 6, 10),
        "gae_lambda": (0.9, 0.95, 1.0),
        "ent_coef": (0.0, 0.002, 0.005, 0.01),
    },
    "dqn": {
        "batch_size": (256, 512, 1024),
        "gradient_steps": (1, 2, 4),
        "target_update_interval": (1_000, 2_000, 5_000),
        "exploration_fraction": (0.2, 0.4, 0.6),
        "exploration_final_eps": (0.02, 0.05, 0.1),
    },
}


@dataclass
class Args:
    """What to search."""

    env: str = "RNR-Digits-v0"
    trials: int = 10
    """Recipes tried for each of the two."""
    steps: int = 400_000
    """Environment steps of a trial."""
    out: Path = Path("benchmarks/tuned_digits.json")
    jobs: int = 2


class Trial(NamedTuple):
    """An agent's name and a recipe for it."""

    agent: str
    recipe: Recipe


def drawn(name: str, random: np.random.Generator) -> Recipe:
    """A recipe with every free value drawn at random."""
    base = RECIPES[name]
    kwargs = dict(base.kwargs)
    for key, values in SPACE[name].items():
        kwargs[key] = values[random.integers(len(values))]

    return replace(
        base,
        net_arch=NETS[random.integers(len(NETS))],
        # Uniform on a logarithmic scale.
        learning_rate=float(np.exp(random.uniform(*np.log(LEARNING_RATES)))),
        weight_decay=float(random.choice(WEIGHT_DECAYS)),
        summary_scale=float(random.choice(SUMMARY_SCALES)),
        kwargs=kwargs,
    )


def score(env: str, trial: Trial, steps: int) -> float:
    """Mean return on the half of `route` that the router did not learn on."""
    # Workers share the cores.
    torch.set_num_threads(1)
    # In this worker's process alone: whatever the data set is, the learner uses the drawn recipe.
    sb3.recipe_for = lambda *_: trial.recipe
    fit_config = FitConfig(env=env, steps=steps, progress=False)
    table = fit_config.table("route")
    assert table is not None

    # Classes take turns in `route`, so halves are drawn: every other original would be every other
    # class.
    original_id = originals(fit_config, table)
    known = np.unique(original_id)
    learned = np.isin(original_id, np.random.default_rng(0).permutation(known)[::2])
    half = replace(fit_config, kwargs={"backend": table.take(learned)})
    router = AGENTS[trial.agent].fit(half)

    held_out = table.take(~learned)
    returns = []
    for tradeoff in EVAL_TRADEOFFS:
        evaluation = evaluate(held_out, router, tradeoff)
        cost = tradeoff * evaluation.macs / table.spec.plain_macs
        returns.append((evaluation.correct - cost).mean())
    return float(np.mean(returns))


def main(args: Args) -> None:
    """Search, and write all trials, best first."""
    random = np.random.default_rng(0)
    trials = []
    for _ in range(args.trials):
        trials += [Trial(name, drawn(name, random)) for name in SPACE]
    # Built here, so that workers find the table in the cache.
    FitConfig(args.env).table("route")

    rows = []
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(score, args.env, trial, args.steps) for trial in trials]
        for trial, future in progress_bar(list(zip(trials, futures, strict=True))):
            row = {
                "agent": trial.agent,
                "return": future.result(),
                "recipe": asdict(trial.recipe),
            }
            rows.append(row)
    rows.sort(key=lambda row: (row["agent"], -row["return"]))
    for row in rows:
        row["return"] = round(row["return"], 5)

    settings = {name: str(value) for name, value in asdict(args).items()}
    args.out.write_text(json.dumps({**settings, "trials": rows}, indent=1) + "\n")
    for row in rows:
        recipe = row["recipe"]
        print(
            f"{row['agent']:5} {row['return']:.4f}  {recipe['net_arch']} "
            f"{recipe['learning_rate']:.2g} {recipe['kwargs']}"
        )


if __name__ == "__main__":
    main(tyro.cli(Args))
