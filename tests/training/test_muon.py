"""The optimizer of convolutions against its definition."""

import pytest
import torch
from torch import nn

from rnr_gym.training.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_update_has_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrix, iterations=5))
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_update_keeps_singular_vectors():
    matrix = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    diagonal = left.T @ orthogonalized(matrix, iterations=5) @ right.T
    off_diagonal = diagonal - torch.diag(diagonal.diagonal())
    assert off_diagonal.abs().max() < 0.1
    assert diagonal.diagonal().min() > 0.5


def test_update_of_zeros_is_finite():
    assert torch.isfinite(orthogonalized(torch.zeros(4, 9), iterations=3)).all()


def test_step_follows_momentum_and_norm():
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 2, 3, 3, generator=generator))
    gradients = [torch.randn(4, 2, 3, 3, generator=generator) for _ in range(3)]
    optimizer = Muon([weight], lr=0.1, momentum=0.6)

    expected, buffer = weight.detach().clone(), torch.zeros(4, 2, 3, 3)
    for gradient in gradients:
        buffer = 0.6 * buffer + gradient
        direction = orthogonalized((gradient + 0.6 * buffer).flatten(1), 3).reshape(4, 2, 3, 3)
        expected = 2.0 * expected / expected.norm() - 0.1 * direction
        weight.grad = gradient
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected)


def test_weights_without_gradients_keep_still():
    weight = nn.Parameter(torch.randn(4, 2, 3, 3))
    before = weight.detach().clone()
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight, before)


def test_muon_learns_a_linear_map():
    generator = torch.Generator().manual_seed(0)
    target = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q.reshape(8, 8, 1, 1)
    weight = nn.Parameter(torch.randn(8, 8, 1, 1, generator=generator))
    optimizer = Muon([weight], lr=0.1)
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 60)
        optimizer.zero_grad()
        ((weight - target) ** 2).sum().backward()
        optimizer.step()
    assert float(((weight.detach() - target) ** 2).sum()) < 0.05
