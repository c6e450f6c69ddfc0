"""What half precision changes in answers and paths: a classifier in bfloat16 beside itself.

Run: `python benchmarks/half_precision.py --out benchmarks/half_precision.json`. It needs CIFAR-10.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

import rnr_gym as rnr
from rnr_gym.backbones import zoo
from rnr_gym.classifier import Routed
from rnr_gym.experiments.statistics import mean_over_images
from rnr_gym.progress import progress_bar
from rnr_gym.storage import save_json


@dataclass
class Args:
    """What to compare."""

    names: tuple[str, ...] = ("rnr-cifar10", "rnr-cifar10-channels")
    """Of bundled classifiers."""
    agent: str = "ppo"
    tradeoffs: tuple[float, ...] = (0.03, 0.3)
    """Beside the plain network."""
    images: int = 10_000
    """Of `test`."""
    out: Path | None = None
    """Where to write the figures as JSON."""


def classified(
    classifier: rnr.RoutedClassifier, images: Tensor, tradeoff: float | None
) -> tuple[Tensor, np.ndarray, float]:
    """Answers `(N,)`, paths `(N, T)` and mean compute."""
    parts: list[Routed] = [classifier(batch, tradeoff=tradeoff) for batch in images.split(256)]
    answers = torch.cat([part.logits.argmax(1) for part in parts])
    path = np.concatenate([part.path for part in parts])
    return answers, path, float(np.concatenate([part.compute for part in parts]).mean())


def compared(name: str, args: Args) -> list[dict[str, Any]]:
    """One entry for the plain network, and one for each trade-off."""
    dataset = zoo.ARCHITECTURES[name].dataset
    test = rnr.load_images(dataset, "test").take(np.arange(args.images))
    images = torch.from_numpy(test.images.copy())
    single, half = (
        rnr.RoutedClassifier.from_pretrained(name, agent=args.agent, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )

    entries = []
    for tradeoff in progress_bar((None, *args.tradeoffs), desc=name):
        answers, path, compute = classified(single, images, tradeoff)
        half_answers, half_path, half_compute = classified(half, images, tradeoff)
        correct = (answers.numpy() == test.labels).astype(np.float64)
        half_correct = (half_answers.numpy() == test.labels).astype(np.float64)
        entries.append(
            {
                "classifier": name,
                "tradeoff": tradeoff,
                "accuracy": float(correct.mean()),
                "half_accuracy": float(half_correct.mean()),
                "difference": mean_over_images(half_correct - correct, test.original_id)._asdict(),
                "compute": compute,
                "half_compute": half_compute,
                "answers_changed": float((answers != half_answers).double().mean()),
                "paths_changed": float((path != half_path).any(1).mean()),
            }
        )
    return entries


def main(args: Args) -> None:
    """Compare, print a table, write JSON."""
    content: dict[str, Any] = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "agent": args.agent,
        "images": args.images,
        "data": "CIFAR-10, re-encoded as JPEG",
    }
    print(content)
    content["entries"] = [entry for name in args.names for entry in compared(name, args)]
    table = Table("classifier", "λ", "float32", "bfloat16", "answers changed", "paths changed")
    for entry in content["entries"]:
        table.add_row(
            entry["classifier"],
            "plain" if entry["tradeoff"] is None else f"{entry['tradeoff']:g}",
            f"{entry['accuracy']:.2%} at {entry['compute']:.3f}",
            f"{entry['half_accuracy']:.2%} at {entry['half_compute']:.3f}",
            f"{entry['answers_changed']:.2%}",
            f"{entry['paths_changed']:.2%}",
        )
    Console().print(table)
    if args.out is not None:
        save_json(args.out, content)


if __name__ == "__main__":
    main(tyro.cli(Args))
