"""Compute the bundled route tables of `rnr-cifar10-small`: all images of `route` and of `test`.

Run: `python benchmarks/cifar10/tables.py`, with CIFAR-10 at hand; a minute or two.
"""

from __future__ import annotations

from dataclasses import replace

from rnr_gym.backbones import weights, zoo
from rnr_gym.routing import route_table
from rnr_gym.routing.live import Live
from rnr_gym.routing.sources import digest_of, open_images
from rnr_gym.routing.spec import RoutingSpec

NAME = "rnr-cifar10-small"


def main() -> None:
    """One table for each of the two splits."""
    backbone = zoo.named(NAME)
    spec = RoutingSpec.of(backbone)
    for split in ("route", "test"):
        # Not downloaded: the original pixels differ from the re-encoded ones.
        images = open_images(dataset="cifar10", split=split, download=False)
        origin = digest_of(Live(backbone, images, spec))
        table = replace(route_table.build(backbone, images, spec), origin=origin)

        path = weights.table_file(NAME, split)
        table.save(path)
        nodes, count, values = table.summary.shape
        size = path.stat().st_size / 1e6
        print(f"{path.name}: {count:,} images, {nodes} nodes of {values} values, {size:.1f} MB")


if __name__ == "__main__":
    main()
