"""The main figures of a comparison in a terminal; the report has all of them."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from rnr_gym.experiments.formatting import interval, number, percent, share
from rnr_gym.experiments.results import Comparison, Results, is_adaptive
from rnr_gym.routing.profiles import Profile

SHOWN_BUDGETS = slice(1, 5)
"""The budgets that fit into a terminal of 80 columns."""


def print_results(console: Console, results: Results) -> None:
    """Print accuracy at equal compute, paired differences, and compute by severity if known."""
    console.print(_accuracy_table(results.comparison))
    console.print(_pairs_table(results.comparison))
    _print_severities(console, results)


def print_profile(console: Console, name: str, profile: Profile) -> None:
    """Print the times of a backbone, for a batch of images."""
    times = profile.times

    def shown(nanoseconds: int) -> str:
        return f"{nanoseconds * profile.batch_size / 1e6:.3f}"

    num_layers, num_paths = times.exits.shape
    # Number 0 is no sub-path but the exit if nothing arrives from it at the head.
    sub_paths = range(int(profile.macs.head[0] == 0), num_paths)
    table = Table(
        Column("layer", justify="right"),
        Column("after", no_wrap=True),
        Column("exit", justify="right"),
        *[Column(str(sub_path), justify="right") for sub_path in sub_paths],
        title=f"{name}: milliseconds for {profile.batch_size} images, by sub-path",
        caption="after: the sub-path before; the exit of layer 0 is the glance",
        box=SIMPLE,
    )
    for layer in range(num_layers):
        after = list(sub_paths)
        # One row where the sub-path before makes no difference.
        if (times.layers[layer, after] == times.layers[layer, -1]).all():
            after = after[-1:]
        for prev_sub_path in after:
            cells = [str(layer), "any" if len(after) == 1 else str(prev_sub_path)]
            has_exit = profile.macs.exits[layer, prev_sub_path] > 0
            cells.append(shown(times.exits[layer, prev_sub_path]) if has_exit else "–")
            cells += [shown(times.layers[layer, prev_sub_path, number]) for number in sub_paths]
            table.add_row(*cells)
    console.print(table)
    console.print(
        f"stem {shown(times.stem)} ms, head {shown(times.head[-1])} ms, plain network "
        f"{shown(times.plain)} ms as the sum of its parts, {shown(profile.plain)} ms run as one",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"profile {profile}", highlight=False, soft_wrap=True)


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
