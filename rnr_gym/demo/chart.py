"""The drawing of what a router does with an image at every balance point, in units of an SVG."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rnr_gym.demo.answers import Answer

WIDTH = 400.0
BASE = 90.0
"""Where compute 0 is; `y` grows downwards."""
HEIGHT = 80.0
"""Of compute 1."""
TICKS = (0.0, 0.5, 1.0)
LETTER = 9.0
"""Room for a letter of a class name."""
MARGIN = 18.0
"""Room for the sign before a class name."""


class Stretch(NamedTuple):
    """Neighbouring balance points at which the answer is the same.

    Attributes:
        prediction: the class.
        x: the left end.
        width: from end to end.
    """

    prediction: int
    x: float
    width: float

    @property
    def middle(self) -> float:
        """Where its name stands."""
        return self.x + self.width / 2

    def has_room_for(self, name: str) -> bool:
        """Whether a class name fits into it."""
        return self.width > LETTER * len(name) + MARGIN


class Tick(NamedTuple):
    """A line at a round number of compute."""

    compute: float
    y: float


class Chart(NamedTuple):
    """What is drawn.

    Attributes:
        points: corners of the line of compute, as SVG writes them.
        stretches: the answers below it, from left to right.
        ticks: the grid.
        x: of the present balance point.
        y: of its compute.
    """

    points: str
    stretches: list[Stretch]
    ticks: list[Tick]
    x: float
    y: float


def chart(answers: list[Answer], position: int) -> Chart:
    """The drawing of a router's answers at all balance points, one of which is the present one."""
    step = WIDTH / len(answers)
    points = []
    for idx, answer in enumerate(answers):
        # Level over the whole of a balance point.
        for x in (step * idx, step * (idx + 1)):
            points.append(f"{x:.1f},{_y(answer.compute):.1f}")

    predictions = np.array([answer.prediction for answer in answers])
    # No class is -1, so the first balance point always begins a stretch.
    starts = np.flatnonzero(np.diff(predictions, prepend=-1)).tolist()
    ends = [*starts[1:], len(answers)]
    stretches = []
    for start, end in zip(starts, ends, strict=True):
        stretch = Stretch(
            prediction=int(predictions[start]), x=step * start, width=step * (end - start)
        )
        stretches.append(stretch)

    return Chart(
        points=" ".join(points),
        stretches=stretches,
        ticks=[Tick(compute, _y(compute)) for compute in TICKS],
        x=step * (position + 0.5),
        y=_y(answers[position].compute),
    )


def _y(compute: float) -> float:
    return BASE - HEIGHT * compute
