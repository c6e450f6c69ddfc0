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


class Stretch(NamedTuple):
    """Neighbouring balance points at which a router gives the same answer.

    Attributes:
        start: the first of them.
        end: the one after the last of them.
        prediction: the class.
    """

    start: int
    end: int
    prediction: int


def cards(contest: Contest, subject: Subject, position: int) -> str:
    """The answers at one balance point."""
    entries = []
    for name, answers in subject.answers.items():
        answer = answers[position]
        entries.append(
            {
                "name": name,
                "answer": answer,
                "verdict": verdict(answer.prediction, subject.label),
                "classes": _most_likely(answer),
                "path": path_in_words(contest, answer),
                "milliseconds": subject.time(name, position),
                "picture": _picture(contest, subject, answer),
                "most_compute": contest.most_compute(name),
                "chart": _chart(contest, subject, answers, position),
            }
        )
    return _template("cards.html.j2").render(
        entries=entries,
        subject=subject,
        plain_verdict=verdict(subject.plain.prediction, subject.label),
        class_names=contest.classes,
        budget=contest.budgets[position],
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
    spec = contest.spec
    names = sub_path_names(spec)
    words = [names[sub_path] for sub_path in answer.path[answer.path >= 0]]
    # Layer 0 exits by the glance.
    if len(words) == 1 and spec.has_exits:
        words = ["exit at the glance"]
    return words


def stretches(answers: list[Answer]) -> list[Stretch]:
    """The balance points from first to last, divided where the prediction changes."""
    predictions = np.array([answer.prediction for answer in answers])
    starts = np.flatnonzero(np.diff(predictions, prepend=-1)).tolist()
    ends = [*starts[1:], len(answers)]
    return [
        Stretch(start, end, int(predictions[start]))
        for start, end in zip(starts, ends, strict=True)
    ]


def _most_likely(answer: Answer) -> list[tuple[int, float]]:
    """Classes and their probabilities, the most likely first."""
    order = np.argsort(-answer.probabilities, kind="stable")[:TOP]
    return [(int(number), float(answer.probabilities[number])) for number in order]


def _chart(
    contest: Contest, subject: Subject, answers: list[Answer], position: int
) -> dict[str, object]:
    """Compute of this image and its answers over all balance points, in units of the drawing.

    One balance point is one unit wide; compute 1 is one unit high.
    """
    points = []
    for idx, answer in enumerate(answers):
        points.append((idx, answer.compute))
        points.append((idx + 1, answer.compute))
    segments = [
        (stretch, verdict(stretch.prediction, subject.label)) for stretch in stretches(answers)
    ]
    return {
        "points": points,
        "segments": segments,
        "budgets": contest.budgets,
        "position": position,
        "compute": answers[position].compute,
    }


def _picture(contest: Contest, subject: Subject, answer: Answer) -> str:
    """The finished episode as an address that holds a PNG."""
    spec = contest.spec
    scene = Scene(
        image=subject.image,
        classes=contest.classes,
        label=subject.label,
        valid=spec.valid,
        names=sub_path_names(spec),
        path=answer.path,
        compute=answer.compute,
        tradeoff=answer.tradeoff or 0.0,
        belief=answer.probabilities,
        believer="answer",
        prediction=answer.prediction,
        preferences=answer.preferences,
    )
    return png_address(frame(scene))


def png_address(pixels: NDArray[np.uint8]) -> str:
    """Pixels `(H, W, 3)` as an address that holds them."""
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
