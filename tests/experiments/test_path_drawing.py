"""A path as a drawing: what is executed, what is skipped, and what is an exit."""

from xml.etree import ElementTree

import pytest

from rnr_gym.experiments import path_drawing

OFFERED = [[0, 1, 2], [1, 2], [0, 1, 2]]
"""Three layers; the second has no exit."""


def drawn(path, offered=OFFERED, exits=True, title="path"):
    return ElementTree.fromstring(path_drawing.svg(path, offered, exits, title))


def marks(picture, kind):
    """Tag, column and row, from the top, of the marks of a kind."""
    found = []
    for element in picture:
        if element.get("class") != kind:
            continue
        if element.tag == "circle":
            x, y = float(element.get("cx")), float(element.get("cy"))
        else:
            x = float(element.get("x")) + float(element.get("width")) / 2
            y = float(element.get("y")) + float(element.get("height")) / 2
        found.append((element.tag, int(x // path_drawing.COLUMN), int(y // path_drawing.ROW)))
    return found


def test_drawing_marks_executed_sub_paths():
    picture = drawn([2, 1, 0])
    assert marks(picture, "executed") == [("rect", 0, 0), ("rect", 1, 1), ("circle", 2, 2)]


def test_drawing_joins_executed_sub_paths():
    (way,) = [element for element in drawn([2, 1, 0]) if element.get("class") == "way"]
    assert way.get("points") == "13,7.5 39,22.5 65,37.5"


def test_drawing_marks_all_others_as_skipped():
    picture = drawn([2, 1, 0])
    assert len(marks(picture, "skipped")) == 8 - 3
    assert ("circle", 0, 2) in marks(picture, "skipped")
    # The second layer has no exit.
    assert ("circle", 1, 2) not in marks(picture, "skipped")


def test_drawing_of_exit_at_once_has_no_line():
    picture = drawn([0, -1, -1])
    assert marks(picture, "executed") == [("circle", 0, 2)]
    assert not [element for element in picture if element.get("class") == "way"]


def test_drawing_without_exits_has_no_circles():
    picture = drawn([0, 1, 0], offered=[[0, 1]] * 3, exits=False)
    assert "circle" not in {element.tag for element in picture}
    assert marks(picture, "executed") == [("rect", 0, 1), ("rect", 1, 0), ("rect", 2, 1)]


def test_drawing_leaves_out_rows_that_no_layer_offers():
    picture = drawn([2, 1], offered=[[1, 2], [1, 2]], exits=False)
    assert picture.get("viewBox") == f"0 0 {2 * path_drawing.COLUMN} {2 * path_drawing.ROW}"


def test_drawing_shows_its_title_as_it_is():
    picture = drawn([2, 1, 0], title="<b> & more")
    assert picture.find("title").text == "<b> & more"
    assert picture.get("role") == "img"


@pytest.mark.parametrize(
    ("path", "exits", "words"),
    [
        ([2, 1, 0], True, "2 1 exit"),
        ([0, -1, -1], True, "exit"),
        ([0, 1, 0], False, "0 1 0"),
    ],
    ids=["exit", "exit at once", "without exits"],
)
def test_path_in_words(path, exits, words):
    assert path_drawing.in_words(path, exits) == words
