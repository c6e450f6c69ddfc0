"""Several routers on one environment: fit each once per seed, evaluate it at every trade-off."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rnr_gym import agents, checks, claims
from rnr_gym.agents import FitConfig
from rnr_gym.agents.static import StaticRouter
from rnr_gym.experiments import cluster, report, runs, workers
from rnr_gym.experiments.evaluation import (
    EVAL_TRADEOFFS,
    Evaluation,
    eval_tradeoffs,
    evaluate,
    evaluate_paths,
)
from rnr_gym.experiments.report import router_dir
from rnr_gym.experiments.results import ORACLE, Record, Results, Testbed, is_of_kind
from rnr_gym.progress import progress_bar
from rnr_gym.routing.protocols import Router, RoutingSource
from rnr_gym.routing.rollout import decision_macs
from rnr_gym.routing.route_table import RouteTable

ENGINES = {"local": workers, "ray": cluster}
"""Where routers are fitted. Each has `connected`, a context, and `fit_all`."""


def compare(
    fit_config: FitConfig,
    names: Sequence[str],
    seeds: int,
    jobs: int | None,
    report_dir: Path,
    engine: str = "local",
) -> Results:
    """Fit routers on `route`, evaluate them on `test`, and write a report.

    An interrupted comparison resumes when it is called with the same arguments again.

    Args:
        fit_config: what the routers are fitted to.
        names: the routers' agents.
        seeds: the number of seeds of each router that has any.
        jobs: how many routers are fitted in parallel; None for as many as there are cores.
        report_dir: where the routers and the report are written.
        engine: where routers are fitted: `"local"`, by processes of this machine, or `"ray"`, on
            the Ray cluster that runs here or that `RAY_ADDRESS` names.

    Raises:
        ValueError: an agent is unknown or cannot be fitted here, or `report_dir` has a comparison
            with other settings.
        FileExistsError: `report_dir` has a finished comparison, or something else, or another
            process is writing it.
        ChildProcessError: a worker was killed, or could not start.
        ConnectionError: there is no cluster.
    """
    # Before anything is written, and before hours of work.
    if isinstance(names, str) or not names:
        raise ValueError(f"`agents` must be a list of routers, got {names!r}")
    for name in names:
        agents.agent(name)
    if len(set(names)) < len(names):
        raise ValueError(f"`agents` must name each router once, got {', '.join(names)}")
    seeds = checks.integer("seeds", seeds, 1)
    if jobs is not None:
        jobs = checks.integer("jobs", jobs, 1)
    checks.choice("engine", engine, ENGINES)
    for name in names:
        agents.check(name, fit_config)
    config = runs.identity("compare", fit_config)
    config |= {"agents": list(names), "seeds": seeds}
    with ENGINES[engine].connected(), claims.claimed(report_dir):
        runs.start_or_resume(report_dir, config, report.RESULTS_FILE)
        # Opened before the long work, so that missing images are found at once.
        testbed = Testbed.open(fit_config)
        fit_routers(names, fit_config, seeds, report_dir, jobs, engine)
        records = list(evaluate_routers(names, seeds, report_dir, testbed))
        return report.write(report_dir, fit_config, seeds, records, testbed)


def fit_routers(
    names: Sequence[str],
    fit_config: FitConfig,
    seeds: int,
    report_dir: Path,
    jobs: int | None,
    engine: str = "local",
) -> None:
    """Fit every router that is not there yet, `jobs` at a time."""
    tasks = []
    for seed in range(seeds):
        for name in names:
            runs.remove_spent_checkpoint(router_dir(report_dir, name, seed))
            fitted = runs.is_finished(router_dir(report_dir, name, seed))
            if is_fitted_with(name, seed) and not fitted:
                tasks.append((name, replace(fit_config, seed=seed, progress=False)))
    # The long ones first, so that no worker is left alone with one at the end.
    tasks.sort(key=lambda task: _is_quick(task[0]))
    # Opened here, so that a route table is built once and not by every worker.
    fit_config.source("route")

    with progress_bar(total=len(tasks), desc="fit", unit="router") as bar:
        for title in ENGINES[engine].fit_all(tasks, report_dir, jobs):
            bar.set_postfix_str(title, refresh=False)
            bar.update()


def is_fitted_with(name: str, seed: int) -> bool:
    """Whether a router has this seed; one without randomness has only the first."""
    return agents.agent(name).seeded or seed == 0


def _is_quick(name: str) -> bool:
    """Whether a router is fitted in seconds."""
    return is_of_kind(name, "fixed") or not agents.agent(name).seeded


def evaluate_routers(
    names: Sequence[str],
    seeds: int,
    report_dir: Path,
    testbed: Testbed,
) -> Iterator[Record]:
    """One record per router, seed and trade-off, and those of the oracle where there is a table."""
    tasks = []
    for name in names:
        tasks += [(name, seed) for seed in range(seeds) if is_fitted_with(name, seed)]

    for name, seed in progress_bar(tasks, desc="evaluate", unit="router"):
        # Loaded from its file, so what is evaluated is what `validate` finds.
        run = runs.load(router_dir(report_dir, name, seed))
        yield from evaluate_router(name, seed, run.router, testbed.fastest)
    if testbed.table is not None:
        yield from _evaluate_oracle(testbed.table)


def evaluate_router(
    name: str,
    seed: int,
    router: Router,
    source: RoutingSource,
) -> Iterator[Record]:
    """One record per trade-off."""
    if isinstance(router, StaticRouter):
        yield from _evaluate_static_router(name, seed, router, source)
        return

    macs = decision_macs(router, source.spec)
    for tradeoff in eval_tradeoffs(router):
        start = time.perf_counter()
        evaluation = evaluate(source, router, tradeoff)
        yield Record(
            router=name,
            seed=seed,
            tradeoff=tradeoff,
            static=False,
            decision_macs=macs,
            seconds=time.perf_counter() - start,
            evaluation=evaluation,
        )


def _evaluate_static_router(
    name: str,
    seed: int,
    router: StaticRouter,
    source: RoutingSource,
) -> Iterator[Record]:
    # Neighbouring trade-offs share a path, which is run once.
    by_path: dict[bytes, Evaluation] = {}
    for tradeoff in eval_tradeoffs(router):
        start = time.perf_counter()
        path = router.path(tradeoff).tobytes()
        if path not in by_path:
            by_path[path] = evaluate(source, router, tradeoff)
        yield Record(
            router=name,
            seed=seed,
            tradeoff=tradeoff,
            static=True,
            decision_macs=0,
            seconds=time.perf_counter() - start,
            evaluation=by_path[path],
        )


def _evaluate_oracle(table: RouteTable) -> Iterator[Record]:
    for tradeoff in EVAL_TRADEOFFS:
        yield Record(
            router=ORACLE,
            seed=0,
            tradeoff=tradeoff,
            static=False,
            decision_macs=0,
            seconds=0.0,
            evaluation=evaluate_paths(table, table.oracle(tradeoff)),
        )
