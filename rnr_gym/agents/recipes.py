"""What a recipe for one of Stable-Baselines3's learners consists of; see `ppo.py` and `dqn.py`.

And what all learners share: which data sets have recipes of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
CIFAR = ("cifar10", "cifar10-corrupted", "cifar100")
"""Data sets that share recipes."""


@dataclass(frozen=True)
class Recipe:
    """Which algorithm learns, with which arguments, and for how long.

    Attributes:
        algorithm: `module:class`; those of sb3-contrib need the extra `contrib`.
        steps: environment steps to learn from.
        num_envs: episodes that run in parallel.
        net_arch: hidden widths of the policy network, and separately of the value network.
        learning_rate: of Adam, falling linearly to a tenth.
        weight_decay: of Adam, against memorising the images of `route`.
        kwargs: the other arguments of the algorithm.
        policy_kwargs: the other arguments of its policy.
        full_path_bias: by how much the full path's logit exceeds the others before anything is
            learned, for policies that have logits. Untrained choices at later layers make
            continuing look worse than it is, so a learner that starts from even odds may settle on
            the glance for good.
        summary_scale: factor of the raw summary among the features; see `sb3.RoutingFeatures`.
    """

    algorithm: str
    steps: int
    num_envs: int
    net_arch: tuple[int, ...]
    learning_rate: float
    weight_decay: float = 0.0
    kwargs: dict[str, Any] = field(default_factory=dict)
    policy_kwargs: dict[str, Any] = field(default_factory=dict)
    full_path_bias: float = 0.0
    summary_scale: float = 0.1


def for_dataset(dataset: object, common: T, by_dataset: Mapping[str, T]) -> T:
    """What a data set has of its own, else what all have in common.

    Data sets that are given as images have no name, so they have nothing of their own.
    """
    if not isinstance(dataset, str):
        return common
    return by_dataset.get(dataset, common)
