"""Put routers of a finished comparison into the package.

Run: `python benchmarks/cifar10/ship.py reports/cifar10 ppo dqn`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from rnr_gym import agents
from rnr_gym.backbones import weights
from rnr_gym.experiments import runs
from rnr_gym.experiments.comparison import router_dir
from rnr_gym.experiments.report import RESULTS_FILE
from rnr_gym.experiments.results import Results
from rnr_gym.registration import registered_kwargs


def main(
    report: Annotated[Path, tyro.conf.Positional],
    names: Annotated[tuple[str, ...], tyro.conf.Positional],
    seed: int = 0,
) -> None:
    """Bundle the routers of one seed.

    The seed is chosen beforehand, not by how its routers do on `test`.
    """
    results = Results.from_json(json.loads((report / RESULTS_FILE).read_text()))
    backbone = registered_kwargs(results.env)["backbone"]
    for name in names:
        run = runs.load(router_dir(report, name, seed))
        # Without a curve the classifier could not be asked for a mean compute.
        if run.curve is None:
            raise ValueError(
                "`names` must be of routers whose compute follows the trade-off smoothly, got "
                f"{name!r}"
            )

        metadata = {
            "agent": name,
            "problem": run.fit_config.source("route").spec.digest,
            "exits": True,
            "curve": run.curve._asdict(),
            "seed": seed,
            "weights and images": results.provenance["weights and images"],
        }
        kind = results.arguments.get("weights", "pretrained")
        path = weights.router_file(backbone, name, kind)
        agents.save(run.router, path, metadata)
        print(f"wrote {path}, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    tyro.cli(main)
