"""The proof that the figures of a report hold: run every stored path again, and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnr_gym.agents import FitConfig
from rnr_gym.agents.static import StaticRouter
from rnr_gym.classifier import CONFIG_FILE
from rnr_gym.experiments import runs
from rnr_gym.experiments.comparison import router_dir
from rnr_gym.experiments.evaluation import Evaluation, evaluate_paths, static_macs
from rnr_gym.experiments.figures import compare_records
from rnr_gym.experiments.report import PAGE_FILE, PATHS_FILE, RESULTS_FILE, page
from rnr_gym.experiments.results import ORACLE, Record, Testbed
from rnr_gym.routing.protocols import Router, RoutingSource
from rnr_gym.routing.rollout import decision_macs
from rnr_gym.routing.sources import digest_of

TIES = 0.001
"""Share of the images whose answer may differ when run again.

Rounding decides where two classes are level.
"""
ROUNDING = 1e-4
"""Difference up to which figures agree, relative to those above 1."""
MEASURED = ("seconds",)
"""What is measured by the clock, so that a replay cannot give it again."""


def validate(report_dir: Path) -> int:
    """Run every stored path again, compute every figure from it, and compare.

    Returns the number of rows that were checked.

    Raises:
        FileNotFoundError: the folder has no finished report.
        ValueError: a figure does not hold; the error names the first of them.
    """
    if not (report_dir / RESULTS_FILE).exists():
        raise FileNotFoundError(
            f"`report` must be the folder of a finished comparison, got {str(report_dir)!r}, "
            f"which has no {RESULTS_FILE}"
        )

    # Left as JSON: a file that was edited may lack fields, and `_check` says which.
    stored = json.loads((report_dir / RESULTS_FILE).read_text())
    testbed = Testbed.open(FitConfig(env=stored["env"], kwargs=stored["arguments"]))
    source = testbed.source
    _check("provenance", stored["provenance"]["weights and images"], digest_of(source))

    records = _replay(report_dir, stored["rows"], testbed)
    config = json.loads((report_dir / CONFIG_FILE).read_text())
    _check("images", stored["images"], len(source.labels))
    _check("seeds", stored["seeds"], config["seeds"])
    for name, figures in compare_records(records, testbed).to_json().items():
        _check(name, stored[name], figures)
    # Last: a page that shows the stored figures shows figures that hold.
    if (report_dir / PAGE_FILE).read_text() != page(stored):
        raise ValueError(
            f"`{PAGE_FILE}` does not follow from {RESULTS_FILE}; write the report again"
        )
    return len(records)


def _replay(report_dir: Path, rows: list[dict[str, Any]], testbed: Testbed) -> list[Record]:
    """The records of a report, from its paths, with outcomes and costs of the live network."""
    with np.load(report_dir / PATHS_FILE, allow_pickle=False) as arrays:
        paths = [arrays[f"path_{i}"] for i in range(len(rows))]
        predictions = [arrays[f"prediction_{i}"].astype(np.int64) for i in range(len(rows))]
    # On the live network where there is one, though the report may rest on its route table.
    evaluations = _evaluate_once(testbed.source, paths)

    records = []
    for i, row in enumerate(rows):
        differs = evaluations[i].prediction != predictions[i]
        if differs.mean() > TIES:
            raise ValueError(
                f"row {i} ({row['router']}, seed {row['seed']}): {differs.sum()} answers differ "
                "when run again"
            )

        router = _load_router(report_dir, row["router"], row["seed"])
        # Charging a router as a static network would flatter it, so this is looked up.
        static = isinstance(router, StaticRouter)
        _check(f"rows[{i}].static", row["static"], static)
        macs_per_decision = 0
        if router is not None and not static:
            macs_per_decision = decision_macs(router, testbed.source.spec)

        evaluation = _charged(
            source=testbed.source,
            path=paths[i],
            prediction=predictions[i],
            replayed=evaluations[i],
            static=static,
            macs_per_decision=macs_per_decision,
        )
        record = Record(
            router=row["router"],
            seed=row["seed"],
            tradeoff=row["tradeoff"],
            static=static,
            decision_macs=macs_per_decision,
            seconds=row["seconds"],
            evaluation=evaluation,
        )
        records.append(record)
    return records


def _charged(
    *,
    source: RoutingSource,
    path: NDArray[np.int8],
    prediction: NDArray[np.int64],
    replayed: Evaluation,
    static: bool,
    macs_per_decision: int,
) -> Evaluation:
    """A replayed evaluation with the charges of its router.

    Path and answers are the stored ones, so that a tie makes no difference.
    """
    router_macs = macs_per_decision * (path >= 0).sum(1)
    macs = replayed.macs + router_macs
    if static:
        macs = static_macs(source.spec, path)
    return Evaluation(
        path=path,
        prediction=prediction,
        correct=prediction == source.labels,
        loss=replayed.loss,
        macs=macs,
        router_macs=router_macs,
    )


def _load_router(report_dir: Path, name: str, seed: int) -> Router | None:
    """The router of a row; None for the oracle, which is none."""
    if name == ORACLE:
        return None
    return runs.load(router_dir(report_dir, name, seed)).router


def _evaluate_once(source: RoutingSource, paths: list[NDArray[np.int8]]) -> list[Evaluation]:
    """Evaluate lists of paths `(N, T)`, each pair of image and path just once."""
    num_images = len(source.labels)
    image_idx = np.tile(np.arange(num_images), len(paths))
    pairs = np.column_stack([image_idx, np.concatenate(paths)])
    # Routers share many paths, so this is a fraction of the work.
    unique, which = np.unique(pairs, axis=0, return_inverse=True)
    evaluation = evaluate_paths(
        source,
        unique[:, 1:].astype(np.int8),
        image_idx=unique[:, 0].astype(np.int64),
    )
    return [evaluation.take(idx) for idx in which.reshape(len(paths), num_images)]


def _check(name: str, stored: Any, replayed: Any) -> None:
    """Raise `ValueError` if a stored figure differs from the replayed one by more than rounding."""
    if isinstance(replayed, dict):
        for key, value in replayed.items():
            if key not in MEASURED:
                _check(f"{name}.{key}", stored.get(key), value)
        return

    if isinstance(replayed, list):
        if not isinstance(stored, list) or len(stored) != len(replayed):
            raise ValueError(f"`{name}` must have {len(replayed)} entries, got {stored!r}")
        for i, value in enumerate(replayed):
            _check(f"{name}[{i}]", stored[i], value)
        return

    # An edited file may have 1 for 1.0.
    if isinstance(replayed, float) and isinstance(stored, int | float):
        holds = abs(stored - replayed) <= ROUNDING * max(1.0, abs(replayed))
    else:
        holds = stored == replayed
    if not holds:
        raise ValueError(
            f"`{name}` does not hold: the report has {stored!r}, the replay gives {replayed!r}"
        )
