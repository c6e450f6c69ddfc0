"""Charts of a comparison, as figures of Matplotlib that become PNG files or SVG in a page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rnr_gym import storage
from rnr_gym.experiments.results import (
    ORACLE,
    ClassFigures,
    Comparison,
    LearningCurve,
    PairFigures,
    Row,
    is_of_kind,
)
from rnr_gym.experiments.statistics import at_budgets

WIDTH = 480
"""Width of a chart in units. A phone shows it about 360 pixels wide, so 15 units are 11 pixels."""
FONT_SIZE = 15
WIDE = 760
"""Width of a chart that stands alone, on a page as wide as a screen."""
FRONT_HEIGHT = 380
HEIGHT = 350
LEGEND_ROW = 21
BAR_ROW = 29
"""Heights in units: of charts without their legends, of a row of a legend, and of a bar."""
SHOWN_POINTS = 25.0
"""Accuracies that are further below the highest, in points, are not shown."""
CLASSES = 20
"""The most classes of which each has a bar."""

COLOURS = {
    "blue": "#0072b2",
    "green": "#009e73",
    "vermillion": "#d55e00",
    "orange": "#e69f00",
    "purple": "#cc79a7",
    "sky": "#56b4e9",
    "skipped": "#b8c0c8",
    "text": "#1f2933",
    "muted": "#6b7782",
    "grid": "#e3e7eb",
    "surface": "#ffffff",
}
"""Colours that can be told apart by the colour-blind. In a page each is a variable of this name."""


class Style(NamedTuple):
    """How a router is drawn, the same in every chart.

    Attributes:
        colour: a name in `COLOURS`.
        dashes: the line style.
        marker: at the points of its line.
    """

    colour: str
    dashes: str | tuple[int, tuple[float, ...]]
    marker: str


DASHED = (0, (5.0, 2.0))
DOTTED = (0, (1.2, 1.6))
DASH_DOTTED = (0, (6.0, 2.0, 1.2, 2.0))
STYLES = {
    "ppo": Style("blue", "-", "o"),
    "dqn": Style("orange", "-", "s"),
    "rnr-dqn": Style("orange", DASHED, "D"),
    "skipnet": Style("sky", "-", "v"),
    "blockdrop": Style("sky", DASHED, "^"),
    "fqi": Style("purple", "-", "P"),
    "confidence": Style("text", "-", "."),
    "thresholds": Style("text", DASHED, "x"),
    "eenet": Style("text", DOTTED, "+"),
    "static": Style("muted", DASHED, "|"),
    "blind": Style("muted", DOTTED, "o"),
    "random": Style("muted", "-", "X"),
    "full": Style("muted", "-", "s"),
    "cheapest": Style("muted", "-", "v"),
}
OTHERS = (
    Style("green", "-", "o"),
    Style("vermillion", DASHED, "s"),
    Style("purple", DASH_DOTTED, "D"),
    Style("sky", DOTTED, "^"),
    Style("green", DASH_DOTTED, "v"),
    Style("vermillion", DOTTED, "P"),
)
"""Styles of routers that have none of their own, in turn."""

RC: dict[Any, Any] = {
    "font.size": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "legend.fontsize": FONT_SIZE,
    # Names of classes are no mathematics, whatever signs they have.
    "text.parse_math": False,
    "text.color": COLOURS["text"],
    "axes.labelcolor": COLOURS["text"],
    "axes.edgecolor": COLOURS["muted"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["text"],
    "ytick.labelcolor": COLOURS["text"],
    "grid.color": COLOURS["grid"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    # Text stays text, in the font of the page.
    "svg.fonttype": "none",
}


@contextmanager
def _drawing(hash_salt: str = "") -> Iterator[None]:
    """Settings of Matplotlib for charts, and only those: a user may have settings of their own."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC | {"svg.hashsalt": hash_salt})
        yield


def style_of(name: str, names: Sequence[str]) -> Style:
    """The style of a router; `names` are those of all routers of the comparison."""
    if name in STYLES:
        return STYLES[name]
    others = [other for other in names if other not in STYLES]
    return OTHERS[others.index(name) % len(OTHERS)]


def save_png(figure: Figure, path: Path) -> None:
    """Write a chart as a PNG on white, two pixels per unit."""
    with storage.replacing(path) as partial, _drawing():
        figure.savefig(partial, format="png", dpi=144, facecolor=COLOURS["surface"])


def svg(figure: Figure, name: str, title: str) -> str:
    """A chart as an SVG element for a page.

    The same chart gives the same bytes. Colours are variables of the page.

    Args:
        figure: the chart.
        name: makes the ids in the SVG differ from those of other charts.
        title: what the chart shows, for those who do not see it.
    """
    buffer = io.StringIO()
    with _drawing(hash_salt=name):
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", dpi=72, metadata=no_metadata)
    text = buffer.getvalue()

    # Of the file, only what is drawn: a page has its own prolog.
    view_box = re.search(r'viewBox="([^"]*)"', text)
    assert view_box is not None
    body = text[text.index("<defs>") : text.rindex("</svg>")]
    # Groups are numbered alike in all charts, and nothing refers to them.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    # The page's font in place of Matplotlib's.
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r"font-family: [^;\"]*(; )?", "", body)
    for colour, value in COLOURS.items():
        body = body.replace(value, f"var(--{colour})")
    return (
        f'<svg class="chart" viewBox="{view_box[1]}" role="img" aria-labelledby="{name}-title">\n'
        f'<title id="{name}-title">{escape(title)}</title>\n{body}</svg>'
    )


def _figure(height: int, entries: Sequence[str] = (), width: int = WIDTH) -> Figure:
    """An empty chart with room for a legend of these entries below it; sizes are in units."""
    height += LEGEND_ROW * -(-len(entries) // _columns(entries, width))
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")


def _columns(entries: Sequence[str], width: int) -> int:
    """The columns of a legend: about nine units per letter, besides the sample of the line."""
    longest = max((len(entry) for entry in entries), default=0)
    return max(1, width // (70 + 9 * longest))


def _legend(figure: Figure, axes: Axes) -> None:
    """Names below the chart, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=_columns(labels, round(72 * figure.get_figwidth())),
        frameon=False,
        handlelength=2.6,
        columnspacing=1.0,
        handletextpad=0.5,
        labelspacing=0.3,
    )


def front(comparison: Comparison, width: int = WIDTH) -> Figure:
    """Accuracy against compute: a line per router, with a band of ± one standard deviation.

    The oracle, which is far above all routers, is noted at the upper edge.

    Args:
        comparison: all figures.
        width: of the chart, in units.
    """
    with _drawing():
        names = [router.router for router in comparison.routers if router.router != ORACLE]
        figure = _figure(FRONT_HEIGHT, names, width)
        axes = figure.subplots()
        # Those drawn last are on top: learners, and among them the last one.
        for name in names:
            rows = [row for row in comparison.rows if row.router == name]
            compute = _by_seed(rows, "compute")  # (S, L)
            accuracy = 100 * _by_seed(rows, "accuracy")
            if is_of_kind(name, "fixed"):
                _draw_point(axes, name, compute.mean(), accuracy.mean(), style_of(name, names))
            else:
                _draw_line(axes, name, compute, accuracy, style_of(name, names))

        low, high = _range_of_accuracies(comparison.rows)
        axes.set(xlabel="compute, share of the plain network's", ylabel="right answers, %")
        axes.set(xlim=(0, 1.04), ylim=(low, high))
        _note_oracle(axes, [row for row in comparison.rows if row.router == ORACLE])
        _legend(figure, axes)
        return figure


def _draw_point(axes: Axes, name: str, compute: float, accuracy: float, style: Style) -> None:
    axes.plot(
        [compute],
        [accuracy],
        linestyle="none",
        marker=style.marker,
        markersize=8,
        color=COLOURS[style.colour],
        label=name,
    )


def _draw_line(
    axes: Axes,
    name: str,
    compute: NDArray[np.float64],
    accuracy: NDArray[np.float64],
    style: Style,
) -> None:
    """The mean over seeds at equal compute, of one router's figures `(S, L)`."""
    x, y, spread = _at_equal_compute(compute, accuracy)
    colour = COLOURS[style.colour]
    axes.plot(
        x,
        y,
        linestyle=style.dashes,
        linewidth=2.2,
        marker=style.marker,
        markersize=6,
        # Marks on each of dozens of points would hide the line.
        markevery=max(1, len(x) // 8),
        color=colour,
        label=name,
    )
    if spread.any():
        axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.18, linewidth=0)


def _at_equal_compute(
    compute: NDArray[np.float64],
    accuracy: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Computes, and at each of them mean and standard deviation of the accuracies of all seeds.

    Seeds spend differently at one trade-off, so a mean over them at each would blur the curve.
    Below what every seed can be set to there is nothing to draw; above what a seed ever spends, its
    accuracy stays.
    """
    # Each corner of the seeds' curves, so that their mean is exact.
    x = np.unique(compute)
    x = x[x >= compute.min(1).max()]
    accuracies = []
    for of_seed, reached in zip(compute, accuracy, strict=True):
        accuracies.append(at_budgets(reached, of_seed, x))
    # The sample's, as in the tables; one seed has none.
    spread = np.std(accuracies, axis=0, ddof=min(1, len(accuracies) - 1))
    return x, np.mean(accuracies, axis=0), spread


def _range_of_accuracies(rows: Sequence[Row]) -> tuple[float, float]:
    """Ends of the axis of accuracies, in percent: room for all routers but the oracle.

    Static paths, points and the cheapest settings may be far less accurate, which would squeeze all
    other curves to the top, so they may leave the axis below.
    """
    routers = [row for row in rows if row.router != ORACLE]
    adaptive = []
    for row in routers:
        if row.router != "static" and not is_of_kind(row.router, "fixed"):
            adaptive.append(row)
    lowest = 100 * min(row.accuracy for row in adaptive or routers)
    highest = 100 * max(row.accuracy for row in routers)
    lowest = max(lowest, highest - SHOWN_POINTS)
    margin = max(1.0, 0.06 * (highest - lowest))
    return lowest - margin, highest + 2 * margin


def _note_oracle(axes: Axes, rows: Sequence[Row]) -> None:
    """An arrow at the upper edge, where the oracle is most accurate."""
    if not rows:
        return
    best = max(rows, key=lambda row: row.accuracy)
    left, right = axes.get_xlim()
    # The text is on the side that has room for it.
    to_right = best.compute < (left + right) / 2
    offset = 8 if to_right else -8
    axes.annotate(
        f"oracle {100 * best.accuracy:.1f} % at {best.compute:.2f}",
        xy=(best.compute, 0.98),
        xycoords=("data", "axes fraction"),
        xytext=(offset, 0),
        textcoords="offset points",
        ha="left" if to_right else "right",
        va="top",
    )
    axes.plot(
        [best.compute],
        [0.97],
        transform=axes.get_xaxis_transform(),
        linestyle="none",
        marker=r"^",
        markersize=9,
        color=COLOURS["text"],
        clip_on=False,
    )


def _by_seed(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    """A field of a router's rows, by seed and trade-off, `(S, L)`."""
    values: dict[int, list[float]] = {}
    for row in rows:
        values.setdefault(row.seed, []).append(getattr(row, name))
    return np.array([values[seed] for seed in sorted(values)])


def gains(pairs: Sequence[PairFigures], names: Sequence[str]) -> Figure:
    """Points of accuracy above the best static path at each budget, with 95 % intervals.

    Args:
        pairs: routers compared with the static paths.
        names: all routers of the comparison.
    """
    budgets = sorted({budget for pair in pairs for budget in pair.budgets})
    with _drawing():
        figure = _figure(HEIGHT, [pair.router for pair in pairs])
        axes = figure.subplots()
        axes.axhline(0, color=COLOURS["muted"], linewidth=1.2)
        floor = _lowest_gain(pairs)
        width = 0.8 / len(pairs)
        for i, pair in enumerate(pairs):
            # Side by side, so that intervals do not hide each other.
            offset = width * (i - (len(pairs) - 1) / 2)
            x = np.array([budgets.index(budget) + offset for budget in pair.budgets])
            _draw_gains(axes, pair, x, floor, style_of(pair.router, names))
        axes.set_xticks(range(len(budgets)), [f"{budget:g}" for budget in budgets])
        axes.set(xlabel="compute", ylabel="points above static", ylim=(1.06 * floor, None))
        axes.grid(False, axis="x")
        _legend(figure, axes)
        return figure


def _lowest_gain(pairs: Sequence[PairFigures]) -> float:
    """Where the axis of gains starts, in points."""
    # A router that has learned little may be far below, which would squeeze all others to the top.
    gains = 100 * np.concatenate([pair.at for pair in pairs]).astype(np.float64)  # (n, 3)
    return max(float(gains.min()), -max(2.0, float(gains.max()))) - 0.5


def _draw_gains(
    axes: Axes,
    pair: PairFigures,
    x: NDArray[np.float64],
    floor: float,
    style: Style,
) -> None:
    """A mark with its interval at each budget, or an arrow where it is below the chart."""
    mean, low, high = 100 * np.array(pair.at, np.float64).T
    colour = COLOURS[style.colour]
    shown = mean > floor
    axes.errorbar(
        x[shown],
        mean[shown],
        yerr=(mean[shown] - low[shown], high[shown] - mean[shown]),
        linestyle="none",
        marker=style.marker,
        markersize=7,
        linewidth=2,
        color=colour,
        label=pair.router,
    )
    below = x[~shown]
    axes.plot(below, np.full(len(below), floor), "v", markersize=9, color=colour)


class Levels(NamedTuple):
    """What one router spends at each level of a chart."""

    router: str
    compute: list[float]


def by_level(
    lines: Sequence[Levels],
    names: Sequence[str],
    levels: Sequence[str],
    title: str,
) -> Figure:
    """Compute against ordered levels, such as severities.

    Args:
        lines: one per router.
        names: all routers of the comparison.
        levels: names of the levels.
        title: of the axis of levels.
    """
    with _drawing():
        figure = _figure(HEIGHT, [line.router for line in lines])
        axes = figure.subplots()
        for line in lines:
            style = style_of(line.router, names)
            axes.plot(
                range(len(levels)),
                line.compute,
                linestyle=style.dashes,
                linewidth=2.2,
                marker=style.marker,
                markersize=7,
                color=COLOURS[style.colour],
                label=line.router,
            )
        axes.set_xticks(range(len(levels)), levels)
        axes.set(xlabel=title, ylabel="compute", ylim=(0, None))
        axes.margins(x=0.06)
        _legend(figure, axes)
        return figure


def by_class(figures: Sequence[ClassFigures]) -> Figure:
    """A bar of compute per class, cheapest first, with accuracies beside them.

    Of many classes only the cheapest and the most expensive have one.
    """
    with _drawing():
        ordered = sorted(figures, key=lambda entry: entry.compute)
        if len(ordered) > CLASSES:
            ordered = ordered[: CLASSES // 2] + ordered[-CLASSES // 2 :]
        figure = _figure(60 + BAR_ROW * len(ordered))
        axes = figure.subplots()
        y = np.arange(len(ordered))
        compute = [entry.compute for entry in ordered]
        axes.barh(y, compute, height=0.62, color=COLOURS["blue"])
        for row, entry in zip(y, ordered, strict=True):
            text = f"{entry.compute:.2f}, {100 * entry.accuracy:.0f} % right"
            axes.annotate(
                text,
                (entry.compute, row),
                xytext=(6, 0),
                textcoords="offset points",
                va="center_baseline",
            )
        axes.set_yticks(y, [_short(entry.label) for entry in ordered])
        axes.tick_params(axis="y", length=0)
        # Room for the text at the right of the longest bar.
        axes.set(xlabel="compute", ylim=(len(ordered) - 0.4, -0.6), xlim=(0, 1.75 * max(compute)))
        axes.grid(False, axis="y")
        return figure


def _short(name: str, most: int = 16) -> str:
    """A name that fits beside a bar."""
    if len(name) <= most:
        return name
    return f"{name[: most - 1]}…"


def learning(curves: Sequence[LearningCurve], names: Sequence[str]) -> Figure:
    """Mean return against steps: a line per learner and seed, one legend entry per learner."""
    with _drawing():
        learners = list(dict.fromkeys(curve.router for curve in curves))
        figure = _figure(HEIGHT, learners)
        axes = figure.subplots()
        for curve in curves:
            style = style_of(curve.router, names)
            axes.plot(
                np.array(curve.steps) / 1000,
                curve.reward,
                linestyle=style.dashes,
                linewidth=1.8,
                marker=style.marker,
                markersize=6,
                markevery=max(1, len(curve.steps) // 6),
                color=COLOURS[style.colour],
                label=curve.router if curve.seed == 0 else None,
            )
        axes.set(xlabel="environment steps, thousands", ylabel="mean return", xlim=(0, None))
        axes.set_ylim(_lowest_return(curves), None)
        _legend(figure, axes)
        return figure


def _lowest_return(curves: Sequence[LearningCurve]) -> float:
    """Where the axis of returns starts: below the later nine tenths of every curve."""
    # The first episodes are far worse, which would squeeze what follows.
    later = [min(curve.reward[len(curve.reward) // 10 :]) for curve in curves]
    highest = max(max(curve.reward) for curve in curves)
    lowest = min(later)
    return lowest - 0.1 * (highest - lowest)
