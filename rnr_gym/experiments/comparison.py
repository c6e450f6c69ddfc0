"""Several routers on one environment: fit each once a seed, evaluate each at every trade-off, put it all in numbers."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rnr_gym import agents
from rnr_gym.agents import FitConfig
from rnr_gym.agents.static import StaticRouter
from rnr_gym.classifier import ROUTER
from rnr_gym.data import ImageSet
from rnr_gym.experiments import runs, statistics
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS, Evaluation, evaluate, evaluate_paths, sweep
from rnr_gym.experiments.statistics import BUDGETS, Difference, RouterOutcomes
from rnr_gym.routing.protocols import Router, Source
from rnr_gym.routing.rollout import decision_macs
from rnr_gym.routing.route_table import RouteTable

ORACLE = "oracle"
POINTS = ("random", "full", "cheapest")
"""Routers that have one compute only, whatever the trade-off."""
FIXED = (*POINTS, "static", "blind")
"""Routers that treat all images alike."""
QUICK = (*POINTS, "static", "confidence", "thresholds")
"""Routers that are fitted in seconds."""
RIVALS = ("static", "blind", "confidence", "thresholds", "fqi")
"""What a learner is measured against; each of these is measured against those before it."""


class Record(NamedTuple):
    """One router, seed and trade-off, with what became of every test image.

    Attributes:
        static: whether it is charged as a static network.
        decision_macs: the router's MACs for one decision.
        seconds: that evaluation took.
    """

    router: str
    seed: int
    tradeoff: float
    static: bool
    decision_macs: int
    seconds: float
    evaluation: Evaluation


class Testbed(NamedTuple):
    """What records are judged against.

    Attributes:
        images: the test images; None where only their route table is there.
        source: what is routed.
        table: its route table, where there is one.
    """

    images: ImageSet | None
    source: Source
    table: RouteTable | None

    @property
    def originals(self) -> NDArray[np.int64]:
        """int64 `(N,)`: which original each image is a version of."""
        return self.images.source if self.images is not None else np.arange(len(self.source.labels))

    @property
    def severity(self) -> NDArray[np.int64]:
        """int64 `(N,)`: zeros where nothing is known."""
        return self.images.severity if self.images is not None else np.zeros(len(self.source.labels), np.int64)

    def plain(self) -> Evaluation:
        """What the plain network does with every image."""
        spec = self.source.spec
        full = np.full((len(self.source.labels), spec.num_layers), spec.full_path, np.int8)
        return evaluate_paths(self.table or self.source, full, static=True)


def router_folder(folder: Path, name: str, seed: int) -> Path:
    """Where a comparison keeps a fitted router."""
    return folder / "routers" / f"{name}-{seed}"


def fit_routers(names: Sequence[str], fit_config: FitConfig, seeds: int, folder: Path, jobs: int) -> None:
    """Fit every router that is not there yet, `jobs` at a time; the quick ones last."""
    tasks = [(name, seed) for seed in range(seeds) for name in names if agents.agent(name).seeded or seed == 0]
    tasks = [task for task in tasks if not (router_folder(folder, *task) / ROUTER).exists()]
    tasks.sort(key=lambda task: task[0] in QUICK)
    fit_config.source("route")  # so that its table is built once, here
    workers = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _end_with_parent)
    with workers as pool, tqdm(total=len(tasks), desc="fit", unit="router") as bar:
        waiting = {pool.submit(_fit, name, replace(fit_config, seed=seed, progress=False), folder): (name, seed) for name, seed in tasks}
        try:
            for finished in as_completed(waiting):
                finished.result()
                bar.set_postfix_str("{} seed {}".format(*waiting[finished]))
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """In a worker: end when the process that began it does, even if it was killed; checkpoints are written atomically."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _fit(name: str, fit_config: FitConfig, folder: Path) -> None:
    runs.fit(name, fit_config, router_folder(folder, name, fit_config.seed))


def records(names: Sequence[str], seeds: int, folder: Path, testbed: Testbed) -> Iterator[Record]:
    """Evaluate every fitted router at every trade-off, and the oracle's paths where there is a table."""
    tasks = [(name, seed) for name in names for seed in range(seeds) if agents.agent(name).seeded or seed == 0]
    testbed = testbed.table or testbed.source
    for name, seed in tqdm(tasks, desc="evaluate", unit="router"):
        yield from _swept(name, seed, runs.load(router_folder(folder, name, seed)).router, testbed)
    if testbed.table is not None:
        for tradeoff in EVAL_TRADEOFFS:
            found = evaluate_paths(testbed.table, testbed.table.oracle(tradeoff))
            yield Record(ORACLE, 0, tradeoff, False, 0, 0.0, found)


def _swept(name: str, seed: int, router: Router, testbed: Source) -> Iterator[Record]:
    """One router at every trade-off; a static router's paths are each run once."""
    static, met = isinstance(router, StaticRouter), dict[bytes, Evaluation]()
    spent = 0 if static else decision_macs(router, testbed.spec)
    for tradeoff in sweep(router):
        begun = time.perf_counter()
        key = router.path(tradeoff).tobytes() if isinstance(router, StaticRouter) else str(tradeoff).encode()
        if key not in met:
            met[key] = evaluate(testbed, router, tradeoff)
        yield Record(name, seed, tradeoff, static, spent, time.perf_counter() - begun, met[key])


def sweeps(found: Sequence[Record], plain_macs: int) -> dict[str, RouterOutcomes]:
    """Records by router, as arrays over seeds and trade-offs."""
    result = {}
    for name in dict.fromkeys(record.router for record in found):
        ours = [record for record in found if record.router == name]
        by_seed = [[record.evaluation for record in ours if record.seed == seed] for seed in sorted({record.seed for record in ours})]
        result[name] = RouterOutcomes.of(by_seed, plain_macs)
    return result


def results(found: Sequence[Record], testbed: Testbed) -> dict[str, Any]:
    """All figures of a comparison: a row a record, a summary a router, paired differences, means by severity."""
    plain, full = testbed.source.spec.plain_macs, testbed.plain()
    rows = [row(record, testbed) for record in found]
    by_router = sweeps(found, plain)
    learnt = [name for name in by_router if name not in (*FIXED, ORACLE)]
    against = [(name, rival) for name in learnt for rival in rivals_of(name) if rival in by_router]
    against = [pair for pair in against if _meet(pair, by_router)]
    bounds = [(ORACLE, name) for name in by_router if ORACLE in by_router and name not in (*POINTS, ORACLE)]
    whole = RouterOutcomes.of([[full]], plain)
    return {
        "budgets": list(BUDGETS),
        "full_accuracy": float(full.correct.mean()),
        "rows": rows,
        "routers": [summary(name, by_router[name], rows) for name in by_router],
        "differences": [_paired(statistics.paired_difference, pair, by_router, testbed) for pair in against + bounds if _meet(pair, by_router)],
        "savings": [_paired(statistics.paired_saving, pair, by_router, testbed) for pair in against],
        "lost": [_paired(statistics.lost, (name, "full"), {**by_router, "full": whole}, testbed) for name in learnt if _meet((name, name), by_router)],
        "by_severity": [_by_severity(name, by_router[name], testbed.severity) for name in by_router],
        "by_outcome": [_by_outcome(name, by_router[name], full.correct, testbed) for name in learnt if 0 < full.correct.mean() < 1],
    }


def rivals_of(name: str) -> tuple[str, ...]:
    """What a router is measured against; two rivals are compared once, not once each way."""
    return RIVALS[: RIVALS.index(name)] if name in RIVALS else RIVALS


def row(record: Record, testbed: Testbed) -> dict[str, Any]:
    """One line of `results.json`."""
    found, plain = record.evaluation, testbed.source.spec.plain_macs
    regret = None if testbed.table is None else float(_regret(record, testbed.table))
    exits = (found.path == 0).any(1).mean() if testbed.source.spec.has_exits else 0.0
    return {
        "router": record.router,
        "seed": record.seed,
        "tradeoff": record.tradeoff,
        "static": record.static,
        "accuracy": float(found.correct.mean()),
        "compute": float(found.macs.mean() / plain),
        "router_macs": float(found.router_macs.mean()),
        "decision_macs": record.decision_macs,
        "loss": float(found.loss.mean()),
        "regret": regret,
        "path_entropy": statistics.path_entropy(found.path),
        "distinct_paths": len(np.unique(found.path, axis=0)),
        "exits": float(exits),
        "images": len(found.correct),
        "seconds": round(record.seconds, 3),
    }


def _regret(record: Record, table: RouteTable) -> float:
    """Against the oracle, in the environment's own charges (the router's MACs and static discounts left out)."""
    return table.regret(record.evaluation.path, record.tradeoff)


def summary(name: str, found: RouterOutcomes, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A router's means and spreads over its seeds: accuracy at each budget, regret over the trade-offs, range of compute."""
    accuracy, ours = statistics.accuracy_at(found), [row for row in rows if row["router"] == name]
    swept = [row for row in ours if row["tradeoff"] in EVAL_TRADEOFFS and row["regret"] is not None]
    regrets = [np.mean([row["regret"] for row in swept if row["seed"] == seed]) for seed in sorted({row["seed"] for row in swept})]
    computes = found.compute.mean((0, 2))
    return {
        "router": name,
        "seeds": len(found.correct),
        "accuracy_at": [_mean_and_spread(column) for column in accuracy.T],
        "regret": _mean_and_spread(np.array(regrets)) if regrets else None,
        "compute_range": [float(computes.min()), float(computes.max())],
        "decision_macs": max(row["decision_macs"] for row in ours),
        "distinct_paths": max(row["distinct_paths"] for row in ours),
    }


def _mean_and_spread(values: NDArray[np.float64]) -> list[float | None]:
    """Mean and sample standard deviation; None where some seed does not reach the budget, or there is one seed."""
    if not np.isfinite(values).all():
        return [None, None]
    return [float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None]


def _meet(pair: tuple[str, str], by_router: dict[str, RouterOutcomes]) -> bool:
    return bool(statistics.shared_budgets(by_router[pair[0]], by_router[pair[1]]))


def _paired(statistic: Callable[..., Difference], pair: tuple[str, str], by_router: dict[str, RouterOutcomes], testbed: Testbed) -> dict[str, Any]:
    """A statistic of two routers with its intervals; infinity, which JSON lacks, becomes None."""
    found = statistic(by_router[pair[0]], by_router[pair[1]], testbed.originals)
    head = {"mean": found.mean, "low": found.low, "high": found.high}
    finite = {name: value if np.isfinite(value) else None for name, value in head.items()}
    at = [[value if np.isfinite(value) else None for value in row] for row in found.at]
    return {"router": pair[0], "against": pair[1], **finite, "budgets": found.budgets, "at": at}


def _nearest(found: RouterOutcomes, compute: float) -> int:
    """The trade-off whose mean compute comes nearest."""
    return int(np.abs(found.compute.mean((0, 2)) - compute).argmin())


def _by_outcome(name: str, found: RouterOutcomes, right: NDArray[np.bool_], testbed: Testbed, near: float = 0.3) -> dict[str, Any]:
    """Mean compute on images that the full path gets right and wrong, and the difference with its interval, at a compute near `near`."""
    spent = found.compute[:, _nearest(found, near)].mean(0)
    low, high = statistics.mean_difference_interval(spent, ~right, testbed.originals)
    return {
        "router": name,
        "mean_compute": float(spent.mean()),
        "right": float(spent[right].mean()),
        "wrong": float(spent[~right].mean()),
        "low": low,
        "high": high,
    }


def _by_severity(name: str, found: RouterOutcomes, severity: NDArray[np.int64], near: float = 0.2) -> dict[str, Any]:
    """Compute and accuracy at each severity, a mean over the seeds, at the trade-off whose mean compute is nearest to `near`."""
    chosen = _nearest(found, near)
    compute, accuracy = found.compute[:, chosen].mean(0), found.correct[:, chosen].mean(0)
    parts = {"compute": statistics.by_group(compute, severity), "accuracy": statistics.by_group(accuracy, severity)}
    return {"router": name, "mean_compute": float(compute.mean()), "severity": np.unique(severity).tolist(), **parts}
