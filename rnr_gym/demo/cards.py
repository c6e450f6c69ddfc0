"""Answers as HTML: a card for each router, and a line for the plain network."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from typing import NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rnr_gym.demo.answers import Answer
from rnr_gym.demo.chart import Chart, chart
from rnr_gym.demo.contest import Contest, Subject
from rnr_gym.envs.rendering import frame
from rnr_gym.envs.scene import Scene, sub_path_names

TOP = 3
"""A card shows the probabilities of the most likely classes only."""


class Verdict(NamedTuple):
    """Whether an answer is right, as a CSS class, a sign and a word."""

    style: str
    sign: str
    word: str


RIGHT = Verdict("right", "✓", "right")
WRONG = Verdict("wrong", "✗", "wrong")
UNKNOWN = Verdict("unknown", "", "no label")


class Card(NamedTuple):
    """What is shown of one router.

    Attributes:
        name: of the router.
        answer: at the present balance point.
        most_likely: classes and their probabilities, the most likely first.
        path: one word or number for each layer that was reached.
        milliseconds: for a batch of one.
        most_compute: the largest mean compute that the router was measured at.
        picture: the episode, an address that holds a PNG.
        chart: the answers at all balance points.
    """

    name: str
    answer: Answer
    most_likely: list[tuple[int, float]]
    path: list[str]
    milliseconds: float
    most_compute: float
    picture: str
    chart: Chart


def page_part(contest: Contest, subject: Subject, position: int) -> str:
    """All that is shown of an image at one balance point."""
    cards = []
    for name, answers in subject.answers.items():
        answer = answers[position]
        card = Card(
            name=name,
            answer=answer,
            most_likely=_most_likely(answer),
            path=path_in_words(contest, answer),
            milliseconds=subject.time(name, position),
            most_compute=contest.most_compute(name),
            picture=_picture(contest, subject, answer),
            chart=chart(answers, position),
        )
        cards.append(card)
    return _template("cards.html.j2").render(
        cards=cards,
        subject=subject,
        budget=contest.budgets[position],
        budgets=contest.budgets,
        class_names=contest.classes,
        verdict=verdict,
    )


def refusal(message: str) -> str:
    """Why an upload is refused."""
    return _template("refusal.html.j2").render(message=message)


def verdict(prediction: int, label: int | None) -> Verdict:
    """Whether a prediction is right; unknown without a label."""
    if label is None:
        return UNKNOWN
    if prediction == label:
        return RIGHT
    return WRONG


def path_in_words(contest: Contest, answer: Answer) -> list[str]:
    """One word or number for each layer that was reached."""
    names = sub_path_names(contest.spec)
    words = [names[sub_path] for sub_path in answer.path[answer.path >= 0]]
    # Layer 0 exits by the glance.
    if len(words) == 1 and contest.spec.has_exits:
        return ["exit at the glance"]
    return words


def _most_likely(answer: Answer) -> list[tuple[int, float]]:
    order = np.argsort(-answer.probabilities, kind="stable")[:TOP]
    return [(int(number), float(answer.probabilities[number])) for number in order]


def _picture(contest: Contest, subject: Subject, answer: Answer) -> str:
    # Only the plain network has no trade-off, and no picture is drawn of it.
    assert answer.tradeoff is not None
    scene = Scene(
        image=subject.image,
        classes=contest.classes,
        label=subject.label,
        valid=contest.spec.valid,
        names=sub_path_names(contest.spec),
        path=answer.path,
        compute=answer.compute,
        tradeoff=answer.tradeoff,
        belief=answer.probabilities,
        believer="answer",
        prediction=answer.prediction,
        preferences=answer.preferences,
    )
    return _png_address(frame(scene))


def _png_address(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@lru_cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rnr_gym.demo", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)
