"""Paths for whole batches."""

import numpy as np
import pytest
import torch

from rnr_gym.backbones import zoo
from rnr_gym.training import random_paths
from tests.fixtures import small

KINDS = pytest.mark.parametrize("kind", small.KINDS)


def fresh(kind="multipath", exits="glance and exits", seed=0):
    return zoo.from_config(small.config(kind, exits), seed)


@KINDS
def test_random_paths_reach_every_sub_path_but_never_exit(kind):
    backbone, generator = fresh(kind), torch.Generator().manual_seed(0)
    drawn = np.array([random_paths.random_path(backbone, generator) for _ in range(200)])
    assert [set(column) for column in drawn.T] == [set(range(1, backbone.num_paths))] * 3
    bare = fresh(kind, "bare")
    assert np.array([random_paths.random_path(bare, generator) for _ in range(200)]).min() == 0


@KINDS
def test_spread_paths_meet_every_pair_in_a_row_once(kind):
    backbone = fresh(kind)
    drawn = np.array(random_paths.spread_paths(backbone, torch.Generator().manual_seed(0)))
    sub_paths = range(1, backbone.num_paths)
    for layer in range(backbone.num_layers - 1):
        pairs = sorted(map(tuple, drawn[:, layer : layer + 2].tolist()))
        assert pairs == [(first, second) for first in sub_paths for second in sub_paths]


@pytest.mark.parametrize(
    ("kind", "widths"), [("multipath", [2]), ("residual", [1]), ("vgg", [1, 2])]
)
def test_uniform_paths_are_all_widths_but_the_full(kind, widths):
    assert random_paths.uniform_paths(fresh(kind)) == [[width] * 3 for width in widths]
