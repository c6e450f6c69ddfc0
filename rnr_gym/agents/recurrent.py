"""What routers that remember have in common: a `QNetwork`, and memory passed from call to call."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym.agents.base import RouterBase
from rnr_gym.agents.rnr_dqn_network import QNetwork
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.preferences import Preferences
from rnr_gym.routing.spec import RoutingSpec


class RecurrentRouter(RouterBase):
    """Takes the sub-path that its network values most; remembers what it has seen of an image.

    Attributes:
        network: values every sub-path.
        config: a dataclass, by which the network was fitted.
    """

    def __init__(self, spec: RoutingSpec, network: QNetwork, config: Any) -> None:
        super().__init__(spec)
        self.network = network
        self.config = config

    def predict(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], Any]:
        """The best sub-paths `(N,)`, and the memory `(N, hidden)` for the next call, in a tuple.

        The memory is cleared where an episode starts, which each observation shows by its layer.
        """
        actions, memory = self.network.decide(observation, self._memory(observation, state))
        return actions, (memory,)

    def preferences(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: Any = None,
    ) -> Preferences:
        """What the network says of the sub-paths, with the memory that `predict` returned."""
        estimates, _ = self.network.estimates(observation, self._memory(observation, state))
        return Preferences("Q-value", estimates.astype(np.float64))

    def _memory(self, observation: NDArray[np.float32], state: Any) -> NDArray[np.float32]:
        if state is None:
            return np.zeros((len(observation), self.network.hidden), np.float32)
        return cleared(self.spec, observation, state[0])

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The network's tensors, and how it was fitted."""
        return dict(self.network.state_dict()), asdict(self.config)


def cleared(
    spec: RoutingSpec,
    observation: NDArray[np.float32],
    memory: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Memory `(N, hidden)`, zero for images that wait at layer 0."""
    started = layers_of(spec.layout, observation) > 0
    return memory * started[:, None].astype(np.float32)
