"""What learned routers read of an observation: features of doubt, and the observation itself."""

from __future__ import annotations

import torch
from torch import Tensor

from rnr_gym.routing.observations import ObservationLayout

FLOOR = 1e-3
"""A router cannot tell doubts below this apart."""
DECADES = 1.5
"""Half as many as there are from `FLOOR` to 1, so that the logarithm of doubt spans -1 to 1."""


def features(layout: ObservationLayout, observation: Tensor) -> Tensor:
    """Observations float32 `(N, D)` -> `(N, D')`: features of doubt, then all but λ as observed.

    Class probabilities appear in descending order too, so that nothing has to be learned for each
    class separately, and doubt on a logarithmic scale, since 0.99 differs from 0.999 as 0.9 does
    from 0.99.
    """
    summary = layout.summary
    exit_head = observation[:, summary.exit_probabilities]  # (N, classes)
    ordered = exit_head.sort(dim=1, descending=True).values[:, :3]
    # The other two of `confidence_features`, maximum and lead, are known from `ordered`.
    entropy = observation[:, summary.confidence][:, 2:]
    glance = observation[:, summary.glance_probabilities]

    # Quantised summaries lack the glance's probabilities.
    if glance.shape[1] == 0:
        parts = [ordered, log_doubt(torch.cat([1.0 - ordered[:, :1], entropy], 1))]
    else:
        exit_answer = exit_head.argmax(1, keepdim=True)
        glance_confidence, glance_answer = glance.max(1, keepdim=True)
        doubts = log_doubt(torch.cat([1.0 - ordered[:, :1], entropy, 1.0 - glance_confidence], 1))
        parts = [
            ordered,
            doubts[:, :2],
            glance_confidence,
            doubts[:, 2:],
            # Doubt is also whether exit and glance would answer alike.
            glance.gather(1, exit_answer),
            exit_head.gather(1, glance_answer),
            (exit_answer == glance_answer).float(),
        ]

    parts.append(observation[:, : layout.tradeoff.start])
    return torch.cat(parts, 1)


def policy_inputs(layout: ObservationLayout, observation: Tensor, summary_scale: float) -> Tensor:
    """What a policy reads, `(N, D' + 2)`: features, with the raw summary scaled, then log λ and λ.

    Which sub-path is best changes with ratios of λ, what it is worth with λ itself. The raw summary
    has hundreds of entries, some of which tell single images apart: at full scale it would drown
    the rest.
    """
    inputs = features(layout, observation)  # (N, D) -> (N, D')
    inputs[:, summary_part(layout, inputs.shape[1])] *= summary_scale
    tradeoff = observation[:, layout.tradeoff]  # (N, 1)
    # λ may be 0, which has no logarithm.
    log_tradeoff = torch.log10(tradeoff.clamp(min=1e-3)) + 1.0
    return torch.cat([inputs, log_tradeoff, tradeoff], 1)


def summary_part(layout: ObservationLayout, width: int) -> slice:
    """Where the raw summary, without its confidence, lies among `width` features."""
    # `features` ends with the observation up to λ, which begins with the summary.
    begin = width - layout.tradeoff.start
    return slice(begin, begin + layout.summary.confidence.start)


def log_doubt(doubt: Tensor) -> Tensor:
    """The logarithm of doubt from 0 to 1, scaled to about -1 to 1."""
    return 1.0 + torch.log10(FLOOR + doubt.clamp(min=0.0)) / DECADES
