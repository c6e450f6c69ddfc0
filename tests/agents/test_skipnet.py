"""SkipNet: expected returns over all paths, drawn paths, and the optimum on paper."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rnr_gym.agents import FitConfig, skipnet
from rnr_gym.agents.reinforce import Batch
from rnr_gym.agents.skipnet import Config, Learner
from rnr_gym.experiments.evaluation import evaluate
from tests.fixtures import small
from tests.fixtures.paper_problem import BEST, drawn, paper

QUICK = Config(
    soft_updates=600,
    soft_batch_size=64,
    hard_updates=150,
    hard_batch_size=64,
    embedding=16,
    hidden=16,
    summary_scale=1.0,
    learning_rate=1e-2,
    # Enough for the steep choices on paper.
    entropy=0.02,
)
IMAGES = np.arange(8)


def learner(table=None, **changes):
    return Learner(table or paper(), replace(QUICK, **changes), seed=0, tradeoffs=(0.01, 2.0))


def config_of(table, **kwargs):
    return FitConfig(env="RNR-v0", kwargs={"backend": table}, progress=False, **kwargs)


def settle(work, *sub_paths):
    """Let the gates of each layer be sure of a sub-path, whatever they read."""
    network = work.network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        # Layers differ in their encoders only, so these say which sub-path.
        for encoder, sub_path in zip(network.encoders, sub_paths, strict=True):
            encoder.bias[sub_path] = 10.0
        network.cell = torch.nn.Linear(16, 16)
        network.cell.weight.copy_(torch.eye(16))
        network.cell.bias.zero_()
        network.decoder.weight.copy_(torch.eye(16)[:3] * 10.0)


@pytest.mark.parametrize("path", [[1, 0], [2, 1], [2, 2], [0, -1]])
def test_expected_return_of_sure_gates_is_that_of_their_path(path):
    work = learner()
    settle(work, *np.maximum(path, 0))
    batch = Batch(IMAGES, np.linspace(0.1, 1.0, 8))
    expected, total_entropy = work.expected_returns(batch)
    table = work.table
    index = table.paths.tolist().index(path)
    returns = table.correct[index] - batch.tradeoffs * table.compute[index]
    np.testing.assert_allclose(expected.detach(), returns, atol=1e-5)
    np.testing.assert_allclose(total_entropy.detach(), 0.0, atol=1e-5)


def test_expected_return_of_even_gates_is_the_weighted_mean():
    work = learner()
    with torch.no_grad():
        work.network.decoder.weight.zero_()
        work.network.decoder.bias.zero_()
    expected, total_entropy = work.expected_returns(Batch(IMAGES, np.full(8, 0.2)))

    table = work.table
    decisions = (table.paths >= 0).sum(1)
    weights = (1 / 3.0) ** decisions
    assert np.isclose(weights.sum(), 1.0)
    np.testing.assert_allclose(expected.detach(), weights @ table.returns(0.2), atol=1e-5)
    # The first decision is always made, the second by two thirds.
    np.testing.assert_allclose(total_entropy.detach(), 5 / 3 * np.log(3), atol=1e-5)


def test_sub_paths_that_are_not_valid_have_no_part():
    table = drawn(0, images=8, exits=False)
    work = learner(table)
    expected, _ = work.expected_returns(Batch(IMAGES, np.full(8, 0.2)))
    returns = table.returns(0.2)
    assert (expected.detach().numpy() <= returns.max(0) + 1e-6).all()
    assert (expected.detach().numpy() >= returns.min(0) - 1e-6).all()


def test_drawn_paths_follow_the_gates():
    work = learner()
    settle(work, 2, 1)
    state, log_probability, total_entropy = work.drawn(Batch(IMAGES, np.full(8, 0.2)))
    assert state.done.all()
    assert state.path.tolist() == [[2, 1]] * 8
    np.testing.assert_allclose(log_probability.detach(), 0.0, atol=1e-5)
    np.testing.assert_allclose(total_entropy.detach(), 0.0, atol=1e-5)


def test_nothing_is_credited_after_an_exit():
    work = learner()
    settle(work, 0, 1)
    with torch.no_grad():
        # At layer 1 the gates are undecided, but nobody comes there.
        work.network.encoders[1].bias.zero_()
    _, log_probability, total_entropy = work.drawn(Batch(IMAGES, np.full(8, 0.2)))
    np.testing.assert_allclose(log_probability.detach(), 0.0, atol=1e-5)
    np.testing.assert_allclose(total_entropy.detach(), 0.0, atol=1e-5)


def test_gates_start_open():
    work = learner(full_path_bias=20.0)
    state, _, _ = work.drawn(Batch(IMAGES, np.full(8, 0.2)))
    assert state.path.tolist() == [[2, 2]] * 8


def test_solves_problem_on_paper(monkeypatch):
    monkeypatch.setattr(skipnet, "CONFIG", QUICK)
    router = skipnet.fit(config_of(paper()))
    for tradeoff, (best, _) in BEST.items():
        outcomes = evaluate(paper(), router, tradeoff)
        macs = outcomes.macs - outcomes.router_macs
        assert (outcomes.correct - tradeoff * macs / 100).mean() > best - 0.03


def test_steps_count_hard_decisions(monkeypatch):
    monkeypatch.setattr(skipnet, "CONFIG", QUICK)
    # 64 images with two decisions each are one mini-batch, and four soft ones go with it.
    config = skipnet.fit(config_of(paper(), steps=384)).config
    assert (config.hard_updates, config.soft_updates) == (3, 12)


def test_needs_a_table(monkeypatch):
    live = {"dataset": small.images(), "backbone": small.backbone("multipath"), "backend": "live"}
    with pytest.raises(ValueError, match="`agent` skipnet needs a route table, got RNR-v0"):
        skipnet.fit(FitConfig("RNR-v0", live, progress=False))
