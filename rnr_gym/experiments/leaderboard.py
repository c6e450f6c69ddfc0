"""From the paths of an entry to its figures: everything is computed again, nothing is believed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnr_gym.experiments import entries, figures, statistics
from rnr_gym.experiments.entries import Entry
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS, evaluate_paths
from rnr_gym.experiments.results import Record, RouterFigures, Row, Testbed
from rnr_gym.experiments.statistics import RouterOutcomes
from rnr_gym.routing.protocols import Indices

SEED = 0
"""Stands for a router's seed, which an entry does not have."""


class Standing(NamedTuple):
    """What follows from the paths of an entry, and from the MACs that it declares for a decision.

    Attributes:
        figures: accuracies at budgets, mean regret and others, as in a comparison.
        rows: those of a comparison, one per trade-off.
        plain_macs: MACs of the plain network.
        router_share: MACs of the router's own decisions over those of the plain network, the mean
            over `EVAL_TRADEOFFS`.
        regrets: float64 `(N,)`, what each image loses against the oracle, the mean over
            `EVAL_TRADEOFFS`; None where there is no route table.
        regret: their mean; None where there is no route table.
        original_id: int64 `(N,)`, the same for all versions of one original.
    """

    figures: RouterFigures
    rows: list[Row]
    plain_macs: int
    router_share: float
    regrets: NDArray[np.float64] | None
    regret: statistics.Mean | None
    original_id: Indices


def validate(entry: Entry, data_root: str | None = None) -> Standing:
    """The standing of an entry on the images that are here.

    Raises:
        ValueError: the entry is about other weights or images, or its paths do not fit them.
        FileNotFoundError: there are no images.
    """
    # Before a route table is built, which takes minutes for a large network.
    source = entries.open_test(entry.env, entry.weights, data_root)
    entries.check_origin(entry, source)
    entries.check_paths(entry, source)
    return standing(entry, entries.open_testbed(entry.env, entry.weights, data_root))


def standing(entry: Entry, testbed: Testbed) -> Standing:
    """The figures of an entry, from its paths; raises `ValueError` if they do not fit."""
    entries.check_paths(entry, testbed.source)
    spec = testbed.source.spec
    rows = []
    evaluations = []
    for tradeoff, paths in zip(entry.tradeoffs.tolist(), entry.paths, strict=True):
        evaluation = evaluate_paths(testbed.fastest, paths, entry.static, entry.decision_macs)
        record = Record(
            router=entry.router,
            seed=SEED,
            tradeoff=tradeoff,
            static=entry.static,
            decision_macs=entry.decision_macs,
            seconds=0.0,
            evaluation=evaluation,
        )
        rows.append(figures.row(record, testbed))
        evaluations.append(evaluation)

    everywhere = [idx for idx, row in enumerate(rows) if row.tradeoff in EVAL_TRADEOFFS]
    router_macs = np.mean([rows[idx].router_macs for idx in everywhere])
    regrets = None
    regret = None
    if testbed.table is not None:
        each = [
            testbed.table.regrets(evaluations[idx].path, rows[idx].tradeoff) for idx in everywhere
        ]
        regrets = np.mean(each, axis=0)
        regret = statistics.mean_over_images(regrets, testbed.original_id)
    outcomes = RouterOutcomes.of([evaluations], spec.plain_cost)
    return Standing(
        figures=figures.router_figures(entry.router, outcomes, rows),
        rows=rows,
        plain_macs=spec.plain_macs,
        router_share=float(router_macs / spec.plain_macs),
        regrets=regrets,
        regret=regret,
        original_id=testbed.original_id,
    )
