"""Features of doubt against their definitions."""

import numpy as np
import pytest
import torch

from rnr_gym.agents.features import FLOOR, features, summary_part
from rnr_gym.routing.rollout import observation
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal
from tests.fixtures import small


def observed(summary_groups=0):
    """Observations `(5, D)` of images at layer 1, and their layout."""
    backbone = small.backbone("multipath", summary_groups=summary_groups)
    spec = RoutingSpec.of(backbone)
    state = Traversal.start(backbone, small.pixels(5)).step(np.full(5, 2))
    obs = observation(state, spec, tradeoff=np.full(5, 0.5))
    return torch.from_numpy(obs), spec.layout


def log_doubt(doubt):
    """The scale of doubts: 0.1, 0.01 and 0.001 are equally far apart."""
    return 1.0 + np.log10(FLOOR + doubt) / 1.5


def expected_doubt(summary, obs):
    """The first ten features of an observation `(D,)`, by their definitions."""
    exit_probabilities = obs[summary.exit_probabilities]
    glance_probabilities = obs[summary.glance_probabilities]
    exit_answer = exit_probabilities.argmax()
    glance_answer = glance_probabilities.argmax()
    first, second, third = np.sort(exit_probabilities)[::-1][:3]
    _, _, entropy = obs[summary.confidence]
    return [
        first,
        second,
        third,
        log_doubt(1 - first),
        log_doubt(entropy),
        glance_probabilities[glance_answer],
        log_doubt(1 - glance_probabilities[glance_answer]),
        glance_probabilities[exit_answer],
        exit_probabilities[glance_answer],
        exit_answer == glance_answer,
    ]


def test_features_start_with_doubts():
    obs, layout = observed()
    rows = features(layout, obs).numpy()
    for row, row_obs in zip(rows, obs.numpy(), strict=True):
        expected = expected_doubt(layout.summary, row_obs)
        np.testing.assert_allclose(row[:10], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("summary_groups", "num_doubts"),
    [
        (0, 10),
        (8, 5),
    ],
    ids=["exit and glance", "exit only"],
)
def test_features_end_with_all_but_the_tradeoff(summary_groups, num_doubts):
    obs, layout = observed(summary_groups)
    rows = features(layout, obs)
    # A quantised summary has no probabilities of the glance, hence fewer doubts.
    assert torch.equal(rows[:, num_doubts:], obs[:, :-1])


def test_summary_part_is_the_raw_summary():
    obs, layout = observed()
    rows = features(layout, obs)
    raw_summary = rows[:, summary_part(layout, rows.shape[1])]
    assert torch.equal(raw_summary, obs[:, : layout.summary.confidence.start])
