"""Episodes on the screen."""

import matplotlib.pyplot as plt
import pytest
from numpy.testing import assert_array_equal

from rnr_gym.envs.rendering import frame
from rnr_gym.envs.scene import text
from rnr_gym.envs.window import Window
from tests.fixtures.scenes import ACTIVE, WRONG


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
