"""Blindness: a learner that sees no image learns the best static path, so what it lacks is what adaptivity gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor

from rnr_gym.routing.observations import ObservationLayout
from rnr_gym.routing.protocols import FittedRouter
from rnr_gym.routing.spec import RoutingSpec


def blinded(where: ObservationLayout, observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """The observation `(N, D)` with the summary, all that depends on the image, set to zero; a copy."""
    dark = observation.copy()
    dark[:, : where.summary.size] = 0.0
    return dark


class BlindVecEnv(VecEnvWrapper):
    """A vector environment whose observations are blinded."""

    def __init__(self, venv: VecEnv, where: ObservationLayout) -> None:
        super().__init__(venv)
        self.where = where

    def reset(self) -> NDArray[np.float32]:
        observation = self.venv.reset()
        assert isinstance(observation, np.ndarray)
        return blinded(self.where, observation)

    def step_wait(self) -> VecEnvStepReturn:
        observation, rewards, dones, infos = self.venv.step_wait()
        assert isinstance(observation, np.ndarray)
        return blinded(self.where, observation), rewards, dones, infos


class BlindRouter:
    """A router that is shown blinded observations."""

    def __init__(self, spec: RoutingSpec, router: FittedRouter) -> None:
        self.spec, self.router = spec, router

    def predict(
        self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[np.int64], Any]:
        """What the inner router does when it sees no image."""
        return self.router.predict(blinded(self.spec.layout, observation), state, episode_start, deterministic)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.router.state()
