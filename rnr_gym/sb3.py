"""The native vector environment as Stable-Baselines3's `VecEnv`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from rnr_gym.envs.vector import RoutingVectorEnv


def vec_env(env: str, num_envs: int = 64, seed: int | None = None, **arguments: Any) -> VecMonitor:
    """N episodes of a registered id for a Stable-Baselines3 learner, monitored; `arguments` as for `gym.make`.

    >>> model = PPO("MlpPolicy", vec_env("RNR-Digits-v0", 64, backend="table"), gamma=1.0)
    """
    native = gym.make_vec(env, num_envs=num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **arguments)
    assert isinstance(native, RoutingVectorEnv)
    adapted = RoutingVecEnv(native)
    adapted.seed(seed)
    return VecMonitor(adapted)


class RoutingVecEnv(VecEnv):
    """Adapter: arrays stay arrays, and only episodes that end get an info.

    That info holds all that the environment says at an episode's end (`is_success` becomes SB3's success rate, here
    top-1 accuracy), `terminal_observation` and `TimeLimit.truncated`. The infos of the others are empty.

    Args:
        env: a vector env with same-step autoreset, which is what Stable-Baselines3 expects.
    """

    def __init__(self, env: RoutingVectorEnv) -> None:
        if env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"`env` must use AutoresetMode.SAME_STEP, got {env.autoreset_mode}")
        if env.vector_reward:
            raise ValueError("`env` must give scalar rewards, got `vector_reward=True`; Stable-Baselines3 learns from one number")
        self.env = env  # before the parent's constructor, which asks it for `render_mode`
        self.actions = np.zeros(env.num_envs, np.int64)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> NDArray[np.float32]:
        named = {name for part in self._options for name in part}
        options = {name: [part.get(name) for part in self._options] for name in named}
        observation, infos = self.env.reset(seed=list(self._seeds), options=options or None)
        self.reset_infos = [_row(infos, row) for row in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: NDArray[np.int64]) -> None:
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        observation, rewards, ended, _, said = self.env.step(self.actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(ended).tolist():
            last = {"terminal_observation": said["final_obs"][row], "TimeLimit.truncated": False}
            infos[row] = last | _row(said["final_info"], row)
        return observation, rewards.astype(np.float32), ended, infos

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        return self.env.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        values = self.env.get_attr(attr_name)
        return [values[row] for row in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        if indices is not None:
            raise ValueError(f"`indices` must be None, since sub-environments share {attr_name!r}, got {indices!r}")
        self.env.set_attr(attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        values = self.env.call(method_name, *method_args, **method_kwargs)
        return [values[row] for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


def _row(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """One sub-environment's info, as a scalar environment would give it."""
    return {name: values[row] for name, values in infos.items() if not name.startswith("_") and infos[f"_{name}"][row]}
