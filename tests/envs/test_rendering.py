"""Pictures of an episode."""

import matplotlib as mpl
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rnr_gym.envs.rendering import figure, frame
from rnr_gym.routing.preferences import Preferences
from tests.fixtures.scenes import ACTIVE, AT_START, WRONG

PREFERENCES = Preferences(
    "probability",
    np.array(
        [
            [np.nan, -0.25, 0.5, 0.75],
            [0.0, 0.0, 1.0, 0.0],
            [np.nan] * 4,
        ]
    ),
)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "scene",
    [AT_START, ACTIVE, WRONG],
    ids=["at start", "active", "answered"],
)
def test_frame_is_a_picture_of_fixed_size(scene, channels):
    image = np.full((channels, 8, 8), 128, np.uint8)
    picture = frame(scene._replace(image=image))
    assert picture.shape == (540, 960, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.writeable

    colours = np.unique(picture.reshape(-1, 3), axis=0)
    assert len(colours) > 10


@pytest.mark.parametrize(
    "change",
    [
        {"image": np.full((1, 8, 8), 200, np.uint8)},
        {"path": np.array([3, -1, -1], np.int8)},
        {"belief": np.array([0.25, 0.75], np.float32)},
        {"compute": 0.5},
        {"tradeoff": 0.5},
        {"label": 0},
        {"label": None},
        {"believer": "answer"},
        {"preferences": PREFERENCES},
    ],
    ids=str,
)
def test_frame_shows_each_part(change):
    picture = frame(ACTIVE)
    changed = frame(ACTIVE._replace(**change))
    assert (changed != picture).any()


def test_frame_of_equal_scenes_is_equal():
    assert_array_equal(frame(ACTIVE), frame(ACTIVE))


@pytest.mark.parametrize("kind", ["probability", "Q-value", "advantage"])
def test_frame_shows_preferences(kind):
    preferences = PREFERENCES._replace(kind=kind)
    (axes,) = (
        axes
        for axes in figure(WRONG._replace(preferences=preferences)).axes
        if axes.get_xlabel() == "layer"
    )
    numbers = [text.get_text() for text in axes.texts]
    expected = ["−25", "50", "75", "0", "0", "100", "0"]
    if kind != "probability":
        expected = ["−.25", ".50", ".75", ".00", ".00", "1.00", ".00"]
    assert numbers == expected
    assert ("%" in axes.get_title()) == (kind == "probability")


def test_frame_leaves_numbers_out_of_deep_networks():
    deep = {
        "valid": np.ones((20, 4), np.bool_),
        "path": np.full(20, -1, np.int8),
    }
    values = np.full((20, 4), 0.25)
    with_numbers = PREFERENCES._replace(values=values)
    texts = [
        text
        for axes in figure(ACTIVE._replace(**deep, preferences=with_numbers)).axes
        for text in axes.texts
    ]
    assert texts == []


def test_frame_tells_right_from_wrong_in_words():
    """Whoever sees no colours has to know, too."""
    right = WRONG._replace(label=0)
    titles = [figure(scene).texts[0].get_text() for scene in (right, WRONG)]
    assert titles == ["✓ answer: cat (right)", "✗ answer: cat (wrong, it is dog)"]


def test_frame_ignores_settings_of_the_user():
    expected = frame(WRONG)
    mine = {
        "figure.constrained_layout.use": True,
        "font.size": 30.0,
        "axes.facecolor": "black",
        "axes.grid": True,
    }
    with mpl.rc_context(mine):
        assert_array_equal(frame(WRONG), expected)
        assert mpl.rcParams["font.size"] == 30.0


def test_frame_has_room_for_many_classes():
    names = tuple(map(str, range(100)))
    belief = np.full(100, 0.01, np.float32)
    many = ACTIVE._replace(classes=names, belief=belief)
    assert frame(many).shape == (540, 960, 3)


@pytest.mark.parametrize("name", ["$x_{0$", "$\\alpha$", "a\nb", "<b>", "[/b]"])
def test_frame_shows_names_as_they_are(name):
    """Signs of mathematics in the name of a class are no mathematics."""
    for scene in (ACTIVE, WRONG):
        assert frame(scene._replace(classes=(name, "dog"))).shape == (540, 960, 3)
    assert (frame(ACTIVE._replace(classes=("$a$", "dog"))) != frame(ACTIVE)).any()
