"""Recipes for Stable-Baselines3's learners: what to call, with which arguments, for how long.

Episodes are short and, the backbone being frozen, deterministic, so nothing is discounted (gamma 1).
`benchmarks/tune.py` chose the common PPO and DQN values on the digits, with the same number of trials and of environment steps each;
that was before learners read features of doubt, PPO started near the full path and halves of `route` were drawn at random, so
`summary_scale` and `full_path_bias` are not tuned.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """One learner.

    Attributes:
        algorithm: `module:class`; sb3-contrib's need the extra `contrib`.
        steps: environment steps to learn from.
        num_envs: episodes side by side.
        net: hidden widths of the policy network (and, apart from it, of the value network).
        learning_rate: of Adam, falling linearly to a tenth.
        weight_decay: of Adam, against learning the images of `route` by heart.
        arguments: the rest of the algorithm's arguments.
        policy: the rest of the policy's arguments.
        summary_scale: what the raw summary counts beside the features of doubt; see `sb3_router.RoutingFeatures`.
        full_path_bias: what the full path's logit has over the others before anything is learnt, for policies that hold logits.
            Untrained choices after a layer make going on look worse than it is, so that a learner that starts from even odds may
            settle on the glance for good.
    """

    algorithm: str
    steps: int
    num_envs: int
    net: tuple[int, ...]
    learning_rate: float
    weight_decay: float = 0.0
    arguments: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    full_path_bias: float = 0.0
    summary_scale: float = 0.1


_PPO = {"n_steps": 8, "batch_size": 256, "n_epochs": 6, "gae_lambda": 0.95, "ent_coef": 0.002, "gamma": 1.0}
_A2C = {"n_steps": 8, "gae_lambda": 0.95, "ent_coef": 0.002, "gamma": 1.0}
_DQN = {"batch_size": 512, "buffer_size": 100_000, "learning_starts": 5_000, "train_freq": 1, "gradient_steps": 1, "gamma": 1.0}
_DQN |= {"target_update_interval": 1_000, "exploration_fraction": 0.6, "exploration_final_eps": 0.05}
RECIPES = {
    "ppo": Recipe("stable_baselines3:PPO", 400_000, 128, (16,), 6.7e-4, arguments=_PPO, full_path_bias=3.0),
    "dqn": Recipe("stable_baselines3:DQN", 400_000, 128, (32,), 1.1e-3, 1e-3, _DQN),
    "a2c": Recipe("stable_baselines3:A2C", 400_000, 128, (16,), 1e-3, arguments=_A2C, full_path_bias=3.0),
    "maskable-ppo": Recipe("sb3_contrib:MaskablePPO", 400_000, 128, (16,), 6.7e-4, arguments=_PPO, full_path_bias=3.0),
    "qr-dqn": Recipe("sb3_contrib:QRDQN", 400_000, 128, (32,), 1.1e-3, 1e-3, _DQN, {"n_quantiles": 25}),
}
# DQN's values apart from `summary_scale` are the best of ten trials of `benchmarks/tune.py` on
# `RNR-CIFAR10-Table-v0` (`benchmarks/cifar10/tuned.json`). PPO's are the best of seven trials by hand
# on `RNR-CIFAR10-v0` (`benchmarks/cifar10/README.md`). There the raw summary, hundreds of values for
# 5,000 images, made learners memorise images, so it is left out: routers read how sure the exits are,
# what has been spent and the layer.
_CIFAR = {
    "ppo": replace(
        RECIPES["ppo"],
        steps=800_000,
        learning_rate=3e-3,
        arguments={**_PPO, "n_steps": 32, "batch_size": 1024, "ent_coef": 0.0},
        summary_scale=0.0,
    ),
    "dqn": replace(
        RECIPES["dqn"],
        steps=800_000,
        net=(64, 64),
        learning_rate=1.2e-3,
        weight_decay=1e-4,
        arguments={
            **_DQN,
            "batch_size": 1024,
            "gradient_steps": 4,
            "target_update_interval": 5_000,
            "exploration_fraction": 0.2,
            "exploration_final_eps": 0.1,
        },
        summary_scale=0.0,
    ),
}
TUNED: dict[str, dict[str, Recipe]] = {"cifar10": _CIFAR, "cifar100": _CIFAR}
"""Recipes that replace those above where images of a data set are routed."""


def recipe_for(name: str, dataset: Any) -> Recipe:
    """The recipe of a learner for a data set; own data sets, which have no name, take the common one."""
    return TUNED.get(dataset if isinstance(dataset, str) else "", {}).get(name, RECIPES[name])
