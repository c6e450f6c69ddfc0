"""The router that draws among the valid sub-paths."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym.agents.base import FitConfig, RouterBase
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.spec import RoutingSpec


class UniformRouter(RouterBase):
    """Takes every valid sub-path with the same probability, whatever is observed.

    Attributes:
        seed: of the draws, which continue from one call to the next.
    """

    def __init__(self, spec: RoutingSpec, seed: int = 0) -> None:
        super().__init__(spec)
        self.seed = seed
        self.rng = np.random.default_rng(seed)

    def actions(
        self,
        observation: NDArray[np.float32],
        deterministic: bool,
    ) -> NDArray[np.int64]:
        """Random sub-paths, also where `deterministic` is true."""
        valid = self.spec.valid[layers_of(self.spec.layout, observation)]  # (N, K)
        # The largest of independent uniform scores is at each valid sub-path equally often.
        scores = self.rng.random(valid.shape)
        return np.where(valid, scores, -1.0).argmax(1)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """No tensors, and the seed."""
        return {}, {"seed": self.seed}

    @classmethod
    def from_state_dict(
        cls,
        spec: RoutingSpec,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
    ) -> Self:
        """The router as it was before its first draw."""
        return cls(spec, config["seed"])


def fit(fit_config: FitConfig) -> UniformRouter:
    """Nothing is learned; the router only takes over the seed."""
    spec = fit_config.source("route").spec
    return UniformRouter(spec, fit_config.seed)
