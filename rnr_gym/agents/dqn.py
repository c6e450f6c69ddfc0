"""DQN and its closest relative, QR-DQN: the values they learn with, and why.

The common values are the best of ten trials of `benchmarks/tune.py` on the digits
(`benchmarks/tuned_digits.json`), with as many environment steps in a trial as for PPO. The search
was made before learners read features of doubt and halves of `route` were drawn at random, so
`summary_scale` is not tuned.
"""

from __future__ import annotations

from dataclasses import replace

from rnr_gym.agents.recipes import CIFAR, Recipe

DQN = Recipe(
    algorithm="stable_baselines3:DQN",
    steps=400_000,  # as in a trial
    num_envs=128,  # not searched
    net_arch=(32,),
    learning_rate=1.1e-3,  # drawn from 5e-4 to 5e-3
    weight_decay=1e-3,  # the strongest of four that were tried
    kwargs={
        "batch_size": 512,
        "buffer_size": 100_000,  # not searched
        "learning_starts": 5_000,  # not searched
        # One gradient step after each step of the 128 environments.
        "train_freq": 1,
        "gradient_steps": 1,
        # Episodes are short and, the backbone being frozen, deterministic: nothing is discounted.
        "gamma": 1.0,
        "target_update_interval": 1_000,
        "exploration_fraction": 0.6,
        "exploration_final_eps": 0.05,
    },
    summary_scale=0.1,  # not tuned
)

# Not searched: DQN's values, and fewer quantiles than the default of 200.
QR_DQN = replace(
    DQN,
    algorithm="sb3_contrib:QRDQN",
    policy_kwargs={"n_quantiles": 25},
)

# The best of ten trials of `benchmarks/tune.py` on `RNR-CIFAR10-Table-v0`
# (`benchmarks/cifar10/tuned.json`), apart from `steps` and `summary_scale`.
DQN_CIFAR = replace(
    DQN,
    steps=800_000,  # as for PPO; a trial took 600,000
    net_arch=(64, 64),
    learning_rate=1.2e-3,
    weight_decay=1e-4,
    kwargs={
        **DQN.kwargs,
        "batch_size": 1024,
        "gradient_steps": 4,
        "target_update_interval": 5_000,
        "exploration_fraction": 0.2,
        "exploration_final_eps": 0.1,
    },
    # The raw summary, hundreds of values for 5,000 images, made learners memorise images. Without
    # it they read how confident the exits are, what has been spent, and the layer.
    summary_scale=0.0,
)

BY_DATASET = dict.fromkeys(CIFAR, DQN_CIFAR)
"""Recipes that replace `DQN` where images of a data set are routed; none is tuned on CIFAR-100."""
