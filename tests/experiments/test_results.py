"""What a comparison is evaluated on, and its figures as JSON holds them."""

import numpy as np
import pytest

from rnr_gym.experiments import results
from rnr_gym.experiments.results import ORACLE, is_adaptive, is_of_kind
from tests.fixtures.comparisons import read_results
from tests.fixtures.records import paper_testbed


@pytest.mark.parametrize(
    ("name", "adaptive"),
    [
        ("random", False),
        ("full", False),
        ("cheapest", False),
        ("static", False),
        ("blind", False),
        ("confidence", True),
        ("thresholds", True),
        ("fqi", True),
        ("ppo", True),
        (ORACLE, True),
    ],
)
def test_router_is_adaptive_by_kind(name, adaptive):
    assert is_adaptive(name) is adaptive


def test_oracle_is_of_no_kind():
    """It is shown among the routers, but is no agent."""
    assert is_of_kind("ppo", "learner")
    assert is_of_kind("ppo", "rule", "learner")
    assert not is_of_kind("ppo", "rule")
    assert not is_of_kind(ORACLE, "fixed", "imageless", "rule", "fqi", "learner")


def test_testbed_describes_its_images():
    testbed = paper_testbed()
    assert testbed.original_id.tolist() == [0, 1, 2, 3, 4, 5, 5, 6]
    assert testbed.severity.tolist() == [0, 0, 0, 0, 0, 3, 3, 3]


def test_testbed_without_images_has_defaults():
    """Every image is its own original, and has no severity."""
    testbed = paper_testbed()._replace(images=None)
    assert testbed.original_id.tolist() == list(range(8))
    assert testbed.severity.tolist() == [0] * 8


def test_testbed_fastest_prefers_table():
    testbed = paper_testbed()
    live = object()
    assert testbed._replace(source=live).fastest is testbed.table
    assert testbed._replace(source=live, table=None).fastest is live


def test_testbed_plain_is_static_full_path():
    plain = paper_testbed().plain()
    assert plain.correct.tolist() == [True] * 7 + [False]
    # As a static network: neither glance nor exits.
    assert plain.macs.tolist() == [100] * 8
    assert np.unique(plain.path).tolist() == [2]


def test_results_survive_json_round_trip(report_dir):
    content = read_results(report_dir)
    assert results.Results.from_json(content).to_json() == content


def test_results_of_earlier_version_lack_new_figures(report_dir):
    content = read_results(report_dir)
    for key in ("by_difficulty", "paths", "by_class", "examples", "learning"):
        del content[key]
    earlier = results.Results.from_json(content)
    assert earlier.comparison.by_difficulty is None
    assert earlier.comparison.paths is None
    assert earlier.comparison.examples is None
    assert earlier.comparison.by_class == []
    assert earlier.learning == []
