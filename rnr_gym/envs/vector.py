"""The environment for N images at once: one batched pass instead of N."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rnr_gym import checks
from rnr_gym.envs.episodes import Episodes, StartOptions, Transition
from rnr_gym.envs.rendering import frame
from rnr_gym.envs.routing import (
    REWARD_DIM,
    RoutingEnv,
    check_index,
    check_kwargs,
    check_options,
    observation_space,
    reward_space,
)
from rnr_gym.routing.protocols import Indices
from rnr_gym.routing.rewards import check_one_tradeoff, check_tradeoff
from rnr_gym.routing.sources import SourceKwargs, open_images, open_source

Infos = dict[str, Any]
Observations = NDArray[np.float32]
BatchedStep = tuple[Observations, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], Infos]
RENDER_MODES = ("rgb_array",)
PER_ENV = ("action_masks", "np_random", "np_random_seed", "render")
"""What holds one entry for each sub-environment; all else that `call` finds is shared by them."""


class RoutingVectorEnv(gym.vector.VectorEnv[Observations, Indices, NDArray[Any]]):
    """N episodes of `RoutingEnv` side by side.

    It gives, number for number, what a `SyncVectorEnv` of N scalar environments gives. Every
    sub-environment has its own generator, seeded with seed + i. `reset` takes `options` with
    `"index"` and `"tradeoff"`, each one value or `(N,)` of them, and `"reset_mask"`, bool `(N,)`.
    Rewards are float64 `(N,)`, with `vector_reward` `(N, 2)`. After
    `make_vec(..., render_mode="rgb_array")`, `render` gives a frame for each sub-environment.

    `routing_spec` describes decisions, costs and where the parts of an observation are.

    Args:
        num_envs: N.
        autoreset_mode: any of Gymnasium's three, also by its name, such as `"SAME_STEP"`; if left
            out next-step, Gymnasium's own default. There a third of all steps would only reset,
            since episodes have few steps: prefer same-step.
        tradeoff: as for `RoutingEnv`.
        reward: as for `RoutingEnv`.
        vector_reward: as for `RoutingEnv`.
        render_mode: None or `"rgb_array"`.
        source_kwargs: as for `RoutingEnv`.
    """

    def __init__(
        self,
        *,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        tradeoff: float | tuple[float, float] = 0.3,
        reward: str = "accuracy",
        vector_reward: bool = False,
        render_mode: str | None = None,
        **source_kwargs: Unpack[SourceKwargs],
    ) -> None:
        num_envs = checks.integer("num_envs", num_envs, 1)
        if render_mode is not None:
            checks.choice("render_mode", render_mode, RENDER_MODES)
        # Before the source is opened, which may download images.
        tradeoff_range = check_tradeoff(tradeoff)
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        # Gymnasium's `make_vec` may pass on an option of its own.
        source_kwargs.pop("disable_env_checker", None)  # type: ignore[typeddict-item]
        check_kwargs(source_kwargs)

        self.source = open_source(**source_kwargs)
        self.routing_spec = self.source.spec
        self.episodes = Episodes(self.source, num_envs, tradeoff_range, reward)
        self.num_envs = num_envs
        self.vector_reward = checks.flag("vector_reward", vector_reward)
        self.render_mode = render_mode
        self.metadata = {
            **RoutingEnv.metadata,
            "render_modes": list(RENDER_MODES),
            "autoreset_mode": self.autoreset_mode,
        }
        self._load_images = partial(open_images, **source_kwargs)
        self._all_idx = np.arange(num_envs)
        self._np_random_seeds: dict[int, int] = {}

        spec = self.routing_spec
        self.single_observation_space = observation_space(spec)
        self.single_action_space = gym.spaces.Discrete(spec.num_paths)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        if vector_reward:
            # One sub-environment's, as MO-Gymnasium's vector environments have it.
            self.reward_space = reward_space(spec, reward)
            self.reward_dim = REWARD_DIM

    @property
    def tradeoff(self) -> tuple[float, float]:
        """λ as (low, high), equal if it is one number; a change applies to the next episodes."""
        return self.episodes.tradeoff_range

    @tradeoff.setter
    def tradeoff(self, value: float | tuple[float, float]) -> None:
        self.episodes.tradeoff_range = value

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of each sub-environment; empty before the first reset."""
        return tuple(sampler.np_random for sampler in self.episodes.samplers.values())

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each generator, also of those that were seeded at random."""
        return tuple(self._np_random_seeds[position] for position in self.episodes.samplers)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observations, Infos]:
        """Start N episodes, or those that `options["reset_mask"]` selects."""
        options = check_options(options, ("index", "tradeoff", "reset_mask"))
        env_idx = self._selected(options.get("reset_mask"))
        self._seed(env_idx, self._seeds(seed))
        self.episodes.begin(env_idx, self._start_options(env_idx, options))
        infos = self._batched(self.episodes.info(env_idx), env_idx)
        return self.episodes.observation(), infos

    def step(self, actions: Indices) -> BatchedStep:
        """Execute one action for each sub-environment, int `(N,)`.

        Raises:
            ValueError: the actions are not N numbers of the action space.
            gymnasium.error.ResetNeeded: before a reset, or without autoreset after the end of an
                episode.
        """
        actions = self._check_actions(actions)
        active = ~self.episodes.state.done
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            transition, infos = self._next_step(actions, active)
        elif self.autoreset_mode is AutoresetMode.SAME_STEP:
            transition, infos = self._same_step(actions)
        else:
            transition, infos = self._without_autoreset(actions, active)

        rewards = transition.reward
        if self.vector_reward:
            rewards = transition.vector_reward
        truncated = np.zeros(self.num_envs, np.bool_)
        return self.episodes.observation(), rewards, transition.terminated, truncated, infos

    def _next_step(self, actions: Indices, active: NDArray[np.bool_]) -> tuple[Transition, Infos]:
        """Episodes that terminated in the step before begin again now; the others move."""
        # Terminated episodes stay where they are, and earn nothing in this step.
        transition = self.episodes.step(actions)
        finished_idx = np.flatnonzero(~active)
        if len(finished_idx):
            self.episodes.begin(finished_idx)

        return transition, self._infos()

    def _same_step(self, actions: Indices) -> tuple[Transition, Infos]:
        """All episodes move; those that terminate begin again at once.

        Their last observations and infos are kept as `final_obs` and `final_info`.
        """
        transition = self.episodes.step(actions)
        if not transition.terminated.any():
            return transition, self._infos()

        # Before the next episodes take their places.
        final_infos = self._final_infos(transition.terminated)
        self.episodes.begin(np.flatnonzero(transition.terminated))
        return transition, final_infos | self._infos()

    def _without_autoreset(
        self,
        actions: Indices,
        active: NDArray[np.bool_],
    ) -> tuple[Transition, Infos]:
        """All episodes move; those that have terminated must have been reset."""
        if not active.all():
            finished = np.flatnonzero(~active).tolist()
            raise gym.error.ResetNeeded(
                f"the episodes of sub-environments {finished} have terminated; call `reset` with "
                '`options["reset_mask"]` before `step`'
            )
        return self.episodes.step(actions), self._infos()

    def action_masks(self) -> NDArray[np.bool_]:
        """bool `(N, K)`: the valid actions of each sub-environment."""
        return self.episodes.action_masks()

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """A frame uint8 `(540, 960, 3)` for each sub-environment; None without a `render_mode`."""
        if self.render_mode is None:
            return None
        frames = []
        for position in range(self.num_envs):
            scene = self.episodes.scene(self._load_images, position)
            frames.append(frame(scene))
        return tuple(frames)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method, or read an attribute; one result for each sub-environment."""
        result = getattr(self, name)
        if callable(result):
            result = result(*args, **kwargs)

        if name in PER_ENV and result is not None:
            return tuple(result)
        return (result,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute, once for each sub-environment."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute, such as `tradeoff`, which all sub-environments share.

        Raises:
            ValueError: `values` is a list that does not hold the same value N times.
        """
        if isinstance(values, list):
            if len(values) != self.num_envs or any(value != values[0] for value in values):
                raise ValueError(
                    f"`values` must be one value, or the same value {self.num_envs} times, since "
                    f"sub-environments share `{name}`, got {values!r}"
                )
            values = values[0]
        setattr(self, name, values)

    def _check_actions(self, actions: Any) -> Indices:
        actions = checks.whole_numbers("actions", actions, (self.num_envs,))
        highest = self.routing_spec.num_paths - 1
        if actions.min() < 0 or actions.max() > highest:
            raise ValueError(f"`actions` must lie in 0..{highest}, got {actions.tolist()}")
        return actions

    def _selected(self, mask: Any) -> Indices:
        """The sub-environments that a reset mask selects; all of them without one."""
        if mask is None:
            return self._all_idx

        is_mask = isinstance(mask, np.ndarray) and mask.dtype == np.bool_
        if not is_mask or mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f'`options["reset_mask"]` must be bool ({self.num_envs},) with at least one True, '
                f"got {mask!r}"
            )
        # The others would have no image.
        if not self.episodes.started and not mask.all():
            raise gym.error.ResetNeeded("the first `reset` must start every sub-environment")
        return np.flatnonzero(mask)

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        """One seed for each sub-environment; None to keep its generator."""
        if seed is None:
            return [None] * self.num_envs
        # As Gymnasium's own vector environments count on from one number.
        if np.ndim(seed) == 0:  # type: ignore[arg-type]
            first = checks.integer("seed", seed, 0)
            return [first + position for position in range(self.num_envs)]

        seeds = list(seed)  # type: ignore[arg-type]
        if len(seeds) != self.num_envs:
            raise ValueError(f"`seed` must be a number or {self.num_envs} of them, got {seed!r}")
        return [None if one is None else checks.integer("seed", one, 0) for one in seeds]

    def _seed(self, env_idx: Indices, seeds: list[int | None]) -> None:
        for position in env_idx.tolist():
            # Without a seed the first generator is a random one.
            if seeds[position] is not None or position not in self.episodes.samplers:
                np_random, seed = gym.utils.seeding.np_random(seeds[position])
                self.episodes.seed(position, np_random)
                self._np_random_seeds[position] = seed

    def _start_options(
        self,
        env_idx: Indices,
        options: Mapping[str, Any],
    ) -> list[StartOptions]:
        """The options of each sub-environment in `env_idx`, checked."""
        indices = self._for_each(options, "index")
        tradeoffs = self._for_each(options, "tradeoff")
        start_options = []
        for position in env_idx.tolist():
            start = StartOptions()
            if indices[position] is not None:
                index = check_index(indices[position], len(self.source.labels))
                start = start._replace(image_idx=index)
            if tradeoffs[position] is not None:
                tradeoff = check_one_tradeoff(tradeoffs[position])
                start = start._replace(tradeoff=tradeoff)
            start_options.append(start)
        return start_options

    def _for_each(self, options: Mapping[str, Any], name: str) -> NDArray[Any]:
        """An option's value for each sub-environment, None where it was not given."""
        value: Any = options.get(name)
        if np.shape(value) not in ((), (self.num_envs,)):
            raise ValueError(
                f'`options["{name}"]` must be one value or {self.num_envs} of them, got {value!r}'
            )
        return np.broadcast_to(value, self.num_envs)

    def _infos(self) -> Infos:
        return self._batched(self.episodes.info(self._all_idx), self._all_idx)

    def _final_infos(self, terminated: NDArray[np.bool_]) -> Infos:
        """The last observations and infos of episodes that same-step autoreset replaces."""
        env_idx = np.flatnonzero(terminated)
        # An array of objects, as Gymnasium has it: None for those that continue.
        final_obs = np.full(self.num_envs, None, dtype=object)
        for position, obs in zip(env_idx, self.episodes.last_observation(env_idx), strict=True):
            final_obs[position] = obs

        return {
            "final_obs": final_obs,
            "_final_obs": terminated.copy(),
            "final_info": self._batched(self.episodes.info(env_idx), env_idx),
            "_final_info": terminated.copy(),
        }

    def _batched(self, arrays: Mapping[str, NDArray], env_idx: Indices) -> Infos:
        """Infos as Gymnasium batches them.

        Each array `(n, ...)` of the sub-environments `env_idx` becomes `(N, ...)`, zero for the
        others, with a mask under its name after an underscore.
        """
        infos: Infos = {}
        mask = np.zeros(self.num_envs, np.bool_)
        mask[env_idx] = True
        for name, array in arrays.items():
            values = np.zeros((self.num_envs, *array.shape[1:]), array.dtype)
            values[env_idx] = array
            infos[name] = values
            # No two arrays that are handed out share memory.
            infos[f"_{name}"] = mask.copy()
        return infos


def _autoreset_mode(mode: Any) -> AutoresetMode:
    """The mode, also by its name or value: `"SAME_STEP"` or `"SameStep"`."""
    if isinstance(mode, AutoresetMode):
        return mode
    if isinstance(mode, str) and mode in AutoresetMode.__members__:
        return AutoresetMode[mode]
    return AutoresetMode(
        checks.choice("autoreset_mode", mode, [known.value for known in AutoresetMode])
    )
