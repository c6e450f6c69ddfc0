"""Fitted Q iteration: an optimum known on paper, and how a fitted router decides."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rnr_gym.agents import FitConfig, fqi
from rnr_gym.agents.fqi import FqiRouter, fit_table
from rnr_gym.agents.fqi_induction import Config
from rnr_gym.agents.fqi_networks import Networks, inputs
from rnr_gym.agents.thresholds import ThresholdsRouter
from rnr_gym.experiments.evaluation import evaluate
from rnr_gym.routing import route_table
from rnr_gym.routing.rollout import decision_macs
from tests.fixtures.paper_problem import BEST, DEALT, KINDS, drawn, paper, spec

QUICK = Config(
    tradeoffs=(0.2, 2.0),
    steps=60,
    batch_size=64,
    check_every=20,
)


def constant_router(values, tradeoffs, margins):
    """A router on paper whose estimates are `values` (K, G), whatever it observes."""
    problem = spec()
    blank = np.zeros((1, problem.layout.size), np.float32)
    num_inputs = inputs(problem.layout, blank).shape[1]

    # All that the networks add up is their bias.
    bias = torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1)
    networks = Networks(
        weight_in=torch.zeros(2, num_inputs, 3),
        bias_in=torch.zeros(2, 1, 3),
        weight_out=torch.zeros(2, 3, bias.shape[-1]),
        bias_out=bias.repeat(2, 1, 1),
    )

    # No image leaves, and all take the full path.
    fallback = ThresholdsRouter(
        problem,
        tradeoffs=np.array([0.01]),
        thresholds=np.full((1, 2), 1.1),
        sub_paths=np.array([2]),
    )
    return FqiRouter(
        problem,
        networks=networks,
        tradeoffs=np.array(tradeoffs),
        margins=np.array(margins),
        fallback=fallback,
    )


def observation_at(tradeoff):
    """One observation at layer 0 and a trade-off."""
    layout = spec().layout
    obs = np.zeros((1, layout.size), np.float32)
    obs[0, layout.layer.start] = 1.0
    obs[0, layout.tradeoff] = tradeoff
    return obs


def test_optimum_known_on_paper_is_found():
    # Sixteen copies of the eight images, whose kind the summary tells.
    table = paper().take(np.tile(np.arange(8), 16))
    config = replace(
        QUICK,
        steps=500,
        observation_scale=1.0,
        learning_rate=1e-2,
        weight_decay=0.0,
    )
    router = fit_table(table, np.arange(128), config, seed=0)

    kinds = [KINDS[kind] for kind in np.tile(DEALT, 16)]
    for tradeoff, (_, paths) in BEST.items():
        path = evaluate(table, router, tradeoff).path
        assert path.tolist() == [paths[kind] for kind in kinds]


@pytest.mark.parametrize(
    ("tradeoff", "action"),
    [
        (0.0, 1),
        (0.01, 1),
        (0.09, 1),
        (0.12, 2),
        (1.0, 2),
        (4.0, 2),
    ],
)
def test_estimates_interpolate_in_log_tradeoff(tradeoff, action):
    # Sub-path 1 is 0.4 better than 2 at λ = 0.01 and 0.4 worse at 1: they cross at 0.1.
    values = [[-9, -9], [0.4, 0.0], [0.0, 0.4]]
    router = constant_router(values, tradeoffs=[0.01, 1.0], margins=[0.0, 0.0])
    actions, _ = router.predict(observation_at(tradeoff))
    assert actions.tolist() == [action]


@pytest.mark.parametrize(
    ("tradeoff", "action"),
    [
        (0.01, 1),
        (0.05, 1),
        (0.2, 2),
        (1.0, 2),
    ],
)
def test_margins_interpolate_in_log_tradeoff(tradeoff, action):
    # Sub-path 1 is 0.5 better than 2, which the thresholds take; the margin is 0.5 at λ = 0.1.
    values = [[-9, -9], [0.5, 0.5], [0.0, 0.0]]
    router = constant_router(values, tradeoffs=[0.01, 1.0], margins=[0.0, 1.0])
    actions, state = router.predict(observation_at(tradeoff), "kept")
    assert actions.tolist() == [action]
    assert state == "kept"


def test_decision_is_charged_its_matrix_products():
    values = np.zeros((3, 2))
    router = constant_router(values, tradeoffs=[0.01, 1.0], margins=[0.0, 0.0])
    num_inputs = router.networks.weight_in.shape[1]
    assert decision_macs(router, spec()) == num_inputs * 3 + 3 * 6


def test_fit_rejects_live_backend(images, backbone):
    kwargs = {"dataset": images, "backbone": backbone, "backend": "live"}
    with pytest.raises(ValueError, match="`agent` fqi needs a route table, got RNR-v0"):
        fqi.fit(FitConfig("RNR-v0", kwargs))


def test_fit_rejects_problem_without_table(monkeypatch, images, backbone):
    monkeypatch.setattr(route_table, "LIMIT", 1)
    fit_config = FitConfig("RNR-v0", {"dataset": images, "backbone": backbone})
    assert not fit_config.has_table("route")
    with pytest.raises(ValueError, match="choose other agents"):
        fqi.fit(fit_config)


def test_originals_are_those_of_the_images(images, backbone):
    original_id = np.arange(24) // 2
    versions = replace(images, original_id=original_id)
    fit_config = FitConfig("RNR-v0", {"dataset": versions, "backbone": backbone})
    table = fit_config.table("route")
    assert (fqi.originals(fit_config, table) == original_id).all()
    # Of a table of other images nothing is known.
    assert (fqi.originals(fit_config, drawn(0)) == np.arange(30)).all()


def test_fit_works_without_exits():
    table = drawn(0, exits=False)
    router = fit_table(table, np.arange(30), QUICK, seed=0)
    path = evaluate(table, router, 0.2).path
    assert set(path.ravel().tolist()) <= {1, 2}
