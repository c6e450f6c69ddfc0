"""The optimizer of convolutions against its definition."""

import pytest
import torch
from torch import nn

from rnr_gym.training.muon import Muon, orthogonalized


def normal(*shape, seed=0):
    """A seeded tensor of normal draws."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((8, 40), id="wide"),
        pytest.param((40, 8), id="tall"),
        pytest.param((16, 16), id="square"),
    ],
)
def test_update_has_singular_values_near_one(shape):
    update = orthogonalized(normal(*shape), iterations=5)
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_update_keeps_singular_vectors():
    matrix = normal(8, 40)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    update = orthogonalized(matrix, iterations=5)

    rotated = left.T @ update @ right.T
    values = rotated.diagonal()
    off_diagonal = rotated - torch.diag(values)
    assert off_diagonal.abs().max() < 0.1
    assert values.min() > 0.5


def test_update_of_zeros_is_finite():
    update = orthogonalized(torch.zeros(4, 9), iterations=3)
    assert torch.isfinite(update).all()


def test_step_follows_momentum_and_norm():
    shape = (4, 2, 3, 3)
    weight = nn.Parameter(normal(*shape))
    gradients = [normal(*shape, seed=seed) for seed in (1, 2, 3)]
    optimizer = Muon([weight], lr=0.1, momentum=0.6)

    expected = weight.detach().clone()
    buffer = torch.zeros(shape)
    for gradient in gradients:
        buffer = 0.6 * buffer + gradient
        nesterov = gradient + 0.6 * buffer
        update = orthogonalized(nesterov.flatten(1), 3).reshape(shape)
        # Four filters: the norm is held at the square root of 4.
        expected = 2.0 * expected / expected.norm() - 0.1 * update

        weight.grad = gradient
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected)


def test_weight_without_gradient_stays():
    weight = nn.Parameter(torch.randn(4, 2, 3, 3))
    before = weight.detach().clone()
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight, before)


def test_muon_learns_a_linear_map():
    generator = torch.Generator().manual_seed(0)
    orthogonal = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    target = orthogonal.reshape(8, 8, 1, 1)
    weight = nn.Parameter(torch.randn(8, 8, 1, 1, generator=generator))
    optimizer = Muon([weight], lr=0.1)

    for step in range(60):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 60)
        optimizer.zero_grad()
        loss = ((weight - target) ** 2).sum()
        loss.backward()
        optimizer.step()

    error = ((weight.detach() - target) ** 2).sum()
    assert float(error) < 0.05
