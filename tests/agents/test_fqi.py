"""FittedRouter Q iteration: targets counted by hand, folds kept apart, and an optimum known on paper."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rnr_gym.agents import FitConfig, fqi, thresholds
from rnr_gym.agents.fqi import Config, FqiRouter, Induction, Networks, depart, fit_table, inputs
from rnr_gym.experiments.evaluation import evaluate
from rnr_gym.routing import route_table
from rnr_gym.routing.rollout import decision_macs
from tests.agents import BEST, DEALT, KINDS, drawn, paper, spec

QUICK = Config(tradeoffs=(0.2, 2.0), steps=60, batch_size=64, check_every=20)


def induction(table, config=QUICK, groups=None, seed=0):
    """Backward induction before its first layer."""
    owners = np.arange(len(table.labels)) if groups is None else groups
    return Induction(table, owners, config, seed, thresholds.solve(table))


def constant(values, tradeoffs, margins):
    """A router on paper whose estimates are `values` (K, G), whatever it observes."""
    problem = spec()
    size = inputs(problem.layout, np.zeros((1, problem.layout.size), np.float32)).shape[1]
    bias = torch.tensor(np.array(values, np.float32)).reshape(1, 1, -1)
    networks = Networks(
        weight_in=torch.zeros(2, size, 3),
        bias_in=torch.zeros(2, 1, 3),
        weight_out=torch.zeros(2, 3, bias.shape[-1]),
        bias_out=bias.repeat(2, 1, 1),
    )
    fallback = thresholds.ThresholdsRouter(
        problem,
        tradeoffs=np.array([0.01]),
        thresholds=np.full((1, 2), 1.1),
        sub_paths=np.array([2]),
    )
    return FqiRouter(problem, networks, np.array(tradeoffs), np.array(margins), fallback)


def seen_at(tradeoff):
    """One observation at layer 0 and a trade-off."""
    seen = np.zeros((1, spec().layout.size), np.float32)
    seen[0, spec().layout.layer.start] = 1.0
    seen[0, spec().layout.tradeoff] = tradeoff
    return seen


def test_optimum_known_on_paper_is_found():
    """Sixteen copies of the eight images, whose kind the summary tells."""
    table = paper().take(np.tile(np.arange(8), 16))
    config = replace(QUICK, steps=500, observation_scale=1.0, learning_rate=1e-2, weight_decay=0.0)
    router = fit_table(table, np.arange(128), config, seed=0)
    for tradeoff, (_, paths) in BEST.items():
        found = evaluate(table, router, tradeoff).path.tolist()
        assert found == [paths[KINDS[kind]] for kind in np.tile(DEALT, 16)]


def test_targets_of_the_last_layer_are_the_outcomes():
    """With full information a target is what the table says, less what was spent before."""
    table = drawn(0)
    steps = induction(table)
    last = np.flatnonzero(table.tree.layer[: len(table.summary)] == 1)
    for place in last.tolist():
        image = np.arange(30)
        found = steps.targets(np.full(30, place), image)
        spent = table.tree.macs[place] / table.spec.plain_macs
        for number, tradeoff in enumerate((0.2, 2.0)):
            for sub_path in range(3):
                answer = table.tree.child[place, sub_path] - len(table.summary)
                expected = table.returns(tradeoff)[answer] + tradeoff * spent
                np.testing.assert_allclose(found[:, sub_path, number], expected, atol=1e-6)


def test_returns_are_those_of_the_policy_that_is_followed():
    """Counted backwards layer by layer, and forwards by walking from the first layer."""
    table = drawn(1, images=60)
    steps = induction(table)
    for layer in (1, 0):
        steps.fit_layer(layer)
    used = QUICK.margins.index(QUICK.target_margin)
    begun = table.tree.macs[0] / table.spec.plain_macs
    expected = steps.returns[0].mean(0) - np.array(QUICK.tradeoffs) * begun
    np.testing.assert_allclose(steps.mean_returns(steps.actions[used]), expected, atol=1e-6)


def test_largest_margin_follows_the_thresholds():
    table = drawn(2)
    steps = induction(table)
    for layer in (1, 0):
        steps.fit_layer(layer)
    for number, tradeoff in enumerate(QUICK.tradeoffs):
        found = evaluate(table, steps.fallback, tradeoff)
        expected = (found.correct - tradeoff * found.macs / table.spec.plain_macs).mean()
        assert steps.mean_returns(steps.actions[-1])[number] == pytest.approx(expected, abs=1e-6)
        returns = [steps.mean_returns(actions)[number] for actions in steps.actions]
        assert returns[QUICK.margins.index(steps.best_margins()[number])] == max(returns)


def test_versions_of_one_original_share_a_fold():
    groups = np.repeat(np.arange(10), 3)
    fold = induction(drawn(0), groups=groups).fold
    assert (fold.reshape(10, 3) == fold.reshape(10, 3)[:, :1]).all()
    assert np.bincount(fold[::3]).tolist() == [4, 3, 3]


def test_out_of_fold_estimates_come_from_the_other_folds():
    table = drawn(0)
    steps = induction(table)
    seen = inputs(table.spec.layout, steps.observed(np.zeros(30, np.int64), np.arange(30)))
    number = torch.arange(4.0)[:, None, None]
    networks = Networks(
        weight_in=torch.zeros(4, seen.shape[1], 2),
        bias_in=torch.zeros(4, 1, 2),
        weight_out=torch.zeros(4, 2, 6),
        bias_out=number.expand(4, 1, 6),
    )
    values = steps.out_of_fold(networks, seen)
    assert values.shape == (30, 3, 2)
    assert (values == steps.fold[:, None, None]).all()


def test_network_of_a_fold_never_sees_its_images(monkeypatch):
    table = drawn(0)
    steps = induction(table)
    asked = []
    targets = Induction.targets

    def noted(self, place, image):
        asked.append(image)
        return targets(self, place, image)

    monkeypatch.setattr(Induction, "targets", noted)
    steps.trained(1, np.flatnonzero(table.tree.layer[: len(table.summary)] == 1))
    batches = [images.reshape(4, 64) for images in asked if len(images) == 4 * 64]
    assert len(batches) == QUICK.steps + 1
    for fold in range(3):
        images = np.concatenate([batch[fold] for batch in batches])
        assert set(images.tolist()) == set(np.flatnonzero(steps.fold != fold).tolist())


def test_departs_only_where_the_gain_exceeds_the_margin():
    values = np.array([[[0.0], [0.5], [0.6]], [[0.0], [0.5], [0.51]], [[0.9], [0.5], [0.6]]])
    usual = np.array([[1], [1], [1]])
    every, going = np.ones(3, np.bool_), np.array([False, True, True])
    assert depart(values, usual, 0.05, every).ravel().tolist() == [2, 1, 0]
    assert depart(values, usual, 0.05, going).ravel().tolist() == [2, 1, 2]
    assert depart(values, usual, 0.5, every).ravel().tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("tradeoff", "action"),
    [(0.0, 1), (0.01, 1), (0.09, 1), (0.12, 2), (1.0, 2), (4.0, 2)],
)
def test_estimates_are_interpolated_over_log_tradeoff(tradeoff, action):
    """Sub-path 1 is 0.4 better than 2 at λ = 0.01 and 0.4 worse at 1: they cross at 0.1."""
    router = constant([[-9, -9], [0.4, 0.0], [0.0, 0.4]], [0.01, 1.0], [0.0, 0.0])
    assert router.predict(seen_at(tradeoff))[0].tolist() == [action]


@pytest.mark.parametrize(("tradeoff", "action"), [(0.01, 1), (0.05, 1), (0.2, 2), (1.0, 2)])
def test_margins_are_interpolated_over_log_tradeoff(tradeoff, action):
    """Sub-path 1 is 0.5 better than 2, which the thresholds take; the margin is 0.5 at λ = 0.1."""
    router = constant([[-9, -9], [0.5, 0.5], [0.0, 0.0]], [0.01, 1.0], [0.0, 1.0])
    actions, state = router.predict(seen_at(tradeoff), "kept")
    assert actions.tolist() == [action]
    assert state == "kept"


def test_scaling_folds_into_the_weights():
    table = drawn(3)
    steps = induction(table)
    image = np.arange(30)
    seen = inputs(table.spec.layout, steps.observed(np.zeros(30, np.int64), image))
    scaling = fqi.Scaling.of(seen, table.spec.layout, 0.1)
    networks = fqi._initial(2, seen.shape[1], 5, 6, torch.Generator().manual_seed(0))
    networks = Networks(*(part.detach() + 0.1 for part in networks))
    center, spread = np.arange(6, dtype=np.float32), np.float32(3.0)
    expected = networks(scaling.applied(seen[None].repeat(2, 0))) * 3.0 + torch.arange(6.0)
    actual = scaling.folded_into(networks, center, spread)(torch.tensor(seen[None].repeat(2, 0)))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_decision_is_charged_its_matrix_products():
    router = constant(np.zeros((3, 2)), [0.01, 1.0], [0.0, 0.0])
    size = router.networks.weight_in.shape[1]
    assert decision_macs(router, spec()) == size * 3 + 3 * 6


def test_without_a_table_there_is_a_clear_error(monkeypatch, images, backbone):
    arguments = {"dataset": images, "backbone": backbone, "backend": "live"}
    with pytest.raises(ValueError, match="`agent` fqi needs a route table, got RNR-v0"):
        fqi.fit(FitConfig("RNR-v0", arguments))
    monkeypatch.setattr(route_table, "LIMIT", 1)
    fit_config = FitConfig("RNR-v0", {"dataset": images, "backbone": backbone})
    assert not fit_config.has_table("route")
    with pytest.raises(ValueError, match="choose other agents"):
        fqi.fit(fit_config)


def test_originals_are_those_of_the_images_if_they_are_the_tables(images, backbone):
    versions = replace(images, source=np.arange(24) // 2)
    fit_config = FitConfig("RNR-v0", {"dataset": versions, "backbone": backbone})
    table = fit_config.table("route")
    assert fqi.originals(fit_config, table).tolist() == (np.arange(24) // 2).tolist()
    other = drawn(0)
    assert fqi.originals(fit_config, other).tolist() == list(range(30))


def test_without_exits_it_still_fits():
    table = drawn(0, exits=False)
    router = fit_table(table, np.arange(30), QUICK, seed=0)
    found = evaluate(table, router, 0.2)
    assert set(found.path.ravel().tolist()) <= {1, 2}
