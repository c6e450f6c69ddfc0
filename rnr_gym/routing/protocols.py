"""Protocols shared across the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from rnr_gym.routing.spec import RoutingSpec

Indices = NDArray[np.int64]


class Outcome(NamedTuple):
    """How N images were answered.

    Attributes:
        prediction: int64 `(N,)`, the top class.
        loss: float64 `(N,)`, cross-entropy in nats.
    """

    prediction: NDArray[np.int64]
    loss: NDArray[np.float64]


class RoutingState(Protocol):
    """N images in progress, in a live network or in a route table.

    Immutable: `step` returns the next state. Every array is `(N, ...)`.
    """

    @property
    def layer(self) -> Indices:
        """int64: the decision that an image waits for; T once it has been answered."""
        ...

    @property
    def prev_sub_path(self) -> Indices:
        """int64: the sub-path executed last; K - 1 at layer 0."""
        ...

    @property
    def macs(self) -> Indices:
        """int64: MACs charged so far."""
        ...

    @property
    def path(self) -> NDArray[np.int8]:
        """int8 `(N, T)`: executed sub-paths, -1 where none was."""
        ...

    @property
    def done(self) -> NDArray[np.bool_]:
        """bool: which images have been answered."""
        ...

    def step(self, sub_paths: Indices) -> Self:
        """Move every unanswered image by its own sub-path."""
        ...

    def replaced(self, batch_idx: Indices, other: Self) -> Self:
        """This batch with `other`'s images, in order, at the positions `batch_idx`."""
        ...

    def summary(self, features: bool = True) -> NDArray[np.float32]:
        """float32 `(N, S)`: see `observations.SummaryLayout`; zeros for answered images.

        Without `features`, pooled features may be zeros: not everyone reads them.
        """
        ...


class RoutingSource(Protocol):
    """Labelled images that can be routed: a backbone with an image set, or a route table."""

    @property
    def spec(self) -> RoutingSpec:
        """The routing problem."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64: the label of every image."""
        ...

    @property
    def batch_size(self) -> int:
        """Most images that should start together."""
        ...

    def prefetch(self, image_idx: Indices) -> None:
        """Announce which images will start next; a source may prepare them meanwhile."""
        ...

    def start(self, image_idx: Indices) -> Any:
        """The `RoutingState` in which the images `(N,)` of this source wait at layer 0."""
        ...

    def outcome(self, state: Any, image_idx: Indices, batch_idx: Indices) -> Outcome:
        """The outcome of images `image_idx`, which are at positions `batch_idx` of a state."""
        ...


class Router(Protocol):
    """Whatever selects actions.

    The signature is that of Stable-Baselines3's `predict`, so its models are routers as they are.
    One that has an attribute `reads_features`, and it is False, does not depend on the pooled
    features in observations, which are not computed for it then.
    """

    def predict(
        self,
        observation: NDArray[np.float32],
        state: tuple[NDArray, ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray, tuple[NDArray, ...] | None]:
        """Actions int64 `(N,)` for observations `(N, D)`, and the recurrent state if any."""
        ...


class FittedRouter(Router, Protocol):
    """A router that can be saved."""

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and a JSON-able configuration, from which its agent builds it again."""
        ...
