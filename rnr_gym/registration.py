"""The ids of the environments: one table and one loop."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from rnr_gym import checks

IDS: dict[str, dict[str, Any]] = {
    "RNR-Digits-v0": {"dataset": "digits", "backbone": "rnr-digits"},
    "RNR-Digits-Channels-v0": {"dataset": "digits", "backbone": "rnr-digits-channels"},
    "RNR-CIFAR10-v0": {"dataset": "cifar10", "backbone": "rnr-cifar10"},
    "RNR-CIFAR10-Channels-v0": {"dataset": "cifar10", "backbone": "rnr-cifar10-channels"},
    # The same network and the same images to fit routers to; those of `test` are corrupted.
    "RNR-CIFAR10-Corrupted-v0": {"dataset": "cifar10-corrupted", "backbone": "rnr-cifar10"},
    # Its route table is bundled, so it needs no images.
    "RNR-CIFAR10-Table-v0": {
        "dataset": "cifar10",
        "backbone": "rnr-cifar10-small",
        "backend": "table",
    },
    "RNR-CIFAR100-v0": {"dataset": "cifar100", "backbone": "rnr-cifar100"},
    "RNR-CIFAR100-Channels-v0": {"dataset": "cifar100", "backbone": "rnr-cifar100-channels"},
    # torchvision's networks, whose weights are downloaded when they are first used. Live, however
    # few the images: all paths of VGG-16 over a thousand take a CPU hours.
    "RNR-ImageNet-v0": {"dataset": "imagenet", "backbone": "resnet50", "backend": "live"},
    "RNR-ImageNet-Channels-v0": {"dataset": "imagenet", "backbone": "vgg16_bn", "backend": "live"},
    # For the user's backbone and data set; the digits are defaults that work at once.
    "RNR-v0": {"dataset": "digits", "backbone": "rnr-digits"},
}
"""The keyword arguments of the environment's constructor, by id."""


def register() -> None:
    """Make the ids known to Gymnasium."""
    for env_id, kwargs in IDS.items():
        # Strings as entry points: specs can be written as JSON, and this import stays light.
        gym.register(
            id=env_id,
            entry_point="rnr_gym.envs.routing:RoutingEnv",
            vector_entry_point="rnr_gym.envs.vector:RoutingVectorEnv",
            kwargs=kwargs,
        )


def registered_kwargs(env: str) -> dict[str, Any]:
    """The keyword arguments that an id is registered with.

    Raises `ValueError`, with a list of the ids, if there is no such id.
    """
    return IDS[checks.choice("env", env, IDS)]
