"""A routed classifier beside its plain network: milliseconds per image, by the size of the batch.

Run: `python benchmarks/deployment.py --out benchmarks/deployment.json`. It needs CIFAR-10 and, for
the ONNX files, the extra `onnx` and onnxruntime.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import rnr_gym as rnr
from rnr_gym.backbones.folding import folded
from rnr_gym.backbones.inference import DTYPES
from rnr_gym.progress import progress_bar
from rnr_gym.storage import save_json

Run = Callable[[Tensor], object]
"""Classifies a batch, uint8 `(n, C, H, W)`."""


@dataclass
class Args:
    """What to measure."""

    name: str = "rnr-cifar10"
    """Of a bundled classifier."""
    agent: str = "ppo"
    compute: float = 0.5
    """Mean budget, the router's own share included."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In what features are computed, by the plain network as well; ONNX files are float32."""
    batches: tuple[int, ...] = (1, 8, 64, 256)
    images: int = 256
    """Of `test`; each contestant classifies all of them, batch by batch."""
    repeats: int = 9
    """Alternating repeats of every contestant, after one warm-up."""
    out: Path | None = None
    """Where to write the figures as JSON."""


class Prepared(nn.Module):
    """The plain network with its batch-norms folded, and the normalisation of its images."""

    def __init__(self, classifier: rnr.RoutedClassifier, dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone = classifier.backbone
        self.network = folded(classifier.backbone.plain().eval()).to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Images `(N, C, H, W)` -> logits `(N, classes)`."""
        return self.network(self.backbone.prepare(images).to(self.dtype))


def session(path: Path) -> onnxruntime.InferenceSession:
    """A session with as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options)


def as_feed(images: Tensor) -> dict[str, np.ndarray]:
    """What a session reads."""
    return {"image": images.numpy().astype(np.float32) / 255.0}


def files(
    classifier: rnr.RoutedClassifier, plain: nn.Module, tradeoff: float, folder: Path
) -> dict[str, Run]:
    """Both networks as ONNX files, for one image at a time."""
    plain_file = folder / "plain.onnx"
    example = torch.zeros(1, *classifier.backbone.image_shape)
    torch.onnx.export(
        plain.eval().to(memory_format=torch.contiguous_format),
        (example,),
        plain_file,
        dynamo=True,
        external_data=False,
        input_names=["image"],
        verbose=False,
    )
    plain_session = session(plain_file)
    routed_session = session(rnr.export_onnx(classifier, folder / "routed.onnx"))
    price = {"tradeoff": np.array(tradeoff, np.float32)}
    return {
        "plain, ONNX": lambda images: plain_session.run(None, as_feed(images)),
        "routed, ONNX": lambda images: routed_session.run(None, as_feed(images) | price),
    }


def main(args: Args) -> None:
    """Measure all contestants in turn, print medians, write JSON."""
    classifier = rnr.RoutedClassifier.from_pretrained(args.name, agent=args.agent, dtype=args.dtype)
    plain = Prepared(classifier, DTYPES[args.dtype])
    dataset = "cifar100" if "cifar100" in args.name else "cifar10"
    images = torch.from_numpy(rnr.load_images(dataset, "test").images[: args.images].copy())
    assert classifier.curve is not None
    tradeoff = classifier.curve.tradeoff_for(args.compute)
    spent = float(classifier(images, tradeoff=tradeoff).compute.mean())

    runs: dict[str, Run] = {
        "plain": plain,
        "full path": classifier,
        "routed": lambda images: classifier(images, tradeoff=tradeoff),
    }
    with tempfile.TemporaryDirectory() as folder:
        single = files(classifier, Prepared(classifier, torch.float32), tradeoff, Path(folder))
    contestants = [(name, batch, run) for batch in args.batches for name, run in runs.items()]
    contestants += [(name, 1, run) for name, run in single.items()]

    times: dict[tuple[str, int], list[float]] = {}
    with torch.inference_mode():
        for repeat in progress_bar(range(args.repeats + 1), desc="repeats"):
            for name, batch, run in contestants:
                start = time.perf_counter()
                for part in images.split(batch):
                    run(part)
                if repeat > 0:
                    elapsed = 1000 * (time.perf_counter() - start) / len(images)
                    times.setdefault((name, batch), []).append(elapsed)

    content: dict[str, Any] = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "dtype": args.dtype,
        "classifier": f"{args.name}, {args.agent}",
        "images": args.images,
        "mean_compute": spent,
    }
    print(content)
    content["contestants"] = []
    table = Table("batch", "contestant", "ms per image", "times as fast as plain")
    for (name, batch), measured in times.items():
        reference = "plain, ONNX" if name.endswith("ONNX") else "plain"
        ratios = np.array(times[reference, batch]) / np.array(measured)
        entry = {
            "name": name,
            "batch": batch,
            "milliseconds": float(np.median(measured)),
            "of_plain": float(np.median(ratios)),
            "lowest": float(ratios.min()),
            "highest": float(ratios.max()),
        }
        content["contestants"].append(entry)
        table.add_row(
            str(batch),
            name,
            f"{entry['milliseconds']:.2f}",
            f"{entry['of_plain']:.2f} ({entry['lowest']:.2f} to {entry['highest']:.2f})",
        )
    Console().print(table)
    if args.out is not None:
        save_json(args.out, content)


if __name__ == "__main__":
    main(tyro.cli(Args))
