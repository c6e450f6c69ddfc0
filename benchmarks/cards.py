"""Write the model cards of the shipped weights, every figure measured here and now. Run: `python benchmarks/cards.py`."""

from __future__ import annotations

import numpy as np

from rnr_gym import checkpoints
from rnr_gym.agents import Setting
from rnr_gym.analysis import by_group
from rnr_gym.backbones import pretrained
from rnr_gym.checkpoints import digest
from rnr_gym.evaluation import evaluate_paths
from rnr_gym.registration import id_of
from rnr_gym.sources import open_images

CARD = """# {name}, {stage}

A {kind} backbone for `{env}`: {layers} layers, {paths} sub-paths, {plain:,} MACs on the full path, {parameters:,} parameters.
Weights digest `{digest}`. MIT licence, as the package.

- **Architecture**: `{config}`
- **Data**: scikit-learn's handwritten digits (UCI Optical Recognition of Handwritten Digits), the half in `train`, corrupted afresh in every epoch.
- **Training**: under random routing, by `rnr-gym pretrain {env} --out FILE`; `{schedule}`.
- **Stored beside the weights**: batch-norm and summary statistics from `train`, the loss scale from `route`.

## Figures

On all {images:,} images of `test` ({originals} digits, each at severities 0 to 5); compute as a static network is charged.
One network, one training seed. Written by `python benchmarks/cards.py`.

| path | compute | accuracy |
|---|---|---|
{rows}

Full path by severity, 0 to 5: {severities}.

## Limits

For teaching and for comparing routers. It reads 12 x 12 digits made as `rnr_gym/data/digits.py` makes them, and nothing else.
"""


def card(name: str, stage: str) -> str:
    """The card of one file of weights."""
    env = id_of(name)
    table, images, backbone = Setting(env).table("test"), open_images(dataset="digits", split="test"), pretrained.named(name, stage)
    assert table is not None
    _, facts = checkpoints.load_tensors(pretrained.bundled(name, stage))
    layers, full, rows = backbone.num_layers, backbone.full_path, []
    paths = {f"full path to layer {t}, then its exit" if t else "glance": [full] * t + [0] + [-1] * (layers - t - 1) for t in range(layers)}
    paths |= {"full path" if k == full else f"sub-path {k} everywhere": [k] * layers for k in range(1, full + 1)}
    for title, path in paths.items():
        found = evaluate_paths(table, np.tile(np.array(path, np.int8), (len(images), 1)), static=True)
        rows.append(f"| {title} | {found.macs.mean() / table.spec.plain_macs:.3f} | {found.correct.mean():.1%} |")
    severities = ", ".join(f"{value:.1%}" for value in by_group(found.correct, images.severity))
    count = sum(parameter.numel() for parameter in backbone.parameters())
    return CARD.format(
        name=name, stage=stage, env=env, kind=backbone.kind, layers=layers, paths=backbone.num_paths, plain=backbone.mac_table.plain,
        parameters=count, digest=digest(backbone.state_dict()), config=facts["config"], schedule=facts["schedule"], images=len(images),
        originals=len(np.unique(images.source)), rows="\n".join(rows), severities=severities,
    )  # fmt: skip


if __name__ == "__main__":
    for name in pretrained.ARCHITECTURES:
        for stage in pretrained.STAGES:
            pretrained.bundled(name, stage).with_suffix(".md").write_text(card(name, stage))
            print(f"wrote the card of {name}, {stage}")
