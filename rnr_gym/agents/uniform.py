"""The router that draws among the valid sub-paths."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym.agents.base import FitConfig
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.spec import RoutingSpec


class UniformRouter:
    """Every valid sub-path with the same chance, whatever is observed."""

    def __init__(self, spec: RoutingSpec, seed: int = 0) -> None:
        self.spec, self.seed = spec, seed
        self.random = np.random.default_rng(seed)

    def predict(
        self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[np.int64], Any]:
        """Random however `deterministic` is set."""
        masks = self.spec.valid[layers_of(self.spec.layout, observation)]
        scores = self.random.random(masks.shape)
        return np.where(masks, scores, -1.0).argmax(1), state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"seed": self.seed}

    @classmethod
    def restore(cls, spec: RoutingSpec, tensors: dict[str, Tensor], facts: dict[str, Any]) -> UniformRouter:
        return cls(spec, facts["seed"])


def fit(fit_config: FitConfig) -> UniformRouter:
    """Nothing to learn but the seed."""
    return UniformRouter(fit_config.source("route").spec, fit_config.seed)
