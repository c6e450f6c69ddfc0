"""The main figures of a comparison in a terminal; the report has all of them."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from rnr_gym.experiments.formatting import interval, number, percent, share
from rnr_gym.experiments.results import Comparison, Results, is_adaptive

SHOWN_BUDGETS = slice(1, 5)
"""The budgets that fit into a terminal of 80 columns."""


def print_results(console: Console, results: Results) -> None:
    """Print accuracy at equal compute, paired differences, and compute by severity if known."""
    console.print(_accuracy_table(results.comparison))
    console.print(_pairs_table(results.comparison))
    _print_severities(console, results)


def _accuracy_table(comparison: Comparison) -> Table:
    budgets = comparison.budgets[SHOWN_BUDGETS]
    table = Table(
        "router",
        *[Column(f"at {budget:g}", no_wrap=True) for budget in budgets],
        Column("regret", no_wrap=True),
        title="% right on test at mean compute, ± spread over seeds",
        box=SIMPLE,
    )
    for router in comparison.routers:
        at_budgets = [percent(*pair) for pair in router.accuracy_at[SHOWN_BUDGETS]]
        table.add_row(router.router, *at_budgets, number(router.regret))
    return table


def _pairs_table(comparison: Comparison) -> Table:
    # Pairs with the oracle have a difference, but no saving.
    savings = {}
    for pair in comparison.savings:
        savings[pair.router, pair.against] = share(pair.mean, pair.low, pair.high)

    table = Table(
        "router",
        "against",
        "points at equal compute",
        "compute for equal accuracy",
        title="paired, over the budgets, with 95 % intervals",
        box=SIMPLE,
    )
    for pair in comparison.differences:
        gain = interval(pair.mean, pair.low, pair.high)
        saving = savings.get((pair.router, pair.against), "")
        table.add_row(pair.router, pair.against, gain, saving)
    return table


def _print_severities(console: Console, results: Results) -> None:
    """What the router in the gallery spends by severity, where severities are known."""
    name = results.shown.router
    for figures in results.comparison.by_severity:
        if figures.router != name or not is_adaptive(name) or len(figures.severity) == 1:
            continue

        levels = []
        for severity, compute in zip(figures.severity, figures.compute, strict=True):
            levels.append(f"{severity}: {compute:.2f}")
        console.print(f"{name} spends by severity  {'  '.join(levels)}", highlight=False)
