"""A bar in a terminal, lines in a log."""

import io
import sys

import pytest

from rnr_gym import progress
from rnr_gym.progress import progress_bar


class Stream(io.StringIO):
    """A standard error stream that is a terminal or is not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def stderr(monkeypatch):
    """Put a stream in the place of the standard error stream."""
    # As in a process that is no notebook, which a test before may have made of this one.
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)

    def put(terminal):
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return put


def test_a_terminal_shows_a_bar_that_is_drawn_over(stderr):
    stream = stderr(terminal=True)
    assert list(progress_bar(range(3), desc="images")) == [0, 1, 2]
    first, *_, last = stream.getvalue().strip("\n").split("\r")[1:]
    assert "images:   0%" in first
    assert "3/3" in last


def test_a_log_has_one_line_for_each_state(stderr, monkeypatch):
    monkeypatch.setattr(progress, "LOG_S", 0.0)
    stream = stderr(terminal=False)
    with progress_bar(total=2, desc="fit", unit="router") as bar:
        bar.update()
        bar.update()
    text = stream.getvalue()
    assert "\r" not in text
    states = [line.split("|")[0] for line in text.splitlines()]
    # The last one comes again when the bar is closed.
    assert states == ["fit:   0%", "fit:  50%", "fit: 100%", "fit: 100%"]


def test_a_log_has_no_line_for_what_takes_seconds(stderr):
    stream = stderr(terminal=False)
    for _ in progress_bar(range(1000), leave=False):
        pass
    assert stream.getvalue() == ""


def test_a_notebook_shows_a_bar(stderr, monkeypatch):
    stream = stderr(terminal=False)
    monkeypatch.setitem(sys.modules, "ipykernel", io)
    list(progress_bar(range(3)))
    assert "\r" in stream.getvalue()
