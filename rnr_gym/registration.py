"""The environments' ids: a table and one loop."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

IDS: dict[str, dict[str, Any]] = {
    "RNR-Digits-v0": {"dataset": "digits", "backbone": "rnr-digits"},
    "RNR-Digits-Channels-v0": {"dataset": "digits", "backbone": "rnr-digits-channels"},
    "RNR-CIFAR10-v0": {"dataset": "cifar10", "backbone": "rnr-cifar10"},
    "RNR-CIFAR10-Channels-v0": {"dataset": "cifar10", "backbone": "rnr-cifar10-channels"},
    "RNR-CIFAR10-Table-v0": {"dataset": "cifar10", "backbone": "rnr-cifar10-small", "backend": "shipped"},
    "RNR-CIFAR100-v0": {"dataset": "cifar100", "backbone": "rnr-cifar100"},
    "RNR-CIFAR100-Channels-v0": {"dataset": "cifar100", "backbone": "rnr-cifar100-channels"},
    "RNR-v0": {"dataset": "digits", "backbone": "rnr-digits"},
}
"""`RNR-v0` is for a backbone and data set of one's own; without them it routes the digits."""


def register() -> None:
    """Make the ids known to Gymnasium; entry points are strings, so that specs can be written as JSON."""
    for name, arguments in IDS.items():
        gym.register(
            name,
            entry_point="rnr_gym.envs.routing:RoutingEnv",
            vector_entry_point="rnr_gym.envs.vector:RoutingVectorEnv",
            kwargs=arguments,
        )


def registered_kwargs(env: str) -> dict[str, Any]:
    """The registered arguments of an id, else a `ValueError` that lists the ids."""
    if env not in IDS:
        raise ValueError(f"`env` must be one of {', '.join(IDS)}, got {env!r}")
    return IDS[env]


def id_of(backbone: str) -> str:
    """The first id that routes a named backbone."""
    return next(env for env, arguments in IDS.items() if arguments["backbone"] == backbone)
