"""A Stable-Baselines3 learner as a router: fitting, keeping, taking up again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from tqdm import tqdm

from rnr_gym import storage
from rnr_gym.agents.blind import BlindRouter, BlindVecEnv
from rnr_gym.agents.features import features, summary_part
from rnr_gym.agents.recipes import RECIPES, Recipe, recipe_for
from rnr_gym.agents.base import FitConfig
from rnr_gym.envs.routing import observation_space
from rnr_gym.routing.observations import ObservationLayout, layers_of
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.sb3 import vec_env

CHECKPOINT = "checkpoint.safetensors"


class RoutingFeatures(BaseFeaturesExtractor):
    """Observations `(N, D)` -> `features`, the raw summary among them scaled down, then log λ and λ.

    What to do changes with ratios of λ, what it is worth with λ itself. The raw summary has hundreds
    of entries, some of which tell single images apart: at full scale it would drown the rest.
    """

    def __init__(self, observation_space: spaces.Box, layout: ObservationLayout, summary_scale: float) -> None:
        blank = torch.zeros(1, *observation_space.shape)
        width = features(layout, blank).shape[1]
        super().__init__(observation_space, width + 2)
        self.layout = layout
        self.summary_scale = summary_scale
        self.scaled = summary_part(layout, width)

    def forward(self, observations: Tensor) -> Tensor:
        found = features(self.layout, observations)
        found[:, self.scaled] *= self.summary_scale
        tradeoff = observations[:, self.layout.tradeoff]
        log_tradeoff = torch.log10(tradeoff.clamp(min=1e-3)) + 1.0
        return torch.cat([found, log_tradeoff, tradeoff], 1)


class Sb3Router:
    """A policy, with the recipe that made it. Policies that take action masks are given those of the layer."""

    def __init__(self, spec: RoutingSpec, policy: BasePolicy, name: str, recipe: Recipe) -> None:
        self.spec, self.policy, self.name, self.recipe = spec, policy, name, recipe
        self.masked = recipe.algorithm.endswith(":MaskablePPO")

    def predict(
        self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[np.int64], Any]:
        """The policy's action for each observation `(N, D)`."""
        more = {"action_masks": self.spec.valid[layers_of(self.spec.layout, observation)]} if self.masked else {}
        actions, state = self.policy.predict(observation, state, episode_start, deterministic, **more)
        return np.asarray(actions, np.int64), state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        config = {"recipe": self.name, "net": list(self.recipe.net), "summary_scale": self.recipe.summary_scale}
        return dict(self.policy.state_dict()), config


def restore(spec: RoutingSpec, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Sb3Router:
    """The router that `Sb3Router.state` described."""
    # What may be imported is named here, not in a file.
    recipe = replace(RECIPES[facts["recipe"]], net=tuple(facts["net"]), summary_scale=facts["summary_scale"])
    algorithm = _algorithm(recipe)
    model_policy = algorithm.policy_aliases["MlpPolicy"]
    policy = model_policy(observation_space(spec), spaces.Discrete(spec.num_paths), lambda _: 0.0, **_policy_arguments(recipe, spec.layout))
    policy.load_state_dict(tensors)
    policy.set_training_mode(False)
    return Sb3Router(spec, policy, facts["recipe"], recipe)


def restore_blind(spec: RoutingSpec, tensors: dict[str, Tensor], facts: dict[str, Any]) -> BlindRouter:
    """The blind router whose inner one `Sb3Router.state` described."""
    return BlindRouter(spec, restore(spec, tensors, facts))


def fit(fit_config: FitConfig, recipe: str) -> Sb3Router:
    """Learn to route, the trade-off drawn anew each episode and shown in the observation."""
    return _fit(fit_config, recipe, lambda env, _: env)


def fit_blind(fit_config: FitConfig, recipe: str) -> BlindRouter:
    """The same without ever seeing an image."""
    inner = _fit(fit_config, recipe, lambda env, spec: BlindVecEnv(env, spec.layout), blind=True)
    return BlindRouter(inner.spec, inner)


def learner(recipe: Recipe, env: VecEnv, layout: ObservationLayout, seed: int) -> BaseAlgorithm:
    """The algorithm of a recipe, ready to learn."""
    model = _algorithm(recipe)(
        "MlpPolicy", env, learning_rate=_falling(recipe.learning_rate), seed=seed, device="cpu",
        policy_kwargs=_policy_arguments(recipe, layout), **recipe.arguments,
    )  # fmt: skip
    if recipe.full_path_bias:
        with torch.no_grad():
            model.policy.action_net.bias[-1] += recipe.full_path_bias
    return model


def _fit(fit_config: FitConfig, name: str, wrap: Callable[[VecEnv, RoutingSpec], VecEnv], blind: bool = False) -> Sb3Router:
    recipe = recipe_for(name, fit_config.env_kwargs("route").get("dataset"))
    steps = fit_config.steps or recipe.steps
    spec = fit_config.source("route").spec
    arguments = {**fit_config.env_kwargs("route"), "tradeoff": fit_config.tradeoffs}
    env = wrap(vec_env(fit_config.env, recipe.num_envs, fit_config.seed, **arguments), spec)
    model = learner(recipe, env, spec.layout, fit_config.seed)
    keeper = CheckpointCallback(fit_config.folder, {"recipe": asdict(replace(recipe, steps=steps)), "name": name, "blind": blind}) if fit_config.folder else None
    if fit_config.folder and keeper:
        model.set_logger(configure(str(fit_config.folder / "tensorboard"), ["tensorboard"]))
        keeper.resume(model)
    bar = Bar(steps, f"{name} seed {fit_config.seed}", fit_config.progress)
    if model.num_timesteps < steps:
        model.learn(steps - model.num_timesteps, CallbackList([bar, *([keeper] if keeper else [])]), reset_num_timesteps=not model.num_timesteps)
    env.close()
    return Sb3Router(spec, model.policy, name, recipe)


def _algorithm(recipe: Recipe) -> Any:
    module, name = recipe.algorithm.split(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"`agent` {name} needs sb3-contrib; install rnr-gym[contrib]") from error


def _policy_arguments(recipe: Recipe, layout: ObservationLayout) -> dict[str, Any]:
    return {
        "net_arch": list(recipe.net),
        "features_extractor_class": RoutingFeatures,
        "features_extractor_kwargs": {"layout": layout, "summary_scale": recipe.summary_scale},
        "optimizer_class": torch.optim.Adam,
        "optimizer_kwargs": {"weight_decay": recipe.weight_decay},
        **recipe.policy,
    }


def _falling(start: float) -> Callable[[float], float]:
    return lambda remaining: start * (0.1 + 0.9 * remaining)


class Bar(BaseCallback):
    """A progress bar over environment steps."""

    def __init__(self, total: int, name: str, shown: bool) -> None:
        super().__init__()
        self.total, self.name, self.shown = total, name, shown

    def _on_training_start(self) -> None:
        self.bar = tqdm(total=self.total, initial=self.num_timesteps, desc=self.name, unit="step", disable=not self.shown, mininterval=0.5)

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True

    def _on_training_end(self) -> None:
        self.bar.close()


class CheckpointCallback(BaseCallback):
    """Writes what has been learnt, every so many steps, so that a killed run goes on.

    Weights, optimiser and step count are kept; an off-policy learner fills its replay buffer anew.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], every: int = 50_000) -> None:
        super().__init__()
        self.path, self.identity, self.every = folder / CHECKPOINT, identity, every

    def resume(self, model: BaseAlgorithm) -> None:
        """Load the checkpoint into the model, if there is one; `ValueError` if it belongs to other settings."""
        if not self.path.exists():
            return
        tensors, facts = storage.load_tensors(self.path)
        if facts["identity"] != json.loads(json.dumps(self.identity)):
            raise ValueError(f"`folder` must hold a run of the same settings, got {str(self.path.parent)!r}, begun with {facts['identity']}")
        model.set_parameters(storage.nested(tensors, facts["leaves"]), exact_match=True, device="cpu")
        model.num_timesteps = facts["steps"]

    def _on_training_start(self) -> None:
        self.next = self.num_timesteps + self.every

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.next:
            self.next += self.every
            tensors, leaves = storage.flattened(self.model.get_parameters())
            storage.save_tensors(self.path, tensors, {"identity": self.identity, "leaves": leaves, "steps": self.num_timesteps})
        return True
