"""Routing problems as tables: one that is solved on paper, and random ones.

Paper: two layers; sub-path 0 is the exit, 1 cheap (10 MACs), 2 full (40). The stem costs 10, the glance 2, layer 1's exit
head 3, the head 10, so the plain network 10 + 40 + 40 + 10 = 100 MACs and compute is MACs / 100. The environment charges

    0    glance 2                                    0.02
    10   .02 + stem 10 + cheap 10 + exit head 3      0.25
    11   .25 + cheap 10 + head 10                    0.45
    12   .25 + full 40 + head 10                     0.75
    20   .02 + stem 10 + full 40 + exit head 3       0.55
    21   .55 + cheap 10 + head 10                    0.75
    22   .55 + full 40 + head 10                     1.05

Eight images of four kinds, named by a one-hot in the summary: two `easy` (every path is right), three `middle` (all but the
glance is right), two `hard` (21 and 22 are right) and a `hopeless` one. So at a trade-off λ the best returns are

    easy      0                   1 - .02 λ
    middle    10                  1 - .25 λ      (better than 0's -.02 λ while λ < 1 / .23 = 4.3)
    hard      21 or else 0        1 - .75 λ      (better than 0's -.02 λ while λ < 1 / .73 = 1.37)
    hopeless  0                   -.02 λ

    λ = 0.2   (2 x .996 + 3 x .95 + 2 x .85 - .004) / 8 = (1.992 + 2.85 + 1.7 - .004) / 8 = 0.81725
    λ = 2     (2 x .96 + 3 x .5 - 2 x .04 - .04) / 8 = (1.92 + 1.5 - .08 - .04) / 8 = 0.4125

Sent all one way, 0 is right 2 times in 8, 10, 11, 12 and 20 are 5 times, 21 and 22 are 7 times. The best of the static paths is

    λ = 0.2   21 with 7/8 - .15 = 0.725     (next 22: 7/8 - .21 = 0.665, 10: 5/8 - .05 = 0.575)
    λ = 2     0 with 2/8 - .04 = 0.21       (next 10: 5/8 - .5 = 0.125)
"""

import numpy as np
import torch

from rnr_gym.backbones.macs import MacTable
from rnr_gym.routing.path_tree import places
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.spec import RoutingSpec

KINDS = ("easy", "middle", "hard", "hopeless")
DEALT = np.array([0, 0, 1, 1, 1, 2, 2, 3])
RIGHT = {
    "easy": {(0, -1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)},
    "middle": {(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)},
    "hard": {(2, 1), (2, 2)},
    "hopeless": set(),
}
BEST = {
    0.2: (0.81725, {"easy": [0, -1], "middle": [1, 0], "hard": [2, 1], "hopeless": [0, -1]}),
    2.0: (0.4125, {"easy": [0, -1], "middle": [1, 0], "hard": [0, -1], "hopeless": [0, -1]}),
}
"""By trade-off: the best mean return, and each kind's path."""
BEST_STATIC = {0.2: (0.725, [2, 1]), 2.0: (0.21, [0, -1])}


def spec(exits=True):
    """The problem on paper; with `exits=False` as a backbone poses it whose exits are switched off."""
    layers = np.zeros((2, 3, 3), np.int64)
    layers[:, :, 1], layers[:, :, 2] = 10, 40
    answers = np.array([[2] * 3, [3] * 3]) * exits
    facts = {"pooled": len(KINDS), "glance": 0, "classes": 2, "has_exits": True, "loss_scale": 1.0}
    valid = np.ones((2, 3), np.bool_)
    valid[:, 0] = exits
    return RoutingSpec(facts, valid, MacTable(10, layers, answers, np.full(3, 10)))


def paper():
    """The eight images; class 0 is right, class 1 wrong, and being wrong costs one nat."""
    problem = spec()
    tree, count = places(problem), len(DEALT)
    answers = [tuple(path) for path in tree.path[len(tree.child) :].tolist()]
    wrong = np.array([[path not in RIGHT[KINDS[kind]] for kind in DEALT] for path in answers])
    summary = np.zeros((len(tree.child), count, problem.layout.summary.size), np.float32)
    summary[:, np.arange(count), DEALT] = 1.0
    return RouteTable(problem, np.zeros(count, np.int64), summary, wrong.astype(np.int16), wrong.astype(np.float32))


def drawn(seed, images=30, exits=True):
    """Random answers and confidences over the problem on paper; the longer the path the oftener it is right."""
    problem = spec(exits)
    tree, rng = places(problem), np.random.default_rng(seed)
    going, answered = len(tree.child), len(tree.layer) - len(tree.child)
    summary = rng.random((going, images, problem.layout.summary.size), np.float32)
    chance = 0.3 + 0.6 * tree.macs[going:, None] / problem.plain_macs
    wrong = rng.random((answered, images)) > chance
    return RouteTable(problem, np.zeros(images, np.int64), summary, wrong.astype(np.int16), wrong.astype(np.float32))


def opinionated(router, seed=0):
    """An actor-critic router whose last layer is drawn at random, so that it takes many sub-paths."""
    layer, generator = router.policy.action_net, torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(3.0 * torch.randn(layer.weight.shape, generator=generator))
        layer.bias.zero_()
    return router
