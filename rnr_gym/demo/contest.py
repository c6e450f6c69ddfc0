"""Routers that answer the same images at the same balance points."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from rnr_gym.classifier import BudgetCurve, RoutedClassifier
from rnr_gym.demo.answers import Answer, milliseconds, plain_answer, routed_answers, run_again

STEP = 0.01
"""Between two balance points, in compute."""
PLAIN = "plain network"


class Subject(NamedTuple):
    """An image and all its answers.

    Attributes:
        image: uint8 `(C, H, W)`.
        label: the true class; None where it is not known.
        caption: what it is, in a few words.
        answers: for each router, one answer for each balance point.
        plain: the answer of the plain network.
        times: milliseconds for a batch of this one image, by the router's name and the path.
        plain_time: the same of the plain network.
    """

    image: NDArray[np.uint8]
    label: int | None
    caption: str
    answers: dict[str, list[Answer]]
    plain: Answer
    times: dict[tuple[str, tuple[int, ...]], float]
    plain_time: float

    def time(self, router: str, position: int) -> float:
        """Milliseconds that a router takes at a balance point."""
        return self.times[router, self.answers[router][position].path_key]


class Contest:
    """Routers of one backbone, side by side.

    A balance point is a mean compute. By the curve of each router it becomes a trade-off of its
    own, so that all spend the same on average.

    Args:
        classifiers: by the name of the router; each has a curve.
        classes: class names.

    Attributes:
        budgets: the balance points, ascending. They start where every router can follow, and end
            where the last one spends the most that it ever does.
        spec: the routing problem.
    """

    def __init__(self, classifiers: dict[str, RoutedClassifier], classes: tuple[str, ...]) -> None:
        self.classifiers = classifiers
        self.classes = classes
        self.curves = {name: _curve(classifier) for name, classifier in classifiers.items()}
        self.budgets = _budgets(list(self.curves.values()))
        # All of them have the same backbone, so what does not depend on the router is any one's.
        self._any_classifier = next(iter(classifiers.values()))
        self.backbone = self._any_classifier.backbone
        self.spec = self._any_classifier.spec

    @classmethod
    def bundled(cls, name: str, agents: tuple[str, ...], classes: tuple[str, ...]) -> Self:
        """The bundled routers of some agents."""
        classifiers = {}
        for agent in agents:
            classifiers[agent] = RoutedClassifier.from_pretrained(name, agent=agent)
        return cls(classifiers, classes)

    def most_compute(self, name: str) -> float:
        """The largest mean compute that a router was measured at, on `route`."""
        return max(self.curves[name].compute)

    def position(self, budget: float) -> int:
        """Which balance point is nearest to a mean compute."""
        return int(np.abs(np.array(self.budgets) - budget).argmin())

    def subject(self, image: NDArray[np.uint8], label: int | None, caption: str) -> Subject:
        """Let all routers answer an image at all balance points, and measure their times.

        Args:
            image: uint8 `(C, H, W)`.
            label: the true class, if it is known.
            caption: what it is, in a few words.
        """
        plain = plain_answer(self._any_classifier, image)
        answers = {}
        # A time depends on the path, of which there are few.
        runs = {(PLAIN, plain.path_key): run_again(self._any_classifier, image, plain)}
        for name, classifier in self.classifiers.items():
            tradeoffs = [self.curves[name].tradeoff_for(budget) for budget in self.budgets]
            answers[name] = routed_answers(classifier, image, tradeoffs)
            for answer in answers[name]:
                runs.setdefault((name, answer.path_key), run_again(classifier, image, answer))

        times = milliseconds(runs)
        return Subject(
            image=image,
            label=label,
            caption=caption,
            answers=answers,
            plain=plain,
            plain_time=times.pop((PLAIN, plain.path_key)),
            times=times,
        )


def _curve(classifier: RoutedClassifier) -> BudgetCurve:
    if classifier.curve is None:
        raise ValueError("`classifiers` must have routers whose curves were measured")
    return classifier.curve


def _budgets(curves: list[BudgetCurve]) -> list[float]:
    """The multiples of `STEP` among which the balance point moves."""
    low = max(min(curve.compute) for curve in curves)
    high = max(max(curve.compute) for curve in curves)
    numbers = range(math.ceil(low / STEP), math.ceil(high / STEP) + 1)
    # Rounded, because multiples of 0.01 have no exact form.
    return [round(number * STEP, 6) for number in numbers]
