"""What a router is fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnr_gym.registration import registered_kwargs
from rnr_gym.routing import route_table
from rnr_gym.routing.protocols import Source
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.sources import open_source

TRADEOFF_RANGE = (0.003, 2.0)
"""λ is drawn from here while a router learns: from nearly free compute to one at which the glance has to do.

At 0.003 the whole network may be run for a third of a point of accuracy."""


@dataclass(frozen=True)
class FitConfig:
    """An environment to fit a router to, always on the split `route`.

    Attributes:
        env: a registered id.
        arguments: more of `gym.make`'s arguments, such as `exits` or `weights`; not `split` or `tradeoff`. With
            `{"backend": table}` a `RouteTable` of one's own is fitted to and judged on.
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
    tradeoffs: tuple[float, float] = TRADEOFF_RANGE
    folder: Path | None = None
    progress: bool = True

    def env_kwargs(self, split: str) -> dict[str, Any]:
        """The keyword arguments that open this environment on a split: on the table where it fits, else live."""
        arguments = {**registered_kwargs(self.env), **self.arguments, "split": split}
        if "backend" not in arguments:
            live = open_source(**arguments)
            fits = route_table.num_prefixes(live.spec) * len(live.labels) <= route_table.LIMIT
            arguments["backend"] = "table" if fits else "live"
        return arguments

    def source(self, split: str) -> Source:
        """What is routed."""
        return open_source(**self.env_kwargs(split))

    def has_table(self, split: str) -> bool:
        """Whether `table` gives one; found out without building it."""
        return bool(self.env_kwargs(split)["backend"] != "live")

    def table(self, split: str) -> RouteTable | None:
        """The route table of a split, None where it would be too large."""
        source = self.source(split)
        return source if isinstance(source, RouteTable) else None
