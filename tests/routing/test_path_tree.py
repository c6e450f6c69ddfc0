"""The tree of all paths: each path is in it once, and children continue their prefix."""

import numpy as np
import pytest

from rnr_gym.routing.path_tree import PathTree, num_prefixes
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import paper_problem, small
from tests.fixtures.routing import PROBLEMS, whole_paths

EVERY = pytest.mark.parametrize(("kind", "exits", "on"), PROBLEMS)
ROOT = np.zeros(1, np.int64)


@pytest.fixture
def spec(kind, exits, on):
    """The problem of a small backbone."""
    return RoutingSpec.of(small.backbone(kind, exits), on)


@pytest.fixture
def tree(spec):
    """All its paths."""
    return PathTree.of(spec)


def as_tuples(paths):
    return [tuple(path) for path in paths.tolist()]


@EVERY
def test_tree_holds_every_path_once(spec, tree):
    prefixes = as_tuples(tree.path[: num_prefixes(spec)])
    assert len(prefixes) == len(tree.child)
    assert len(prefixes) == len(set(prefixes))

    answers = as_tuples(tree.path[num_prefixes(spec) :])
    assert len(answers) == len(set(answers))
    assert set(answers) == whole_paths(spec)


@EVERY
def test_tree_nodes_have_one_parent_each(tree):
    children = tree.child[tree.child >= 0]
    # All nodes but the root.
    assert sorted(children) == list(range(1, len(tree.layer)))


@EVERY
def test_tree_children_continue_their_prefix(spec, tree):
    for node, children in enumerate(tree.child):
        layer = tree.layer[node]
        offered = children >= 0
        assert offered.tolist() == spec.valid[layer].tolist()

        for sub_path in np.flatnonzero(offered):
            child = children[sub_path]
            path = tree.path[node].copy()
            path[layer] = sub_path
            assert tree.path[child].tolist() == path.tolist()
            assert tree.prev_sub_path[child] == sub_path

            is_exit = spec.has_exits and sub_path == 0
            is_answer = is_exit or layer + 1 == spec.num_layers
            assert (child >= len(tree.child)) == is_answer


@EVERY
def test_tree_answers_are_past_the_last_layer(spec, tree):
    inner = len(tree.child)
    assert (tree.layer[:inner] < spec.num_layers).all()
    assert (tree.layer[inner:] == spec.num_layers).all()


@EVERY
def test_reached_leads_along_every_path(spec, tree):
    for path in whole_paths(spec):
        node = ROOT
        for sub_path in path:
            # -1 follows an exit.
            if sub_path >= 0:
                node = tree.reached(node, np.array([sub_path]))
        assert as_tuples(tree.path[node]) == [path]


@pytest.mark.parametrize("sub_path", [-1, -3, 3, 99])
def test_reached_is_none_for_unknown_numbers(sub_path):
    tree = PathTree.of(paper_problem.spec())
    known = tree.reached(ROOT, np.array([2]))
    assert known >= 0
    assert tree.reached(ROOT, np.array([sub_path])) == -1


def test_reached_is_none_for_masked_exits():
    tree = PathTree.of(paper_problem.spec(exits=False))
    assert tree.reached(ROOT, ROOT) == -1


def test_macs_of_the_paper_problem():
    tree = PathTree.of(paper_problem.spec())
    macs = dict(zip(as_tuples(tree.path), tree.macs.tolist(), strict=True))
    # As counted in the docstring of `paper_problem`.
    assert macs == {
        (-1, -1): 2,
        (1, -1): 25,
        (2, -1): 55,
        (0, -1): 2,
        (1, 0): 25,
        (1, 1): 45,
        (1, 2): 75,
        (2, 0): 55,
        (2, 1): 75,
        (2, 2): 105,
    }
