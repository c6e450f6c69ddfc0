"""What `routable` makes of one network of each of torchvision's families.

Weights are random, because nothing but their values would change; batch-norms are made to differ,
so that a wrong one would show. Published figures are those that come with torchvision's weights.
Run: `python benchmarks/offshelf.py --out benchmarks/offshelf.json`.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

import rnr_gym as rnr
from rnr_gym.progress import progress_bar
from rnr_gym.storage import save_json


@dataclass
class Args:
    """What to measure."""

    networks: tuple[str, ...] = (
        "resnet50",
        "resnext50_32x4d",
        "wide_resnet50_2",
        "vgg16",
        "vgg16_bn",
        "mobilenet_v2",
        "mobilenet_v3_large",
        "efficientnet_b0",
        "regnet_y_400mf",
        "convnext_tiny",
    )
    """Names in torchvision."""
    images: int = 4
    """Random images that are classified by the network and by its full path."""
    seed: int = 0
    out: Path | None = None
    """Where to write the figures as JSON."""


@torch.no_grad()
def network(name: str) -> nn.Module:
    """A network with random weights, in evaluation mode."""
    made = get_model(name)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return made.eval()


@torch.no_grad()
def measure(name: str, images: Tensor) -> dict[str, Any]:
    """The figures of one network."""
    model = network(name)
    weights = next(iter(get_model_weights(name)))
    transforms = weights.transforms()

    started = time.perf_counter()
    backbone = rnr.routable(model, images, transforms=transforms)
    seconds = time.perf_counter() - started

    expected = model(backbone.prepare(images))
    full_path = np.full((len(images), backbone.num_layers), backbone.full_path)
    state = rnr.Traversal.start(backbone, images)
    for sub_paths in full_path.T:
        state = state.step(sub_paths)
    skipped = int(backbone.valid[:, 0].sum()) if backbone.has_identity else 0
    narrow = backbone.valid[:, int(backbone.has_identity) : -1].any(1)
    return {
        "network": name,
        "layers": backbone.num_layers,
        "skippable": skipped,
        "narrowable": int(narrow.sum()),
        "macs": int(state.macs[0]),
        "published": weights.meta["_ops"],
        "cheapest": backbone.report.cheapest,
        "difference": float((state.logits - expected).abs().max()),
        "largest_logit": float(expected.abs().max()),
        "seconds": seconds,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the figures."""
    table = Table()
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        cells = [
            f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()
        ]
        table.add_row(*cells)
    Console().print(table)


def main(args: Args) -> None:
    """Measure one network after the other."""
    torch.manual_seed(args.seed)
    images = torch.randint(0, 256, (args.images, 3, 224, 224), dtype=torch.uint8)
    rows = []
    for name in progress_bar(args.networks, unit="network"):
        rows.append(measure(name, images))
    show(rows)
    if args.out is not None:
        conditions = {
            "images": args.images,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }
        save_json(args.out, {**conditions, "networks": rows})


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
