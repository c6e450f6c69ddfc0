"""Figures as text, the same in the report, in the terminal and in the README."""

from __future__ import annotations

from collections.abc import Sequence

MISSING = "–"


def percent(value: float | None, spread: float | None) -> str:
    """`87.3 ±0.4`, or a dash."""
    if value is None:
        return MISSING
    text = f"{100 * value:.1f}"
    if spread is None:
        return text
    return f"{text} ±{100 * spread:.1f}"


def number(pair: Sequence[float | None] | None) -> str:
    """A mean and its spread, `0.1230 ±0.0040`, or a dash."""
    if pair is None:
        return MISSING
    mean, spread = pair
    if mean is None:
        return MISSING
    if spread is None:
        return f"{mean:.4f}"
    return f"{mean:.4f} ±{spread:.4f}"


def interval(mean: float | None, low: float | None, high: float | None) -> str:
    """`+1.2 [+0.8, +1.7]`, in percentage points, or a dash."""
    if mean is None or low is None or high is None:
        return MISSING
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def share(mean: float | None, low: float | None, high: float | None) -> str:
    """`0.68 [0.64, 0.73]`; None is infinity: a dash for the mean, ∞ for an end."""
    if mean is None:
        return MISSING
    return f"{mean:.2f} [{_end(low)}, {_end(high)}]"


def _end(value: float | None) -> str:
    if value is None:
        return "∞"
    return f"{value:.2f}"
