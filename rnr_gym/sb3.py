"""The native vector environment as a `VecEnv` of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from rnr_gym import checks
from rnr_gym.envs.vector import RoutingVectorEnv
from rnr_gym.registration import IDS

PREFIX = "rnr_gym:"
"""Before an id it makes Gymnasium import this package first."""


def make_vec_env(
    env_id: str,
    n_envs: int = 64,
    seed: int | None = None,
    monitor_dir: str | PathLike[str] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> VecMonitor:
    """N episodes of a registered id for a Stable-Baselines3 learner, monitored.

    It takes the place of Stable-Baselines3's function of the same name, which would run N single
    environments instead of one batch.

    Args:
        env_id: the id, with or without `rnr_gym:` before it.
        n_envs: N.
        seed: of the first reset; sub-environment i gets seed + i. None for a random one.
        monitor_dir: where `monitor.csv` is written, with the return and the length of every
            episode, which Stable-Baselines3's `load_results` reads; None for nowhere.
        env_kwargs: as for `gym.make`.

    Raises `ValueError` for an id of another package.

    Example:
        >>> envs = make_vec_env("RNR-Digits-v0", env_kwargs={"backend": "table"})
        >>> model = PPO("MlpPolicy", envs, gamma=1.0)
    """
    if isinstance(env_id, str):
        env_id = env_id.removeprefix(PREFIX)
    checks.choice("env_id", env_id, IDS)
    if seed is not None:
        seed = checks.seed(seed)
    if env_kwargs is not None and not isinstance(env_kwargs, Mapping):
        raise ValueError(f"`env_kwargs` must be a dict or None, got {env_kwargs!r}")
    if monitor_dir is not None:
        checks.path("monitor_dir", monitor_dir)

    native = gym.make_vec(
        env_id,
        num_envs=checks.integer("n_envs", n_envs, 1),
        autoreset_mode=AutoresetMode.SAME_STEP,
        **(env_kwargs or {}),
    )
    assert isinstance(native, RoutingVectorEnv)
    adapted = RoutingVecEnv(native)
    adapted.seed(seed)
    if monitor_dir is None:
        return VecMonitor(adapted)
    # Stable-Baselines3 makes the folder, and adds the suffix.
    return VecMonitor(adapted, str(Path(monitor_dir, "monitor")))


class RoutingVecEnv(VecEnv):
    """Adapter that keeps arrays as arrays, and gives an info only to episodes that terminate.

    Such an info has all that the environment's info has at the end of an episode (`is_success`
    becomes SB3's success rate, here top-1 accuracy), `terminal_observation` and
    `TimeLimit.truncated`. The infos of the other episodes are empty.

    Args:
        env: a vector environment with same-step autoreset, which is what Stable-Baselines3 expects.

    Raises:
        ValueError: `env` has another autoreset mode, or vector rewards.
    """

    def __init__(self, env: RoutingVectorEnv) -> None:
        if env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"`env` must use AutoresetMode.SAME_STEP, got {env.autoreset_mode}")
        if env.vector_reward:
            raise ValueError(
                "`env` must give scalar rewards, got `vector_reward=True`; Stable-Baselines3 "
                "learns from one number"
            )

        # Before the parent's constructor, which asks the environment for `render_mode`.
        self.env = env
        self.actions = np.zeros(env.num_envs, np.int64)
        super().__init__(
            env.num_envs,
            env.single_observation_space,
            env.single_action_space,
        )

    def reset(self) -> NDArray[np.float32]:
        observation, infos = self.env.reset(
            seed=list(self._seeds),
            options=self._batched_options() or None,
        )
        self.reset_infos = [_row(infos, position) for position in range(self.num_envs)]

        # Stable-Baselines3's seeds and options hold for one reset.
        self._reset_seeds()
        self._reset_options()
        return observation

    def _batched_options(self) -> dict[str, list[Any]]:
        """Each option with one value per sub-environment, None where it was not given."""
        batched: dict[str, list[Any]] = {}
        for position, options in enumerate(self._options):
            for name, value in options.items():
                values = batched.setdefault(name, [None] * len(self._options))
                values[position] = value
        return batched

    def step_async(self, actions: NDArray[np.int64]) -> None:
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        observation, rewards, terminated, _, batched = self.env.step(self.actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for position in np.flatnonzero(terminated).tolist():
            info = infos[position]
            info["terminal_observation"] = batched["final_obs"][position]
            info["TimeLimit.truncated"] = False
            info.update(_row(batched["final_info"], position))

        # Stable-Baselines3 computes in single precision.
        return observation, rewards.astype(np.float32), terminated, infos

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        frames = self.env.render()
        if frames is None:
            return [None] * self.num_envs
        return frames

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        # Never called, even if it is a method: `has_attr("reset")` must reset nothing.
        value = getattr(self.env, attr_name)
        values = (value,) * self.num_envs
        if attr_name in ("np_random", "np_random_seed"):
            values = value
        return [values[position] for position in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        if indices is not None:
            raise ValueError(
                f"`indices` must be None, since sub-environments share {attr_name!r}, "
                f"got {indices!r}"
            )
        self.env.set_attr(attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        values = self.env.call(method_name, *method_args, **method_kwargs)
        return [values[position] for position in self._get_indices(indices)]

    def env_is_wrapped(
        self,
        wrapper_class: type[gym.Wrapper],
        indices: VecEnvIndices = None,
    ) -> list[bool]:
        # The native environment has no scalar environments inside that could be wrapped.
        return [False for _ in self._get_indices(indices)]


def _row(infos: dict[str, Any], position: int) -> dict[str, Any]:
    """The info of one sub-environment, as a scalar environment would give it."""
    info = {}
    for name, values in infos.items():
        # Gymnasium's masks, `_name`, say which sub-environments have an entry.
        if not name.startswith("_") and infos[f"_{name}"][position]:
            info[name] = values[position]
    return info
