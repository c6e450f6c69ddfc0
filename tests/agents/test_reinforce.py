"""What REINFORCE shares: mini-batches, returns of paths, and entropy."""

import numpy as np
import torch

from rnr_gym.agents.reinforce import Batch, drawn_batch, entropy, episode_returns
from rnr_gym.routing.rollout import follow
from tests.fixtures.paper_problem import paper


def test_batch_has_images_and_logarithmic_tradeoffs():
    batch = drawn_batch(paper(), 2000, (0.01, 1.0), np.random.default_rng(0))
    assert set(batch.image_idx.tolist()) == set(range(8))
    assert batch.tradeoffs.shape == (2000,)
    assert 0.01 <= batch.tradeoffs.min() < 0.011
    assert 0.9 < batch.tradeoffs.max() <= 1.0
    # Half lie below the geometric mean.
    assert abs((batch.tradeoffs < 0.1).mean() - 0.5) < 0.05


def test_returns_are_those_of_the_table():
    table = paper()
    images = np.arange(8)
    for path in ([0, -1], [1, 0], [2, 1]):
        # What follows an exit is ignored.
        state = follow(table.start(images), np.tile(path, (8, 1)))
        index = table.paths.tolist().index(path)
        returns = episode_returns(table, state, Batch(images, np.full(8, 0.2)))
        np.testing.assert_allclose(returns, table.returns(0.2)[index])


def test_entropy_of_even_and_settled_decisions():
    inf = torch.inf
    logits = torch.tensor([[[0.0, 0.0, -inf], [50.0, 0.0, 0.0]]], requires_grad=True)
    values = entropy(logits)
    np.testing.assert_allclose(values.detach(), [[np.log(2), 0.0]], atol=1e-5)
    values.sum().backward()
    assert torch.isfinite(logits.grad).all()
