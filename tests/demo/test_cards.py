"""Cards say of each router what it did, in words as well as in colours."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from rnr_gym.demo import cards
from rnr_gym.envs.rendering import DPI, SIZE

LOWEST = 0
HIGHEST = -1


def position_of(contest, place):
    return range(len(contest.budgets))[place]


def texts(html):
    """What is read, with tags and line breaks as single spaces."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def card_of(html, name):
    """The text of a router's card."""
    return texts(re.search(rf'(?s)<section class="rnr-card" id="rnr-{name}".*?</section>', html)[0])


@pytest.fixture(params=["ppo", "dqn"])
def name(request):
    return request.param


@pytest.mark.parametrize("place", [LOWEST, HIGHEST], ids=["lowest", "highest"])
def test_card_tells_answer_and_cost(contest, subject, name, place):
    position = position_of(contest, place)
    answer = subject.answers[name][position]
    text = card_of(cards.page_part(contest, subject, position), name)
    assert f"compute {answer.compute:.3f} {answer.macs / 1e6:.1f} M MACs" in text
    assert f"time {subject.time(name, position):.1f} ms" in text
    assert f"plain {subject.plain_time:.1f} ms" in text
    assert f"trade-off {answer.tradeoff:.3g}" in text
    assert f"{100 * answer.probabilities.max():.1f} %" in text
    assert text.startswith(f"{name.upper()} {contest.classes[answer.prediction]} ")


def test_card_tells_path(contest, subject, name):
    lowest, highest = (
        card_of(cards.page_part(contest, subject, position_of(contest, place)), name)
        for place in (LOWEST, HIGHEST)
    )
    assert "path exit at the glance" in lowest
    assert "path full → full → full → full → full" in highest


def test_path_in_words_names_sub_paths(contest, subject):
    answer = subject.answers["ppo"][0]._replace(path=np.array([3, 2, 1, 0, -1], np.int8))
    assert cards.path_in_words(contest, answer) == ["full", "2", "identity", "exit"]


def test_card_tells_verdict(contest, subject):
    """Right, wrong, or nothing where the class is not known."""
    position = position_of(contest, LOWEST)
    prediction = subject.answers["ppo"][position].prediction
    marks = []
    for label in (prediction, (prediction + 1) % 10, None):
        text = card_of(cards.page_part(contest, subject._replace(label=label), position), "ppo")
        marks.append([mark for mark in ("✓ right", "✗ wrong", "no label") if mark in text])
    assert marks == [["✓ right"], ["✗ wrong"], ["no label"]]


def test_card_marks_true_class(contest, subject):
    position = position_of(contest, LOWEST)
    prediction = subject.answers["ppo"][position].prediction
    html = cards.page_part(contest, subject._replace(label=prediction), position)
    assert f"{contest.classes[prediction]} (true)" in card_of(html, "ppo")
    unknown = cards.page_part(contest, subject._replace(label=None), position)
    assert "(true)" not in texts(unknown)


def test_card_says_that_router_spends_no_more(contest, subject):
    """DQN never spends as much as PPO can."""
    html = cards.page_part(contest, subject, contest.position(0.5))
    assert f"At most {contest.most_compute('dqn'):.2f} on average" in card_of(html, "dqn")
    assert "At most" not in card_of(html, "ppo")


def test_plain_network_is_shown_for_comparison(contest, subject):
    text = texts(cards.page_part(contest, subject, 0))
    name = contest.classes[subject.plain.prediction]
    assert f"Plain network , for comparison: {name}" in text
    assert "compute 1.000" in text


def test_card_has_picture(contest, subject):
    html = cards.page_part(contest, subject, 0)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(pictures) == 2
    for content in pictures:
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert picture.size == tuple(round(inches * DPI) for inches in SIZE)


def test_cards_name_no_other_host(contest, subject):
    assert "://" not in cards.page_part(contest, subject, 0)


def test_names_are_escaped(contest, subject, monkeypatch):
    monkeypatch.setattr(contest, "classes", ("<i>",) * 10)
    html = cards.page_part(contest, subject._replace(caption="<b>"), 0)
    assert "<i>" not in html.replace('<i style="width', "")
    assert "&lt;i&gt;" in html
    assert "&lt;b&gt;" in html


def test_refusal_is_announced_and_escaped():
    html = cards.refusal("<script>")
    assert 'role="alert"' in html
    assert "&lt;script&gt;" in html
