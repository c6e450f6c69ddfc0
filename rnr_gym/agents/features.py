"""What learned routers read of an observation: the observation, and beside it what it says of doubt."""

from __future__ import annotations

import torch
from torch import Tensor

from rnr_gym.routing.observations import ObservationLayout

FLOOR = 1e-3
"""Doubt below this is all the same to a router."""


def features(layout: ObservationLayout, observation: Tensor) -> Tensor:
    """Observations float32 `(N, D)` -> `(N, D')`: features of doubt, then all that is observed but λ.

    Class probabilities appear in descending order too, so that no class has to be learned by
    itself, and doubt on a logarithmic scale, since 0.99 differs from 0.999 as 0.9 does from 0.99.
    """
    summary = layout.summary
    exit_head = observation[:, summary.exit_probabilities]
    ordered = exit_head.sort(dim=1, descending=True).values[:, :3]
    entropy = observation[:, summary.confidence][:, 2:]
    parts = [ordered, _log_doubt(1.0 - ordered[:, :1]), _log_doubt(entropy)]

    glance = observation[:, summary.glance_probabilities]
    if glance.shape[1]:  # whether the two would answer alike, and how surely
        answer = exit_head.argmax(1, keepdim=True)
        surest, guess = glance.max(1, keepdim=True)
        parts += [
            surest,
            _log_doubt(1.0 - surest),
            glance.gather(1, answer),
            exit_head.gather(1, guess),
            (answer == guess).float(),
        ]
    parts.append(observation[:, : layout.tradeoff.start])
    return torch.cat(parts, 1)


def summary_part(layout: ObservationLayout, width: int) -> slice:
    """Where the raw summary but for its confidence lies among `width` features."""
    begin = width - layout.tradeoff.start
    return slice(begin, begin + layout.summary.confidence.start)


def _log_doubt(doubt: Tensor) -> Tensor:
    """The logarithm of doubt from 0 to 1, brought to about -1 to 1."""
    return 1.0 + torch.log10(FLOOR + doubt.clamp(min=0.0)) / 1.5
