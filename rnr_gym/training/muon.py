"""The optimizer of convolutions: momentum, orthogonalized.

Source: Jordan et al., *Muon: An Optimizer for Hidden Layers in Neural Networks* (2024);
`torch.optim.Muon` takes matrices only and keeps no norms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration; they trade exactness for fast growth of small values."""


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum whose updates are orthogonalized.

    A filter bank `(O, I, H, W)` is treated as a matrix `(O, I * H * W)`. Its norm is held at
    `sqrt(O)`: a batch-norm follows every convolution, so the norm has no effect but on the size of
    a step.

    Args:
        params: weights of convolutions that a batch-norm follows.
        lr: learning rate; an update has singular values of about 1 before it is multiplied by it.
        momentum: 0..1.
        iterations: Newton-Schulz steps.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.6,
        iterations: int = 3,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "iterations": iterations})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient; sub-paths that did not run have none."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)

        buffer = state["momentum_buffer"]
        buffer.mul_(momentum)
        buffer.add_(grad)
        nesterov = grad.add(buffer, alpha=momentum)

        # The weight is rescaled before the step, as its norm would otherwise grow without bound.
        norm = weight.norm().clamp(min=1e-7)
        weight.mul_(len(weight) ** 0.5 / norm)

        matrix = nesterov.flatten(1)  # (O, I, H, W) -> (O, I * H * W)
        update = orthogonalized(matrix, group["iterations"])
        weight.add_(update.reshape(weight.shape), alpha=-group["lr"])


def orthogonalized(matrix: Tensor, iterations: int) -> Tensor:
    """The matrix `(m, n)` with its singular values moved to about 1, computed in bfloat16."""
    a, b, c = NEWTON_SCHULZ

    # The Gram matrix is smaller if the matrix is wide.
    tall = len(matrix) > matrix.shape[1]
    x = matrix.T if tall else matrix
    # The iteration is stable in bfloat16 (Jordan et al. 2024).
    x = x.to(torch.bfloat16)
    x = x / x.norm().clamp(min=1e-7)

    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x

    x = x.to(matrix.dtype)
    return x.T if tall else x
