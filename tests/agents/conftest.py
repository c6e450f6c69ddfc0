"""What tests of agents share."""

from dataclasses import replace

import pytest

from rnr_gym.agents import RECIPES


@pytest.fixture
def early_learning(monkeypatch):
    """DQN and QR-DQN learn from step 256 on, in small batches, so that short fits learn at all."""
    for name in ("dqn", "qr-dqn"):
        recipe = RECIPES[name]
        kwargs = {**recipe.kwargs, "learning_starts": 256, "batch_size": 32}
        monkeypatch.setitem(RECIPES, name, replace(recipe, kwargs=kwargs))
