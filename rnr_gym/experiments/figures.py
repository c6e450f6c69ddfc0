"""From the records of a comparison to its figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rnr_gym.agents import AGENTS
from rnr_gym.experiments import statistics
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS, Evaluation
from rnr_gym.experiments.results import (
    ORACLE,
    Comparison,
    OutcomeFigures,
    PairFigures,
    Record,
    RouterFigures,
    Row,
    SeverityFigures,
    Testbed,
    is_adaptive,
    is_of_kind,
)
from rnr_gym.experiments.statistics import BUDGETS, Difference, RouterOutcomes
from rnr_gym.routing.protocols import Indices

RIVAL_KINDS = ("imageless", "rule", "fqi")
RIVALS = tuple(name for kind in RIVAL_KINDS for name in AGENTS if AGENTS[name].kind == kind)
"""What a learner is compared with; each of these is compared with those before it."""
SEVERITY_COMPUTE = 0.2
"""Figures by severity are taken at the trade-off whose mean compute is nearest to this."""
OUTCOME_COMPUTE = 0.3
"""The same for figures by how the full path answers an image."""


def compare_records(records: Sequence[Record], testbed: Testbed) -> Comparison:
    """All figures that follow from records and testbed."""
    plain_macs = testbed.source.spec.plain_macs
    original_id = testbed.original_id
    outcomes = outcomes_by_router(records, plain_macs)
    adaptive = [name for name in outcomes if name != ORACLE and is_adaptive(name)]
    rows = [row(record, testbed) for record in records]

    differences = []
    savings = []
    for first, second in _pairs_of_rivals(adaptive, outcomes):
        difference = statistics.paired_difference(outcomes[first], outcomes[second], original_id)
        differences.append(_pair_figures(first, second, difference))
        saving = statistics.paired_saving(outcomes[first], outcomes[second], original_id)
        savings.append(_pair_figures(first, second, saving))
    for first, second in _pairs_with_oracle(outcomes):
        difference = statistics.paired_difference(outcomes[first], outcomes[second], original_id)
        differences.append(_pair_figures(first, second, difference))

    # The plain network stands in for a router with one seed and one trade-off.
    full = testbed.plain()
    full_accuracy = float(full.correct.mean())
    full_outcomes = RouterOutcomes.of([[full]], plain_macs)
    losses = []
    for name in adaptive:
        # A router that has learned little may cost more than every budget.
        if _share_budgets(outcomes[name], outcomes[name]):
            loss = statistics.lost(outcomes[name], full_outcomes, original_id)
            losses.append(_pair_figures(name, "full", loss))

    by_outcome = []
    # With right answers alone, or wrong ones, there is nothing to compare.
    if 0 < full_accuracy < 1:
        for name in adaptive:
            by_outcome.append(_by_outcome(name, outcomes[name], full.correct, original_id))

    return Comparison(
        budgets=list(BUDGETS),
        full_accuracy=full_accuracy,
        rows=rows,
        routers=[router_figures(name, outcomes[name], rows) for name in outcomes],
        differences=differences,
        savings=savings,
        lost=losses,
        by_severity=[_by_severity(name, outcomes[name], testbed.severity) for name in outcomes],
        by_outcome=by_outcome,
    )


def outcomes_by_router(records: Sequence[Record], plain_macs: int) -> dict[str, RouterOutcomes]:
    """Records as arrays over seeds and trade-offs; routers in order of their first record."""
    evaluations: dict[str, dict[int, list[Evaluation]]] = {}
    for record in records:
        of_seed = evaluations.setdefault(record.router, {}).setdefault(record.seed, [])
        of_seed.append(record.evaluation)

    outcomes = {}
    for name, by_seed in evaluations.items():
        in_order = [by_seed[seed] for seed in sorted(by_seed)]
        outcomes[name] = RouterOutcomes.of(in_order, plain_macs)
    return outcomes


def _pairs_of_rivals(
    adaptive: Sequence[str],
    outcomes: dict[str, RouterOutcomes],
) -> list[tuple[str, str]]:
    """Each adaptive router with each of its rivals that shares a budget with it."""
    pairs = []
    for name in adaptive:
        for rival in rivals_of(name):
            if rival in outcomes and _share_budgets(outcomes[name], outcomes[rival]):
                pairs.append((name, rival))
    return pairs


def _pairs_with_oracle(outcomes: dict[str, RouterOutcomes]) -> list[tuple[str, str]]:
    """The oracle with each router that follows the trade-off and shares a budget with it."""
    if ORACLE not in outcomes:
        return []
    pairs = []
    for name in outcomes:
        # Of a router with one compute there is no curve to compare with.
        follows_tradeoff = name != ORACLE and not is_of_kind(name, "fixed")
        if follows_tradeoff and _share_budgets(outcomes[ORACLE], outcomes[name]):
            pairs.append((ORACLE, name))
    return pairs


def rivals_of(name: str) -> tuple[str, ...]:
    """What a router is compared with; two rivals are compared once, not once each way."""
    if name in RIVALS:
        return RIVALS[: RIVALS.index(name)]
    return RIVALS


def _share_budgets(first: RouterOutcomes, second: RouterOutcomes) -> bool:
    return bool(statistics.shared_budgets(first, second))


def row(record: Record, testbed: Testbed) -> Row:
    """The figures of one record."""
    evaluation = record.evaluation
    spec = testbed.source.spec
    # In the environment's own charges: the oracle has neither router nor static discount.
    regret = None
    if testbed.table is not None:
        regret = float(testbed.table.regret(evaluation.path, record.tradeoff))

    return Row(
        router=record.router,
        seed=record.seed,
        tradeoff=record.tradeoff,
        static=record.static,
        accuracy=float(evaluation.correct.mean()),
        compute=float(spec.compute(evaluation.macs.mean())),
        router_macs=float(evaluation.router_macs.mean()),
        decision_macs=record.decision_macs,
        loss=float(evaluation.loss.mean()),
        regret=regret,
        path_entropy=statistics.path_entropy(evaluation.path),
        distinct_paths=len(np.unique(evaluation.path, axis=0)),
        exits=evaluation.exit_rate(spec),
        images=len(evaluation.correct),
        seconds=round(record.seconds, 3),
    )


def router_figures(name: str, outcomes: RouterOutcomes, rows: Sequence[Row]) -> RouterFigures:
    """The figures of one router, from its outcomes and the rows of all routers."""
    own_rows = [row for row in rows if row.router == name]
    accuracy = statistics.accuracy_at(outcomes)  # (S, B)
    compute = outcomes.compute.mean((0, 2))  # (S, L, N) -> (L,)
    return RouterFigures(
        router=name,
        seeds=len(outcomes.correct),
        accuracy_at=[_mean_and_spread(of_seeds) for of_seeds in accuracy.T],
        regret=_regret(own_rows),
        compute_range=[float(compute.min()), float(compute.max())],
        decision_macs=max(row.decision_macs for row in own_rows),
        distinct_paths=max(row.distinct_paths for row in own_rows),
    )


def _regret(rows: Sequence[Row]) -> list[float | None] | None:
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        # Trade-offs that only a static router is evaluated at would weigh its regret differently.
        if row.regret is not None and row.tradeoff in EVAL_TRADEOFFS:
            by_seed.setdefault(row.seed, []).append(row.regret)
    if not by_seed:
        return None
    return _mean_and_spread(np.array([np.mean(by_seed[seed]) for seed in sorted(by_seed)]))


def _mean_and_spread(of_seeds: NDArray[np.float64]) -> list[float | None]:
    """Mean and sample standard deviation over seeds `(S,)`, which are NaN where not reached."""
    if not np.isfinite(of_seeds).all():
        return [None, None]
    mean = float(of_seeds.mean())
    if len(of_seeds) == 1:
        return [mean, None]
    return [mean, float(of_seeds.std(ddof=1))]


def _pair_figures(router: str, against: str, difference: Difference) -> PairFigures:
    at = []
    for mean, low, high in difference.at:
        at.append([_finite(mean), _finite(low), _finite(high)])
    return PairFigures(
        router=router,
        against=against,
        mean=_finite(difference.mean),
        low=_finite(difference.low),
        high=_finite(difference.high),
        budgets=difference.budgets,
        at=at,
    )


def _finite(value: float) -> float | None:
    if not np.isfinite(value):
        return None
    return value


def _by_severity(name: str, outcomes: RouterOutcomes, severity: Indices) -> SeverityFigures:
    nearest = _nearest_tradeoff(outcomes, SEVERITY_COMPUTE)
    compute = outcomes.compute[:, nearest].mean(0)  # (S, L, N) -> (N,)
    accuracy = outcomes.correct[:, nearest].mean(0)
    return SeverityFigures(
        router=name,
        mean_compute=float(compute.mean()),
        severity=np.unique(severity).tolist(),
        compute=statistics.by_group(compute, severity),
        accuracy=statistics.by_group(accuracy, severity),
    )


def _by_outcome(
    name: str,
    outcomes: RouterOutcomes,
    full_correct: NDArray[np.bool_],
    original_id: Indices,
) -> OutcomeFigures:
    """From a router's outcomes, and whether the full path answers each image right, `(N,)`."""
    nearest = _nearest_tradeoff(outcomes, OUTCOME_COMPUTE)
    compute = outcomes.compute[:, nearest].mean(0)  # (S, L, N) -> (N,)
    # Only images vary here: the seeds' mean is taken as given.
    low, high = statistics.mean_difference_interval(compute, ~full_correct, original_id)
    return OutcomeFigures(
        router=name,
        mean_compute=float(compute.mean()),
        right=float(compute[full_correct].mean()),
        wrong=float(compute[~full_correct].mean()),
        low=low,
        high=high,
    )


def _nearest_tradeoff(outcomes: RouterOutcomes, compute: float) -> int:
    """The index of the trade-off whose mean compute is nearest."""
    mean_compute = outcomes.compute.mean((0, 2))  # (S, L, N) -> (L,)
    return int(np.abs(mean_compute - compute).argmin())
