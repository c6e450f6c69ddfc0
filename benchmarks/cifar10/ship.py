"""Put routers of a finished comparison into the package: `python benchmarks/cifar10/ship.py reports/cifar10 ppo dqn`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from rnr_gym import agents
from rnr_gym.backbones import zoo
from rnr_gym.experiments import comparison, runs
from rnr_gym.experiments.report import RESULTS
from rnr_gym.registration import registered_kwargs


def main(report: Annotated[Path, tyro.conf.Positional], names: Annotated[tuple[str, ...], tyro.conf.Positional], seed: int = 0) -> None:
    """Ship the routers of one seed, chosen beforehand and not by how they do on `test`."""
    content = json.loads((report / RESULTS).read_text())
    for name in names:
        run = runs.load(comparison.router_folder(report, name, seed))
        if run.curve is None:
            raise ValueError(f"`names` must be of routers whose compute follows the trade-off smoothly, got {name!r}")
        facts = {"agent": name, "problem": run.fit_config.source("route").spec.digest, "exits": True, "curve": run.curve._asdict(), "seed": seed}
        path = zoo.bundled(registered_kwargs(content["env"])["backbone"], f"frozen.{name}")
        agents.save(run.router, path, {**facts, "weights and images": content["provenance"]["weights and images"]})
        print(f"wrote {path}, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    tyro.cli(main)
