"""The paper's Q-network: an encoder for each layer, one recurrent cell and one decoder for all."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rnr_gym.agents.features import policy_inputs, summary_part
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.spec import RoutingSpec


class QNetwork(nn.Module):
    """Estimates the value of every sub-path from what has been observed so far.

    Args:
        spec: the routing problem.
        embedding: width of what an encoder gives.
        hidden: width of the recurrent cell's state.
        summary_scale: factor of the raw summary among the inputs, see `features.policy_inputs`;
            with 0 it is left out.
        recurrent: False for a fully connected layer in place of the recurrent cell, which sees the
            current layer only.
        two_heads: False for one value, the return. True for two, the task term to go and minus the
            compute to go, which do not read λ.
    """

    def __init__(
        self,
        spec: RoutingSpec,
        embedding: int,
        hidden: int,
        summary_scale: float,
        recurrent: bool,
        two_heads: bool,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.hidden = hidden
        self.summary_scale = summary_scale
        self.two_heads = two_heads
        self.num_values = 2 if two_heads else 1

        self.columns = self._columns_read()
        num_inputs = len(self.columns)
        # What arrives differs in scale and meaning from layer to layer; what is decided does not.
        encoders = [nn.Linear(num_inputs, embedding) for _ in range(spec.num_layers)]
        self.encoders = nn.ModuleList(encoders)
        self.cell: nn.Module
        if recurrent:
            self.cell = nn.GRUCell(embedding, hidden)
        else:
            self.cell = nn.Linear(embedding, hidden)
        self.decoder = nn.Linear(hidden, spec.num_paths * self.num_values)

    def _columns_read(self) -> Tensor:
        """int64 `(I,)`: which of `features.policy_inputs` are read."""
        blank = torch.zeros(1, self.spec.layout.size)
        width = policy_inputs(self.spec.layout, blank, self.summary_scale).shape[1]
        read = torch.ones(width, dtype=torch.bool)
        if self.summary_scale == 0.0:
            # λ and its logarithm follow the features.
            read[summary_part(self.spec.layout, width - 2)] = False
        if self.two_heads:
            # Values to go are combined by λ afterwards.
            read[-2:] = False
        return read.nonzero()[:, 0]

    def inputs(self, observation: Tensor) -> Tensor:
        """What the encoders read of observations `(N, D)`; float32 `(N, I)`."""
        inputs = policy_inputs(self.spec.layout, observation, self.summary_scale)
        return inputs[:, self.columns]

    def forward(self, inputs: Tensor, layer: int, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One decision of N images that wait at the same layer.

        Args:
            inputs: float32 `(N, I)`.
            layer: the layer.
            memory: float32 `(N, hidden)`, zero at layer 0.

        Returns:
            Values `(N, K, V)`, V = `num_values`, and the next memory `(N, hidden)`.
        """
        code = self.encoders[layer](inputs).relu()  # (N, embedding)
        if isinstance(self.cell, nn.GRUCell):
            memory = self.cell(code, memory)
        else:
            memory = self.cell(code).relu()
        values = self.decoder(memory).unflatten(1, (self.spec.num_paths, self.num_values))
        return values, memory

    def along(self, inputs: Tensor) -> Tensor:
        """Values `(N, T, K, V)` along whole episodes, inputs `(N, T, I)`."""
        memory = inputs.new_zeros(len(inputs), self.hidden)
        values = []
        for layer in range(self.spec.num_layers):
            at_layer, memory = self(inputs[:, layer], layer, memory)
            values.append(at_layer)
        return torch.stack(values, 1)

    def returns(self, values: Tensor, tradeoff: Tensor) -> Tensor:
        """Estimated returns `(..., K)` from values `(..., K, V)` at trade-offs `(...)`."""
        if not self.two_heads:
            return values[..., 0]
        # The second is minus the compute to go.
        return values[..., 0] + tradeoff[..., None] * values[..., 1]

    @torch.no_grad()
    def estimates(
        self,
        observation: NDArray[np.float32],
        memory: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Estimated returns float32 `(N, K)` and the next memory, at whatever layers."""
        layers = layers_of(self.spec.layout, observation)
        obs = torch.from_numpy(observation)
        inputs = self.inputs(obs)
        tradeoff = obs[:, self.spec.layout.tradeoff.start]
        estimates = np.zeros((len(obs), self.spec.num_paths), np.float32)
        next_memory = np.zeros_like(memory)
        # Each layer has its own encoder, so images are grouped by layer.
        for layer in np.unique(layers).tolist():
            batch_idx = np.flatnonzero(layers == layer)
            before = torch.from_numpy(memory[batch_idx])
            values, after = self(inputs[batch_idx], layer, before)
            estimates[batch_idx] = self.returns(values, tradeoff[batch_idx]).numpy()
            next_memory[batch_idx] = after.numpy()
        return estimates, next_memory

    def decide(
        self,
        observation: NDArray[np.float32],
        memory: NDArray[np.float32],
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best valid sub-paths int64 `(N,)` and the next memory, at whatever layers."""
        estimates, next_memory = self.estimates(observation, memory)
        valid = self.spec.valid[layers_of(self.spec.layout, observation)]  # (N, K)
        return np.where(valid, estimates, -np.inf).argmax(1), next_memory


def masked(returns: Tensor, valid: NDArray[np.bool_]) -> Tensor:
    """Returns `(..., K)`, minus infinity where a sub-path is not valid; `valid` is broadcast."""
    return returns.masked_fill(torch.from_numpy(~valid), -torch.inf)
