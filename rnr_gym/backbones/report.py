"""What was found in an ordinary network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class BlockReport(NamedTuple):
    """One layer.

    Attributes:
        name: the module, or the first and last ones.
        kind: `"residual"`, `"projected"` (a shortcut that computes something) or `"plain"`.
        widths: inner channels of each narrow sub-path and, last, of the whole block: one number
            for each place where channels can be left out.
        macs: of each sub-path, by number; those that it does not have are missing.
    """

    name: str
    kind: str
    widths: list[list[int]]
    macs: dict[int, int]


@dataclass(frozen=True)
class Report:
    """All layers of a network; a table when printed.

    Attributes:
        model: the name of its class.
        stem: MACs before the first layer.
        layers: the layers, in order.
        head: MACs after the last layer.
        glance: MACs of the glance, which come in addition; 0 if there is none.
    """

    model: str
    stem: int
    layers: list[BlockReport]
    head: int
    glance: int = 0

    @property
    def macs(self) -> int:
        """MACs of the whole network, without glance and exits."""
        return self.stem + self.head + sum(max(layer.macs.values()) for layer in self.layers)

    @property
    def cheapest(self) -> float:
        """Compute of the cheapest path through all layers."""
        layers = sum(min(layer.macs.values()) for layer in self.layers)
        return (self.stem + self.head + layers) / self.macs

    def __str__(self) -> str:
        rows = [("layer", "module", "kind", "inner channels", "MACs by sub-path")]
        for number, layer in enumerate(self.layers):
            widths = "; ".join("+".join(map(str, entry)) for entry in layer.widths)
            macs = ", ".join(f"{path}: {count:,}" for path, count in sorted(layer.macs.items()))
            rows.append((str(number), layer.name, layer.kind, widths, macs))
        columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{self.model}: {len(self.layers)} layers, {self.macs:,} MACs, of which stem "
            f"{self.stem:,} and head {self.head:,}; cheapest path {self.cheapest:.3f}"
        ]
        if self.glance:
            share = self.glance / self.macs
            lines[0] += f"; glance {self.glance:,} MACs ({share:.1%})"
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, columns, strict=True)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)
