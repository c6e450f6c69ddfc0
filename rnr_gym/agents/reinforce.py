"""What routers that learn by REINFORCE share: mini-batches, returns of whole paths, entropy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym.routing.protocols import Indices, RoutingSource, RoutingState


class Batch(NamedTuple):
    """Images int64 `(N,)` of a source, and a trade-off float64 `(N,)` for each."""

    image_idx: Indices
    tradeoffs: NDArray[np.float64]


def drawn_batch(
    source: RoutingSource,
    size: int,
    tradeoffs: tuple[float, float],
    rng: np.random.Generator,
) -> Batch:
    """Random images; λ is drawn from (low, high), uniformly on a logarithmic scale."""
    image_idx = rng.integers(len(source.labels), size=size)
    low, high = np.log(tradeoffs)
    return Batch(image_idx, np.exp(rng.uniform(low, high, size)))


def episode_returns(
    source: RoutingSource,
    state: RoutingState,
    batch: Batch,
) -> NDArray[np.float64]:
    """float64 `(N,)`: what the environment gives in the episodes that ended in a state."""
    batch_idx = np.arange(len(batch.image_idx))
    prediction = source.outcome(state, batch.image_idx, batch_idx).prediction
    correct = prediction == source.labels[batch.image_idx]
    spec = source.spec
    return correct - batch.tradeoffs * spec.compute(spec.charged(state))


def entropy(logits: Tensor) -> Tensor:
    """float32 `(...)`: of each decision, in nats; logits `(..., K)` may be -inf."""
    # The gradient is infinite at 0, where sub-paths are not valid.
    probabilities = logits.softmax(-1).clamp(min=1e-8)
    return torch.special.entr(probabilities).sum(-1)
