"""The drawing over all balance points is true to the answers."""

import numpy as np
import pytest

from rnr_gym.demo.chart import BASE, HEIGHT, WIDTH, Stretch, chart


def answers_with(subject, predictions):
    """Answers that differ in their prediction only."""
    probabilities = np.eye(10, dtype=np.float32)
    answer = subject.answers["ppo"][0]
    return [answer._replace(probabilities=probabilities[number]) for number in predictions]


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        ([4, 4, 4, 4], [(4, 0, 4)]),
        ([4, 4, 1, 4], [(4, 0, 2), (1, 2, 1), (4, 3, 1)]),
        ([0], [(0, 0, 1)]),
    ],
    ids=["one-answer", "back-again", "one-balance-point"],
)
def test_stretches_end_where_answers_change(subject, predictions, expected):
    step = WIDTH / len(predictions)
    stretches = chart(answers_with(subject, predictions), 0).stretches
    scaled = [(number, start * step, length * step) for number, start, length in expected]
    assert stretches == [Stretch(*values) for values in scaled]


@pytest.mark.parametrize(("width", "fits"), [(60, True), (40, False)])
def test_short_stretch_has_no_name(width, fits):
    assert Stretch(prediction=0, x=0, width=width).has_room_for("frog") is fits


def test_line_is_level_over_each_balance_point(subject):
    answers = subject.answers["ppo"]
    corners = [corner.split(",") for corner in chart(answers, 0).points.split()]
    x, y = np.array(corners, float).T
    edges = np.linspace(0, WIDTH, len(answers) + 1)
    np.testing.assert_allclose(x, np.repeat(edges, 2)[1:-1], atol=0.06)
    expected = [BASE - HEIGHT * answer.compute for answer in answers]
    np.testing.assert_allclose(y, np.repeat(expected, 2), atol=0.06)


@pytest.mark.parametrize("position", [0, 20])
def test_dot_is_on_the_line(subject, position):
    answers = subject.answers["dqn"]
    drawing = chart(answers, position)
    step = WIDTH / len(answers)
    assert step * position < drawing.x < step * (position + 1)
    assert drawing.y == BASE - HEIGHT * answers[position].compute
