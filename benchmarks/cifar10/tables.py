"""Work out the route tables that ship with `rnr-cifar10-small`. Run: `python benchmarks/cifar10/tables.py`, with CIFAR-10 at hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rnr_gym import route_table
from rnr_gym.backbones import pretrained
from rnr_gym.sources import Live, digest_of, open_images

NAME, IMAGES = "rnr-cifar10-small", 5_000


def main() -> None:
    """One table for `route` and one for the first half of `test`, each image class equally often."""
    backbone = pretrained.named(NAME)
    for split in ("route", "test"):
        images = open_images(dataset="cifar10", split=split, download=False).take(np.arange(IMAGES))
        table = route_table.build(backbone, images, backbone.spec())
        path = pretrained.bundled(NAME, f"frozen.{split}")
        replace(table, origin=digest_of(Live(backbone, images, backbone.spec()))).save(path)
        nodes, _, values = table.summary.shape
        print(f"{path.name}: {IMAGES:,} images, {nodes} nodes of {values} values, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
