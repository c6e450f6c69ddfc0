"""Features of doubt against their definitions."""

import numpy as np
import torch

from rnr_gym.agents.features import FLOOR, features, summary_part
from rnr_gym.routing.observations import observe
from rnr_gym.routing.traversal import Traversal
from tests import small


def observed(kind="multipath", summary_groups=0):
    """Observations of 5 images at layer 1, and their layout."""
    backbone = small.backbone(kind, summary_groups=summary_groups)
    spec = backbone.spec()
    walk = Traversal.start(backbone, small.pixels(5)).step(np.full(5, 2))
    observation = observe(spec.layout, walk.summary(), walk.layer, walk.prev_sub_path, walk.macs / spec.plain_macs, np.full(5, 0.5))
    return torch.from_numpy(observation), spec.layout


def log_doubt(doubt):
    return 1.0 + np.log10(FLOOR + doubt) / 1.5


def test_features_say_how_sure_exit_and_glance_are():
    observation, layout = observed()
    found = features(layout, observation).numpy()
    for row, seen in zip(found, observation.numpy(), strict=True):
        exit_head, glance = seen[layout.summary.exit_probabilities], seen[layout.summary.glance_probabilities]
        ordered = np.sort(exit_head)[::-1][:3]
        entropy = seen[layout.summary.confidence][2]
        answer, guess = exit_head.argmax(), glance.argmax()
        expected = [*ordered, log_doubt(1 - ordered[0]), log_doubt(entropy)]
        expected += [glance[guess], log_doubt(1 - glance[guess]), glance[answer], exit_head[guess], answer == guess]
        np.testing.assert_allclose(row[:10], expected, rtol=1e-4, atol=1e-5)


def test_features_end_with_all_but_the_tradeoff():
    observation, layout = observed()
    found = features(layout, observation)
    assert torch.equal(found[:, 10:], observation[:, :-1])
    raw = found[:, summary_part(layout, found.shape[1])]
    assert torch.equal(raw, observation[:, : layout.summary.confidence.start])


def test_without_glance_probabilities_only_the_exit_counts():
    observation, layout = observed(summary_groups=8)
    found = features(layout, observation)
    assert torch.equal(found[:, 5:], observation[:, :-1])
