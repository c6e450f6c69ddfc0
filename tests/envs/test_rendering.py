"""Pictures of an episode."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rnr_gym.envs.rendering import Scene, Window, frame, text

VALID = np.array(
    [
        [0, 1, 1, 1],
        [1, 1, 1, 1],
        [1, 1, 1, 1],
    ],
    np.bool_,
)
ACTIVE = Scene(
    image=np.zeros((1, 8, 8), np.uint8),
    classes=("cat", "dog"),
    label=1,
    valid=VALID,
    has_exits=True,
    path=np.array([2, -1, -1], np.int8),
    compute=0.25,
    tradeoff=0.3,
    belief=np.array([0.75, 0.25], np.float32),
    prediction=None,
)
WRONG = ACTIVE._replace(
    path=np.array([2, 3, 0], np.int8),
    compute=0.625,
    prediction=0,
)
AT_START = ACTIVE._replace(path=np.full(3, -1, np.int8))


def test_text_of_an_active_episode():
    assert text(ACTIVE).splitlines() == [
        "layer 1   λ = 0.3   compute 0.250",
        "full  o  o  o",
        "   2  @  o  o",
        "   1  o  o  o",
        "exit  .  o  o",
    ]


def test_text_of_a_wrong_answer_names_the_class():
    assert text(WRONG).splitlines() == [
        "answer: cat (wrong, it is dog)   λ = 0.3   compute 0.625",
        "full  o  @  o",
        "   2  @  o  o",
        "   1  o  o  o",
        "exit  .  o  @",
    ]


def test_text_of_a_right_answer():
    right = WRONG._replace(label=0)
    assert text(right).startswith("answer: cat (right)   ")


def test_text_of_active_episode_hides_the_label():
    other = ACTIVE._replace(label=0)
    assert text(other) == text(ACTIVE)


@pytest.mark.parametrize(
    ("has_exits", "names"),
    [
        (True, ["exit", "1", "2", "full"]),
        (False, ["0", "1", "2", "full"]),
    ],
)
def test_names_of_sub_paths(has_exits, names):
    assert ACTIVE._replace(has_exits=has_exits).names == names


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "scene",
    [AT_START, ACTIVE, WRONG],
    ids=["at start", "active", "answered"],
)
def test_frame_is_a_picture_of_fixed_size(scene, channels):
    image = np.full((channels, 8, 8), 128, np.uint8)
    picture = frame(scene._replace(image=image))
    assert picture.shape == (270, 720, 3)
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
    ],
    ids=["image", "path", "belief", "compute"],
)
def test_frame_shows_each_part(change):
    picture = frame(ACTIVE)
    changed = frame(ACTIVE._replace(**change))
    assert (changed != picture).any()


def test_frame_of_equal_scenes_is_equal():
    assert_array_equal(frame(ACTIVE), frame(ACTIVE))


def test_frame_has_room_for_many_classes():
    names = tuple(map(str, range(100)))
    belief = np.full(100, 0.01, np.float32)
    many = ACTIVE._replace(classes=names, belief=belief)
    assert frame(many).shape == (270, 720, 3)


def test_window_prints_text_without_a_screen(capsys):
    window = Window()
    window.show(ACTIVE)
    assert capsys.readouterr().out.startswith(text(ACTIVE))
    window.close()


@pytest.fixture
def pauses(monkeypatch):
    """A screen, as far as matplotlib says, and the pauses made on it."""
    seconds = []
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    monkeypatch.setattr(plt, "pause", seconds.append)
    return seconds


def test_window_is_opened_once_and_refreshed(pauses, capsys):
    before = plt.get_fignums()
    window = Window()
    window.show(ACTIVE)
    window.show(WRONG)
    assert len(plt.get_fignums()) == len(before) + 1
    assert_array_equal(window.shown.get_array(), frame(WRONG))
    assert len(pauses) == 2

    # Twice does no harm.
    window.close()
    window.close()
    assert plt.get_fignums() == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["$x_{0$", "$\\alpha$", "a\nb", "<b>", "[/b]"])
def test_frame_shows_names_as_they_are(name):
    """Signs of mathematics in the name of a class are no mathematics."""
    for scene in (ACTIVE, WRONG):
        assert frame(scene._replace(classes=(name, "dog"))).shape == (270, 720, 3)
    assert (frame(ACTIVE._replace(classes=("$a$", "dog"))) != frame(ACTIVE)).any()
