"""The small protocols through which the parts meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from rnr_gym.routing.spec import RoutingSpec

Rows = NDArray[np.int64]


class Outcome(NamedTuple):
    """How images were answered: top class int64 `(N,)`, and cross-entropy in nats float64 `(N,)`."""

    prediction: NDArray[np.int64]
    loss: NDArray[np.float64]


class RoutingState(Protocol):
    """N images under way, whether through a live network or through a table. Immutable; every array is `(N, ...)`."""

    @property
    def layer(self) -> Rows: ...
    @property
    def prev_sub_path(self) -> Rows: ...
    @property
    def macs(self) -> Rows: ...
    @property
    def path(self) -> NDArray[np.int8]: ...
    @property
    def done(self) -> NDArray[np.bool_]: ...
    def step(self, sub_paths: Rows) -> Self: ...
    def replaced(self, rows: Rows, other: Self) -> Self: ...
    def summary(self) -> NDArray[np.float32]: ...


class Source(Protocol):
    """Labelled images that can be routed: a backbone with an image set, or a route table."""

    @property
    def spec(self) -> RoutingSpec: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    def start(self, indices: Rows) -> Any: ...
    def outcome(self, walk: Any, indices: Rows, rows: Rows) -> Outcome:
        """How the images in the places `rows` of a walk, which are numbers `indices` of this source, were answered."""
        ...


class Router(Protocol):
    """Whatever picks actions; Stable-Baselines3's `predict`, so its models are routers as they are."""

    def predict(
        self,
        observation: NDArray[np.float32],
        state: tuple[NDArray, ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray, tuple[NDArray, ...] | None]:
        """Observations `(N, D)` -> actions int64 `(N,)`, and the recurrent state if there is one."""
        ...


class FittedRouter(Router, Protocol):
    """A router that can be kept: `state()` gives tensors and JSON-able facts, from which its agent restores it."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...
