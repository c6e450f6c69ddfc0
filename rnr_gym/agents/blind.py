"""PPO that sees no image: it can only learn static paths, so adaptive routing has to beat it."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor

from rnr_gym.agents import sb3
from rnr_gym.agents.base import FitConfig, RouterBase
from rnr_gym.agents.sb3 import Sb3Router
from rnr_gym.routing.observations import ObservationLayout
from rnr_gym.routing.preferences import Preferences, preferences_of
from rnr_gym.routing.protocols import FittedRouter
from rnr_gym.routing.spec import RoutingSpec


def blinded(layout: ObservationLayout, observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy of observations `(N, D)` with the summary, all that depends on the image, set to 0."""
    obs = observation.copy()
    obs[:, : layout.summary.size] = 0.0
    return obs


class BlindVecEnv(VecEnvWrapper):
    """A vector environment whose observations are blinded."""

    def __init__(self, venv: VecEnv, layout: ObservationLayout) -> None:
        super().__init__(venv)
        self.layout = layout

    def reset(self) -> NDArray[np.float32]:
        """Reset all environments; blinded observations `(N, D)`."""
        obs = self.venv.reset()
        assert isinstance(obs, np.ndarray)
        return blinded(self.layout, obs)

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the step to end, and blind its observations."""
        # Infos are left as they are: PPO reads their `terminal_observation` only after truncation,
        # which does not occur.
        obs, rewards, dones, infos = self.venv.step_wait()
        assert isinstance(obs, np.ndarray)
        return blinded(self.layout, obs), rewards, dones, infos


class BlindRouter(RouterBase):
    """A router that is given blinded observations.

    Attributes:
        router: decides by what is left of them.
    """

    def __init__(self, spec: RoutingSpec, router: FittedRouter) -> None:
        super().__init__(spec)
        self.router = router

    def predict(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], Any]:
        """What the inner router does when it sees no image."""
        # It has learned from such observations only.
        obs = blinded(self.spec.layout, observation)
        return self.router.predict(obs, state, episode_start, deterministic)

    def preferences(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: Any = None,
    ) -> Preferences | None:
        """Those of the inner router, which are the same for all images."""
        obs = blinded(self.spec.layout, observation)
        return preferences_of(self.router, obs, state, episode_start)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Those of the inner router."""
        return self.router.state_dict()

    @classmethod
    def from_state_dict(
        cls,
        spec: RoutingSpec,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
    ) -> Self:
        """The blind router around an `Sb3Router` that is restored from the same arguments."""
        return cls(spec, Sb3Router.from_state_dict(spec, tensors, config))


def fit(fit_config: FitConfig) -> BlindRouter:
    """Learn with PPO's recipe, without ever seeing an image."""
    inner = sb3.fit(fit_config, "ppo", wrapper=BlindVecEnv)
    return BlindRouter(inner.spec, inner)
