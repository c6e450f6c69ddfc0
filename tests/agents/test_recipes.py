"""Recipes: which one is used for which images, and learners that are made as they say."""

from dataclasses import replace

import pytest
import torch

from rnr_gym.agents import RECIPES
from rnr_gym.agents.sb3 import BY_DATASET, recipe_for
from rnr_gym.data import DATASETS
from tests.fixtures import small
from tests.fixtures.paper_problem import paper
from tests.fixtures.routers import new_model, require_contrib

EVERY_LEARNER = pytest.mark.parametrize("name", [*RECIPES])


@EVERY_LEARNER
def test_learner_is_made_as_its_recipe_says(name):
    require_contrib(name)
    recipe = RECIPES[name]
    table = paper()
    model = new_model(recipe, table.spec, backend=table)

    package = type(model).__module__.split(".")[0]
    assert f"{package}:{type(model).__name__}" == recipe.algorithm
    assert model.gamma == 1.0
    # The rate falls linearly to a tenth as the share of steps that remain falls from 1 to 0.
    assert model.lr_schedule(1.0) == pytest.approx(recipe.learning_rate)
    assert model.lr_schedule(0.5) == pytest.approx(0.55 * recipe.learning_rate)
    assert model.lr_schedule(0.0) == pytest.approx(0.1 * recipe.learning_rate)

    optimizer = model.policy.optimizer
    assert isinstance(optimizer, torch.optim.Adam)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {recipe.weight_decay}
    widths = {parameter.shape[0] for parameter in model.policy.parameters()}
    assert recipe.net_arch[0] in widths


@EVERY_LEARNER
def test_recipe_of_dataset_replaces_common_one(monkeypatch, name):
    own = replace(RECIPES[name], net_arch=(7, 5))
    monkeypatch.setitem(BY_DATASET, name, {"cifar10": own})
    assert recipe_for(name, "cifar10") is own

    # Images that are given as an object have no name.
    by_split = {"route": small.images(6)}
    for other in ("cifar100", "digits", "nosuch", None, small.images(6), by_split):
        assert recipe_for(name, other) is RECIPES[name]


@pytest.mark.parametrize("name", [*BY_DATASET])
def test_dataset_recipes_restore_as_common_ones(name):
    assert name in RECIPES
    assert BY_DATASET[name].keys() <= DATASETS.keys()
    # A saved router names its learner, not its data set, so the classes must be the same.
    for recipe in BY_DATASET[name].values():
        assert recipe.algorithm == RECIPES[name].algorithm
        assert recipe.policy_kwargs == RECIPES[name].policy_kwargs
