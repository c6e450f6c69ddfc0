"""The page of a report: each section shows its figures, and follows from the results alone."""

import copy
from html.parser import HTMLParser

import pytest

from rnr_gym.experiments import report
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS
from rnr_gym.experiments.formatting import MISSING, interval, number, percent, share
from tests.fixtures.comparisons import read_results

ACCURACY = "Accuracy at equal compute"
DIFFERENCES = "Paired differences"
LOST = "Against the full path"
SAVINGS = "Compute for equal accuracy"
ROUTING = "How they route"
GALLERY = "Cheapest and most expensive images"
PROVENANCE = "Measured on"
SECTIONS = [ACCURACY, DIFFERENCES, LOST, SAVINGS, ROUTING, GALLERY, PROVENANCE]

CELLS = ("td", "th")
MARK = '<td class="clear">'
"""How the page marks a figure that is clear of chance."""


class PageTables(HTMLParser):
    """The text of every table row of a page.

    Attributes:
        sections: by heading, the rows below it, each a list of cells.
    """

    def __init__(self, page):
        super().__init__()
        self.sections = {}
        self.rows = []
        self.open_tag = None
        self.feed(page)

    def handle_starttag(self, tag, _):
        if tag == "tr":
            self.rows.append([])
        if tag in CELLS:
            self.rows[-1].append("")
        if tag in (*CELLS, "h2"):
            self.open_tag = tag

    def handle_endtag(self, tag):
        if tag == self.open_tag:
            self.open_tag = None

    def handle_data(self, text):
        if self.open_tag == "h2":
            self.rows = self.sections.setdefault(text, [])
        elif self.open_tag:
            self.rows[-1][-1] += text


def section(content, name):
    """The table rows below a heading, without the first, which has the column names."""
    return PageTables(report.page(content)).sections[name][1:]


def at_each_budget(content, pair, text):
    """What the row of a pair says at each budget of the report."""
    at = dict(zip(pair["budgets"], pair["at"], strict=True))
    cells = []
    for budget in content["budgets"]:
        if budget in at:
            cells.append(text(*at[budget]))
        else:
            cells.append(MISSING)
    return cells


def pair_row(content, pair, text):
    """The whole row of two routers."""
    overall = text(pair["mean"], pair["low"], pair["high"])
    return [pair["router"], pair["against"], overall, *at_each_budget(content, pair, text)]


@pytest.fixture
def page(report_dir):
    """The page as it was written."""
    return (report_dir / "report.html").read_text()


@pytest.fixture
def content(report_dir):
    """The results, to change."""
    return copy.deepcopy(read_results(report_dir))


def test_page_has_all_sections(page):
    assert [*PageTables(page).sections] == SECTIONS


@pytest.mark.parametrize("picture", ["pareto.png", "gallery.png"])
def test_page_shows_picture(page, picture):
    assert f'src="{picture}"' in page


def test_page_follows_from_results_alone(report_dir, page):
    assert report.page(read_results(report_dir)) == page


def test_page_shows_router_accuracies(content):
    rows = section(content, ACCURACY)
    for router, row in zip(content["routers"], rows, strict=True):
        accuracies = [percent(*pair) for pair in router["accuracy_at"]]
        assert row[:8] == [router["router"], *accuracies, number(router["regret"])]


def test_page_shows_every_difference(content):
    rows = section(content, DIFFERENCES)
    assert rows == [pair_row(content, pair, interval) for pair in content["differences"]]


def test_page_shows_every_saving(content):
    # A second set of rows, so that their order shows.
    content["savings"] += [{**pair, "router": "mine"} for pair in content["savings"]]
    rows = section(content, SAVINGS)
    assert rows
    assert rows == [pair_row(content, pair, share) for pair in content["savings"]]


def test_page_shows_accuracy_lost(content):
    content["lost"] += [{**pair, "router": "mine"} for pair in content["lost"]]
    rows = section(content, LOST)
    for pair, row in zip(content["lost"], rows, strict=True):
        assert row == [pair["router"], *at_each_budget(content, pair, interval)]


def test_page_states_full_path_accuracy(content):
    accuracy = percent(content["full_accuracy"], None)
    assert f"which has {accuracy} percent right" in report.page(content)


def test_page_shows_infinite_saving_as_dash(content):
    """A mean that is never reached is a dash, and an upper end without bound is ∞."""
    pair = {
        "router": "ppo",
        "against": "static",
        "mean": None,
        "low": 0.6,
        "high": None,
        "budgets": content["budgets"][:2],
        "at": [[0.7, 0.6, None], [None, 0.9, None]],
    }
    content["savings"] = [pair]

    # Two budgets have figures; the other four, and the mean over all, have none.
    (row,) = section(content, SAVINGS)
    assert row == ["ppo", "static", "–", "0.70 [0.60, ∞]", *["–"] * 5]


@pytest.mark.parametrize(("high", "marked"), [(0.99, True), (1.0, False), (None, False)])
def test_page_marks_savings_below_one(content, high, marked):
    """Only an interval that is wholly below one is marked."""
    pair = {
        "router": "ppo",
        "against": "static",
        "mean": 0.8,
        "low": 0.6,
        "high": high,
        "budgets": [],
        "at": [],
    }

    # Differences are marked as well, so there must be none.
    content["differences"] = []
    content["savings"] = [pair]
    assert (MARK in report.page(content)) is marked


def test_page_shows_compute_by_outcome(content):
    figures = {
        "router": "ppo",
        "mean_compute": 0.3,
        "right": 0.25,
        "wrong": 0.5,
        "low": 0.1,
        "high": -0.2,
    }
    content["by_outcome"] = [figures]
    row = section(content, ROUTING)[0]
    assert row == ["ppo", "0.300", "0.250", "0.500", "+0.250 [+0.100, -0.200]"]


def test_page_shows_routing_by_tradeoff(content):
    name = content["shown"]["router"]
    # The section's second table has six columns; its first row has their names.
    rows = [row for row in section(content, ROUTING) if len(row) == 6][1:]
    shown = [row for row in content["rows"] if row["router"] == name and row["seed"] == 0]
    assert len(shown) == len(EVAL_TRADEOFFS)

    for figures, row in zip(shown, rows, strict=True):
        assert row == [
            name,
            f"{figures['tradeoff']:.3f}",
            f"{figures['compute']:.3f}",
            f"{figures['path_entropy']:.2f}",
            str(figures["distinct_paths"]),
            f"{100 * figures['exits']:.0f} %",
        ]


@pytest.mark.parametrize("name", [DIFFERENCES, LOST, SAVINGS])
def test_page_section_without_figures_is_empty(content, name):
    for key in ("differences", "lost", "savings", "by_outcome"):
        content[key] = []
    assert section(content, name) == []


def test_page_without_gallery_shows_none(content):
    content["gallery"] = False
    page = report.page(content)
    assert "gallery.png" not in page
    assert GALLERY not in page
    assert 'src="pareto.png"' in page


def test_page_shows_provenance(report_dir, page):
    for value in read_results(report_dir)["provenance"].values():
        escaped = str(value).replace('"', "&#34;")
        assert escaped in page


def test_page_escapes_names(content):
    content["env"] = "<script>"
    assert "<script>" not in report.page(content)


def test_page_shows_text_from_the_user_as_it_is(report_dir):
    content = copy.deepcopy(read_results(report_dir))
    content["provenance"]["arguments"] = "<script>alert(1)</script>"
    page = report.page(content)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
