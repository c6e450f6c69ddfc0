"""What all routers share: the configuration that they are fitted with, and their base class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym import checks
from rnr_gym.backbones.inference import AUTO
from rnr_gym.registration import registered_kwargs
from rnr_gym.routing import route_table
from rnr_gym.routing.path_tree import num_prefixes
from rnr_gym.routing.protocols import RoutingSource
from rnr_gym.routing.rewards import TRADEOFF_RANGE, check_tradeoff
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.sources import SourceKwargs, open_source
from rnr_gym.routing.spec import RoutingSpec

CHECKPOINT = "checkpoint.safetensors"
"""Name of the checkpoint in a run's directory."""


@dataclass(frozen=True)
class FitConfig:
    """Which environment a router is fitted to, always on the split `route`, and how.

    Attributes:
        env: a registered id.
        kwargs: arguments of `gym.make` that say what is routed, such as `exits` or `weights`; not
            `split`. With `{"backend": table}` the router is fitted to that `RouteTable` and
            evaluated on it.
        seed: of everything random.
        steps: environment steps to learn from; None for the number in the recipe.
        tradeoffs: λ while learning, (low, high).
        run_dir: where checkpoints and TensorBoard logs are written; None for nowhere.
        progress: whether to show a progress bar.

    Raises `ValueError` for an unknown id and for values out of range.
    """

    env: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    steps: int | None = None
    tradeoffs: tuple[float, float] = TRADEOFF_RANGE
    run_dir: Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        registered_kwargs(self.env)
        if not isinstance(self.kwargs, Mapping):
            raise ValueError(f"`kwargs` must be a dict, got {self.kwargs!r}")
        allowed = SourceKwargs.__annotations__.keys() - {"split"}
        if not self.kwargs.keys() <= allowed:
            raise ValueError(
                f"`kwargs` may hold {', '.join(sorted(allowed))}, got "
                f"{', '.join(map(str, self.kwargs))}"
            )
        if self.kwargs.get("dtype") == AUTO:
            raise ValueError(
                "`dtype` must be float32 or bfloat16 where routers are fitted, so that all "
                f"processes compute alike, got {AUTO!r}"
            )
        is_pair = isinstance(self.tradeoffs, tuple | list) and len(self.tradeoffs) == 2
        if not is_pair or check_tradeoff(self.tradeoffs)[0] == 0.0:
            raise ValueError(f"`tradeoffs` must be a pair above 0, got {self.tradeoffs!r}")

        # As Python's own types, which JSON can hold.
        kwargs = {
            name: str(value) if isinstance(value, PathLike) else value
            for name, value in self.kwargs.items()
        }
        object.__setattr__(self, "kwargs", kwargs)
        object.__setattr__(self, "seed", checks.seed(self.seed))
        if self.steps is not None:
            object.__setattr__(self, "steps", checks.integer("steps", self.steps, 1))
        object.__setattr__(self, "tradeoffs", check_tradeoff(self.tradeoffs))
        checks.flag("progress", self.progress)

    def source_kwargs(self, split: str) -> dict[str, Any]:
        """The keyword arguments that open what this environment routes on a split.

        Unless `kwargs` or the registered id name a backend, it is `"table"` where a route table
        is small enough, else `"live"`.
        """
        kwargs = {**registered_kwargs(self.env), **self.kwargs, "split": split}
        if "backend" in kwargs:
            return kwargs

        # How large a table would be follows from the problem, which the network poses.
        live = open_source(**kwargs)
        table_size = num_prefixes(live.spec) * len(live.labels)
        kwargs["backend"] = "table" if table_size <= route_table.LIMIT else "live"
        return kwargs

    def source(self, split: str) -> RoutingSource:
        """What is routed on a split."""
        return open_source(**self.source_kwargs(split))

    def has_table(self, split: str) -> bool:
        """Whether `table` gives a route table; it is not built to find out."""
        return bool(self.source_kwargs(split)["backend"] != "live")

    def table(self, split: str) -> RouteTable | None:
        """The route table of a split; None where it would be too large."""
        source = self.source(split)
        if not isinstance(source, RouteTable):
            return None
        return source


def needs_table(agent: str, env: str) -> str:
    """The error message where there is no table."""
    return (
        f"`agent` {agent} needs a route table, got {env}, which runs live here: a table holds at "
        f'most {route_table.LIMIT:,} prefixes x images, and `backend="live"` makes none; choose '
        "other agents"
    )


def check_widths(name: str, widths: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` unless the tensors of a file can be those of layers with these widths.

    Before a network is made of them, which could need any amount of memory.
    """
    num_values = sum(tensor.numel() for tensor in tensors.values())
    for width in widths:
        checks.integer(name, width, 1, num_values)
    for width, next_width in pairwise(widths):
        if width * next_width > num_values:
            raise ValueError(
                f"`{name}` must be widths of the {num_values:,} values of the file, got "
                f"{list(widths)}"
            )


class RouterBase(ABC):
    """A router for one routing problem.

    Subclasses define `actions`. Those that need the other arguments of `predict`, for example to
    pass them on to a policy, override `predict` instead.

    Attributes:
        spec: the routing problem.
    """

    def __init__(self, spec: RoutingSpec) -> None:
        self.spec = spec

    def predict(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], Any]:
        """Choose sub-paths, with the signature of Stable-Baselines3's `predict`.

        Args:
            observation: float32 `(N, D)`.
            state: returned as it is; a router that reads nothing but the observation needs none.
            episode_start: not used.
            deterministic: passed on to `actions`.

        Returns:
            Sub-paths int64 `(N,)`, and the state.
        """
        return self.actions(observation, deterministic), state

    def actions(
        self,
        observation: NDArray[np.float32],
        deterministic: bool,
    ) -> NDArray[np.int64]:
        """The sub-path for each observation `(N, D)`; int64 `(N,)`."""
        # Not abstract, since a router that overrides `predict` has no use for it.
        raise NotImplementedError

    @abstractmethod
    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and a JSON-able configuration, from which `from_state_dict` builds it again."""

    @classmethod
    @abstractmethod
    def from_state_dict(
        cls,
        spec: RoutingSpec,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
    ) -> Self:
        """The router whose `state_dict` returned `tensors` and `config`."""
