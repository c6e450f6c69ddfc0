"""BlockDrop: the curriculum, what is credited, the optimum on paper, and following one path."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rnr_gym.agents import FitConfig, blockdrop
from rnr_gym.agents.blockdrop import BlockDropRouter, Config, Learner, policy_network
from rnr_gym.experiments.evaluation import evaluate
from rnr_gym.routing.rollout import decision_macs
from tests.fixtures.observations import random_observations
from tests.fixtures.paper_problem import BEST, drawn, paper, spec

QUICK = Config(
    updates=1500,
    batch_size=128,
    hidden=16,
    learning_rate=1e-2,
    summary_scale=1.0,
    # Enough for the steep choices on paper.
    entropy=0.03,
)
TRADEOFFS = (0.01, 2.0)


def learner(table=None, **changes):
    return Learner(table or paper(), replace(QUICK, **changes), seed=0, tradeoffs=TRADEOFFS)


def config_of(table, **kwargs):
    return FitConfig(env="RNR-v0", kwargs={"backend": table}, progress=False, **kwargs)


# Curriculum and credit


@pytest.mark.parametrize(
    ("updates", "first_free"), [(0, 1), (224, 1), (225, 0), (450, 0), (1499, 0)]
)
def test_last_layers_are_free_first(updates, first_free):
    work = learner(curriculum=0.3)
    work.updates = updates
    assert work.first_free == first_free


def test_layers_that_are_not_free_take_the_full_sub_path():
    work = learner()
    logits = work.network(torch.from_numpy(random_observations(spec(), 50)))
    for paths in work.paths(logits.detach()):
        assert paths.shape == (50, 2)
        assert (paths[:, 0] == spec().full_path).all()
    assert len(set(work.paths(logits.detach())[0][:, 1].tolist())) > 1


def test_only_decisions_that_were_made_are_credited():
    work = learner()
    paths = np.array([[0, 2], [1, 0], [2, 2]])
    assert work.decided(paths).tolist() == [[False, False], [False, True], [False, True]]
    work.updates = work.config.updates
    assert work.decided(paths).tolist() == [[True, False], [True, True], [True, True]]


def test_probabilities_are_bounded_where_valid():
    work = learner(drawn(0, exits=False), bound=0.8)
    logits = torch.tensor([[[-torch.inf, 100.0, 0.0], [-torch.inf, 0.0, 0.0]]])
    bounded = work.bounded(logits)
    np.testing.assert_allclose(bounded[0], [[0.0, 0.9, 0.1], [0.0, 0.5, 0.5]], atol=1e-6)
    paths = np.array([[2, 1]])
    np.testing.assert_allclose(work.log_probability(logits, paths), np.log([[0.1, 0.5]]), atol=1e-5)


# Fitting


def test_solves_problem_on_paper(monkeypatch):
    monkeypatch.setattr(blockdrop, "CONFIG", QUICK)
    router = blockdrop.fit(config_of(paper()))
    for tradeoff, (best, _) in BEST.items():
        outcomes = evaluate(paper(), router, tradeoff)
        macs = outcomes.macs - outcomes.router_macs
        assert (outcomes.correct - tradeoff * macs / 100).mean() > best - 0.03


def test_steps_count_decisions(monkeypatch):
    monkeypatch.setattr(blockdrop, "CONFIG", QUICK)
    # 128 images with two decisions each are one mini-batch.
    assert blockdrop.fit(config_of(paper(), steps=768)).config.updates == 3
    assert blockdrop.fit(config_of(paper(), steps=1)).config.updates == 1


# Deciding


def router_of(**changes):
    config = replace(QUICK, **changes)
    return BlockDropRouter(spec(), policy_network(spec(), config, seed=0), config)


def test_path_is_chosen_at_layer_zero_and_followed():
    router = router_of()
    layout = spec().layout
    obs = random_observations(spec(), 50)
    obs[:, layout.layer] = [1.0, 0.0]
    actions, (paths,) = router.predict(obs)
    assert actions.tolist() == paths[:, 0].tolist()

    # Whatever is seen at layer 1 changes nothing.
    later = random_observations(spec(), 50, seed=1)
    later[:, layout.layer] = [0.0, 1.0]
    actions, (same,) = router.predict(later, (paths,))
    assert actions.tolist() == paths[:, 1].tolist()
    assert same.tolist() == paths.tolist()


def test_sub_paths_that_are_not_valid_are_never_chosen():
    problem = spec(exits=False)
    router = BlockDropRouter(problem, policy_network(problem, QUICK, seed=0), QUICK)
    _, (paths,) = router.predict(random_observations(problem, 200))
    assert (paths > 0).all()


def test_data_sets_have_their_own_configurations():
    assert blockdrop.BY_DATASET["cifar10"].summary_scale == 0.0


def test_one_decision_counts_the_whole_policy():
    router = router_of(hidden=16)
    inputs = router.network.encoder.in_features
    # Counted at layer 0; later decisions are free, but charged alike.
    assert decision_macs(router, spec()) == inputs * 16 + 16 * 2 * 3
