"""What a router is fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnr_gym import route_table
from rnr_gym.registration import arguments_of
from rnr_gym.route_table import RouteTable
from rnr_gym.sources import open_source
from rnr_gym.types import Source

TRADEOFFS = (0.01, 2.0)
"""λ is drawn from here while a router learns: from nearly free compute to one at which the glance has to do."""


@dataclass(frozen=True)
class Setting:
    """An environment to fit a router to, always on the split `route`.

    Attributes:
        env: a registered id.
        arguments: more of `gym.make`'s arguments, such as `exits` or `weights`; not `split`, `tradeoff` or `backend`.
        seed: of everything random.
        steps: environment steps to learn from; None for the recipe's own number.
        tradeoffs: λ while learning, (low, high).
        folder: where checkpoints and TensorBoard logs go; None for nowhere.
        progress: whether to show a bar.
    """

    env: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    steps: int | None = None
    tradeoffs: tuple[float, float] = TRADEOFFS
    folder: Path | None = None
    progress: bool = True

    def source(self, split: str) -> Source:
        """What is routed: the route table where it fits, else the live backbone."""
        arguments = {**arguments_of(self.env), **self.arguments, "split": split}
        return open_source(**arguments, backend=self.backend(split))

    def table(self, split: str) -> RouteTable | None:
        """The route table of a split, None where it would be too large."""
        source = self.source(split)
        return source if isinstance(source, RouteTable) else None

    def backend(self, split: str) -> str:
        """`"table"` where prefixes times images stay under `route_table.LIMIT`, else `"live"`."""
        live = open_source(**{**arguments_of(self.env), **self.arguments, "split": split})
        return "table" if route_table.prefixes(live.spec) * len(live.labels) <= route_table.LIMIT else "live"
