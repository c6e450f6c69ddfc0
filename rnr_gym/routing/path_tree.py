"""Every prefix and every whole path of a routing problem, as a tree."""

from __future__ import annotations

from itertools import accumulate
from operator import mul
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnr_gym.routing.protocols import Indices
from rnr_gym.routing.spec import RoutingSpec


class PathTree(NamedTuple):
    """The tree of paths, with P nodes for K sub-paths and T layers.

    Nodes 0..M-1 are prefixes, at which an image waits for a decision; nodes M..P-1 are answers.

    Attributes:
        child: int64 `(M, K)`, the node that a sub-path leads to, -1 where it is not valid.
        layer: int64 `(P,)`, the layer of the decision; T for answers.
        prev_sub_path: int64 `(P,)`, the sub-path executed last; K - 1 at layer 0.
        macs: int64 `(P,)`, MACs charged so far.
        cost: int64 `(P,)`, what is charged so far: MACs, or nanoseconds where time is charged.
        path: int8 `(P, T)`, executed sub-paths, -1 where none was.
    """

    child: NDArray[np.int64]
    layer: NDArray[np.int64]
    prev_sub_path: NDArray[np.int64]
    macs: NDArray[np.int64]
    cost: NDArray[np.int64]
    path: NDArray[np.int8]

    @classmethod
    def of(cls, spec: RoutingSpec) -> PathTree:
        """Enumerate the tree of a problem, layer by layer, cheaper sub-paths first."""
        prefixes = [_root(spec)]
        answers: list[_Node] = []
        links: list[_Link] = []
        for parent, node in enumerate(prefixes):  # grows while it is read
            for sub_path in np.flatnonzero(spec.valid[node.layer]).tolist():
                child = _child(spec, node, sub_path)
                is_answer = child.layer == spec.num_layers
                siblings = answers if is_answer else prefixes
                links.append(_Link(parent, sub_path, is_answer, len(siblings)))
                siblings.append(child)

        # Answers are numbered after all prefixes, whose count is known only now.
        children = np.full((len(prefixes), spec.num_paths), -1)
        for link in links:
            offset = len(prefixes) if link.to_answer else 0
            children[link.parent, link.sub_path] = offset + link.number

        nodes = prefixes + answers
        paths = np.array([node.path for node in nodes])
        return cls(
            child=children,
            layer=np.array([node.layer for node in nodes]),
            prev_sub_path=np.array([node.prev_sub_path for node in nodes]),
            macs=spec.path_cost(paths, spec.mac_table),
            cost=spec.path_cost(paths, spec.costs),
            path=paths,
        )

    def reached(self, node: Indices, sub_paths: NDArray[np.integer]) -> Indices:
        """int64 `(n,)`: the node that each sub-path leads to, -1 where it is not valid."""
        # A negative sub-path would index from the end.
        known = (sub_paths >= 0) & (sub_paths < self.child.shape[1])
        return np.where(known, self.child[node, np.where(known, sub_paths, 0)], -1)


def num_prefixes(spec: RoutingSpec) -> int:
    """How many prefixes wait for a decision, the empty one included."""
    continuing = spec.valid[:, spec.first_sub_path :].sum(1).tolist()
    # Python's integers, because these can be of any size.
    return 1 + sum(accumulate(continuing[:-1], mul))


class _Node(NamedTuple):
    """One row of a `PathTree`."""

    layer: int
    prev_sub_path: int
    path: NDArray[np.int8]


class _Link(NamedTuple):
    """A sub-path from a prefix to the prefix, or the answer, of a number."""

    parent: int
    sub_path: int
    to_answer: bool
    number: int


def _root(spec: RoutingSpec) -> _Node:
    """The empty prefix."""
    path = np.full(spec.num_layers, -1, np.int8)
    return _Node(layer=0, prev_sub_path=spec.full_path, path=path)


def _child(spec: RoutingSpec, node: _Node, sub_path: int) -> _Node:
    """The node that a sub-path leads to."""
    path = node.path.copy()
    path[node.layer] = sub_path
    layer = node.layer + 1
    if spec.has_exits and sub_path == 0:
        layer = spec.num_layers
    return _Node(layer=layer, prev_sub_path=sub_path, path=path)
