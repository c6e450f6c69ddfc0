"""The figures of a leaderboard entry in a terminal."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from rnr_gym.experiments.entries import Entry
from rnr_gym.experiments.formatting import MISSING, percent
from rnr_gym.experiments.leaderboard import Standing
from rnr_gym.experiments.statistics import BUDGETS


def print_standing(console: Console, entry: Entry, standing: Standing) -> None:
    """Print the figures at each trade-off, then accuracy at equal compute and regret."""
    console.print(_rows_table(entry, standing))
    console.print(_budgets_table(standing))
    if standing.regret is not None:
        value, low, high = standing.regret
        console.print(f"Mean regret: {value:.4f}, 95 % interval [{low:.4f}, {high:.4f}].")
    if entry.static:
        console.print("Charged as a static network: all images share a path at each trade-off.")
    else:
        console.print(
            f"Declared: {entry.decision_macs:,} MACs for each decision of the router. All other "
            "figures follow from the paths."
        )


def _rows_table(entry: Entry, standing: Standing) -> Table:
    table = Table(
        "trade-off",
        "accuracy",
        "compute",
        "router share",
        "exits",
        "regret",
        title=f"{entry.router} by {entry.author}\n{entry.env}, {entry.weights} weights, test",
        box=SIMPLE,
    )
    for row in standing.rows:
        regret = MISSING if row.regret is None else f"{row.regret:.4f}"
        table.add_row(
            f"{row.tradeoff:.3f}",
            f"{row.accuracy:.1%}",
            f"{row.compute:.3f}",
            f"{row.router_macs / standing.plain_macs:.3f}",
            f"{row.exits:.0%}",
            regret,
        )
    return table


def _budgets_table(standing: Standing) -> Table:
    table = Table(
        *[Column(f"at {budget:g}", no_wrap=True) for budget in BUDGETS],
        title="% right at mean compute",
        box=SIMPLE,
    )
    table.add_row(*[percent(*pair) for pair in standing.figures.accuracy_at])
    return table
