"""The page of a report: the answer, pictures, and tables, in one file that needs nothing else."""

from __future__ import annotations

import base64
import io
import re
from typing import Any, NamedTuple

import jinja2
from PIL import Image

from rnr_gym.experiments import path_drawing, plots
from rnr_gym.experiments.figures import OUTCOME_COMPUTE, SEVERITY_COMPUTE
from rnr_gym.experiments.formatting import interval, number, percent, share
from rnr_gym.experiments.headline import headline, title_of
from rnr_gym.experiments.results import ORACLE, Comparison, Example, Results, is_of_kind
from rnr_gym.routing.rewards import TRADEOFF_RANGE

GAIN_KINDS = ("rule", "fqi", "learner")
"""Routers whose gain over the best static path is drawn."""


class Chart(NamedTuple):
    """A chart with its heading and what the reader must know to read it."""

    title: str
    svg: str
    caption: str


class Tile(NamedTuple):
    """An image of the gallery.

    Attributes:
        example: what is known of it.
        x, y: its column and row in the sheet.
        path: the drawing of its path.
    """

    example: Example
    x: int
    y: int
    path: str


class Sheet(NamedTuple):
    """The images of the gallery in one picture.

    Attributes:
        data: the PNG in base64.
        width, height: of the picture.
        tile_width, tile_height: of one image.
    """

    data: str
    width: int
    height: int
    tile_width: int
    tile_height: int


def page(content: dict[str, Any], tiles: bytes | None = None) -> str:
    """The report's HTML.

    Args:
        content: that of `results.json`. A file of an earlier version has fewer pictures.
        tiles: the gallery's PNG; None for no gallery.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rnr_gym.experiments", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    results = Results.from_json(content)
    comparison = results.comparison
    template = environment.get_template("report.html.j2")
    return template.render(
        **content,
        answer=headline(comparison),
        colours=plots.COLOURS,
        charts=_charts(results),
        used_paths=_used_paths(comparison),
        paths_caption=_paths_caption(results),
        sheet=_sheet(tiles, comparison),
        gallery_rows=_gallery_rows(comparison),
        shown_title=title_of(results.shown.router),
        tradeoff_range=TRADEOFF_RANGE,
        percent=percent,
        number=number,
        interval=interval,
        share=share,
        in_words=path_drawing.in_words,
    )


def without_charts(html: str) -> str:
    """A page without what Matplotlib has drawn, which differs between its versions."""
    return re.sub(r'<svg class="chart".*?</svg>', "", html, flags=re.DOTALL)


def _charts(results: Results) -> dict[str, Chart]:
    """The charts by name, of what the results hold figures for."""
    comparison = results.comparison
    charts = {"front": _front(comparison)}
    for name, chart in {
        "gains": _gains(comparison),
        "difficulty": _severity(comparison) or _difficulty(comparison),
        "classes": _classes(comparison, results),
        "learning": _learning(results),
    }.items():
        if chart is not None:
            charts[name] = chart
    return charts


def _names(comparison: Comparison) -> list[str]:
    return [router.router for router in comparison.routers]


def _front(comparison: Comparison) -> Chart:
    title = "Accuracy against compute"
    caption = (
        "A line is one router, from its cheapest setting to its most expensive one; higher and "
        "further left is better. Bands: ± one standard deviation over seeds. What is less accurate "
        "than the chart shows is left out."
    )
    if ORACLE in _names(comparison):
        caption += (
            " The arrow marks the oracle, above the chart: the best path of each image, given its "
            "label, which no router knows."
        )
    figure = plots.front(comparison)
    return Chart(title, plots.svg(figure, "front", f"{title} of every router"), caption)


def _gains(comparison: Comparison) -> Chart | None:
    pairs = []
    for pair in comparison.differences:
        if pair.against == "static" and is_of_kind(pair.router, *GAIN_KINDS):
            pairs.append(pair)
    if not pairs:
        return None
    title = "Gain over the best static path"
    figure = plots.gains(pairs, _names(comparison))
    caption = (
        "Points of accuracy above the best static path at equal compute, with 95 % intervals over "
        "images and seeds. An interval that does not touch 0 is a clear difference. An arrow at "
        "the lower edge is a router further below."
    )
    return Chart(title, plots.svg(figure, "gains", f"{title}, by budget"), caption)


def _severity(comparison: Comparison) -> Chart | None:
    severities = comparison.by_severity[0].severity
    if len(severities) == 1:
        return None
    lines = []
    for figures in comparison.by_severity:
        # The blind router is shown: that it spends alike on all severities is the point.
        if figures.router in ("static", ORACLE) or is_of_kind(figures.router, "fixed"):
            continue
        lines.append(plots.Levels(figures.router, figures.compute))
    if not lines:
        return None
    title = "Compute against severity"
    levels = [str(severity) for severity in severities]
    figure = plots.by_level(lines, _names(comparison), levels, "severity of the corruption")
    caption = (
        f"Every router at its setting with mean compute nearest to {SEVERITY_COMPUTE:g}. A line "
        "that rises spends more on images that are harder to see; 0 is no corruption."
    )
    return Chart(title, plots.svg(figure, "difficulty", title), caption)


def _difficulty(comparison: Comparison) -> Chart | None:
    difficulty = comparison.by_difficulty
    if difficulty is None or not difficulty.routers:
        return None
    lines = []
    for figures in difficulty.routers:
        lines.append(plots.Levels(figures.router, figures.compute))
    title = "Compute against difficulty"
    counts = []
    for level, images in zip(difficulty.levels, difficulty.images, strict=True):
        counts.append(f"{level} {images:,}")
    if difficulty.measure == "paths":
        axis = "paths that answer right"
        meaning = (
            "Images by how many of all paths answer them right: all, most (two thirds or more), "
            "half, few (less than a third) or none; no compute helps the last"
        )
    else:
        axis = "answer of the full path"
        meaning = "Images by whether the full path answers them right"
    figure = plots.by_level(lines, _names(comparison), difficulty.levels, axis)
    caption = (
        f"{meaning}. Every router at its setting with mean compute nearest to "
        f"{OUTCOME_COMPUTE:g}. Number of images: {', '.join(counts)}."
    )
    return Chart(title, plots.svg(figure, "difficulty", title), caption)


def _classes(comparison: Comparison, results: Results) -> Chart | None:
    if not comparison.by_class:
        return None
    title = "Compute by class"
    shown = title_of(results.shown.router)
    which = "All classes"
    if len(comparison.by_class) > plots.CLASSES:
        which = (
            f"The {plots.CLASSES // 2} cheapest and the {plots.CLASSES // 2} most expensive classes"
        )
    caption = (
        f"{which}, cheapest first: what {shown} spends on the images of each in the mean, and the "
        "share of them that it answers right."
    )
    figure = plots.by_class(comparison.by_class)
    return Chart(title, plots.svg(figure, "classes", title), caption)


def _learning(results: Results) -> Chart | None:
    if not results.learning:
        return None
    title = "Return while learning"
    caption = (
        "Mean return of the latest episodes, one line per seed; learners that write no logs are "
        "missing. They explore, and every episode has a trade-off of its own, so these are no "
        "figures of the fitted routers. The first episodes may lie below the chart."
    )
    figure = plots.learning(results.learning, _names(results.comparison))
    return Chart(title, plots.svg(figure, "learning", title), caption)


def _used_paths(comparison: Comparison) -> list[dict[str, Any]]:
    """The most used paths with their drawings."""
    paths = comparison.paths
    if paths is None:
        return []
    entries = []
    for used in paths.used:
        title = f"path {path_drawing.in_words(used.path, paths.exits)}"
        drawing = path_drawing.svg(used.path, paths.offered, paths.exits, title)
        entries.append({"used": used, "drawing": drawing})
    return entries


def _paths_caption(results: Results) -> str:
    paths = results.comparison.paths
    if paths is None:
        return ""
    shown = results.shown
    which = f"The {len(paths.used)} most used of {paths.distinct} paths"
    if paths.distinct == 1:
        which = "The only path"
    elif len(paths.used) == paths.distinct:
        which = f"The {paths.distinct} paths"
    caption = (
        f"{which} that {title_of(shown.router)} takes (seed {shown.seed}, trade-off "
        f"{shown.tradeoff:.3g}, mean compute {paths.compute:.2f}). A column is a layer and a row a "
        "sub-path, the most expensive one on top. Large and blue is executed, small and grey is not"
    )
    if paths.exits:
        caption += "; a circle is an exit"
    return f"{caption}."


def _sheet(tiles: bytes | None, comparison: Comparison) -> Sheet | None:
    if tiles is None or comparison.examples is None or not comparison.examples.cheapest:
        return None
    with Image.open(io.BytesIO(tiles)) as picture:
        width, height = picture.size
    return Sheet(
        data=base64.b64encode(tiles).decode(),
        width=width,
        height=height,
        tile_width=width // len(comparison.examples.cheapest),
        tile_height=height // 2,
    )


def _gallery_rows(comparison: Comparison) -> dict[str, list[Tile]]:
    """The images of each row of the gallery, by its title."""
    examples = comparison.examples
    paths = comparison.paths
    if examples is None or paths is None:
        return {}
    rows: dict[str, list[Tile]] = {}
    for y, (title, row) in enumerate(
        {"Cheapest": examples.cheapest, "Most expensive": examples.most_expensive}.items()
    ):
        rows[title] = []
        for x, example in enumerate(row):
            words = path_drawing.in_words(example.path, paths.exits)
            drawing = path_drawing.svg(example.path, paths.offered, paths.exits, f"path {words}")
            rows[title].append(Tile(example=example, x=x, y=y, path=drawing))
    return rows
