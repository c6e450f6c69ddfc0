"""A comparison as a folder: figures, every image's path, a page and pictures."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

import rnr_gym
from rnr_gym import storage
from rnr_gym.agents import FitConfig
from rnr_gym.experiments import gallery, plots
from rnr_gym.experiments.figures import compare_records, record_to_show
from rnr_gym.experiments.learning import learning_curve
from rnr_gym.experiments.page import page
from rnr_gym.experiments.results import LearningCurve, Record, Results, Shown, Testbed
from rnr_gym.registration import registered_kwargs
from rnr_gym.routing.sources import bundled_table, digest_of, digest_of_content, open_profile

RESULTS_FILE = "results.json"
PATHS_FILE = "paths.npz"
PAGE_FILE = "report.html"
PICTURE_FILE = "pareto.png"
GALLERY_FILE = "gallery.png"


def write(
    report_dir: Path,
    fit_config: FitConfig,
    seeds: int,
    records: Sequence[Record],
    testbed: Testbed,
) -> Results:
    """Write the whole report.

    `results.json` comes last, so that a folder that has it is complete.

    Args:
        report_dir: where it is written.
        fit_config: what the routers were fitted to.
        seeds: the number of seeds of each router that has any.
        records: all of the comparison.
        testbed: what they were evaluated on.
    """
    shown = record_to_show(records)
    results = Results(
        env=fit_config.env,
        arguments=dict(fit_config.kwargs),
        seeds=seeds,
        images=len(testbed.source.labels),
        gallery=testbed.images is not None,
        shown=Shown(router=shown.router, seed=shown.seed, tradeoff=shown.tradeoff),
        provenance=provenance(fit_config, testbed),
        comparison=compare_records(records, testbed),
        learning=learning_curves(report_dir, records),
    )
    # Whoever reads the file has no more than this, so the page is made from it.
    content = results.to_json()

    _save_paths(report_dir / PATHS_FILE, records)
    plots.save_png(plots.front(results.comparison, plots.WIDE), report_dir / PICTURE_FILE)
    if testbed.images is not None:
        assert results.comparison.examples is not None
        gallery.save(testbed.images, results.comparison.examples, report_dir / GALLERY_FILE)
    with storage.replacing(report_dir / PAGE_FILE) as partial:
        partial.write_text(stored_page(content, report_dir), encoding="utf-8")
    storage.save_json(report_dir / RESULTS_FILE, content)
    return results


def provenance(fit_config: FitConfig, testbed: Testbed) -> dict[str, Any]:
    """What the figures were measured on, by its title on the page."""
    kwargs = {**registered_kwargs(fit_config.env), **fit_config.kwargs}
    bundled = None
    if kwargs.get("backend") == "table":
        names = ("dataset", "backbone", "weights", "exits", "dtype")
        chosen = {name: kwargs[name] for name in names if name in kwargs}
        bundled = bundled_table(split="test", **chosen)
    # All code of the package: any of it may change a figure.
    package = Path(rnr_gym.__file__).parent
    code = [file.read_bytes() for file in sorted(package.rglob("*.py"))]
    measured_on = {
        "environment": fit_config.env,
        "arguments": json.dumps(dict(fit_config.kwargs)),
        "split": "test",
        "rnr_gym": rnr_gym.__version__,
        "weights and images": digest_of(testbed.source),
        # A table that was built here follows from weights and images, but for rounding.
        "route table": "" if bundled is None else digest_of_content(bundled),
        "code": storage.short_hash(*code),
        "torch": torch.__version__,
        "matplotlib": matplotlib.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    profile = open_profile(**kwargs)
    if profile is not None:
        measured_on["profile"] = str(profile)
    return measured_on


def learning_curves(report_dir: Path, records: Sequence[Record]) -> list[LearningCurve]:
    """The curves of all routers of a comparison that left logs."""
    curves = []
    for name, seed in dict.fromkeys((record.router, record.seed) for record in records):
        curve = learning_curve(name, seed, router_dir(report_dir, name, seed))
        if curve is not None:
            curves.append(curve)
    return curves


def router_dir(report_dir: Path, name: str, seed: int) -> Path:
    """Where a comparison keeps a fitted router."""
    return report_dir / "routers" / f"{name}-{seed}"


def stored_page(content: dict[str, Any], report_dir: Path) -> str:
    """The page of the content of `results.json`, with the gallery of the same folder."""
    tiles = None
    if content["gallery"]:
        tiles = (report_dir / GALLERY_FILE).read_bytes()
    return page(content, tiles)


def _save_paths(path: Path, records: Sequence[Record]) -> None:
    """Every image's path and answer, by the number of the record."""
    arrays = {}
    for i, record in enumerate(records):
        arrays[f"path_{i}"] = record.evaluation.path
        # In 16 bits: there are hundreds of records of thousands of images.
        arrays[f"prediction_{i}"] = record.evaluation.prediction.astype(np.int16)
    with storage.replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def paths_digest(report_dir: Path) -> str:
    """Twelve hexadecimal digits of all paths and answers, the same if the routers did the same."""
    with np.load(report_dir / PATHS_FILE, allow_pickle=False) as stored:
        return storage.digest({name: torch.from_numpy(stored[name]) for name in stored.files})
