"""Replay of whole episodes, which a recurrent network has to read from their beginning."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym.routing.protocols import Indices


class Episodes(NamedTuple):
    """B episodes of at most T decisions; what lies beyond an episode's end is zero.

    Attributes:
        inputs: float32 `(B, T, I)`, what the network reads.
        tradeoff: float32 `(B, T)`, λ.
        action: int64 `(B, T)`, executed sub-paths.
        task: float32 `(B, T)`, task terms of the rewards.
        charge: float32 `(B, T)`, what each step cost.
        length: int64 `(B,)`, decisions.
    """

    inputs: Tensor
    tradeoff: Tensor
    action: Tensor
    task: Tensor
    charge: Tensor
    length: Tensor

    @classmethod
    def blank(cls, num: int, num_layers: int, num_inputs: int) -> Episodes:
        """Space for `num` episodes."""
        shape = (num, num_layers)
        return cls(
            inputs=torch.zeros(*shape, num_inputs),
            tradeoff=torch.zeros(shape),
            action=torch.zeros(shape, dtype=torch.int64),
            task=torch.zeros(shape),
            charge=torch.zeros(shape),
            length=torch.zeros(num, dtype=torch.int64),
        )

    def take(self, idx: Tensor) -> Episodes:
        """The chosen episodes, in the order given."""
        return Episodes._make(field[idx] for field in self)


class Replay:
    """The episodes in progress in N environments, and the last ones that ended.

    Args:
        num_envs: N.
        capacity: how many ended episodes are kept; at least N.
        num_layers: T.
        num_inputs: I.
    """

    def __init__(self, num_envs: int, capacity: int, num_layers: int, num_inputs: int) -> None:
        self.open = Episodes.blank(num_envs, num_layers, num_inputs)
        self.ended = Episodes.blank(capacity, num_layers, num_inputs)
        self.env_idx = torch.arange(num_envs)
        self.capacity = capacity
        self.size = 0
        self.next = 0

    def record(
        self,
        layer: Indices,
        inputs: Tensor,
        tradeoff: NDArray[np.float32],
        action: Indices,
        task: NDArray[np.float64],
        charge: NDArray[np.float64],
        terminated: NDArray[np.bool_],
    ) -> None:
        """Add a step of every environment, each array `(N, ...)`; episodes that end are kept."""
        at = (self.env_idx, torch.from_numpy(layer))
        self.open.inputs[at] = inputs
        self.open.tradeoff[at] = torch.from_numpy(tradeoff)
        self.open.action[at] = torch.from_numpy(action)
        self.open.task[at] = torch.from_numpy(task).float()
        self.open.charge[at] = torch.from_numpy(charge).float()
        self.open.length[:] = at[1] + 1

        idx = torch.from_numpy(np.flatnonzero(terminated))
        slots = (self.next + torch.arange(len(idx))) % self.capacity
        for kept, opened in zip(self.ended, self.open, strict=True):
            kept[slots] = opened[idx]
            # The next episode of this environment may be shorter.
            opened[idx] = 0
        self.next = (self.next + len(idx)) % self.capacity
        self.size = min(self.size + len(idx), self.capacity)

    def sample(self, num: int, generator: torch.Generator) -> Episodes:
        """Ended episodes, drawn with replacement."""
        return self.ended.take(torch.randint(self.size, (num,), generator=generator))
