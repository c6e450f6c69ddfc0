"""A comparison as a folder: figures, every image's path, a page and a picture; and the proof that the figures hold."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from numpy.typing import NDArray

import rnr_gym
from rnr_gym import storage
from rnr_gym.agents import FitConfig
from rnr_gym.agents.static import StaticRouter
from rnr_gym.data import ImageSet
from rnr_gym.experiments import comparison, plots, runs
from rnr_gym.experiments.comparison import FIXED, ORACLE, Testbed, Record
from rnr_gym.experiments.evaluation import Evaluation, evaluate_paths, static_macs
from rnr_gym.registration import registered_kwargs
from rnr_gym.routing.protocols import Source
from rnr_gym.routing.rollout import decision_macs
from rnr_gym.routing.sources import digest_of, open_images, open_source

RESULTS, PATHS, PAGE, PICTURE, GALLERY = "results.json", "paths.npz", "report.html", "pareto.png", "gallery.png"
TIES = 0.001
"""Share of images whose answer may differ when run again: rounding decides where two classes are level."""
MEASURED = ("seconds",)
"""What is measured by the clock and cannot be worked out again."""


def testbed(fit_config: FitConfig) -> Testbed:
    """The test images, live and as a table; a shipped table does without the images where they, or all of them, are not there."""
    arguments = {**registered_kwargs(fit_config.env), **fit_config.arguments, "split": "test"}
    images, source = _images(arguments), open_source(**arguments)
    whole = images is not None and np.array_equal(images.labels, source.labels)
    return Testbed(images if whole else None, source, fit_config.table("test"))


def _images(arguments: dict[str, Any]) -> ImageSet | None:
    if arguments.get("backend") != "shipped":
        return open_images(**arguments)
    try:
        return open_images(**{**arguments, "download": False})
    except FileNotFoundError:
        return None


def provenance(fit_config: FitConfig, testbed: Testbed) -> dict[str, Any]:
    """What the figures were measured on."""
    code = hashlib.sha256()
    for file in sorted(Path(rnr_gym.__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    facts = {"environment": fit_config.env, "arguments": json.dumps(dict(fit_config.arguments)), "split": "test", "rnr_gym": rnr_gym.__version__}
    facts |= {"weights and images": digest_of(testbed.source), "code": code.hexdigest()[:12], "torch": torch.__version__}
    return facts | {"threads": torch.get_num_threads(), "machine": f"{platform.system()} {platform.machine()}"}


def write(folder: Path, fit_config: FitConfig, seeds: int, found: Sequence[Record], testbed: Testbed) -> dict[str, Any]:
    """Write the whole report; `results.json` comes last, so that a folder that has it is complete."""
    shown = _to_show(found)
    picked = {"router": shown.router, "seed": shown.seed, "tradeoff": shown.tradeoff}
    head = {
        "env": fit_config.env,
        "arguments": dict(fit_config.arguments),
        "seeds": seeds,
        "images": len(testbed.source.labels),
        "gallery": testbed.images is not None,
        "shown": picked,
    }
    content = {**head, "provenance": provenance(fit_config, testbed), **comparison.results(found, testbed)}
    arrays = {name: part for number, record in enumerate(found) for name, part in _arrays(number, record.evaluation).items()}
    with storage.replacing(folder / PATHS) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    plots.pareto(content, folder / PICTURE)
    compute = shown.evaluation.macs / testbed.source.spec.plain_macs
    if testbed.images is not None:
        plots.gallery(testbed.images, compute, shown.evaluation.correct, folder / GALLERY)
    with storage.replacing(folder / PAGE) as partial:
        partial.write_text(page(content))
    storage.save_json(folder / RESULTS, content)
    return content


def page(content: dict[str, Any]) -> str:
    """The report's HTML, which follows from the results alone."""
    loader = jinja2.PackageLoader("rnr_gym.experiments", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("report.html.j2").render(**content, percent=percent, number=number, interval=interval, share=share)


def percent(value: float | None, spread: float | None) -> str:
    """`87.3 ±0.4`, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}" + (f" ±{100 * spread:.1f}" if spread is not None else "")


def number(pair: Sequence[float | None] | None) -> str:
    """`0.1230 ±0.0040`, or a dash."""
    if pair is None or pair[0] is None:
        return "–"
    return f"{pair[0]:.4f}" + (f" ±{pair[1]:.4f}" if pair[1] is not None else "")


def interval(mean: float, low: float, high: float) -> str:
    """`+1.2 [+0.8, +1.7]`, in points."""
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def share(mean: float | None, low: float | None, high: float | None) -> str:
    """`0.68 [0.64, 0.73]`; a dash where it is not reached."""
    if mean is None:
        return "–"
    low_shown, high_shown = ("∞" if value is None else f"{value:.2f}" for value in (low, high))
    return f"{mean:.2f} [{low_shown}, {high_shown}]"


def validate(folder: Path) -> int:
    """Run every stored path again, work every figure out anew, and compare.

    Returns the number of rows that were checked. Raises `FileNotFoundError` if the folder is no finished report, and
    `ValueError` that names the first figure that does not hold.
    """
    if not (folder / RESULTS).exists():
        raise FileNotFoundError(f"`report` must be the folder of a finished comparison, got {str(folder)!r}, which has no {RESULTS}")
    content = json.loads((folder / RESULTS).read_text())
    fit_config = FitConfig(content["env"], content["arguments"])
    testbed = testbed(fit_config)
    _agree("provenance", content["provenance"]["weights and images"], digest_of(testbed.source))
    found = _replayed(folder, content["rows"], testbed)
    _agree("images", content["images"], len(testbed.source.labels))
    _agree("seeds", content["seeds"], json.loads((folder / runs.CONFIG).read_text())["seeds"])
    for name, figures in comparison.results(found, testbed).items():
        _agree(name, content[name], figures)
    if (folder / PAGE).read_text() != page(content):
        raise ValueError(f"`{PAGE}` does not follow from {RESULTS}; write the report again")
    return len(found)


def _replayed(folder: Path, rows: list[dict[str, Any]], testbed: Testbed) -> list[Record]:
    """The records of a report, from its paths, with outcomes and costs worked out anew on the live network."""
    with np.load(folder / PATHS, allow_pickle=False) as stored:
        paths = [stored[f"path_{number}"] for number in range(len(rows))]
        predictions = [stored[f"prediction_{number}"].astype(np.int64) for number in range(len(rows))]
    outcomes, records = _run_once(testbed.source, paths), []
    for number, (row, path, stated) in enumerate(zip(rows, paths, predictions, strict=True)):
        live = outcomes[number]
        if (live.prediction != stated).mean() > TIES:
            raise ValueError(f"row {number} ({row['router']}, seed {row['seed']}): {(live.prediction != stated).sum()} answers differ when run again")
        _agree(f"rows[{number}].static", row["static"], _is_static(folder, row))
        spent = _decision_macs(folder, row, testbed.source)
        own = spent * (path >= 0).sum(1)
        macs = static_macs(testbed.source.spec, path) if row["static"] else live.macs + own
        found = Evaluation(path, stated, stated == testbed.source.labels, live.loss, macs, own)
        records.append(Record(row["router"], row["seed"], row["tradeoff"], row["static"], spent, row["seconds"], found))
    return records


def _is_static(folder: Path, row: dict[str, Any]) -> bool:
    router = None if row["router"] == ORACLE else runs.load(comparison.router_folder(folder, row["router"], row["seed"])).router
    return isinstance(router, StaticRouter)


def _decision_macs(folder: Path, row: dict[str, Any], source: Source) -> int:
    if row["static"] or row["router"] == ORACLE:
        return 0
    return decision_macs(runs.load(comparison.router_folder(folder, row["router"], row["seed"])).router, source.spec)


def _run_once(source: Source, paths: list[NDArray[np.int8]]) -> list[Evaluation]:
    """Evaluate lists of paths `(N, T)`, each pair of image and path just once."""
    count = len(source.labels)
    keyed = np.concatenate([np.column_stack([np.arange(count), path]) for path in paths])
    unique, which = np.unique(keyed, axis=0, return_inverse=True)
    found = evaluate_paths(source, unique[:, 1:].astype(np.int8), indices=unique[:, 0].astype(np.int64))
    fields: list[Any] = list(found)
    return [Evaluation(*(field[rows] for field in fields)) for rows in which.reshape(len(paths), count)]


def _arrays(number: int, found: Evaluation) -> dict[str, NDArray]:
    return {f"path_{number}": found.path, f"prediction_{number}": found.prediction.astype(np.int16)}


def _to_show(found: Sequence[Record]) -> Record:
    """The record for the gallery: of the adaptive router named last, where there is one, seed 0, at its middle compute."""
    names = [record.router for record in found if record.router != ORACLE]
    name = ([name for name in names if name not in FIXED] or names)[-1]
    ours = [record for record in found if record.router == name and record.seed == 0]
    middle = np.median([record.evaluation.macs.mean() for record in ours])
    return min(ours, key=lambda record: abs(record.evaluation.macs.mean() - middle))


def _agree(name: str, stated: Any, found: Any) -> None:
    """Refuse a figure that differs from what was found by more than rounding."""
    if isinstance(found, dict):
        for key in found.keys() - set(MEASURED):
            _agree(f"{name}.{key}", stated.get(key), found[key])
    elif isinstance(found, list | tuple):
        if not isinstance(stated, list) or len(stated) != len(found):
            raise ValueError(f"`{name}` must have {len(found)} entries, got {stated!r}")
        for place, (theirs, ours) in enumerate(zip(stated, found, strict=True)):
            _agree(f"{name}[{place}]", theirs, ours)
    elif isinstance(found, float) and isinstance(stated, int | float):
        if not abs(stated - found) <= 1e-4 * max(1.0, abs(found)):
            raise ValueError(f"`{name}` does not hold: the report says {stated}, run again it is {found}")
    elif stated != found:
        raise ValueError(f"`{name}` does not hold: the report says {stated!r}, run again it is {found!r}")
