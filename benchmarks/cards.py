"""Write the model cards of the bundled weights, with every figure measured here and now.

Run: `python benchmarks/cards.py`, with CIFAR-10 at hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray

from rnr_gym import storage
from rnr_gym.backbones import weights, zoo
from rnr_gym.backbones.base import Backbone
from rnr_gym.experiments.evaluation import evaluate_paths
from rnr_gym.experiments.statistics import by_group
from rnr_gym.registration import IDS
from rnr_gym.routing.sources import open_images, open_source

CARD = """# {name}, {weights}

A {kind} backbone for `{env}`: {layers} layers, {paths} sub-paths, {plain:,} MACs on the full \
path, {parameters:,} parameters.
Weights digest `{digest}`. MIT licence, as the package.

- **Architecture**: `{config}`
- **Data**: {data}
- **Training**: {training}; `{schedule}`.
- **Stored with the weights**: batch-norm and summary statistics from `train`, the loss scale \
from `route`.

## Figures

On all {images:,} images of `test`{tested}; compute as a static network is charged.
One network, one training seed. Written by `python benchmarks/cards.py`.

{rows}
{severities}
## Limits

{limits}
"""
TRAINING = {
    "pretrained": (
        "the glance by itself, then all paths at once, by `rnr-gym pretrain {env} --out FILE`"
    ),
    "finetuned": (
        "from the pretrained weights, the glance from the full path's answers, then all paths "
        "under a router, `{router}`, by\n"
        "  `rnr-gym finetune RUN --out DIR`, where RUN is a run of that router on `{env}`"
    ),
}
STANDALONE = Path("benchmarks/cifar10/standalone.json")
DATA = {
    "digits": (
        "scikit-learn's handwritten digits (UCI Optical Recognition of Handwritten Digits), the "
        "half in `train`, with new\n"
        "  corruptions in every epoch."
    ),
    "cifar10": (
        "CIFAR-10 (Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009), the "
        "45,000 images of `train`, **encoded\n"
        "  again as JPEG (quality 75, 4:2:0)**; shifted, mirrored in every other epoch, and with a "
        "hole cut out."
    ),
}
TESTED = {
    "digits": " (each original at severities 0 to 5)",
    "cifar10": (
        ", encoded again as JPEG like the training images (figures on the original pixels would "
        "differ)"
    ),
}
LIMITS = {
    "digits": (
        "For teaching and for comparing routers. It reads 12 x 12 digits made as "
        "`rnr_gym/data/digits.py` makes them, and nothing else."
    ),
    "cifar10": (
        "For comparing routers. Trained and tested on re-encoded images only; how well the weights "
        "do on CIFAR-10's original pixels **has\n"
        "not been tested**."
    ),
}


class PathFigures(NamedTuple):
    """One line of a card's table: a path, its MACs and its accuracy, 0..1."""

    title: str
    macs: float
    accuracy: float


def named_paths(backbone: Backbone) -> dict[str, list[int]]:
    """The paths worth a line: every exit on the full path, and every sub-path all the way."""
    num_layers = backbone.num_layers
    full_path = backbone.full_path
    paths = {}
    for layer in sorted(backbone.exit_layers):
        title = f"full path to layer {layer}, then its exit"
        if layer == 0:
            title = "glance"
        paths[title] = [full_path] * layer + [0] + [-1] * (num_layers - layer - 1)

    for sub_path in range(1, full_path):
        paths[f"sub-path {sub_path} everywhere"] = [sub_path] * num_layers
    paths["full path"] = [full_path] * num_layers
    return paths


def graded(correct: NDArray[np.bool_], severity: NDArray[np.int64]) -> str:
    """Accuracy by severity, where severities are known."""
    if severity.max() == 0:
        return ""
    means = ", ".join(f"{value:.1%}" for value in by_group(correct, severity))
    return f"\nFull path by severity, 0 to {severity.max()}: {means}.\n"


def table(rows: list[PathFigures], plain_macs: int, dataset: str) -> str:
    """Paths as Markdown, with networks trained alone for comparison where those were measured."""
    if dataset != "cifar10" or not STANDALONE.exists():
        lines = ["| path | compute | accuracy |", "|---|---|---|"]
        for title, macs, accuracy in rows:
            lines.append(f"| {title} | {macs / plain_macs:.3f} | {accuracy:.1%} |")
        return "\n".join(lines)

    alone = json.loads(STANDALONE.read_text())
    log_macs = np.log([network["macs"] for network in alone])
    accuracies = [network["test_accuracy"] for network in alone]
    lines = [
        "| path | compute | accuracy | network of that cost, trained alone |",
        "|---|---|---|---|",
    ]
    for title, macs, accuracy in rows:
        # Between the costs that were trained only: nothing is extrapolated.
        expected = np.interp(np.log(macs), log_macs, accuracies, left=np.nan, right=np.nan)
        shown = "–"
        if np.isfinite(expected):
            shown = f"{expected:.1%}"
        lines.append(f"| {title} | {macs / plain_macs:.3f} | {accuracy:.1%} | {shown} |")

    measured = []
    for network in alone:
        measured.append(f"{network['test_accuracy']:.1%} at {network['macs'] / 1e6:.0f} M")
    return (
        "\n".join(lines)
        + f"\n\nTrained alone by the recipe of `rnr-cifar10`: {', '.join(measured)} MACs; "
        + "between them interpolated.\n"
    )


def card(name: str, kind: str) -> str:
    """The card of one backbone's weights, pretrained or finetuned."""
    dataset = zoo.ARCHITECTURES[name].dataset
    env_id = next(env_id for env_id, kwargs in IDS.items() if kwargs["backbone"] == name)
    backbone = zoo.named(name, kind)
    source = open_source(dataset=dataset, split="test", backbone=name, weights=kind)
    images = open_images(dataset=dataset, split="test")
    _, metadata = storage.load_tensors(weights.backbone_file(name, kind))

    rows = []
    for title, path in named_paths(backbone).items():
        paths = np.tile(np.array(path, np.int8), (len(images), 1))  # (N, T)
        evaluation = evaluate_paths(source, paths, static=True)
        row = PathFigures(
            title=title,
            macs=float(evaluation.macs.mean()),
            accuracy=float(evaluation.correct.mean()),
        )
        rows.append(row)

    full = evaluation  # the full path comes last
    return CARD.format(
        name=name,
        weights=kind,
        env=env_id,
        training=TRAINING[kind].format(env=env_id, router=metadata.get("finetuned_under")),
        kind=backbone.kind,
        layers=backbone.num_layers,
        paths=backbone.num_paths,
        plain=backbone.mac_table.plain,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        digest=storage.digest(backbone.state_dict()),
        config=metadata["config"],
        data=DATA[dataset],
        schedule=metadata["schedule"],
        images=len(images),
        tested=TESTED[dataset],
        rows=table(rows, source.spec.plain_macs, dataset),
        severities=graded(full.correct, images.severity),
        limits=LIMITS[dataset],
    )


def main(names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()) -> None:
    """Write the cards of the named backbones, or of all that are bundled."""
    for name in names or zoo.ARCHITECTURES:
        for kind in weights.BUNDLED:
            path = weights.backbone_file(name, kind)
            if path.is_file():
                path.with_suffix(".md").write_text(card(name, kind))
                print(f"wrote the card of {name}, {kind}")


if __name__ == "__main__":
    tyro.cli(main)
