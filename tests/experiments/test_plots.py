"""Pictures of a comparison show its figures."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from rnr_gym.data import ImageSet
from rnr_gym.experiments import plots


def rows(router, by_seed):
    """Indices of results from (compute, accuracy) by seed and trade-off."""
    return [
        {"router": router, "seed": seed, "compute": compute, "accuracy": accuracy}
        for seed, points in enumerate(by_seed)
        for compute, accuracy in points
    ]


def results(severities=(0, 1, 2)):
    """Two learners, the static paths, the oracle and a point."""
    parts = {
        "static": [[(1.0, 0.9), (0.1, 0.5)]],
        "ppo": [[(0.6, 0.9), (0.2, 0.7)], [(0.4, 0.8), (0.2, 0.5)]],
        "mine": [[(0.5, 0.85), (0.3, 0.8)]],
        "oracle": [[(0.1, 0.95)]],
        "full": [[(1.0, 0.9), (1.0, 0.9)]],
    }
    shown = [
        {
            "router": name,
            "severity": list(severities),
            "compute": [0.1, 0.2, 0.4][: len(severities)],
            "mean_compute": 0.22,
        }
        for name in parts
    ]
    return {
        "routers": [{"router": name} for name in parts],
        "rows": [row for name, by_seed in parts.items() for row in rows(name, by_seed)],
        "by_severity": shown,
    }


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, in order."""
    saved, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, *parts, **more: (saved.append(figure), save(figure, *parts, **more))[1],
    )
    return saved


def line(axes, label):
    (found,) = [drawn for drawn in axes.lines if drawn.get_label() == label]
    return found


def test_each_router_is_a_line_of_its_means_over_seeds(tmp_path, figures):
    plots.pareto(results(), tmp_path / "new" / "pareto.png")
    axes = figures[0].axes[0]
    ppo = line(axes, "ppo")
    # trade-off by trade-off: compute (.6 + .4) / 2 and .2, accuracy (.9 + .8) / 2 and (.7 + .5) / 2; cheapest first
    assert ppo.get_xdata() == pytest.approx([0.2, 0.5])
    assert ppo.get_ydata() == pytest.approx([0.6, 0.85])
    assert line(axes, "static").get_xdata() == pytest.approx([0.1, 1.0])
    band = (
        axes.collections[1].get_paths()[0].vertices
    )  # of ppo, ± the standard deviation over seeds, .1 and .05
    assert sorted(set(band[:, 1].round(6))) == pytest.approx([0.5, 0.7, 0.8, 0.9])
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "static",
        "ppo",
        "mine",
        "oracle",
        "full",
    }


def test_routers_of_one_compute_are_points(tmp_path, figures):
    plots.pareto(results(), tmp_path / "pareto.png")
    axes = figures[0].axes[0]
    assert "full" not in [drawn.get_label() for drawn in axes.lines]
    (point,) = [part for part in axes.collections if part.get_label() == "full"]
    assert point.get_offsets().tolist() == [[1.0, 0.9]]


def test_routers_keep_their_colours(tmp_path, figures):
    plots.pareto(results(), tmp_path / "pareto.png")
    axes = figures[0].axes[0]
    colours = {
        name: to_hex(line(axes, name).get_color()) for name in ("static", "ppo", "mine", "oracle")
    }
    assert {name: colours[name] for name in ("static", "ppo", "oracle")} == {
        name: plots.COLOURS[name] for name in ("static", "ppo", "oracle")
    }
    assert colours["mine"] in plots.OTHERS


def test_compute_by_severity_stands_beside_it_where_severities_are_known(tmp_path, figures):
    plots.pareto(results(), tmp_path / "graded.png")
    plots.pareto(results(severities=(0,)), tmp_path / "plain.png")
    graded, plain = figures
    assert (len(graded.axes), len(plain.axes)) == (2, 1)
    assert [drawn.get_label() for drawn in graded.axes[1].lines] == [
        "ppo, mean 0.22",
        "mine, mean 0.22",
    ]
    assert graded.axes[1].lines[0].get_ydata() == pytest.approx([0.1, 0.2, 0.4])


@pytest.mark.parametrize("names", [["static"], ["full"], ["static", "full"]])
def test_static_paths_alone_make_a_picture_too(tmp_path, names):
    content = results()
    content = {
        key: [part for part in parts if part["router"] in names] for key, parts in content.items()
    }
    plots.pareto(content, tmp_path / "pareto.png")
    with Image.open(tmp_path / "pareto.png") as picture:
        assert min(picture.size) > 300


def test_a_picture_is_a_png_and_nothing_is_left_beside_it(tmp_path):
    plots.pareto(results(), tmp_path / "pareto.png")
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture).reshape(-1, 4), axis=0)) > 10
    assert [file.name for file in tmp_path.iterdir()] == ["pareto.png"]


def gallery_of(channels, figures, path, count=3):
    rng = np.random.default_rng(0)
    images = ImageSet.of(
        rng.integers(0, 256, (8, channels, 6, 6)).astype(np.uint8),
        np.arange(8) % 4,
        ("a", "b", "c", "d"),
    )
    compute = np.array([0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 0.8, 0.4])
    plots.gallery(images, compute, np.arange(8) != 1, path, count)
    return images, figures[0].axes


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gallery_shows_the_cheapest_and_the_dearest(tmp_path, figures, channels):
    images, axes = gallery_of(channels, figures, tmp_path / "gallery.png")
    assert len(axes) == 6
    # compute ascends over the images 1, 5, 3, ... and descends over 2, 6, 4, ...
    assert [place.get_title() for place in axes] == [
        "b\n0.10",
        "b\n0.20",
        "d\n0.30",
        "c\n0.90",
        "c\n0.80",
        "a\n0.70",
    ]
    for place, image in zip(axes, (1, 5, 3, 2, 6, 4), strict=True):
        shown = np.asarray(place.images[0].get_array())
        assert (shown == np.moveaxis(images.images[image], 0, -1).squeeze()).all()
    assert (tmp_path / "gallery.png").stat().st_size > 1000


def test_wrong_answers_are_framed_in_another_colour(tmp_path, figures):
    _, axes = gallery_of(1, figures, tmp_path / "gallery.png")
    frames = [to_hex(place.spines["left"].get_edgecolor()) for place in axes]
    assert frames[0] == "#c1121f"
    assert set(frames[1:]) == {"#c9d2d9"}


def test_fewer_images_than_places_are_shown_each_once(tmp_path, figures):
    _, axes = gallery_of(1, figures, tmp_path / "gallery.png", count=12)
    titles = [place.get_title() for place in axes if place.get_title()]
    assert len(titles) == 16
