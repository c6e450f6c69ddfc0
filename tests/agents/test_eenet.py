"""The learned exit scheduler: its labels, its scores out of fold, and how it decides."""

import numpy as np
import torch

from rnr_gym.agents import FitConfig, eenet, thresholds
from rnr_gym.agents.confidence import Trail
from rnr_gym.agents.eenet import CONFIG, enough, fitted, held_out_scores, inputs
from rnr_gym.experiments.evaluation import evaluate
from tests.fixtures.observations import random_observations
from tests.fixtures.paper_problem import drawn, spec

IMAGES = 200


def config_of(table):
    return FitConfig(env="RNR-v0", kwargs={"backend": table}, progress=False)


def trail_of(correct, exits):
    """A trail of which only the answers and the layers with an exit matter."""
    shape = np.shape(correct)
    confidence = np.full(shape, 0.5)
    confidence[~np.array(exits)] = -np.inf
    confidence[-1] = np.inf
    return Trail(
        confidence=confidence,
        correct=np.array(correct),
        compute=np.zeros(shape),
        probabilities=np.zeros((*shape, 2), np.float32),
    )


def test_leaving_is_enough_if_right_or_wrong_ever_after():
    trail = trail_of(
        [
            [True, False, False, False],
            [False, False, True, True],
            [False, False, True, False],
        ],
        exits=[True, True, True],
    )
    assert enough(trail, 0).tolist() == [True, True, False, False]
    assert enough(trail, 1).tolist() == [True, True, True, True]


def test_layers_without_exit_help_nobody():
    trail = trail_of([[False], [True], [False]], exits=[True, False, True])
    assert enough(trail, 0).tolist() == [True]


def test_inputs_have_probabilities_confidence_and_earlier_scores():
    probabilities = np.array([[0.75, 0.25], [1.0, 0.0]])
    scores = np.array([[0.0, 0.5], [0.25, 0.0]])
    x = inputs(probabilities, scores)
    assert x.dtype == np.float32
    assert x[:, :2].tolist() == probabilities.tolist()
    # Maximum, lead and entropy; then both doubts, -1 for none.
    np.testing.assert_allclose(x[:, 2:4], [[0.75, 0.5], [1.0, 1.0]])
    np.testing.assert_allclose(x[1, 5:7], [-1.0, -1.0], atol=1e-6)
    assert x[:, 7:].tolist() == scores.tolist()


def test_scores_are_of_networks_that_have_not_seen_the_image():
    rng = np.random.default_rng(0)
    x = rng.random((IMAGES, 3), np.float32)
    fold = np.arange(IMAGES) % CONFIG.folds
    target = x[:, 0] > 0.5
    networks = fitted(x, target, fold, torch.Generator().manual_seed(0))
    scores = held_out_scores(networks, x, fold)
    assert ((scores > 0.5) == target).mean() > 0.9

    # Other labels in a fold change the networks of all other folds, but not its own scores.
    flipped = np.where(fold == 0, ~target, target)
    changed = fitted(x, flipped, fold, torch.Generator().manual_seed(0))
    other_scores = held_out_scores(changed, x, fold)
    np.testing.assert_allclose(scores[fold == 0], other_scores[fold == 0], atol=1e-6)
    assert np.abs(scores[fold != 0] - other_scores[fold != 0]).max() > 0.01


def test_scores_tell_what_confidence_does_not():
    table = drawn(0, images=400)
    layout = spec().layout.summary
    # The glance is always as confident, but right only where it says class 0.
    right = np.random.default_rng(0).random(400) < 0.5
    table.summary[:, :, layout.exit_probabilities] = np.where(
        right[:, None], [0.75, 0.25], [0.25, 0.75]
    )
    table.summary[:, :, layout.confidence] = [0.75, 0.5, 0.8]
    table.prediction[table.paths.tolist().index([0, -1])] = ~right

    router = eenet.fit(config_of(table))
    rule = thresholds.solve(table)
    for tradeoff in (0.2, 0.5):
        # Both pay for what runs, but not for the router itself.
        ours = evaluate(table, router, tradeoff)
        theirs = evaluate(table, rule, tradeoff)
        macs_saved = (theirs.macs - (ours.macs - ours.router_macs)).mean() / 100
        gain = ours.correct.mean() - theirs.correct.mean() + tradeoff * macs_saved
        assert gain > 0.05


def test_scores_are_remembered_within_an_episode():
    router = eenet.fit(config_of(drawn(0, images=60)))
    layout = spec().layout
    obs = random_observations(spec(), 50)
    obs[:, layout.layer] = [1.0, 0.0]
    _, (scores,) = router.predict(obs)
    assert scores.shape == (50, 2)
    assert (scores[:, 0] > 0).all()
    assert (scores[:, 1] == 0).all()

    later = random_observations(spec(), 50, seed=1)
    later[:, layout.layer] = [0.0, 1.0]
    _, (both,) = router.predict(later, (scores,))
    assert both[:, 0].tolist() == scores[:, 0].tolist()
    assert (both[:, 1] > 0).all()
    # A new episode starts without them.
    _, (again,) = router.predict(obs, (both,))
    assert again.tolist() == scores.tolist()


def test_without_exits_nobody_leaves():
    router = eenet.fit(config_of(drawn(0, images=60, exits=False)))
    actions, _ = router.predict(random_observations(spec(exits=False), 50))
    assert (actions > 0).all()
