"""Pictures of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rnr_gym import storage
from rnr_gym.data import ImageSet
from rnr_gym.experiments.results import ORACLE, Comparison, Row, SeverityFigures, is_of_kind
from rnr_gym.routing.protocols import Indices

# The same colour in every picture, so that pictures can be compared.
COLOURS = {
    "ppo": "#0b6e4f",
    "dqn": "#e76f51",
    "rnr-dqn": "#9d0208",
    "confidence": "#6a4c93",
    "thresholds": "#b5179e",
    "eenet": "#ff5d8f",
    "fqi": "#3a86ff",
    "blockdrop": "#8b5e34",
    "skipnet": "#48cae4",
    "blind": "#8d99ae",
    "static": "#2b2d42",
    ORACLE: "#c9a227",
}
OTHERS = ("#1d7874", "#b08968", "#577590", "#7f5539")
"""Colours of routers that have none of their own, in turn."""
FIXED_COLOUR = "#9aa5b1"
FIXED_MARKERS = {"random": "x", "full": "s", "cheapest": "v"}
LINE_STYLES = {"static": "--", "blind": ":", ORACLE: "-."}
"""Those of routers that are drawn otherwise than as a solid line."""
LINE_MARKERS = {"-": ".", "-.": "D"}


def pareto(comparison: Comparison, path: Path) -> None:
    """Accuracy against compute: a line per router, with a band of ± one standard deviation.

    To its right, where severities are known, compute by severity.
    """
    severities = comparison.by_severity[0].severity
    if len(severities) > 1:
        figure = Figure(figsize=(12.0, 4.4), dpi=120, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.45, 1.0))
        _draw_front(left, comparison)
        _draw_severity(right, comparison.by_severity)
    else:
        figure = Figure(figsize=(7.5, 4.4), dpi=120, layout="constrained")
        _draw_front(figure.subplots(), comparison)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with storage.replacing(path) as partial:
        figure.savefig(partial, format="png")


def _colour(name: str, names: Sequence[str]) -> str:
    """The colour of a router; `names` are those of all routers in the picture."""
    if name in COLOURS:
        return COLOURS[name]
    if is_of_kind(name, "fixed"):
        return FIXED_COLOUR
    others = [other for other in names if other not in COLOURS and not is_of_kind(other, "fixed")]
    return OTHERS[others.index(name) % len(OTHERS)]


def _draw_front(axes: Axes, comparison: Comparison) -> None:
    names = [router.router for router in comparison.routers]
    for name in names:
        rows = [row for row in comparison.rows if row.router == name]
        compute = _by_seed(rows, "compute")  # (S, L)
        accuracy = _by_seed(rows, "accuracy")
        colour = _colour(name, names)
        if is_of_kind(name, "fixed"):
            marker = FIXED_MARKERS[name]
            point = (compute.mean(), accuracy.mean())
            axes.scatter(*point, marker=marker, color=colour, label=name, zorder=3)
        else:
            _draw_line(axes, name, compute, accuracy, colour)

    axes.set(xlabel="compute (share of the plain network's MACs, router included)")
    axes.set(ylabel="accuracy on test", xlim=(0, 1.04), ylim=(_lowest(comparison.rows), None))
    # Outside the axes: curves may run anywhere within them.
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _clear_frame(axes)


def _draw_line(
    axes: Axes,
    name: str,
    compute: NDArray[np.float64],
    accuracy: NDArray[np.float64],
    colour: str,
) -> None:
    """Means over seeds, by ascending compute, of one router's figures `(S, L)`."""
    # Connected by compute, not by trade-off: a noisy router would draw loops.
    order = np.argsort(compute.mean(0))
    x = compute.mean(0)[order]  # (L,)
    y = accuracy.mean(0)[order]
    spread = accuracy.std(0)[order]
    style = LINE_STYLES.get(name, "-")
    axes.plot(
        x,
        y,
        style,
        marker=LINE_MARKERS.get(style),
        markersize=4,
        color=colour,
        label=name,
        linewidth=1.8,
    )
    axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.15, linewidth=0)


def _lowest(rows: Sequence[Row]) -> float:
    """Where the axis of accuracies starts: below all routers but the static paths and points."""
    # Those may be far less accurate, which would squeeze all other curves to the top.
    accuracies = []
    for row in rows:
        if row.router != "static" and not is_of_kind(row.router, "fixed"):
            accuracies.append(row.accuracy)
    if not accuracies:
        accuracies = [row.accuracy for row in rows]
    return min(accuracies) - 0.03


def _draw_severity(axes: Axes, by_severity: Sequence[SeverityFigures]) -> None:
    names = [figures.router for figures in by_severity]
    for figures in by_severity:
        name = figures.router
        # The blind router is shown: that it spends alike on all severities is the point.
        if name in ("static", ORACLE) or is_of_kind(name, "fixed"):
            continue
        axes.plot(
            figures.severity,
            figures.compute,
            "-o",
            markersize=4,
            color=_colour(name, names),
            label=f"{name}, mean {figures.mean_compute:.2f}",
        )

    axes.set(xlabel="severity of the corruption", ylabel="compute", ylim=(0, None))
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)
    _clear_frame(axes)


def _clear_frame(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _by_seed(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    """A field of a router's rows, by seed and trade-off, `(S, L)`."""
    values: dict[int, list[float]] = {}
    for row in rows:
        values.setdefault(row.seed, []).append(getattr(row, name))
    return np.array([values[seed] for seed in sorted(values)])


def gallery(
    images: ImageSet,
    compute: NDArray[np.float64],
    correct: NDArray[np.bool_],
    path: Path,
    count: int = 12,
) -> None:
    """The images that a router spent least and most on, with true class and compute.

    A red frame marks a wrong answer.

    Args:
        images: N images.
        compute: `(N,)`.
        correct: `(N,)`, whether the answer was right.
        path: the PNG to write.
        count: images of each sort.
    """
    order = np.argsort(compute, kind="stable")
    count = min(count, len(images))
    figure = Figure(figsize=(count * 0.8, 2.8), dpi=120, layout="constrained")
    cheapest, most_expensive = figure.subplots(2, count)
    _draw_images(cheapest, "cheapest", images, order[:count], compute, correct)
    _draw_images(most_expensive, "most expensive", images, order[::-1][:count], compute, correct)
    _save(figure, path)


def _draw_images(
    line: Sequence[Axes],
    title: str,
    images: ImageSet,
    image_idx: Indices,
    compute: NDArray[np.float64],
    correct: NDArray[np.bool_],
) -> None:
    for axes, i in zip(line, image_idx, strict=True):
        pixels = np.moveaxis(images.images[i], 0, -1)  # (C, H, W) -> (H, W, C)
        if pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        # Fixed limits, or each image would be stretched to full contrast.
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])

        caption = f"{images.classes[images.labels[i]]}\n{compute[i]:.2f}"
        # Names of classes are no mathematics, whatever signs they have.
        axes.set_title(caption, fontsize=7, parse_math=False)
        axes.spines[:].set_color("#c9d2d9" if correct[i] else "#c1121f")
    line[0].set_ylabel(title, fontsize=8)
