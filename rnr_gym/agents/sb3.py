"""Stable-Baselines3's learners as routers: making, fitting and restoring them by their recipes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Self

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

from rnr_gym import checks, storage
from rnr_gym.agents import dqn, ppo
from rnr_gym.agents.base import CHECKPOINT, FitConfig, RouterBase, check_widths
from rnr_gym.agents.features import policy_inputs
from rnr_gym.agents.recipes import Recipe, for_dataset
from rnr_gym.envs.routing import observation_space
from rnr_gym.progress import progress_bar
from rnr_gym.routing.observations import ObservationLayout, layers_of
from rnr_gym.routing.preferences import Preferences, action_scores, of_policy
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.sb3 import make_vec_env

RECIPES: dict[str, Recipe] = {
    "ppo": ppo.PPO,
    "dqn": dqn.DQN,
    "a2c": ppo.A2C,
    "maskable-ppo": ppo.MASKABLE_PPO,
    "qr-dqn": dqn.QR_DQN,
}
"""The learners by name, with their common recipes."""
BY_DATASET: dict[str, dict[str, Recipe]] = {
    "ppo": ppo.BY_DATASET,
    "dqn": dqn.BY_DATASET,
}
"""By learner and data set: the recipes that replace the common ones."""


def recipe_for(name: str, dataset: object) -> Recipe:
    """The recipe of a learner for a data set."""
    return for_dataset(dataset, RECIPES[name], BY_DATASET.get(name, {}))


class RoutingFeatures(BaseFeaturesExtractor):
    """`features.policy_inputs` as Stable-Baselines3's policies expect them."""

    def __init__(
        self,
        observation_space: spaces.Box,
        layout: ObservationLayout,
        summary_scale: float,
    ) -> None:
        obs = torch.zeros(1, *observation_space.shape)
        width = policy_inputs(layout, obs, summary_scale).shape[1]
        super().__init__(observation_space, features_dim=width)
        self.layout = layout
        self.summary_scale = summary_scale

    def forward(self, observations: Tensor) -> Tensor:
        """Observations float32 `(N, D)` -> `(N, features_dim)`."""
        return policy_inputs(self.layout, observations, self.summary_scale)


class Sb3Router(RouterBase):
    """A policy, and the recipe by which it has learned.

    Attributes:
        policy: of Stable-Baselines3 or sb3-contrib.
        name: the learner's, in `RECIPES`.
        recipe: the learner's.
        masked: whether the policy is given the action masks of the layer.
        reads_features: whether what it decides depends on pooled features.
    """

    def __init__(self, spec: RoutingSpec, policy: BasePolicy, name: str, recipe: Recipe) -> None:
        super().__init__(spec)
        self.policy = policy
        self.name = name
        self.recipe = recipe
        self.masked = recipe.algorithm.endswith(":MaskablePPO")
        self.reads_features = recipe.summary_scale > 0.0
        # Looked up once, since a policy goes through its parameters each time.
        self.device = policy.device

    def predict(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], Any]:
        """The policy's action for each observation `(N, D)`, and the state that it returns."""
        # What `policy.predict` does otherwise takes several times as long for one image.
        if deterministic and not self.masked:
            with torch.inference_mode():
                obs = torch.from_numpy(observation).to(self.device)
                return action_scores(self.policy, obs).argmax(1).cpu().numpy(), state

        # Only the policies of MaskablePPO accept masks.
        kwargs: dict[str, NDArray[np.bool_]] = {}
        if self.masked:
            layers = layers_of(self.spec.layout, observation)
            kwargs["action_masks"] = self.spec.valid[layers]  # (N, K)

        actions, state = self.policy.predict(
            observation,
            state,
            episode_start,
            deterministic,
            **kwargs,
        )
        return np.asarray(actions, np.int64), state

    def preferences(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: Any = None,
    ) -> Preferences | None:
        """What the policy says of each sub-path; of masked ones, probability 0."""
        told = of_policy(self.policy, observation)
        if told is None or not self.masked:
            return told
        valid = self.spec.valid[layers_of(self.spec.layout, observation)]  # (N, K)
        offered = np.where(valid, told.values, 0.0)
        return told._replace(values=offered / offered.sum(1, keepdims=True))

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The policy's tensors; the learner's name, and what in its recipe shapes the network."""
        config = {
            "recipe": self.name,
            "net": list(self.recipe.net_arch),
            "summary_scale": self.recipe.summary_scale,
        }
        return dict(self.policy.state_dict()), config

    @classmethod
    def from_state_dict(
        cls,
        spec: RoutingSpec,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
    ) -> Self:
        """The router whose `state_dict` returned `tensors` and `config`."""
        checks.number("summary_scale", config["summary_scale"], 0.0)
        check_widths("net", config["net"], tensors)
        # The class to import is named by the recipe, never by the file.
        recipe = replace(
            RECIPES[config["recipe"]],
            net_arch=tuple(config["net"]),
            summary_scale=config["summary_scale"],
        )
        policy_class = _algorithm(recipe).policy_aliases["MlpPolicy"]
        policy = policy_class(
            observation_space(spec),
            spaces.Discrete(spec.num_paths),
            lambda _: 0.0,  # the learning rate: it has learned
            **_policy_kwargs(recipe, spec.layout),
        )
        policy.load_state_dict(tensors)
        policy.set_training_mode(False)
        return cls(spec, policy, config["recipe"], recipe)


def fit(
    fit_config: FitConfig,
    name: str,
    wrapper: Callable[[VecEnv, ObservationLayout], VecEnv] | None = None,
) -> Sb3Router:
    """Learn to route, with a trade-off that is drawn for each episode and observed.

    With a `run_dir`, checkpoints and TensorBoard logs are written there, and the learner resumes
    from the checkpoint if there is one.

    Args:
        fit_config: what the router is fitted to.
        name: the learner's, one of `RECIPES`.
        wrapper: changes what is observed, as `blind.BlindVecEnv` does; None for no change.
    """
    kwargs = fit_config.source_kwargs("route")
    spec = fit_config.source("route").spec
    recipe = recipe_for(name, kwargs.get("dataset"))
    steps = fit_config.steps or recipe.steps

    env_kwargs = {**kwargs, "tradeoff": fit_config.tradeoffs}
    env: VecEnv = make_vec_env(
        fit_config.env, recipe.num_envs, fit_config.seed, env_kwargs=env_kwargs
    )
    if wrapper is not None:
        env = wrapper(env, spec.layout)
    model = learner(recipe, env, spec.layout, fit_config.seed)

    title = f"{name} seed {fit_config.seed}"
    callbacks: list[BaseCallback] = [ProgressBar(steps, title, fit_config.progress)]
    if fit_config.run_dir is not None:
        model.set_logger(configure(str(fit_config.run_dir / "tensorboard"), ["tensorboard"]))
        # What must be the same where the checkpoint is resumed, blindness included.
        identity = {
            "recipe": asdict(replace(recipe, steps=steps)),
            "name": name,
            "blind": wrapper is not None,
        }
        checkpoint = CheckpointCallback(fit_config.run_dir, identity)
        checkpoint.resume(model)
        callbacks.append(checkpoint)

    # A learner that was killed after its last step has nothing left to learn.
    remaining = steps - model.num_timesteps
    if remaining > 0:
        model.learn(
            remaining,
            CallbackList(callbacks),
            reset_num_timesteps=model.num_timesteps == 0,
        )
    env.close()
    # The last distribution holds on to gradients, with which a policy cannot be copied.
    distribution: Any = getattr(model.policy, "action_dist", None)
    if distribution is not None:
        distribution.distribution = None
    return Sb3Router(spec, model.policy, name, recipe)


def learner(recipe: Recipe, env: VecEnv, layout: ObservationLayout, seed: int) -> BaseAlgorithm:
    """The algorithm of a recipe, before it has learned anything."""
    model = _algorithm(recipe)(
        "MlpPolicy",
        env,
        learning_rate=_falling(recipe.learning_rate),
        seed=seed,
        device="cpu",
        policy_kwargs=_policy_kwargs(recipe, layout),
        **recipe.kwargs,
    )
    if recipe.full_path_bias:
        # The full path is the last action.
        with torch.no_grad():
            model.policy.action_net.bias[-1] += recipe.full_path_bias
    return model


def _algorithm(recipe: Recipe) -> Any:
    """The class that a recipe names; raises `ValueError` where sb3-contrib is not installed."""
    module, name = recipe.algorithm.split(":")
    # Imported only here, since sb3-contrib is optional.
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"`agent` {name} needs sb3-contrib; install rnr-gym[contrib]") from error


def _policy_kwargs(recipe: Recipe, layout: ObservationLayout) -> dict[str, Any]:
    return {
        "net_arch": list(recipe.net_arch),
        "features_extractor_class": RoutingFeatures,
        "features_extractor_kwargs": {"layout": layout, "summary_scale": recipe.summary_scale},
        "optimizer_class": torch.optim.Adam,
        "optimizer_kwargs": {"weight_decay": recipe.weight_decay},
        **recipe.policy_kwargs,
    }


def _falling(start: float) -> Callable[[float], float]:
    """The learning rate as a function of the share of steps that remain, from 1 to 0."""
    return lambda remaining: start * (0.1 + 0.9 * remaining)


class ProgressBar(BaseCallback):
    """A progress bar over environment steps.

    Args:
        total: environment steps, those before a checkpoint included.
        title: shown in front of the bar.
        shown: False for no bar.
    """

    def __init__(self, total: int, title: str, shown: bool) -> None:
        super().__init__()
        self.total = total
        self.title = title
        self.shown = shown

    def _on_training_start(self) -> None:
        self.bar = progress_bar(
            total=self.total,
            initial=self.num_timesteps,
            desc=self.title,
            unit="step",
            disable=not self.shown,
        )

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True

    def _on_training_end(self) -> None:
        self.bar.close()


class CheckpointCallback(BaseCallback):
    """Saves what has been learned at regular intervals, so that a killed run can resume.

    Weights, optimiser and step count are saved. The replay buffer is not: a resumed off-policy
    learner fills it again.

    Args:
        run_dir: where the checkpoint is written.
        identity: JSON-able; a checkpoint is resumed only by a learner with the same identity.
        every: environment steps between two checkpoints.
    """

    def __init__(self, run_dir: Path, identity: dict[str, Any], every: int = 50_000) -> None:
        super().__init__()
        self.path = run_dir / CHECKPOINT
        self.identity = identity
        self.every = every

    def resume(self, model: BaseAlgorithm) -> None:
        """Load the checkpoint into the model, if there is one.

        Raises `ValueError` if it was written with another identity.
        """
        if not self.path.exists():
            return

        tensors, metadata = storage.load_tensors(self.path)
        # Compared as JSON, which has no tuples.
        if metadata.get("identity") != json.loads(json.dumps(self.identity)):
            raise ValueError(
                "`run_dir` must hold a run with the same configuration, got "
                f"{str(self.path.parent)!r}, begun with {metadata.get('identity')}"
            )
        parameters = storage.nested(tensors, metadata["leaves"])
        model.set_parameters(parameters, exact_match=True, device="cpu")
        model.num_timesteps = metadata["steps"]

    def _on_training_start(self) -> None:
        # After `resume`, the steps do not begin at 0.
        self.next = self.num_timesteps + self.every

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.next:
            self.next += self.every
            self._save()
        return True

    def _save(self) -> None:
        tensors, leaves = storage.flattened(self.model.get_parameters())
        metadata = {"identity": self.identity, "leaves": leaves, "steps": self.num_timesteps}
        storage.save_tensors(self.path, tensors, metadata)
