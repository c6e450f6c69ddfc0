"""Folds for cross-fitting: sizes, groups, and which images are versions of one original."""

import numpy as np

from rnr_gym.agents import FitConfig
from rnr_gym.agents.folds import folds, originals
from tests.fixtures.paper_problem import paper


def test_groups_are_never_split():
    groups = np.repeat(np.arange(10), 3)
    fold = folds(groups, 5, np.random.default_rng(0))
    assert np.bincount(fold).tolist() == [6] * 5
    assert (fold.reshape(10, 3) == fold.reshape(10, 3)[:, :1]).all()


def test_folds_are_drawn():
    groups = np.arange(100)
    first = folds(groups, 5, np.random.default_rng(0))
    assert first.tolist() == folds(groups, 5, np.random.default_rng(0)).tolist()
    assert first.tolist() != folds(groups, 5, np.random.default_rng(1)).tolist()


def test_originals_of_digits_are_known():
    fit_config = FitConfig("RNR-Digits-v0", {"backend": "live"})
    source = fit_config.source("route")
    original_id = originals(fit_config, source)
    assert original_id.shape == source.labels.shape
    _, versions = np.unique(original_id, return_counts=True)
    assert set(versions.tolist()) == {24}


def test_originals_of_unknown_images_all_differ():
    fit_config = FitConfig("RNR-Digits-v0", {"backend": paper()})
    assert originals(fit_config, paper()).tolist() == list(range(8))
