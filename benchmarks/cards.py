"""Write the model cards of the shipped weights, every figure measured here and now. Run: `python benchmarks/cards.py`, with CIFAR-10 at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from rnr_gym import storage
from rnr_gym.backbones import zoo
from rnr_gym.backbones.base import Backbone
from rnr_gym.experiments.evaluation import evaluate_paths
from rnr_gym.experiments.statistics import by_group
from rnr_gym.registration import id_of
from rnr_gym.routing.sources import open_images, open_source
from rnr_gym.storage import digest

CARD = """# {name}, {stage}

A {kind} backbone for `{env}`: {layers} layers, {paths} sub-paths, {plain:,} MACs on the full path, {parameters:,} parameters.
Weights digest `{digest}`. MIT licence, as the package.

- **Architecture**: `{config}`
- **Data**: {data}
- **Training**: the glance by itself, then all paths at once, by `rnr-gym pretrain {env} --out FILE`; `{schedule}`.
- **Stored beside the weights**: batch-norm and summary statistics from `train`, the loss scale from `route`.

## Figures

On all {images:,} images of `test`{tested}; compute as a static network is charged.
One network, one training seed. Written by `python benchmarks/cards.py`.

{rows}
{severities}
## Limits

{limits}
"""
STANDALONE = Path("benchmarks/cifar10/standalone.json")
DATA = {
    "digits": """scikit-learn's handwritten digits (UCI Optical Recognition of Handwritten Digits), the half in `train`, corrupted
  afresh in every epoch.""",
    "cifar10": """CIFAR-10 (Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009), the 45,000 images of `train`, **encoded
  again as JPEG (quality 75, 4:2:0)**; shifted, mirrored in every other epoch, and cut out.""",
}
TESTED = {
    "digits": " (each original at severities 0 to 5)",
    "cifar10": ", encoded again as JPEG like the training images (figures on the original pixels would differ)",
}
LIMITS = {
    "digits": "For teaching and for comparing routers. It reads 12 x 12 digits made as `rnr_gym/data/digits.py` makes them, and nothing else.",
    "cifar10": """For comparing routers. Trained and tested on re-encoded images only; how well the weights do on CIFAR-10's original pixels **has
not been tested**.""",
}


def named_paths(backbone: Backbone) -> dict[str, list[int]]:
    """The paths worth a line: every exit on the full path, and every sub-path all the way."""
    layers, full, paths = backbone.num_layers, backbone.full_path, {}
    for t in sorted(backbone.exit_layers):
        paths[f"full path to layer {t}, then its exit" if t else "glance"] = [full] * t + [0] + [-1] * (layers - t - 1)
    return paths | {"full path" if k == full else f"sub-path {k} everywhere": [k] * layers for k in range(1, full + 1)}


def graded(correct: NDArray[np.bool_], severity: NDArray[np.int64]) -> str:
    """Accuracy by severity, where severities are known."""
    means = ", ".join(f"{value:.1%}" for value in by_group(correct, severity))
    return f"\nFull path by severity, 0 to {severity.max()}: {means}.\n" if severity.max() else ""


def table(rows: list[tuple[str, float, float]], plain_macs: int, dataset: str) -> str:
    """Paths, MACs and accuracies as Markdown, beside networks trained alone where those were measured."""
    if dataset != "cifar10" or not STANDALONE.exists():
        lines = ["| path | compute | accuracy |", "|---|---|---|"]
        for title, macs, accuracy in rows:
            lines.append(f"| {title} | {macs / plain_macs:.3f} | {accuracy:.1%} |")
        return "\n".join(lines)

    alone = json.loads(STANDALONE.read_text())
    log_macs = np.log([network["macs"] for network in alone])
    accuracies = [network["test_accuracy"] for network in alone]
    lines = ["| path | compute | accuracy | network of that cost, trained alone |", "|---|---|---|---|"]
    for title, macs, accuracy in rows:
        expected = np.interp(np.log(macs), log_macs, accuracies, left=np.nan, right=np.nan)
        shown = f"{expected:.1%}" if np.isfinite(expected) else "–"
        lines.append(f"| {title} | {macs / plain_macs:.3f} | {accuracy:.1%} | {shown} |")

    measured = ", ".join(f"{part['test_accuracy']:.1%} at {part['macs'] / 1e6:.0f} M" for part in alone)
    return "\n".join(lines) + f"\n\nTrained alone by the same recipe: {measured} MACs; between them interpolated.\n"


def card(name: str, stage: str) -> str:
    """The card of one file of weights."""
    dataset, backbone = zoo.ARCHITECTURES[name].dataset, zoo.named(name, stage)
    source, images = (opened(dataset=dataset, split="test", backbone=name, weights=stage) for opened in (open_source, open_images))
    _, facts = storage.load_tensors(zoo.bundled(name, stage))
    rows = []
    for title, path in named_paths(backbone).items():
        found = evaluate_paths(source, np.tile(np.array(path, np.int8), (len(images), 1)), static=True)
        rows.append((title, float(found.macs.mean()), float(found.correct.mean())))
    return CARD.format(
        name=name,
        stage=stage,
        env=id_of(name),
        kind=backbone.kind,
        layers=backbone.num_layers,
        paths=backbone.num_paths,
        plain=backbone.mac_table.plain,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        digest=digest(backbone.state_dict()),
        config=facts["config"],
        data=DATA[dataset],
        schedule=facts["schedule"],
        images=len(images),
        tested=TESTED[dataset],
        rows=table(rows, source.spec.plain_macs, dataset),
        severities=graded(found.correct, images.severity),
        limits=LIMITS[dataset],
    )


def main(names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()) -> None:
    """Write the cards of the named backbones, or of all that ship."""
    for name in names or zoo.ARCHITECTURES:
        for stage in zoo.STAGES:
            if zoo.bundled(name, stage).is_file():
                zoo.bundled(name, stage).with_suffix(".md").write_text(card(name, stage))
                print(f"wrote the card of {name}, {stage}")


if __name__ == "__main__":
    tyro.cli(main)
