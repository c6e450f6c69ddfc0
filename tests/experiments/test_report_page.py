"""The page of a comparison: each section shows its figures, and they follow from the results alone."""

import copy
from html.parser import HTMLParser

import pytest

from rnr_gym.experiments import report
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS
from rnr_gym.experiments.report import interval, number, percent, share
from tests.experiments.test_report import finished, results

SECTIONS = {
    *(
        "Accuracy at equal compute",
        "Paired differences",
        "Against the full path",
        "Compute for equal accuracy",
    ),
    *("How they route", "Cheapest and most expensive images", "Measured on"),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return finished(tmp_path_factory.getbasetemp())


@pytest.fixture
def content(folder):
    """The results, to change."""
    return copy.deepcopy(results(folder))


class Cells(HTMLParser):
    """The text of every table row of a page, by the heading above it."""

    def __init__(self, page):
        super().__init__()
        self.sections, self.rows, self.inside = {}, [], None
        self.feed(page)

    def handle_starttag(self, tag, _):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self.inside = tag if tag in ("td", "th", "h2") else self.inside

    def handle_endtag(self, tag):
        self.inside = None if tag == self.inside else self.inside

    def handle_data(self, text):
        if self.inside == "h2":
            self.rows = self.sections.setdefault(text, [])
        elif self.inside:
            self.rows[-1][-1] += text


def section(content, name):
    """The rows below a heading, without that of the column names."""
    return Cells(report.page(content)).sections[name][1:]


def test_the_page_has_a_section_for_each_part(folder):
    page = (folder / "report.html").read_text()
    assert Cells(page).sections.keys() == SECTIONS
    for picture in ("pareto.png", "gallery.png"):
        assert f'src="{picture}"' in page


def test_it_shows_every_summary(content):
    for part, row in zip(
        content["routers"], section(content, "Accuracy at equal compute"), strict=True
    ):
        assert row[0] == part["router"]
        assert row[1:7] == [percent(*pair) for pair in part["accuracy_at"]]
        assert row[7] == number(part["regret"])


def at_each_budget(content, part, shown):
    """What a row of a part says at each budget, a dash where it has none."""
    known = dict(zip(part["budgets"], part["at"], strict=True))
    return [shown(*known[budget]) if budget in known else "–" for budget in content["budgets"]]


def test_it_shows_every_difference(content):
    rows = section(content, "Paired differences")
    for part, row in zip(content["differences"], rows, strict=True):
        whole = interval(part["mean"], part["low"], part["high"])
        assert row == [
            part["router"],
            part["against"],
            whole,
            *at_each_budget(content, part, interval),
        ]


def test_it_shows_what_each_learner_loses_against_the_full_path(content):
    content["lost"] += [{**part, "router": "mine"} for part in content["lost"]]
    rows = section(content, "Against the full path")
    assert [row[0] for row in rows] == [part["router"] for part in content["lost"]]
    for part, row in zip(content["lost"], rows, strict=True):
        assert row[1:] == at_each_budget(content, part, interval)
    assert f"which has {percent(content['full_accuracy'], None)} percent right" in report.page(
        content
    )


def test_it_shows_every_saving(content):
    content["savings"] += [{**pair, "router": "mine"} for pair in content["savings"]]
    rows = section(content, "Compute for equal accuracy")
    assert rows
    for part, row in zip(content["savings"], rows, strict=True):
        whole = share(part["mean"], part["low"], part["high"])
        assert row == [
            part["router"],
            part["against"],
            whole,
            *at_each_budget(content, part, share),
        ]


def test_a_saving_that_is_never_reached_is_a_dash_and_one_without_an_upper_bound_says_so(content):
    pair = {
        "router": "ppo",
        "against": "static",
        "mean": None,
        "low": 0.6,
        "high": None,
        "budgets": content["budgets"][:2],
    }
    content["savings"] = [{**pair, "at": [[0.7, 0.6, None], [None, 0.9, None]]}]
    (row,) = section(content, "Compute for equal accuracy")
    assert row == ["ppo", "static", "–", "0.70 [0.60, ∞]", *["–"] * 5]


def test_only_what_is_wholly_below_one_is_marked_as_saved(content):
    pair = {"router": "ppo", "against": "static", "mean": 0.8, "low": 0.6, "budgets": [], "at": []}
    content["differences"] = []
    for high, marked in ((0.99, True), (1.0, False), (None, False)):
        content["savings"] = [{**pair, "high": high}]
        assert ('<td class="clear">' in report.page(content)) is marked


def test_it_shows_what_is_spent_on_images_that_the_full_path_gets_right_and_wrong(content):
    content["by_outcome"] = [
        {
            "router": "ppo",
            "mean_compute": 0.3,
            "right": 0.25,
            "wrong": 0.5,
            "low": 0.1,
            "high": -0.2,
        }
    ]
    assert section(content, "How they route")[0] == [
        "ppo",
        "0.300",
        "0.250",
        "0.500",
        "+0.250 [+0.100, -0.200]",
    ]


def test_it_shows_how_the_shown_router_goes_at_each_tradeoff(content):
    name = content["shown"]["router"]
    rows = [row for row in section(content, "How they route") if len(row) == 6][1:]
    ours = [row for row in content["rows"] if row["router"] == name and row["seed"] == 0]
    assert len(ours) == len(EVAL_TRADEOFFS)
    for found, row in zip(ours, rows, strict=True):
        assert row[:3] == [name, f"{found['tradeoff']:.3f}", f"{found['compute']:.3f}"]
        assert row[3:] == [
            f"{found['path_entropy']:.2f}",
            str(found["distinct_paths"]),
            f"{100 * found['exits']:.0f} %",
        ]


def test_parts_without_entries_leave_their_sections_empty(content):
    for name in ("differences", "lost", "savings", "by_outcome"):
        content[name] = []
    for name in ("Paired differences", "Against the full path", "Compute for equal accuracy"):
        assert section(content, name) == []


def test_without_a_gallery_none_is_shown(content):
    page = report.page({**content, "gallery": False})
    assert "gallery.png" not in page
    assert "Cheapest and most expensive" not in page
    assert 'src="pareto.png"' in page


def test_it_says_what_it_was_measured_on(folder):
    page = (folder / "report.html").read_text()
    for value in results(folder)["provenance"].values():
        assert str(value).replace('"', "&#34;") in page


def test_the_page_follows_from_the_results_alone(folder):
    assert report.page(results(folder)) == (folder / "report.html").read_text()


def test_names_on_the_page_are_escaped(content):
    assert "<script>" not in report.page({**content, "env": "<script>"})


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        ((0.873, 0.004), "87.3 ±0.4"),
        ((0.873, None), "87.3"),
        ((None, None), "–"),
        ((0.0, 0.0), "0.0 ±0.0"),
    ],
    ids=str,
)
def test_percentages(pair, text):
    assert percent(*pair) == text


@pytest.mark.parametrize(
    ("pair", "text"),
    [((0.123, 0.004), "0.1230 ±0.0040"), ((0.0, None), "0.0000"), ((None, None), "–"), (None, "–")],
    ids=str,
)
def test_numbers(pair, text):
    assert number(pair) == text


def test_intervals():
    assert interval(0.012, 0.0084, -0.017) == "+1.2 [+0.8, -1.7]"


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ((0.684, 0.6349, 1.0), "0.68 [0.63, 1.00]"),
        ((0.5, 0.4, None), "0.50 [0.40, ∞]"),
        ((None, None, None), "–"),
        ((None, 0.9, None), "–"),
        ((0.5, None, None), "0.50 [∞, ∞]"),
    ],
    ids=str,
)
def test_shares(figures, text):
    assert share(*figures) == text
