"""Paths for whole batches."""

import itertools

import numpy as np
import pytest
import torch

from rnr_gym.training import random_paths
from tests.fixtures import offshelf, small

KINDS = pytest.mark.parametrize("kind", small.KINDS)


def draw_paths(backbone, count=200):
    """Random paths int `(count, T)`."""
    generator = torch.Generator().manual_seed(0)
    paths = [random_paths.random_path(backbone, generator) for _ in range(count)]
    return np.array(paths)


@KINDS
def test_random_path_reaches_all_but_the_exit(kind):
    backbone = small.untrained(kind)
    paths = draw_paths(backbone)
    for layer in range(backbone.num_layers):
        assert set(paths[:, layer]) == set(range(1, backbone.num_paths))


@KINDS
def test_random_path_without_exits_starts_at_zero(kind):
    backbone = small.untrained(kind, "bare")
    assert draw_paths(backbone).min() == 0


@KINDS
def test_spread_paths_hold_each_pair_once(kind):
    backbone = small.untrained(kind)
    generator = torch.Generator().manual_seed(0)
    paths = np.array(random_paths.spread_paths(backbone, generator))

    sub_paths = range(1, backbone.num_paths)
    expected = list(itertools.product(sub_paths, repeat=2))
    for layer in range(backbone.num_layers - 1):
        pairs = paths[:, layer : layer + 2].tolist()
        assert sorted(map(tuple, pairs)) == expected


@pytest.mark.parametrize(
    ("kind", "widths"),
    [
        ("multipath", [2]),
        ("residual", [1]),
        ("vgg", [1, 2]),
    ],
)
def test_uniform_paths_have_all_widths_but_full(kind, widths):
    backbone = small.untrained(kind)
    expected = [[width] * 3 for width in widths]
    assert random_paths.uniform_paths(backbone) == expected


def test_paths_take_only_what_layers_offer():
    backbone = offshelf.backbone("resnet, basic")
    generator = torch.Generator().manual_seed(0)
    paths = [random_paths.random_path(backbone, generator) for _ in range(20)]
    paths += random_paths.spread_paths(backbone, generator)
    paths += random_paths.uniform_paths(backbone)
    assert not backbone.valid.all()
    assert backbone.valid[np.arange(backbone.num_layers), np.array(paths)].all()
