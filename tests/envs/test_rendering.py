"""Pictures of an episode."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from rnr_gym.envs.rendering import Scene, Window, frame, text

GOING = Scene(
    image=np.zeros((1, 8, 8), np.uint8),
    classes=("cat", "dog"),
    label=1,
    valid=np.array([[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]], np.bool_),
    has_exits=True,
    path=np.array([2, -1, -1], np.int8),
    compute=0.25,
    tradeoff=0.3,
    belief=np.array([0.75, 0.25], np.float32),
    prediction=None,
)
ENDED = GOING._replace(path=np.array([2, 3, 0], np.int8), compute=0.625, prediction=0)


def test_text_of_an_episode_under_way():
    assert text(GOING).splitlines() == [
        "layer 1   λ = 0.3   compute 0.250",
        "full  o  o  o",
        "   2  @  o  o",
        "   1  o  o  o",
        "exit  .  o  o",
    ]


def test_text_of_a_wrong_answer_names_the_right_one():
    assert text(ENDED).splitlines() == [
        "answer: cat (wrong, it is dog)   λ = 0.3   compute 0.625",
        "full  o  @  o",
        "   2  @  o  o",
        "   1  o  o  o",
        "exit  .  o  @",
    ]


def test_text_of_a_right_answer():
    assert text(ENDED._replace(label=0)).startswith("answer: cat (right)   ")


def test_while_under_way_the_label_is_not_told():
    assert text(GOING) == text(GOING._replace(label=0))


def test_names_without_exits():
    assert GOING._replace(has_exits=False).names == ["0", "1", "2", "full"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scene", [GOING, ENDED, GOING._replace(path=np.full(3, -1, np.int8))])
def test_a_frame_is_a_picture_of_fixed_size(scene, channels):
    picture = frame(scene._replace(image=np.full((channels, 8, 8), 128, np.uint8)))
    assert (picture.shape, picture.dtype) == ((270, 720, 3), np.uint8)
    assert picture.flags.writeable
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_a_frame_shows_image_path_and_belief():
    picture = frame(GOING)
    changed = [
        GOING._replace(image=np.full((1, 8, 8), 200, np.uint8)),
        GOING._replace(path=np.array([3, -1, -1], np.int8)),
        GOING._replace(belief=np.array([0.25, 0.75], np.float32)),
        GOING._replace(compute=0.5),
    ]
    assert all((frame(scene) != picture).any() for scene in changed)
    assert (frame(GOING) == picture).all()


def test_more_classes_than_fit_are_cut_to_the_ten_most_likely():
    many = GOING._replace(
        classes=tuple(map(str, range(100))), belief=np.full(100, 0.01, np.float32)
    )
    assert frame(many).shape == (270, 720, 3)


def test_without_a_screen_the_text_form_is_printed(capsys):
    window = Window()
    window.show(GOING)
    assert capsys.readouterr().out.startswith(text(GOING))
    window.close()


def test_with_a_screen_one_window_is_opened_refreshed_and_closed(monkeypatch, capsys):
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    paused = []
    monkeypatch.setattr(plt, "pause", paused.append)
    before, window = plt.get_fignums(), Window()
    window.show(GOING)
    window.show(ENDED)
    assert len(plt.get_fignums()) == len(before) + 1
    np.testing.assert_array_equal(window.shown.get_array(), frame(ENDED))
    assert len(paused) == 2
    window.close()
    window.close()
    assert plt.get_fignums() == before
    assert capsys.readouterr().out == ""
