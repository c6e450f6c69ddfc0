"""What a router thinks of each sub-path before it decides."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym.routing.protocols import Router

Kind = Literal["probability", "Q-value", "advantage"]


class Preferences(NamedTuple):
    """One number for each sub-path.

    Attributes:
        kind: `"probability"` of a policy; `"Q-value"`, the return that is expected from here on; or
            `"advantage"`, by how much that exceeds the mean over the sub-paths.
        values: float64 `(N, K)`, of all sub-paths, valid ones or not.
    """

    kind: Kind
    values: NDArray[np.float64]


def preferences_of(
    router: Router,
    observation: NDArray[np.float32],
    state: Any = None,
    episode_start: Any = None,
) -> Preferences | None:
    """What a router thinks of the sub-paths at observations `(N, D)`; None if it cannot tell.

    A router tells by a method `preferences`, with the arguments of `predict` up to
    `episode_start`. Of Stable-Baselines3's models, and what holds one of its policies, the policy
    is read.
    """
    if hasattr(router, "preferences"):
        told: Preferences | None = router.preferences(observation, state, episode_start)
        return told
    if hasattr(router, "policy"):
        return of_policy(router.policy, observation)
    return None


@torch.no_grad()
def of_policy(policy: Any, observation: NDArray[np.float32]) -> Preferences | None:
    """What a policy of Stable-Baselines3 thinks, without masks; None if it is of another sort."""
    # By what a policy has rather than by its class: the package for routing imports no learner.
    obs, _ = policy.obs_to_tensor(observation)
    if hasattr(policy, "get_distribution"):
        probabilities = policy.get_distribution(obs).distribution.probs
        return Preferences("probability", _array(probabilities))
    returns = expected_returns(policy, obs)
    return None if returns is None else Preferences("Q-value", _array(returns))


def expected_returns(policy: Any, obs: Tensor) -> Tensor | None:
    """What a policy of DQN or QR-DQN expects of each sub-path, `(N, K)`; None for others."""
    returns: Tensor | None = None
    if hasattr(policy, "q_net"):
        returns = policy.q_net(obs)
    elif hasattr(policy, "quantile_net"):
        # (N, quantiles, K), whose mean is the expected return.
        returns = policy.quantile_net(obs).mean(1)
    return returns


def action_scores(policy: Any, obs: Tensor) -> Tensor:
    """`(N, K)`, highest for the action that a policy without masks prefers at `(N, D)`."""
    returns = expected_returns(policy, obs)
    if returns is not None:
        return returns
    # Without a distribution, which takes longer to make than the scores.
    features = policy.pi_features_extractor(obs)
    scores: Tensor = policy.action_net(policy.mlp_extractor.forward_actor(features))
    return scores


def _array(values: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.double().cpu().numpy()
    return array
