"""Figures as text."""

import pytest

from rnr_gym.experiments.formatting import interval, number, percent, share


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (0.873, 0.004, "87.3 ±0.4"),
        (0.873, None, "87.3"),
        (None, None, "–"),
        (0.0, 0.0, "0.0 ±0.0"),
    ],
)
def test_percent_with_and_without_spread(value, spread, text):
    assert percent(value, spread) == text


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        ((0.123, 0.004), "0.1230 ±0.0040"),
        ((0.0, None), "0.0000"),
        ((None, None), "–"),
        (None, "–"),
    ],
    ids=str,
)
def test_number_with_and_without_spread(pair, text):
    assert number(pair) == text


def test_interval_in_signed_points():
    assert interval(0.012, 0.0084, -0.017) == "+1.2 [+0.8, -1.7]"


@pytest.mark.parametrize("missing", ["mean", "low", "high"])
def test_interval_without_figure_is_dash(missing):
    figures = {"mean": 0.012, "low": 0.0084, "high": 0.017}
    assert interval(**{**figures, missing: None}) == "–"


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (0.684, 0.6349, 1.0, "0.68 [0.63, 1.00]"),
        (0.5, 0.4, None, "0.50 [0.40, ∞]"),
        (None, None, None, "–"),
        (None, 0.9, None, "–"),
        (0.5, None, None, "0.50 [∞, ∞]"),
    ],
)
def test_share_with_infinite_ends(mean, low, high, text):
    assert share(mean, low, high) == text
