"""Backward induction: targets counted by hand, and folds that are kept apart."""

import numpy as np
import pytest
import torch

from rnr_gym.agents import thresholds
from rnr_gym.agents.fqi_induction import Config, Induction, depart
from rnr_gym.agents.fqi_networks import Networks, inputs
from rnr_gym.experiments.evaluation import evaluate
from tests.fixtures.paper_problem import drawn
from tests.fixtures.returns import evaluated_return

TRADEOFFS = (0.2, 2.0)
QUICK = Config(
    tradeoffs=TRADEOFFS,
    steps=60,
    batch_size=64,
    check_every=20,
)


def induction(table, groups=None):
    """Backward induction before its first layer."""
    if groups is None:
        groups = np.arange(len(table.labels))
    return Induction(table, groups, QUICK, seed=0, fallback=thresholds.solve(table))


def finished(table):
    """Backward induction after both layers."""
    process = induction(table)
    process.fit_layer(1)
    process.fit_layer(0)
    return process


def nodes_of(table, layer):
    """The prefixes that wait for a layer's decision."""
    return np.flatnonzero(table.tree.layer[: table.num_prefixes] == layer)


def test_last_layer_targets_are_the_outcomes():
    table = drawn(0)
    process = induction(table)
    image_idx = np.arange(30)

    for node in nodes_of(table, layer=1).tolist():
        targets = process.targets(np.full(30, node), image_idx)
        # What was spent on the way to the prefix is not charged again.
        charged = table.spec.compute(table.tree.macs[node])
        for tradeoff_idx, tradeoff in enumerate(TRADEOFFS):
            for sub_path in range(3):
                answer = table.tree.child[node, sub_path] - table.num_prefixes
                expected = table.returns(tradeoff)[answer] + tradeoff * charged
                actual = targets[:, sub_path, tradeoff_idx]
                np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_returns_are_those_of_the_followed_policy():
    # Once counted backwards from layer to layer, once forwards by following the policy.
    table = drawn(1, images=60)
    process = finished(table)
    followed = process.policies[QUICK.margins.index(QUICK.target_margin)]
    charged = table.spec.compute(table.tree.macs[0])
    expected = process.returns[0].mean(0) - np.array(TRADEOFFS) * charged
    np.testing.assert_allclose(process.mean_returns(followed), expected, atol=1e-6)


def test_largest_margin_follows_the_thresholds():
    table = drawn(2)
    process = finished(table)
    returns = process.mean_returns(process.policies[-1])
    for tradeoff_idx, tradeoff in enumerate(TRADEOFFS):
        evaluation = evaluate(table, process.fallback, tradeoff)
        expected = evaluated_return(table.spec, evaluation, tradeoff)
        assert returns[tradeoff_idx] == pytest.approx(expected, abs=1e-6)


def test_best_margins_have_the_best_returns():
    process = finished(drawn(2))
    returns = [process.mean_returns(policy) for policy in process.policies]
    best = np.max(returns, axis=0)
    for tradeoff_idx, margin in enumerate(process.best_margins()):
        chosen = QUICK.margins.index(margin)
        assert returns[chosen][tradeoff_idx] == best[tradeoff_idx]


def test_versions_of_one_original_share_a_fold():
    groups = np.repeat(np.arange(10), 3)
    fold = induction(drawn(0), groups).fold.reshape(10, 3)
    assert (fold == fold[:, :1]).all()
    assert np.bincount(fold[:, 0]).tolist() == [4, 3, 3]


def test_estimates_come_from_network_of_fold():
    table = drawn(0)
    process = induction(table)
    obs = process.observed(np.zeros(30, np.int64), np.arange(30))
    x = inputs(table.spec.layout, obs)

    # Each network estimates its own number, whatever it reads.
    number = torch.arange(4.0)[:, None, None]
    networks = Networks(
        weight_in=torch.zeros(4, x.shape[1], 2),
        bias_in=torch.zeros(4, 1, 2),
        weight_out=torch.zeros(4, 2, 6),
        bias_out=number.expand(4, 1, 6),
    )

    values = process.out_of_fold(networks, x)
    assert values.shape == (30, 3, 2)
    assert (values == process.fold[:, None, None]).all()


def test_network_of_a_fold_never_sees_its_images(monkeypatch):
    table = drawn(0)
    process = induction(table)
    requested = []
    targets = Induction.targets

    def recorded(self, node, image_idx):
        requested.append(image_idx)
        return targets(self, node, image_idx)

    monkeypatch.setattr(Induction, "targets", recorded)
    process.trained(1, nodes_of(table, layer=1))

    # A batch has 64 images for each fold's network, and for the one of all images.
    batch_size = 4 * 64
    batches = [idx.reshape(4, 64) for idx in requested if len(idx) == batch_size]
    assert len(batches) == QUICK.steps + 1
    for fold in range(3):
        seen = np.concatenate([batch[fold] for batch in batches])
        others = np.flatnonzero(process.fold != fold)
        assert set(seen.tolist()) == set(others.tolist())


@pytest.mark.parametrize(
    ("margin", "first_is_valid", "expected"),
    [
        (0.05, True, [2, 1, 0]),
        (0.05, False, [2, 1, 2]),
        (0.5, True, [1, 1, 1]),
    ],
    ids=["all valid", "first not valid", "large margin"],
)
def test_departs_only_for_gains_above_the_margin(margin, first_is_valid, expected):
    values = np.array(
        [
            [0.0, 0.5, 0.6],
            [0.0, 0.5, 0.51],
            [0.9, 0.5, 0.6],
        ]
    )
    usual = np.array([[1], [1], [1]])
    valid = np.array([first_is_valid, True, True])
    chosen = depart(values[..., None], usual, margin, valid)
    assert chosen.ravel().tolist() == expected
