"""Train plain networks of several costs: what a path of a routable backbone has to match.

Each is a residual network of the backbones' own form, its widths scaled to a share of the MACs of
`rnr-cifar10`, trained alone by the same recipe on as many images. Resumes where it was stopped.
Run: `python benchmarks/cifar10/standalone.py`, with CIFAR-10 at hand; about 15 minutes on two
cores.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from rnr_gym import data, storage
from rnr_gym.backbones import zoo
from rnr_gym.backbones.base import Backbone
from rnr_gym.training.calibration import evaluate_full_path
from rnr_gym.training.pretraining import Schedule, pretrain

NAME = "rnr-cifar10"


@dataclass
class Args:
    """What to train."""

    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5)
    """Shares of the MACs of the plain network of `rnr-cifar10`."""
    out: Path = Path("benchmarks/cifar10/standalone.json")
    seed: int = 0


def scaled(config: dict[str, Any], share: float) -> Backbone:
    """The full path of an architecture alone, its widths scaled to `share` of the MACs."""
    plain = {**config, "inner": [1.0], "exits": [], "glance_widths": []}
    target = share * zoo.from_config(plain).mac_table.plain

    def narrowed(percent: int) -> Backbone:
        # In multiples of 8, as all backbones.
        widths = [max(8, 8 * round(width * percent / 800)) for width in config["widths"]]
        return zoo.from_config({**plain, "widths": widths})

    networks = map(narrowed, range(10, 101))
    return min(networks, key=lambda network: abs(network.mac_table.plain - target))


def main(args: Args) -> None:
    """Train each network that is not in the results yet."""
    results = []
    if args.out.exists():
        results = json.loads(args.out.read_text())
    architecture = zoo.ARCHITECTURES[NAME]
    splits = {split: data.load("cifar10", split) for split in data.SPLITS}
    # No other path is trained, so that all effort goes into the plain network.
    schedule = Schedule(**architecture.schedule, path_weight=0.0, seed=args.seed)

    for share in args.shares:
        network = scaled(architecture.config, share)
        macs = network.mac_table.plain
        if any(row["macs"] == macs for row in results):
            continue

        checkpoint = args.out.with_suffix(f".{macs}.part")
        pretrain(network, data.dataset("cifar10"), splits, schedule, checkpoint)
        accuracy = evaluate_full_path(network, splits["test"])
        row = {"macs": macs, "widths": network.config["widths"], "test_accuracy": accuracy}
        results.append(row)
        # After each network, so that an interruption costs no finished one.
        storage.save_json(args.out, sorted(results, key=lambda row: row["macs"]))
        checkpoint.unlink(missing_ok=True)
        print(f"{macs:,} MACs: {accuracy:.1%}")


if __name__ == "__main__":
    main(tyro.cli(Args))
