"""Fit our own routers with seed 0, and write their entries for the leaderboard.

Run: `python benchmarks/enter_routers.py` takes five minutes of one core; `--ids RNR-CIFAR10-v0`
needs CIFAR-10 and takes a quarter of an hour, most of it for the route tables. Entries that are
there are left as they are.
"""

from __future__ import annotations

from pathlib import Path

import tyro

from rnr_gym.agents import FitConfig
from rnr_gym.backbones import weights
from rnr_gym.classifier import RoutedClassifier
from rnr_gym.experiments import entries, runs
from rnr_gym.registration import registered_kwargs

ENTRIES = Path(__file__).parent / "entries"
AUTHOR = "rnr-gym"
CODE = "https://github.com/rnr-gym/rnr-gym"
WITHOUT_IMAGES = ("RNR-Digits-v0", "RNR-CIFAR10-Table-v0")
AGENTS = {
    "RNR-Digits-v0": ("static", "confidence", "thresholds", "fqi", "rnr-dqn", "ppo"),
    "RNR-CIFAR10-Table-v0": ("static", "confidence", "thresholds", "fqi", "rnr-dqn", "ppo"),
    # Its learners are bundled.
    "RNR-CIFAR10-v0": ("static", "confidence", "thresholds", "rnr-dqn", "dqn", "ppo"),
}
"""By id, whose entries are written."""


def main(runs_dir: Path = Path("runs/leaderboard"), ids: tuple[str, ...] = WITHOUT_IMAGES) -> None:
    """Fit and enter.

    Args:
        runs_dir: where fitted routers are kept; what is there is not fitted again.
        ids: the environments.
    """
    for env in ids:
        for agent in AGENTS[env]:
            out = ENTRIES / f"{short(env)}-{agent}.safetensors"
            if out.exists():
                continue
            if weights.router_file(registered_kwargs(env)["backbone"], agent).is_file():
                enter_bundled(env, agent, out)
                continue
            run_dir = runs_dir / env / agent
            if not runs.is_finished(run_dir):
                runs.fit(agent, FitConfig(env), run_dir)
            entries.enter_run(run_dir, out, AUTHOR, CODE)


def short(env: str) -> str:
    """`digits` for `RNR-Digits-v0`."""
    return env.removeprefix("RNR-").removesuffix("-v0").lower()


def enter_bundled(env: str, agent: str, out: Path) -> None:
    """Write the entry of a bundled router."""
    classifier = RoutedClassifier.from_pretrained(registered_kwargs(env)["backbone"], agent)
    entries.enter_router(out, env, classifier.router, name=agent, author=AUTHOR, code=CODE)


if __name__ == "__main__":
    tyro.cli(main)
