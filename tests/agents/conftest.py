"""What tests of agents share."""

from dataclasses import replace

import pytest

from rnr_gym.agents import RECIPES, rnr_dqn


@pytest.fixture
def early_learning(monkeypatch):
    """Off-policy learners start early, in small batches, so that short fits learn at all."""
    for name in ("dqn", "qr-dqn"):
        recipe = RECIPES[name]
        kwargs = {**recipe.kwargs, "learning_starts": 256, "batch_size": 32}
        monkeypatch.setitem(RECIPES, name, replace(recipe, kwargs=kwargs))

    early = replace(rnr_dqn.CONFIG, num_envs=32, learning_starts=64, batch_size=16)
    monkeypatch.setattr(rnr_dqn, "CONFIG", early)
