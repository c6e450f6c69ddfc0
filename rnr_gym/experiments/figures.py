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
    ClassFigures,
    Comparison,
    Difficulty,
    DifficultyFigures,
    Example,
    Examples,
    OutcomeFigures,
    PairFigures,
    Paths,
    Record,
    RouterFigures,
    Row,
    SeverityFigures,
    Testbed,
    UsedPath,
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
"""The same for figures by how the full path answers an image, and by difficulty."""
MOST_USED = 6
"""How many of the most used paths are kept."""
EXAMPLES = 6
"""How many of the cheapest images, and of the most expensive ones, are kept."""
DIFFICULTIES = ("all", "most", "half", "few", "none")
"""Levels of difficulty: how many of all paths answer right."""


def compare_records(records: Sequence[Record], testbed: Testbed) -> Comparison:
    """All figures that follow from records and testbed."""
    plain_cost = testbed.source.spec.plain_cost
    original_id = testbed.original_id
    outcomes = outcomes_by_router(records, plain_cost)
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
    full_outcomes = RouterOutcomes.of([[full]], plain_cost)
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

    shown = record_to_show(records)
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
        by_difficulty=_by_difficulty(outcomes, testbed, full.correct),
        paths=_paths(shown, testbed),
        by_class=_by_class(shown, testbed),
        examples=_examples(shown, testbed),
    )


def record_to_show(records: Sequence[Record]) -> Record:
    """The last adaptive router's record with seed 0 at its middle compute.

    Where no router is adaptive, the last router's.
    """
    names = [record.router for record in records if record.router != ORACLE]
    # The paths of a router that treats all images alike would show nothing.
    adaptive = [name for name in names if is_adaptive(name)]
    name = (adaptive or names)[-1]

    candidates = [record for record in records if record.router == name and record.seed == 0]
    cost = np.array([record.evaluation.cost.mean() for record in candidates])
    nearest = np.abs(cost - np.median(cost)).argmin()
    return candidates[int(nearest)]


def outcomes_by_router(records: Sequence[Record], plain_cost: int) -> dict[str, RouterOutcomes]:
    """Records as arrays over seeds and trade-offs; routers in order of their first record."""
    evaluations: dict[str, dict[int, list[Evaluation]]] = {}
    for record in records:
        of_seed = evaluations.setdefault(record.router, {}).setdefault(record.seed, [])
        of_seed.append(record.evaluation)

    outcomes = {}
    for name, by_seed in evaluations.items():
        in_order = [by_seed[seed] for seed in sorted(by_seed)]
        outcomes[name] = RouterOutcomes.of(in_order, plain_cost)
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
        compute=float(spec.compute(evaluation.cost.mean())),
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


def _by_difficulty(
    outcomes: dict[str, RouterOutcomes],
    testbed: Testbed,
    full_correct: NDArray[np.bool_],
) -> Difficulty | None:
    """From all outcomes, and whether the full path answers each image right, `(N,)`."""
    if len(np.unique(testbed.severity)) > 1:
        return None
    if testbed.table is None:
        measure = "full path"
        names: tuple[str, ...] = ("right", "wrong")
        level = (~full_correct).astype(np.int64)
    else:
        measure = "paths"
        names = DIFFICULTIES
        level = _level_of_difficulty(testbed.table.correct.mean(0))

    routers = []
    for name, of_router in outcomes.items():
        if name in ("static", ORACLE) or is_of_kind(name, "fixed"):
            continue
        nearest = _nearest_tradeoff(of_router, OUTCOME_COMPUTE)
        compute = of_router.compute[:, nearest].mean(0)  # (S, L, N) -> (N,)
        figures = DifficultyFigures(
            router=name,
            mean_compute=float(compute.mean()),
            compute=statistics.by_group(compute, level),
            accuracy=statistics.by_group(of_router.correct[:, nearest].mean(0), level),
        )
        routers.append(figures)
    levels, images = np.unique(level, return_counts=True)
    return Difficulty(
        measure=measure,
        levels=[names[i] for i in levels],
        images=images.tolist(),
        routers=routers,
    )


def _level_of_difficulty(right: NDArray[np.float64]) -> Indices:
    """The index in `DIFFICULTIES` for the share of right paths `(N,)` of each image."""
    # All and none have levels of their own; between them are three of equal width.
    between = 3 - np.minimum(np.floor(3 * right), 2)
    level = np.where(right == 1.0, 0, np.where(right == 0.0, 4, between))
    return level.astype(np.int64)


def _paths(record: Record, testbed: Testbed) -> Paths:
    evaluation = record.evaluation
    spec = testbed.source.spec
    compute = spec.compute(evaluation.cost)
    paths, which, counts = np.unique(
        evaluation.path, axis=0, return_inverse=True, return_counts=True
    )
    which = which.ravel()

    used = []
    # Stable, so that of equally frequent paths the first in lexicographic order comes first.
    for i in np.argsort(-counts, kind="stable")[:MOST_USED]:
        taken = which == i
        path = UsedPath(
            path=paths[i].tolist(),
            share=float(taken.mean()),
            accuracy=float(evaluation.correct[taken].mean()),
            compute=float(compute[taken].mean()),
        )
        used.append(path)
    return Paths(
        offered=[np.flatnonzero(valid).tolist() for valid in spec.valid],
        exits=bool(spec.has_exits and spec.valid[:, 0].any()),
        compute=float(compute.mean()),
        distinct=len(paths),
        used=used,
    )


def _by_class(record: Record, testbed: Testbed) -> list[ClassFigures]:
    if testbed.images is None:
        return []
    compute = testbed.source.spec.compute(record.evaluation.cost)
    figures = []
    for label, name in enumerate(testbed.images.classes):
        of_class = testbed.images.labels == label
        if of_class.any():
            entry = ClassFigures(
                label=name,
                images=int(of_class.sum()),
                compute=float(compute[of_class].mean()),
                accuracy=float(record.evaluation.correct[of_class].mean()),
            )
            figures.append(entry)
    return figures


def _examples(record: Record, testbed: Testbed) -> Examples:
    if testbed.images is None:
        return Examples(cheapest=[], most_expensive=[])
    # Stable, so that of equally cheap images the first ones are shown.
    order = np.argsort(record.evaluation.cost, kind="stable")
    return Examples(
        cheapest=[_example(i, record, testbed) for i in order[:EXAMPLES]],
        most_expensive=[_example(i, record, testbed) for i in order[::-1][:EXAMPLES]],
    )


def _example(image_idx: int, record: Record, testbed: Testbed) -> Example:
    assert testbed.images is not None
    evaluation = record.evaluation
    classes = testbed.images.classes
    return Example(
        image=int(image_idx),
        label=classes[testbed.images.labels[image_idx]],
        prediction=classes[evaluation.prediction[image_idx]],
        right=bool(evaluation.correct[image_idx]),
        compute=float(testbed.source.spec.compute(evaluation.cost[image_idx])),
        path=evaluation.path[image_idx].tolist(),
    )


def _nearest_tradeoff(outcomes: RouterOutcomes, compute: float) -> int:
    """The index of the trade-off whose mean compute is nearest."""
    mean_compute = outcomes.compute.mean((0, 2))  # (S, L, N) -> (L,)
    return int(np.abs(mean_compute - compute).argmin())
