"""The networks of fitted Q iteration, their inputs, and the scaling of both."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym.agents.features import features, summary_part
from rnr_gym.routing.observations import ObservationLayout

Floats = NDArray[np.float32]


def inputs(layout: ObservationLayout, observation: Floats) -> Floats:
    """What the networks read of observations `(N, D)`; float32 `(N, D')`, without λ."""
    x: Floats = features(layout, torch.from_numpy(observation)).numpy()
    return x


class Networks(NamedTuple):
    """F networks of one hidden layer: inputs `(F, B, D)` -> estimates `(F, B, K * G)`.

    Attributes:
        weight_in: float32 `(F, D, H)`.
        bias_in: float32 `(F, 1, H)`.
        weight_out: float32 `(F, H, K * G)`.
        bias_out: float32 `(F, 1, K * G)`.
    """

    weight_in: Tensor
    bias_in: Tensor
    weight_out: Tensor
    bias_out: Tensor

    @classmethod
    def initial(
        cls,
        members: int,
        num_inputs: int,
        hidden: int,
        num_outputs: int,
        generator: torch.Generator,
    ) -> Networks:
        """Networks to be trained, which estimate 0 whatever they read."""
        # With zeros in the output layer no sub-path is better than another before training.
        shape = (members, num_inputs, hidden)
        weight_in = torch.randn(shape, generator=generator) / num_inputs**0.5
        return cls(
            weight_in=weight_in.requires_grad_(),
            bias_in=torch.zeros(members, 1, hidden, requires_grad=True),
            weight_out=torch.zeros(members, hidden, num_outputs, requires_grad=True),
            bias_out=torch.zeros(members, 1, num_outputs, requires_grad=True),
        )

    @classmethod
    def restored(
        cls, tensors: dict[str, Tensor], members: int, num_inputs: int, num_outputs: int
    ) -> Networks:
        """Networks from the tensors of a file; raises `ValueError` if they do not fit."""
        hidden = tensors["weight_in"].shape[-1]
        shapes = {
            "weight_in": (members, num_inputs, hidden),
            "bias_in": (members, 1, hidden),
            "weight_out": (members, hidden, num_outputs),
            "bias_out": (members, 1, num_outputs),
        }
        for name, shape in shapes.items():
            found = tensors[name]
            if found.dtype != torch.float32 or tuple(found.shape) != shape:
                raise ValueError(
                    f"`{name}` must be float32 {shape}, got {found.dtype} {tuple(found.shape)}"
                )
        return cls(**tensors)

    def __call__(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(torch.baddbmm(self.bias_in, inputs, self.weight_in))  # (F, B, H)
        return torch.baddbmm(self.bias_out, hidden, self.weight_out)

    def first(self, members: int) -> Networks:
        """The first `members` of the networks."""
        return Networks(*(part[:members] for part in self))

    def one(self, member: int) -> Networks:
        """A single one of the networks."""
        return Networks(*(part[member : member + 1] for part in self))

    def detached(self) -> Networks:
        """A copy of the networks without gradients."""
        return Networks(*(part.detach().clone() for part in self))


class Batch(NamedTuple):
    """Standardised inputs `(F, B, D)` and targets `(F, B, K * G)`: B rows for each network."""

    inputs: Tensor
    targets: Tensor


def squared_error(networks: Networks, batch: Batch, valid: Tensor) -> Tensor:
    """Mean squared error over the valid sub-paths, summed over the networks.

    Args:
        networks: F of them.
        batch: inputs and targets for each.
        valid: float32 `(K * G,)`, 1 for estimates of valid sub-paths, else 0.
    """
    # As a sum, the loss gives each network the gradient that it would have alone.
    error = (networks(batch.inputs) - batch.targets) * valid  # (F, B, K * G)
    return error.square().mean((1, 2)).sum()


class Scaling(NamedTuple):
    """Standardisation of inputs: (x - mean) * factor, float32 `(D,)` each."""

    mean: Floats
    factor: Floats

    @classmethod
    def of(cls, inputs: Floats, layout: ObservationLayout, observation_scale: float) -> Scaling:
        """From inputs `(n, D)`: constant ones become zero, the summary gets a smaller scale."""
        mean = inputs.mean(0)
        spread = inputs.std(0)
        # What is constant here may vary elsewhere, so it must not be divided by a tiny spread.
        factor = np.where(spread > 1e-6, 1.0 / np.maximum(spread, 1e-6), 1.0).astype(np.float32)
        factor[summary_part(layout, inputs.shape[-1])] *= observation_scale
        return cls(mean, factor)

    def applied(self, inputs: Floats) -> Tensor:
        """Inputs `(..., D)`, standardised."""
        return torch.from_numpy((inputs - self.mean) * self.factor)

    def folded_into(self, networks: Networks, center: Floats, spread: np.float32) -> Networks:
        """Networks of unscaled inputs and targets that estimate the same.

        Args:
            networks: for inputs scaled by this, and for targets (y - center) / spread.
            center: float32 `(K * G,)`.
            spread: of all targets.
        """
        # ((x - mean) * factor) @ W + b  =  x @ (factor * W) + (b - mean @ (factor * W))
        weight_in = networks.weight_in * torch.from_numpy(self.factor)[:, None]
        shift = torch.from_numpy(self.mean) @ weight_in  # (F, H)
        return Networks(
            weight_in=weight_in,
            bias_in=networks.bias_in - shift[:, None],
            weight_out=networks.weight_out * float(spread),
            bias_out=networks.bias_out * float(spread) + torch.from_numpy(center),
        )
