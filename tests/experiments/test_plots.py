"""Charts of a comparison show its figures."""

import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from rnr_gym.experiments import plots
from rnr_gym.experiments.results import (
    ClassFigures,
    Comparison,
    LearningCurve,
    PairFigures,
    RouterFigures,
    Row,
)

POINTS = {
    "static": [[(1.0, 0.9), (0.1, 0.5)]],
    "ppo": [[(0.6, 0.9), (0.2, 0.7)], [(0.4, 0.8), (0.2, 0.5)]],
    "mine": [[(0.5, 0.85), (0.3, 0.8)]],
    "oracle": [[(0.1, 0.95), (0.05, 0.9)]],
    "full": [[(1.0, 0.9), (1.0, 0.9)]],
}
"""By router, seed and trade-off: compute and accuracy."""


def row_of(router, seed, compute, accuracy):
    """A row, of which nothing else is drawn."""
    return Row(
        router=router,
        seed=seed,
        tradeoff=0.1,
        static=False,
        accuracy=accuracy,
        compute=compute,
        router_macs=0.0,
        decision_macs=0,
        loss=0.0,
        regret=None,
        path_entropy=0.0,
        distinct_paths=1,
        exits=0.0,
        images=8,
        seconds=0.0,
    )


def rows_of(router):
    rows = []
    for seed, points in enumerate(POINTS[router]):
        rows += [row_of(router, seed, compute, accuracy) for compute, accuracy in points]
    return rows


def router_figures(router):
    """Figures of a router, of which only the name is drawn."""
    return RouterFigures(
        router=router,
        seeds=len(POINTS[router]),
        accuracy_at=[],
        regret=None,
        compute_range=[],
        decision_macs=0,
        distinct_paths=1,
    )


def comparison_of(names=tuple(POINTS)):
    """A comparison of two learners, the static paths, the oracle and a point, or some of them."""
    rows = []
    for name in names:
        rows += rows_of(name)
    return Comparison(
        budgets=[],
        full_accuracy=0.9,
        rows=rows,
        routers=[router_figures(name) for name in names],
        differences=[],
        savings=[],
        lost=[],
        by_severity=[],
        by_outcome=[],
    )


@pytest.fixture
def front():
    """The axes of accuracy against compute."""
    return plots.front(comparison_of()).axes[0]


def line_of(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# Accuracy against compute


def test_front_draws_means_at_equal_compute(front):
    ppo = line_of(front, "ppo")
    # Accuracies rise from .7 to .9 between computes .2 and .6, or from .5 to .8 between .2 and .4,
    # where the second seed stays.
    assert ppo.get_xdata() == pytest.approx([0.2, 0.4, 0.6])
    assert ppo.get_ydata() == pytest.approx([60.0, 80.0, 85.0])


def test_front_band_is_spread_over_seeds(front):
    (band,) = front.collections
    edges = sorted(set(band.get_paths()[0].vertices[:, 1].round(6)))
    # Of two seeds that differ by 20, 0 and 10.
    wide = 20 / np.sqrt(2)
    narrow = 10 / np.sqrt(2)
    expected = [60 - wide, 60 + wide, 80, 85 - narrow, 85 + narrow]
    assert edges == pytest.approx(sorted(expected))


def test_front_starts_where_all_seeds_can_be():
    compute = np.array([[0.1, 0.5], [0.3, 0.6]])
    accuracy = np.array([[10.0, 50.0], [30.0, 60.0]])
    x, mean, spread = plots._at_equal_compute(compute, accuracy)
    assert x == pytest.approx([0.3, 0.5, 0.6])
    assert mean == pytest.approx([30.0, 50.0, 55.0])
    assert spread == pytest.approx([0.0, 0.0, 10 / np.sqrt(2)])


def test_front_orders_points_by_compute(front):
    assert line_of(front, "static").get_xdata() == pytest.approx([0.1, 1.0])


def test_front_legend_names_all_routers_but_oracle():
    names = legend_of(plots.front(comparison_of()))
    assert names == [name for name in POINTS if name != "oracle"]


def test_front_draws_fixed_router_as_point(front):
    assert line_of(front, "full").get_xydata().tolist() == [[1.0, 90.0]]
    assert line_of(front, "full").get_linestyle() == "None"


def test_front_notes_oracle_at_upper_edge(front):
    (note,) = front.texts
    assert note.get_text() == "oracle 95.0 % at 0.10"
    # It is above all that is drawn, and does not stretch the axis.
    assert front.get_ylim()[1] < 95.0


def test_front_without_oracle_notes_none():
    names = [name for name in POINTS if name != "oracle"]
    assert not plots.front(comparison_of(names)).axes[0].texts


def test_front_shows_only_upper_part_of_accuracies(monkeypatch):
    monkeypatch.setitem(POINTS, "mine", [[(0.5, 0.85), (0.1, 0.1)]])
    low, high = plots.front(comparison_of()).axes[0].get_ylim()
    assert 60.0 < low < 65.0
    assert 90.0 < high < 95.0


@pytest.mark.parametrize("name", ["static", "ppo"])
def test_front_keeps_style_of_router(front, name):
    colour = plots.COLOURS[plots.STYLES[name].colour]
    assert to_hex(line_of(front, name).get_color()) == colour


def test_front_gives_unknown_router_a_style(front):
    colours = {plots.COLOURS[style.colour] for style in plots.OTHERS}
    assert to_hex(line_of(front, "mine").get_color()) in colours


def test_unknown_routers_have_styles_of_their_own():
    names = ["ppo", "a", "b", "c"]
    styles = [plots.style_of(name, names) for name in names]
    assert len(set(styles)) == 4


def test_styles_differ_without_colour():
    """Any two of one colour differ in dashes or marker."""
    styles = list(plots.STYLES.values())
    assert len({(style.colour, style.dashes, style.marker) for style in styles}) == len(styles)
    assert len({(style.dashes, style.marker) for style in plots.OTHERS}) == len(plots.OTHERS)


@pytest.mark.parametrize("names", [["static"], ["full"], ["static", "full"]], ids=" ".join)
def test_front_without_learners(tmp_path, names):
    plots.save_png(plots.front(comparison_of(names)), tmp_path / "front.png")
    with Image.open(tmp_path / "front.png") as picture:
        assert min(picture.size) > 300


def test_saved_chart_is_png_and_only_file(tmp_path):
    plots.save_png(plots.front(comparison_of()), tmp_path / "new" / "front.png")
    with Image.open(tmp_path / "new" / "front.png") as picture:
        assert picture.format == "PNG"
        colours = np.unique(np.asarray(picture).reshape(-1, 4), axis=0)
    assert len(colours) > 10
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["front.png"]


# Gain over the static paths


def pair_of(router, at, budgets=(0.1, 0.3)):
    return PairFigures(
        router=router,
        against="static",
        mean=None,
        low=None,
        high=None,
        budgets=list(budgets[: len(at)]),
        at=at,
    )


GAINS = [[0.01, 0.005, 0.02], [0.03, 0.02, 0.04]]
FAR_BELOW = [[-0.2, -0.3, -0.1], [-0.01, -0.02, 0.0]]


def test_gains_have_intervals():
    axes = plots.gains([pair_of("ppo", GAINS)], ["ppo"]).axes[0]
    (container,) = axes.containers
    points, _, (bars,) = container
    assert points.get_ydata() == pytest.approx([1.0, 3.0])
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx([0.5, 2.0]), pytest.approx([2.0, 4.0])]


def test_gains_have_budgets_that_some_router_reaches():
    axes = plots.gains([pair_of("ppo", GAINS)], ["ppo"]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "0.3"]


def test_gains_put_routers_side_by_side():
    pairs = [pair_of("ppo", GAINS), pair_of("fqi", GAINS)]
    axes = plots.gains(pairs, ["ppo", "fqi"]).axes[0]
    first, second = (container[0].get_xdata() for container in axes.containers)
    assert first == pytest.approx([-0.2, 0.8])
    assert second == pytest.approx([0.2, 1.2])


def test_gains_far_below_are_arrows_at_lower_edge():
    pairs = [pair_of("ppo", GAINS), pair_of("dqn", FAR_BELOW)]
    axes = plots.gains(pairs, ["ppo", "dqn"]).axes[0]
    low, _ = axes.get_ylim()
    assert -6.0 < low < -4.0
    (arrows,) = [line for line in axes.lines if line.get_marker() == "v" and len(line.get_xdata())]
    assert arrows.get_xdata() == pytest.approx([0.2])
    assert arrows.get_ydata()[0] > low


# Levels, classes and learning

LINES = [
    plots.Levels("ppo", [0.1, 0.2, 0.4]),
    plots.Levels("blind", [0.2, 0.2, 0.2]),
]


def test_levels_are_drawn_in_order():
    figure = plots.by_level(LINES, ["blind", "ppo"], ["easy", "middle", "hard"], "difficulty")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["easy", "middle", "hard"]
    assert line_of(axes, "ppo").get_ydata() == pytest.approx([0.1, 0.2, 0.4])
    assert legend_of(figure) == ["ppo", "blind"]
    assert axes.get_ylim()[0] == 0.0


def classes_of(names):
    entries = []
    for i, name in enumerate(names):
        entries.append(ClassFigures(label=name, images=5, compute=0.5 - 0.01 * i, accuracy=0.9))
    return entries


def class_names(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_classes_are_ordered_by_compute():
    figure = plots.by_class(classes_of(["cat", "dog", "ship"]))
    assert class_names(figure) == ["ship", "dog", "cat"]
    bars = [bar.get_width() for bar in figure.axes[0].patches]
    assert bars == pytest.approx([0.48, 0.49, 0.5])
    assert figure.axes[0].texts[0].get_text() == "0.48, 90 % right"


def test_classes_beyond_limit_are_both_ends():
    names = [str(i) for i in range(2 * plots.CLASSES)]
    shown = class_names(plots.by_class(classes_of(names)))
    half = plots.CLASSES // 2
    assert shown == names[::-1][:half] + names[::-1][-half:]


def test_classes_with_long_names_are_cut():
    (shown,) = class_names(plots.by_class(classes_of(["a very long name of a class"])))
    assert shown == "a very long nam…"


def test_classes_keep_signs_of_their_names():
    chart = plots.svg(plots.by_class(classes_of(["$x_{0$", "<b>&"])), "classes", "classes")
    texts = [element.text for element in ElementTree.fromstring(chart).iter() if element.text]
    assert {"$x_{0$", "<b>&"} <= set(texts)


def test_learning_has_line_per_seed_and_name_per_learner():
    curves = [
        LearningCurve("ppo", 0, [1000, 2000], [0.5, 0.6]),
        LearningCurve("ppo", 1, [1000, 2000], [0.4, 0.7]),
        LearningCurve("dqn", 0, [1000, 2000], [0.3, 0.4]),
    ]
    figure = plots.learning(curves, ["dqn", "ppo"])
    assert legend_of(figure) == ["ppo", "dqn"]
    assert len(figure.axes[0].lines) == 3
    assert figure.axes[0].lines[1].get_ydata() == pytest.approx([0.4, 0.7])
    assert figure.axes[0].lines[1].get_xdata() == pytest.approx([1.0, 2.0])


def test_learning_axis_leaves_out_first_episodes():
    rewards = [-3.0] + [0.5] * 19
    curve = LearningCurve("ppo", 0, list(range(1, 21)), rewards)
    assert plots.learning([curve], ["ppo"]).axes[0].get_ylim()[0] == pytest.approx(0.5)


# SVG


@pytest.fixture
def chart():
    return plots.svg(plots.front(comparison_of()), "front", "a <title>")


def test_svg_is_labelled_picture(chart):
    root = ElementTree.fromstring(chart)
    assert root.get("role") == "img"
    title = root.find("title")
    assert title.text == "a <title>"
    assert root.get("aria-labelledby") == title.get("id") == "front-title"


def test_svg_has_text_as_text(chart):
    texts = [element.text for element in ElementTree.fromstring(chart).iter() if element.text]
    assert {"ppo", "static", "oracle 95.0 % at 0.10"} <= set(texts)
    assert "DejaVu" not in chart


def test_svg_has_colours_of_the_page_alone(chart):
    assert re.findall(r"#[0-9a-fA-F]{6}\b", chart) == []
    names = set(re.findall(r"var\(--(\w+)\)", chart))
    assert {"blue", "muted", "text", "grid"} <= names <= set(plots.COLOURS)


def test_svg_has_large_letters(chart):
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", chart)]
    # A phone shows it 358 pixels wide.
    assert min(sizes) * 358 / plots.WIDTH >= 11.0
    assert 'viewBox="0 0 480 ' in chart


def test_svg_is_the_same_every_time(chart):
    assert plots.svg(plots.front(comparison_of()), "front", "a <title>") == chart


def test_svg_ignores_settings_of_user(chart):
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red"}):
        assert plots.svg(plots.front(comparison_of()), "front", "a <title>") == chart
        assert mpl.rcParams["font.size"] == 30


def test_svg_ids_differ_between_charts(chart):
    other = plots.svg(plots.front(comparison_of()), "other", "a <title>")
    ids = [set(re.findall(r'\bid="([^"]*)"', text)) for text in (chart, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
