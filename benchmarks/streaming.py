"""Decoding of images in files: threads against torch's `DataLoader`, and beside a network.

Run: `python benchmarks/streaming.py --out benchmarks/streaming.json`. It needs `imagenet/val`.
"""

from __future__ import annotations

import os
import platform
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision.models import resnet50

from rnr_gym.data import ImageSet, folders, imagenet, streaming
from rnr_gym.storage import save_json

WORKERS = (1, 2)
WAITING_SPEED = 1000
"""Images per second of what stands in for a network on an accelerator: it only waits."""


@dataclass
class Args:
    """What to measure."""

    images: int = 1000
    """Decoded in every repeat."""
    routed: int = 64
    """Images that ResNet-50 answers in every repeat."""
    batch: int = 32
    """Images that are read together."""
    repeats: int = 3
    """Alternating repeats of every contestant; the fastest counts."""
    out: Path | None = None
    """Where to write the figures as JSON."""


def set_workers(count: int) -> None:
    """Decode with so many threads from now on."""
    streaming.WORKERS = count
    streaming._threads.cache_clear()


def by_threads(images: ImageSet, batches: list[np.ndarray], workers: int) -> None:
    """Read the batches one after the other."""
    set_workers(workers)
    for idx in batches:
        images.images[idx]


def by_data_loader(images: ImageSet, batches: list[np.ndarray], workers: int) -> None:
    """The same with worker processes, to which the order is given beforehand."""
    loader = DataLoader(
        images.images,
        batch_sampler=[idx.tolist() for idx in batches],
        num_workers=workers,
        collate_fn=np.stack,
    )
    for _ in loader:
        pass


def with_next(batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every batch with the one after it; that of the last is empty."""
    return zip(batches, [*batches[1:], batches[0][:0]], strict=True)


def all_ahead(images: ImageSet, batches: list[np.ndarray]) -> None:
    """Read the batches, each announced when the one before has been read."""
    for idx, next_idx in with_next(batches):
        images.images[idx]
        images.prefetch(next_idx)


@torch.inference_mode()
def alone(pixels: torch.Tensor, batches: list[np.ndarray], network: Callable) -> None:
    """Run the network as often as there are batches, on images that are in memory."""
    for _ in batches:
        network(pixels)


@torch.inference_mode()
def routed(images: ImageSet, batches: list[np.ndarray], network: Callable, ahead: bool) -> None:
    """Read every batch and run the network on it; the next one is announced if `ahead`."""
    for idx, next_idx in with_next(batches):
        pixels = torch.from_numpy(images.images[idx]).float()
        if ahead:
            images.prefetch(next_idx)
        network(pixels)


def waiting(pixels: torch.Tensor) -> None:
    """Take as long as an accelerator would, and no processor."""
    time.sleep(len(pixels) / WAITING_SPEED)


def peak_mb(run: Callable[[], None]) -> float:
    """The most memory that a call has at once, in megabytes, apart from Pillow's."""
    tracemalloc.start()
    run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 1e6


def main(args: Args) -> None:
    """Measure, show and write."""
    root = folders.data_dir()
    images = folders.stream(root / "imagenet" / "val", imagenet.WNIDS, imagenet.CROP)
    images = images.take(np.arange(min(args.images, len(images))))
    order = np.random.default_rng(0).permutation(len(images))
    batches = np.array_split(order, len(images) // args.batch)
    few = batches[: args.routed // args.batch]
    memory = peak_mb(partial(all_ahead, images, batches))

    all_of_them = len(images)
    contestants: dict[str, tuple[int, Callable[[], None]]] = {}
    for workers in WORKERS:
        contestants[f"decoding, threads: {workers}"] = (
            all_of_them,
            partial(by_threads, images, batches, workers),
        )
        contestants[f"decoding, DataLoader workers: {workers}"] = (
            all_of_them,
            partial(by_data_loader, images, batches, workers),
        )
    held = torch.from_numpy(images.images[few[0]]).float()
    for name, network, its_batches in (
        ("ResNet-50", resnet50(weights=None).eval(), few),
        (f"waiting at {WAITING_SPEED} images/s", waiting, batches),
    ):
        count = sum(map(len, its_batches))
        contestants[f"{name}, alone"] = (count, partial(alone, held, its_batches, network))
        for how, ahead in (("when read", False), ("ahead", True)):
            contestants[f"{name}, decoding {how}"] = (
                count,
                partial(routed, images, its_batches, network, ahead),
            )

    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(args.repeats):
        for name, (_, run) in contestants.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    speed = {name: round(count / best[name], 1) for name, (count, _) in contestants.items()}

    table = Table("", "images/s", title=f"{all_of_them} images of 3 x 224 x 224")
    for name, value in speed.items():
        table.add_row(name, f"{value:,.1f}")
    console = Console()
    console.print(table)
    console.print(f"memory at most while reading all of them: {memory:.0f} MB")
    if args.out is not None:
        figures = {
            "images": all_of_them,
            "batch": args.batch,
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "images_per_second": speed,
            "peak_memory_mb": round(memory, 1),
            "pixels_mb": round(int(np.prod(images.images.shape)) / 1e6, 1),
        }
        save_json(args.out, figures)


if __name__ == "__main__":
    main(tyro.cli(Args))
