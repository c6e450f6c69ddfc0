"""The page of a report: each section shows its figures, and follows from the results alone."""

import copy
import re
from html.parser import HTMLParser

import pytest

from rnr_gym.experiments import page, report
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS
from rnr_gym.experiments.formatting import MISSING, interval, number, percent, share
from rnr_gym.experiments.headline import headline
from rnr_gym.experiments.results import Results
from tests.fixtures.comparisons import read_results

ACCURACY = "Accuracy at equal compute"
DIFFERENCES = "Paired differences"
LOST = "Against the full path"
SAVINGS = "Compute for equal accuracy"
ROUTING = "How they route"
GALLERY = "Cheapest and most expensive images"
PROVENANCE = "Measured on"
FRONT = "Accuracy against compute"
GAINS = "Gain over the best static path"
SEVERITY = "Compute against severity"
DIFFICULTY = "Compute against difficulty"
USED_PATHS = "Most used paths"
CLASSES = "Compute by class"
LEARNING = "Return while learning"
PICTURES = [FRONT, GAINS, SEVERITY, USED_PATHS, GALLERY, CLASSES, LEARNING]
TABLES = [ACCURACY, DIFFERENCES, LOST, SAVINGS, ROUTING, PROVENANCE]

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
    return PageTables(page.page(content)).sections[name][1:]


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
def html(report_dir):
    """The page as it was written."""
    return (report_dir / "report.html").read_text()


@pytest.fixture
def content(report_dir):
    """The results, to change."""
    return copy.deepcopy(read_results(report_dir))


def test_page_has_all_pictures_before_all_tables(html):
    assert [*PageTables(html).sections] == PICTURES + TABLES


def test_page_answers_first(html, content):
    results = Results.from_json(content)
    first, *further = headline(results.comparison)
    start = html.index('<p class="answer">')
    assert html[start:].startswith(f'<p class="answer">{first}</p>')
    for sentence in further:
        assert f'<p class="further">{sentence}</p>' in html
    assert start < html.index("<svg")


def test_page_says_what_was_measured(content):
    html = " ".join(page.page(content | {"images": 12_345}).split())
    assert "Measured on 12,345 images of <code>test</code>" in html
    assert "<code>pretrained</code> weights; 2 seeds" in html

    arguments = {"weights": None, "exits": False}
    html = " ".join(page.page(content | {"arguments": arguments, "seeds": 1}).split())
    assert "with random weights and without exits; 1 seed of" in html


def test_page_follows_from_stored_files_alone(report_dir, html):
    assert report.stored_page(read_results(report_dir), report_dir) == html


def test_page_needs_no_other_file(html):
    """Neither scripts nor references, but to parts of the page and to data within it."""
    assert "<script" not in html
    references = re.findall(r'\b(?:src|href)="([^"]*)"', html)
    assert references
    assert all(reference.startswith(("#", "data:")) for reference in references)
    assert "url(" not in html.replace("url(#", "")
    assert "@import" not in html


def test_page_pictures_have_titles_and_captions(html):
    pictures = re.findall(r"<svg(?![^>]*aria-hidden).*?</svg>", html, re.DOTALL)
    assert len(pictures) > 10
    for picture in pictures:
        assert 'role="img"' in picture
        assert re.search(r"<title[^>]*>[^<]+</title>", picture)
    figures = re.findall(r"<figure.*?</figure>", html, re.DOTALL)
    assert len(figures) == len(PICTURES)
    for figure in figures:
        assert re.search(r"<figcaption>[^<]{40,}</figcaption>", figure)


def test_page_ids_are_unique(html):
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert ids
    assert len(set(ids)) == len(ids)


def test_page_tables_are_folded(html):
    assert html.count("<details>") == len(TABLES)
    assert "<details open" not in html


def test_page_draws_most_used_paths(content):
    content["paths"]["used"] = [
        {"path": [3, 1, 0, -1], "share": 0.625, "accuracy": 0.75, "compute": 0.5}
    ]
    content["paths"]["distinct"] = 9
    html = page.page(content)
    assert "<b>62.5 %</b> of the images" in html
    assert "75.0 % right, compute 0.500" in html
    assert "path 3 1 exit" in html
    assert "The 1 most used of 9 paths that PPO takes" in html


@pytest.mark.parametrize(
    ("distinct", "words"),
    [(1, "The only path that PPO takes"), (2, "The 2 paths that PPO takes")],
)
def test_page_counts_all_paths(content, distinct, words):
    content["paths"]["used"] = content["paths"]["used"][:1] * distinct
    content["paths"]["distinct"] = distinct
    assert words in page.page(content)


def test_page_gallery_shows_answers(content, report_dir):
    examples = content["examples"]
    for entry in examples["cheapest"]:
        entry |= {"label": "cat", "prediction": "cat", "right": True, "compute": 0.125}
    for entry in examples["most_expensive"]:
        entry |= {"label": "cat", "prediction": "<dog>", "right": False}
    html = report.stored_page(content, report_dir)
    count = len(examples["cheapest"])
    assert html.count("<b>cat</b>") == 2 * count
    assert html.count("compute 0.12<br>") == count
    assert html.count('<span class="right">✓ right</span>') == count
    assert html.count('<span class="wrong">✗ &lt;dog&gt;</span>') == count


def test_page_gallery_shows_every_tile_of_the_sheet(content, report_dir, html):
    count = len(content["examples"]["cheapest"])
    uses = re.findall(r'<use href="#sheet" x="([^"]*)" y="([^"]*)"/>', html)
    # Digits have 12 x 12 pixels.
    size = int(re.search(r'class="image" viewBox="0 0 (\d+)', html)[1])
    expected = [(str(-size * x), str(-size * y)) for y in (0, 1) for x in range(count)]
    assert uses == expected


def test_page_without_severities_shows_difficulty(content):
    routers = [
        {"router": "ppo", "mean_compute": 0.3, "compute": [0.1, 0.5], "accuracy": [1.0, 0.0]}
    ]
    content["by_difficulty"] = {
        "measure": "paths",
        "levels": ["all", "none"],
        "images": [1200, 7],
        "routers": routers,
    }
    for figures in content["by_severity"]:
        figures |= {"severity": [0], "compute": [0.3], "accuracy": [0.5]}
    html = page.page(content)
    headings = [*PageTables(html).sections]
    assert DIFFICULTY in headings
    assert SEVERITY not in headings
    assert "Number of images: all 1,200, none 7." in html

    content["by_difficulty"] |= {"measure": "full path", "levels": ["right", "wrong"]}
    html = page.page(content)
    assert "Images by whether the full path answers them right." in html


def test_page_leaves_out_pictures_without_figures(content):
    content |= {"learning": [], "by_class": [], "differences": [], "by_difficulty": None}
    content["gallery"] = False
    for figures in content["by_severity"]:
        figures |= {"severity": [0], "compute": [0.3], "accuracy": [0.5]}
    headings = [*PageTables(page.page(content)).sections]
    assert headings == [FRONT, USED_PATHS, *TABLES]


def test_page_of_earlier_results_has_fewer_pictures(content):
    for key in ("learning", "by_class", "by_difficulty", "paths", "examples"):
        del content[key]
    content["gallery"] = False
    headings = [*PageTables(page.page(content)).sections]
    assert headings == [FRONT, GAINS, SEVERITY, *TABLES]


def test_page_without_charts_keeps_the_rest(html):
    without = page.without_charts(html)
    assert 'class="chart"' not in without
    assert 'class="path"' in without
    assert len(without) < len(html)


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
    assert f"which has {accuracy} percent right" in page.page(content)


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
    assert (MARK in page.page(content)) is marked


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
    html = page.page(content)
    assert GALLERY not in html
    assert "data:image" not in html


def test_page_shows_provenance(report_dir, html):
    for value in read_results(report_dir)["provenance"].values():
        escaped = str(value).replace('"', "&#34;")
        assert escaped in html


def test_page_escapes_names(content):
    content["env"] = "<script>"
    assert "<script>" not in page.page(content)


def test_page_shows_text_from_the_user_as_it_is(report_dir):
    content = copy.deepcopy(read_results(report_dir))
    content["provenance"]["arguments"] = "<script>alert(1)</script>"
    html = page.page(content)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
