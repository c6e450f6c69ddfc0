"""The proof that the figures of a report hold: everything in it is computed again, and compared."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from rnr_gym import agents, storage
from rnr_gym.agents import AGENTS, FitConfig
from rnr_gym.classifier import CONFIG_FILE
from rnr_gym.experiments import gallery, runs
from rnr_gym.experiments.comparison import (
    evaluate_router,
    evaluate_routers,
    is_fitted_with,
)
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS, Evaluation, evaluate_paths
from rnr_gym.experiments.figures import compare_records
from rnr_gym.experiments.page import without_charts
from rnr_gym.experiments.report import (
    GALLERY_FILE,
    PAGE_FILE,
    PATHS_FILE,
    RESULTS_FILE,
    learning_curves,
    provenance,
    router_dir,
    stored_page,
)
from rnr_gym.experiments.results import Examples, Record, Results, Testbed
from rnr_gym.progress import progress_bar

CHOICES = 0.002
"""Share of the images for which a stored router may choose another path when it chooses again.

Rounding decides where two sub-paths are level, and differs between machines.
"""
ANSWERS = 0.001
"""Share of the images whose answer may differ when their path is run again, for the same reason."""
RETURN = 0.002
"""Mean return by which a rule that is fitted again may differ from the stored one."""
SEEDED_RETURN = 0.005
"""The same for routers with a seed, whose fit follows rounding."""
AT_ONE_TRADEOFF = 4
"""How many times as much the return at a single trade-off may differ."""
ROUNDING = 1e-4
"""Difference up to which figures agree, relative to those above 1."""
MEASURED = ("seconds",)
"""What is measured by the clock, so that a replay cannot give it again."""
SAME = ("profile", "weights and images", "route table")
"""Provenance that must be the same where a report is validated."""


def validate(report_dir: Path) -> int:
    """Compute a report again, and compare.

    Every stored router chooses again, at every trade-off; what its paths answer is looked up again;
    figures and page follow from that. Routers that are no learners are fitted again, too, so that
    rivals cannot be weakened; learners would take hours.

    Returns the number of rows that were checked.

    Raises:
        FileNotFoundError: the folder has no finished report.
        ValueError: something does not hold; the error names the first of it.
    """
    stored, config = _read(report_dir)
    fit_config = FitConfig(
        env=stored["env"],
        kwargs=stored["arguments"],
        steps=config["steps"],
        tradeoffs=tuple(config["tradeoffs"]),
    )
    testbed = Testbed.open(fit_config)
    measured_on = provenance(fit_config, testbed)
    same = {name: measured_on[name] for name in SAME if name in measured_on}
    _check("provenance", stored["provenance"], same)
    _check("images", stored["images"], len(testbed.source.labels))
    _check("seeds", stored["seeds"], config["seeds"])

    fitted = _fitted(config["agents"], config["seeds"])
    for name, seed in fitted:
        _check_identity(report_dir, name, replace(fit_config, seed=seed))
    chosen = list(evaluate_routers(config["agents"], config["seeds"], report_dir, testbed))
    records = _as_stored(report_dir, stored["rows"], chosen, testbed)
    for name, seed in progress_bar(fitted, desc="fit again", unit="router"):
        if AGENTS[name].kind != "learner":
            _check_fit(name, replace(fit_config, seed=seed, progress=False), records, testbed)

    for name, figures in compare_records(records, testbed).to_json().items():
        _check(name, stored.get(name), figures)
    curves = [asdict(curve) for curve in learning_curves(report_dir, records)]
    _check("learning", stored["learning"], curves)
    # Last: a page that shows the stored figures shows figures that hold.
    _check_gallery(report_dir, stored, testbed)
    _check_page(report_dir, stored, measured_on["matplotlib"])
    return len(records)


def _read(report_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of a report, and the configuration that it was started with."""
    if not (report_dir / RESULTS_FILE).exists():
        raise FileNotFoundError(
            f"`report` must be the folder of a finished comparison, got {str(report_dir)!r}, "
            f"which has no {RESULTS_FILE}"
        )
    # Left as JSON: figures may be missing where a file was edited, and `_check` says which.
    stored = storage.load_json(report_dir / RESULTS_FILE)
    config = storage.load_json(report_dir / CONFIG_FILE)
    head = [field.name for field in fields(Results) if field.name != "comparison"]
    added = ("by_difficulty", "paths", "by_class", "examples")
    _check_has(stored, RESULTS_FILE, [*head, "rows", *added])
    _check_has(config, CONFIG_FILE, ("agents", "seeds", "steps", "tradeoffs"))
    return stored, config


def _fitted(names: Sequence[str], seeds: int) -> list[tuple[str, int]]:
    """Router and seed of everything that the comparison has fitted."""
    return [(name, seed) for name in names for seed in range(seeds) if is_fitted_with(name, seed)]


def _check_identity(report_dir: Path, name: str, fit_config: FitConfig) -> None:
    """Raise `ValueError` if a router's file is another router's."""
    folder = router_dir(report_dir, name, fit_config.seed)
    # Fitted to these weights and images, or it would not load.
    run = runs.load(folder)
    found = runs.identity(run.agent, run.fit_config)
    expected = runs.identity(name, fit_config)
    _check(str(folder.relative_to(report_dir)), found, expected)


def _as_stored(
    report_dir: Path,
    rows: list[dict[str, Any]],
    chosen: list[Record],
    testbed: Testbed,
) -> list[Record]:
    """The records with the stored paths and answers, which must be those of the routers.

    They are what figures are computed from, so that a tie makes no difference.
    """
    _check("rows", len(rows), len(chosen))
    shape = chosen[0].evaluation.path.shape
    stored_paths = _arrays(report_dir / PATHS_FILE, "path", len(rows), shape)
    predictions = _arrays(report_dir / PATHS_FILE, "prediction", len(rows), shape[:1])
    records = []
    for i, (row, record) in enumerate(zip(rows, chosen, strict=True)):
        names = ("router", "seed", "tradeoff", "static")
        _check(f"rows[{i}]", row, {name: getattr(record, name) for name in names})

        evaluation = _rerun(stored_paths[i], record, testbed, title=_title(i, row))
        differs = predictions[i] != evaluation.prediction
        if differs.mean() > ANSWERS:
            raise ValueError(f"{_title(i, row)}: {differs.sum()} answers differ when run again")
        evaluation = evaluation._replace(
            prediction=predictions[i],
            correct=predictions[i] == testbed.source.labels,
        )
        seconds = row.get("seconds", 0.0)
        records.append(record._replace(seconds=seconds, evaluation=evaluation))
    return records


def _arrays(path: Path, name: str, count: int, shape: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """Whole numbers of this shape for each row, by name and number of the row."""
    arrays = []
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, NpzFile):
            raise ValueError("it is a single array")
        with stored:
            for i in range(count):
                arrays.append(stored[f"{name}_{i}"])
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"`{path.name}` must have the paths of every row ({error})") from error

    for i, array in enumerate(arrays):
        if array.shape != shape or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"`{name}_{i}` of {path.name} must be whole numbers of shape {shape}, got "
                f"{array.dtype} {array.shape}"
            )
    return [array.astype(np.int64) for array in arrays]


def _rerun(
    paths: NDArray[np.int64],
    record: Record,
    testbed: Testbed,
    title: str,
) -> Evaluation:
    """The outcomes of stored paths `(N, T)`, which must be those that the router chooses."""
    evaluation = record.evaluation
    differs = (paths != evaluation.path).any(1)
    if differs.mean() > CHOICES:
        raise ValueError(f"{title}: {differs.sum()} paths differ when chosen again")

    # What was chosen again has been run already.
    image_idx = np.flatnonzero(differs)
    if len(image_idx) == 0:
        return evaluation
    rerun = evaluate_paths(
        testbed.fastest,
        paths[image_idx],
        record.static,
        record.decision_macs,
        image_idx,
    )
    merged = []
    for whole, part in zip(evaluation, rerun, strict=True):
        values = np.array(whole)
        values[image_idx] = part
        merged.append(values)
    return Evaluation._make(merged)


def _check_fit(
    name: str,
    fit_config: FitConfig,
    records: list[Record],
    testbed: Testbed,
) -> None:
    """Raise `ValueError` if a router's return is not that of the same router fitted again."""
    seed = fit_config.seed
    threads = torch.get_num_threads()
    # As the workers of a comparison, because the number of threads changes the rounding.
    torch.set_num_threads(1)
    try:
        router = agents.agent(name).fit(fit_config)
    finally:
        torch.set_num_threads(threads)
    refitted = list(evaluate_router(name, seed, router, testbed.fastest))
    stored = [record for record in records if (record.router, record.seed) == (name, seed)]

    differences = _returns(stored, testbed) - _returns(refitted, testbed)
    allowed = SEEDED_RETURN if AGENTS[name].seeded else RETURN
    mean = abs(differences.mean())
    largest = np.abs(differences).max()
    if mean > allowed or largest > AT_ONE_TRADEOFF * allowed:
        raise ValueError(
            f"`routers/{name}-{seed}` does not hold: the return of the stored router differs by "
            f"{mean:.4f} in the mean, and by up to {largest:.4f}, from that of one that is fitted "
            "again"
        )


def _returns(records: Sequence[Record], testbed: Testbed) -> NDArray[np.float64]:
    """Mean return over the images at each of `EVAL_TRADEOFFS`."""
    returns = []
    for record in records:
        # Static routers have trade-offs of their own besides.
        if record.tradeoff in EVAL_TRADEOFFS:
            compute = testbed.source.spec.compute(record.evaluation.cost.mean())
            returns.append(record.evaluation.correct.mean() - record.tradeoff * compute)
    return np.array(returns)


def _check_gallery(report_dir: Path, stored: dict[str, Any], testbed: Testbed) -> None:
    """Raise `ValueError` if the gallery shows other images than those of the results."""
    # A table alone has no images to compare with.
    if not stored["gallery"] or testbed.images is None:
        return
    examples = Examples.from_json(stored["examples"])
    assert examples is not None
    if not gallery.shows(report_dir / GALLERY_FILE, testbed.images, examples):
        raise ValueError(
            f"`{GALLERY_FILE}` must show the images that {RESULTS_FILE} names as `examples`"
        )


def _check_page(report_dir: Path, stored: dict[str, Any], matplotlib: str) -> None:
    """Raise `ValueError` if the page is another than the one that follows from the results."""
    try:
        expected = stored_page(stored, report_dir)
    # An entry that nothing was compared with, or a picture that is none.
    except (KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"`{RESULTS_FILE}` must hold what this version writes ({error})"
        ) from error
    actual = (report_dir / PAGE_FILE).read_text(encoding="utf-8")
    # Other versions of Matplotlib draw the same chart with other bytes.
    if stored["provenance"].get("matplotlib") != matplotlib:
        expected = without_charts(expected)
        actual = without_charts(actual)
    if actual != expected:
        raise ValueError(
            f"`{PAGE_FILE}` does not follow from {RESULTS_FILE}; write the report again"
        )


def _check_has(content: dict[str, Any], name: str, keys: Sequence[str]) -> None:
    """Raise `ValueError` if a file lacks an entry."""
    for key in keys:
        if key not in content:
            raise ValueError(
                f"`{key}` must be in {name}, which lacks it; if an earlier version wrote the "
                f"report, remove {RESULTS_FILE} and give the same `rnr-gym compare` command again"
            )


def _title(row_idx: int, row: dict[str, Any]) -> str:
    return f"row {row_idx} ({row['router']}, seed {row['seed']})"


def _check(name: str, stored: Any, replayed: Any) -> None:
    """Raise `ValueError` if what is stored differs by more than rounding from what is computed."""
    if isinstance(replayed, dict):
        if not isinstance(stored, dict):
            raise ValueError(f"`{name}` must be an object, got {stored!r}")
        for key, value in replayed.items():
            if key not in MEASURED:
                _check(f"{name}.{key}", stored.get(key), value)
        return

    if isinstance(replayed, list):
        if not isinstance(stored, list):
            raise ValueError(f"`{name}` must be a list, got {stored!r}")
        if len(stored) != len(replayed):
            raise ValueError(f"`{name}` must have {len(replayed)} entries, got {len(stored)}")
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
