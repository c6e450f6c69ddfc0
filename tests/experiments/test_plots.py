"""Pictures of a comparison show its figures."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from rnr_gym.data import ImageSet
from rnr_gym.experiments import plots
from rnr_gym.experiments.results import Comparison, RouterFigures, Row, SeverityFigures

POINTS = {
    "static": [[(1.0, 0.9), (0.1, 0.5)]],
    "ppo": [[(0.6, 0.9), (0.2, 0.7)], [(0.4, 0.8), (0.2, 0.5)]],
    "mine": [[(0.5, 0.85), (0.3, 0.8)]],
    "oracle": [[(0.1, 0.95)]],
    "full": [[(1.0, 0.9), (1.0, 0.9)]],
}
"""By router, seed and trade-off: compute and accuracy."""
RIGHT_FRAME = "#c9d2d9"
WRONG_FRAME = "#c1121f"


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


def severity_figures(router, severities):
    compute = [0.1, 0.2, 0.4]
    return SeverityFigures(
        router=router,
        mean_compute=0.22,
        severity=list(severities),
        compute=compute[: len(severities)],
        accuracy=[],
    )


def comparison_of(names=tuple(POINTS), severities=(0, 1, 2)):
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
        by_severity=[severity_figures(name, severities) for name in names],
        by_outcome=[],
    )


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, in order."""
    saved = []
    save = Figure.savefig

    def recording_save(figure, *args, **kwargs):
        saved.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", recording_save)
    return saved


@pytest.fixture
def front(tmp_path, figures):
    """The axes of accuracy against compute."""
    plots.pareto(comparison_of(), tmp_path / "new" / "pareto.png")
    return figures[0].axes[0]


def line_of(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line


# Accuracy against compute


def test_front_draws_means_over_seeds(front):
    ppo = line_of(front, "ppo")
    # Of both seeds compute is .6 and .4, then .2 twice; accuracy .9 and .8, then .7 and .5.
    assert ppo.get_xdata() == pytest.approx([0.2, 0.5])
    assert ppo.get_ydata() == pytest.approx([0.6, 0.85])


def test_front_orders_points_by_compute(front):
    assert line_of(front, "static").get_xdata() == pytest.approx([0.1, 1.0])


def test_front_band_is_spread_over_seeds(front):
    # The second band is that of ppo: ± .1 and ± .05.
    band = front.collections[1].get_paths()[0].vertices
    edges = sorted(set(band[:, 1].round(6)))
    assert edges == pytest.approx([0.5, 0.7, 0.8, 0.9])


def test_front_legend_names_all_routers(front):
    names = {text.get_text() for text in front.get_legend().get_texts()}
    assert names == set(POINTS)


def test_front_draws_fixed_router_as_point(front):
    assert "full" not in [line.get_label() for line in front.lines]
    (point,) = [part for part in front.collections if part.get_label() == "full"]
    assert point.get_offsets().tolist() == [[1.0, 0.9]]


@pytest.mark.parametrize("name", ["static", "ppo", "oracle"])
def test_front_keeps_colour_of_router(front, name):
    assert to_hex(line_of(front, name).get_color()) == plots.COLOURS[name]


def test_front_gives_unknown_router_colour(front):
    assert to_hex(line_of(front, "mine").get_color()) in plots.OTHERS


@pytest.mark.parametrize("names", [["static"], ["full"], ["static", "full"]], ids=" ".join)
def test_pareto_without_learners(tmp_path, names):
    plots.pareto(comparison_of(names), tmp_path / "pareto.png")
    with Image.open(tmp_path / "pareto.png") as picture:
        assert min(picture.size) > 300


def test_pareto_is_png_and_only_file(tmp_path):
    plots.pareto(comparison_of(), tmp_path / "pareto.png")
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.format == "PNG"
        colours = np.unique(np.asarray(picture).reshape(-1, 4), axis=0)
    assert len(colours) > 10
    assert [file.name for file in tmp_path.iterdir()] == ["pareto.png"]


# Compute by severity


def test_pareto_shows_known_severities(tmp_path, figures):
    plots.pareto(comparison_of(), tmp_path / "pareto.png")
    _, severity = figures[0].axes
    # Neither static paths nor points nor the oracle.
    labels = [line.get_label() for line in severity.lines]
    assert labels == ["ppo, mean 0.22", "mine, mean 0.22"]
    assert severity.lines[0].get_ydata() == pytest.approx([0.1, 0.2, 0.4])


def test_pareto_without_severities_has_one_axes(tmp_path, figures):
    plots.pareto(comparison_of(severities=(0,)), tmp_path / "pareto.png")
    assert len(figures[0].axes) == 1


# Gallery

COMPUTE = np.array([0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 0.8, 0.4])
CHEAPEST = (1, 5, 3)
MOST_EXPENSIVE = (2, 6, 4)


def random_images(channels):
    """Eight images in four classes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, channels, 6, 6)).astype(np.uint8)
    return ImageSet.of(pixels, np.arange(8) % 4, ("a", "b", "c", "d"))


@pytest.fixture
def gallery(tmp_path, figures):
    """Draws a gallery of images of which the second was answered wrong; its axes."""

    def gallery(images, count=3):
        correct = np.arange(8) != 1
        plots.gallery(images, COMPUTE, correct, tmp_path / "gallery.png", count)
        return figures[0].axes

    return gallery


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
def test_gallery_shows_both_ends_of_compute(gallery, tmp_path, channels):
    images = random_images(channels)
    all_axes = gallery(images)
    for axes, image_idx in zip(all_axes, (*CHEAPEST, *MOST_EXPENSIVE), strict=True):
        shown = np.asarray(axes.images[0].get_array())
        pixels = np.moveaxis(images.images[image_idx], 0, -1)  # (C, H, W) -> (H, W, C)
        np.testing.assert_array_equal(shown, pixels.squeeze())
    assert (tmp_path / "gallery.png").stat().st_size > 1000


def test_gallery_titles_are_class_and_compute(gallery):
    titles = [axes.get_title() for axes in gallery(random_images(1))]
    assert titles == ["b\n0.10", "b\n0.20", "d\n0.30", "c\n0.90", "c\n0.80", "a\n0.70"]


def test_gallery_shows_names_of_classes_as_they_are(gallery, tmp_path):
    images = replace(random_images(1), classes=("$x_{0$", "$\\beta$", "<b>", "[/b]"))
    titles = [axes.get_title() for axes in gallery(images)]
    assert titles[0] == "$\\beta$\n0.10"
    assert (tmp_path / "gallery.png").stat().st_size > 1000


def test_gallery_frames_wrong_answers(gallery):
    frames = []
    for axes in gallery(random_images(1)):
        frames.append(to_hex(axes.spines["left"].get_edgecolor()))
    assert frames[0] == WRONG_FRAME
    assert set(frames[1:]) == {RIGHT_FRAME}


def test_gallery_of_few_images_shows_each_once(gallery):
    """Once among the cheapest and once among the most expensive."""
    titles = [axes.get_title() for axes in gallery(random_images(1), count=12)]
    assert len([title for title in titles if title]) == 16
