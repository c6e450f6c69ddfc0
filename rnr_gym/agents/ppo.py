"""PPO and its closest relatives, A2C and MaskablePPO: the values they learn with, and why.

The common values are the best of ten trials of `benchmarks/tune.py` on the digits
(`benchmarks/tuned_digits.json`), with as many environment steps in a trial as for DQN. The search
was made before learners read features of doubt, PPO started near the full path, and halves of
`route` were drawn at random, so `summary_scale` and `full_path_bias` are not tuned.
"""

from __future__ import annotations

from dataclasses import replace

from rnr_gym.agents.recipes import CIFAR, Recipe

PPO = Recipe(
    algorithm="stable_baselines3:PPO",
    steps=400_000,  # as in a trial
    num_envs=128,  # not searched
    net_arch=(16,),  # the narrowest of five that were tried
    learning_rate=6.7e-4,  # drawn from 5e-4 to 5e-3
    weight_decay=0.0,
    kwargs={
        "n_steps": 8,  # in each environment, so an update is made from 1,024 steps
        "batch_size": 256,
        "n_epochs": 6,
        "gae_lambda": 0.95,
        "ent_coef": 0.002,
        # Episodes are short and, the backbone being frozen, deterministic: nothing is discounted.
        "gamma": 1.0,
    },
    # From even odds a learner may settle on the glance for good. The size is not tuned.
    full_path_bias=3.0,
    summary_scale=0.1,  # not tuned
)

# Not searched: PPO's values where A2C has them, with a higher learning rate.
A2C = Recipe(
    algorithm="stable_baselines3:A2C",
    steps=400_000,
    num_envs=128,
    net_arch=(16,),
    learning_rate=1e-3,
    weight_decay=0.0,
    kwargs={"n_steps": 8, "gae_lambda": 0.95, "ent_coef": 0.002, "gamma": 1.0},
    full_path_bias=3.0,
    summary_scale=0.1,
)

# Not searched: PPO's values.
MASKABLE_PPO = replace(PPO, algorithm="sb3_contrib:MaskablePPO")

# The best of seven trials by hand on `RNR-CIFAR10-v0` (`benchmarks/cifar10/README.md`).
PPO_CIFAR = replace(
    PPO,
    steps=800_000,  # as for DQN; a trial took 1,200,000
    learning_rate=3e-3,  # better than 1.5e-3
    kwargs={
        **PPO.kwargs,
        # As in the best trial of `benchmarks/tune.py` on `RNR-CIFAR10-Table-v0`.
        "n_steps": 32,
        "batch_size": 1024,
        "ent_coef": 0.0,
    },
    # The raw summary, hundreds of values for 5,000 images, made learners memorise images. Without
    # it they read how confident the exits are, what has been spent, and the layer.
    summary_scale=0.0,
)

BY_DATASET = dict.fromkeys(CIFAR, PPO_CIFAR)
"""Recipes that replace `PPO` where images of a data set are routed; none is tuned on CIFAR-100."""
