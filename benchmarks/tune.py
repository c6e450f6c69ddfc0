"""Random search for the PPO and DQN recipes: as many trials, environment steps and seeds for one as for the other.

Routers learn on one half of the originals of `route` and are scored on the other half; `test` is not touched. The score
is the mean return over the trade-offs of the sweep. Run: `python benchmarks/tune.py --env RNR-CIFAR10-v0 --out FILE`.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from rnr_gym import agents
from rnr_gym.agents import FitConfig, sb3_router
from rnr_gym.agents.fqi import originals
from rnr_gym.agents.recipes import RECIPES, Recipe
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS, evaluate

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
    """Settings tried for each of the two."""
    steps: int = 400_000
    """Environment steps of a trial."""
    out: Path = Path("benchmarks/tuned_digits.json")
    jobs: int = 2


def drawn(name: str, random: np.random.Generator) -> Recipe:
    """A recipe with every free value drawn anew."""
    base = RECIPES[name]
    chosen = {key: values[random.integers(len(values))] for key, values in SPACE[name].items()}
    return replace(
        base,
        net=NETS[random.integers(len(NETS))],
        learning_rate=float(np.exp(random.uniform(*np.log(LEARNING_RATES)))),
        weight_decay=float(random.choice(WEIGHT_DECAYS)),
        summary_scale=float(random.choice(SUMMARY_SCALES)),
        arguments={**base.arguments, **chosen},
    )


def score(env: str, name: str, recipe: Recipe, steps: int) -> float:
    """Mean return on the half of `route` that the router did not learn on."""
    torch.set_num_threads(1)
    RECIPES[name], sb3_router.recipe_for = recipe, lambda *_: recipe
    fit_config = FitConfig(env, steps=steps, progress=False)
    table = fit_config.table("route")
    assert table is not None
    # Classes take turns in `route`, so halves are drawn: every other original would be every other class.
    groups = originals(fit_config, table)
    known = np.unique(groups)
    learnt = np.isin(groups, np.random.default_rng(0).permutation(known)[::2])
    router = agents.AGENTS[name].fit(replace(fit_config, arguments={"backend": table.take(learnt)}))
    held_out = table.take(~learnt)
    found = [(tradeoff, evaluate(held_out, router, tradeoff)) for tradeoff in EVAL_TRADEOFFS]
    return float(np.mean([(part.correct - tradeoff * part.macs / table.spec.plain_macs).mean() for tradeoff, part in found]))


def main(args: Args) -> None:
    """Search, and write all trials, best first."""
    random = np.random.default_rng(0)
    trials = [(name, drawn(name, random)) for _ in range(args.trials) for name in SPACE]
    FitConfig(args.env).table("route")
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        scores = [pool.submit(score, args.env, name, recipe, args.steps) for name, recipe in trials]
        found = [(name, future.result(), asdict(recipe)) for (name, recipe), future in tqdm(list(zip(trials, scores, strict=True)))]
    found.sort(key=lambda trial: (trial[0], -trial[1]))
    rows = [{"agent": name, "return": round(value, 5), "recipe": recipe} for name, value, recipe in found]
    args.out.write_text(json.dumps({**{key: str(value) for key, value in asdict(args).items()}, "trials": rows}, indent=1) + "\n")
    for row in rows:
        print(f"{row['agent']:5} {row['return']:.4f}  {row['recipe']['net']} {row['recipe']['learning_rate']:.2g} {row['recipe']['arguments']}")


if __name__ == "__main__":
    main(tyro.cli(Args))
