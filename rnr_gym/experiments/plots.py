"""Pictures of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rnr_gym import storage
from rnr_gym.data import ImageSet

COLOURS = {
    "ppo": "#0b6e4f",
    "dqn": "#c8553d",
    "confidence": "#6a4c93",
    "thresholds": "#b5179e",
    "fqi": "#3a86ff",
    "blind": "#8d99ae",
    "static": "#2b2d42",
    "oracle": "#c9a227",
}
OTHERS = ("#1d7874", "#b08968", "#577590", "#a44a3f")
POINTS = {"random": "x", "full": "s", "cheapest": "v"}


def pareto(results: dict[str, Any], path: Path) -> None:
    """Accuracy against compute, a line a router with a band of one standard deviation over its seeds; compute by severity beside it."""
    graded = len(results["by_severity"][0]["severity"]) > 1
    figure = Figure(figsize=(12.0 if graded else 7.5, 4.4), dpi=120, layout="constrained")
    axes = figure.subplots(1, 2 if graded else 1, width_ratios=(1.45, 1.0) if graded else None, squeeze=False)[0]
    _draw_front(axes[0], results)
    if graded:
        _draw_severity(axes[1], results)
    with storage.replacing(path) as partial:
        figure.savefig(partial, format="png")


def _colour(name: str, names: list[str]) -> str:
    rest = [other for other in names if other not in COLOURS and other not in POINTS]
    return COLOURS.get(name) or ("#9aa5b1" if name in POINTS else OTHERS[rest.index(name) % len(OTHERS)])


def _draw_front(axes: Axes, results: dict[str, Any]) -> None:
    names = [router["router"] for router in results["routers"]]
    for name in names:
        rows = [row for row in results["rows"] if row["router"] == name]
        compute, accuracy = _grid(rows, "compute"), _grid(rows, "accuracy")
        colour = _colour(name, names)
        if name in POINTS:
            axes.scatter(compute.mean(), accuracy.mean(), marker=POINTS[name], color=colour, label=name, zorder=3)
            continue
        order = np.argsort(compute.mean(0))
        x, y, spread = compute.mean(0)[order], accuracy.mean(0)[order], accuracy.std(0)[order]
        style = {"static": "--", "blind": ":", "oracle": "-."}.get(name, "-")
        marker = {"-": ".", "-.": "D"}.get(style)
        axes.plot(x, y, style, marker=marker, markersize=4, color=colour, label=name, linewidth=1.8)
        axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.15, linewidth=0)
    adaptive = [row["accuracy"] for row in results["rows"] if row["router"] not in ("static", *POINTS)]
    floor = min(adaptive or [row["accuracy"] for row in results["rows"]])
    axes.set(xlabel="compute (share of the plain network's MACs, router included)", ylabel="accuracy on test")
    axes.set(xlim=(0, 1.04), ylim=(floor - 0.03, None))
    # Beside the axes: curves may run anywhere within them.
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_severity(axes: Axes, results: dict[str, Any]) -> None:
    names = [part["router"] for part in results["by_severity"]]
    for part in results["by_severity"]:
        name = part["router"]
        if name not in (*POINTS, "static", "oracle"):
            label = f"{name}, mean {part['mean_compute']:.2f}"
            axes.plot(part["severity"], part["compute"], "-o", markersize=4, color=_colour(name, names), label=label)
    axes.set(xlabel="severity of the corruption", ylabel="compute", ylim=(0, None))
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _grid(rows: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    """Values by seed and trade-off, `(S, L)`."""
    seeds = sorted({row["seed"] for row in rows})
    return np.array([[row[name] for row in rows if row["seed"] == seed] for seed in seeds])


def gallery(images: ImageSet, compute: NDArray[np.float64], correct: NDArray[np.bool_], path: Path, count: int = 12) -> None:
    """The images that a router spent least and most on; a red frame where its answer was wrong."""
    order, count = np.argsort(compute, kind="stable"), min(count, len(images))
    figure = Figure(figsize=(count * 0.8, 2.8), dpi=120, layout="constrained")
    axes = figure.subplots(2, count)
    for line, rows, title in ((axes[0], order[:count], "cheapest"), (axes[1], order[::-1][:count], "most expensive")):
        for place, row in zip(line, rows, strict=True):
            pixels = np.moveaxis(images.images[row], 0, -1)
            place.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
            place.set(xticks=[], yticks=[])
            place.set_title(f"{images.classes[images.labels[row]]}\n{compute[row]:.2f}", fontsize=7)
            place.spines[:].set_color("#c9d2d9" if correct[row] else "#c1121f")
        line[0].set_ylabel(title, fontsize=8)
    with storage.replacing(path) as partial:
        figure.savefig(partial, format="png")
