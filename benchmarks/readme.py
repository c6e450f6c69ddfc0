"""Put measured figures into the README: one table and one picture per report.

A table replaces what stands between `<!-- results ENV -->` and `<!-- end -->`. The rows it comes
from go to `benchmarks/results/ENV.json`, the picture to `docs/ENV.png`.
Run after `rnr-gym compare`: `python benchmarks/readme.py reports/cifar10 reports/digits`.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Annotated

import tyro

from rnr_gym.experiments.formatting import interval, number, percent
from rnr_gym.experiments.report import PICTURE_FILE, RESULTS_FILE
from rnr_gym.experiments.results import Results

README = Path("README.md")
PICTURES = Path("docs")
ROWS = Path("benchmarks/results")
BUDGETS = (0.1, 0.2, 0.3, 0.45, 0.6)
RIVALS = ("static", "blind", "thresholds", "fqi")


def table(results: Results) -> str:
    """A report as Markdown: accuracy at budgets, regret, paired differences against `RIVALS`."""
    comparison = results.comparison
    columns = ["router", *(f"at {budget:g}" for budget in BUDGETS)]
    # The last router is the oracle where there is a route table, which regret needs.
    has_regret = comparison.routers[-1].regret is not None
    if has_regret:
        columns.append("regret")
    columns += [f"against {rival}" for rival in RIVALS]

    gains = {}
    for pair in comparison.differences:
        gains[pair.router, pair.against] = interval(pair.mean, pair.low, pair.high)

    lines = [row(columns), "|---" * len(columns) + "|"]
    for router in comparison.routers:
        cells = [router.router]
        for budget in BUDGETS:
            cells.append(percent(*router.accuracy_at[comparison.budgets.index(budget)]))
        if has_regret:
            cells.append(number(router.regret))
        cells += [gains.get((router.router, rival), "") for rival in RIVALS]
        lines.append(row(cells))
    return f"{heading(results)}\n\n" + "\n".join(lines)


def row(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def heading(results: Results) -> str:
    """What a table was measured on."""
    return (
        f"`{results.env}`, {results.images:,} test images, {results.seeds} router seeds, "
        f"one backbone; its full path has {results.comparison.full_accuracy:.1%} "
        f"(weights and images `{results.provenance['weights and images']}`):"
    )


def insert(text: str, results: Results) -> str:
    """The README's text with the table of one report replaced."""
    begin = f"<!-- results {results.env} -->\n"
    pattern = rf"(?ms){re.escape(begin)}.*?^<!-- end -->"
    # A function, because a plain replacement would read backslashes in the table as escapes.
    replaced, count = re.subn(pattern, lambda _: f"{begin}{table(results)}\n<!-- end -->", text)
    if count != 1:
        raise SystemExit(
            f"README.md must have one pair of markers, {begin.strip()} and <!-- end -->"
        )
    return replaced


def main(reports: Annotated[tuple[Path, ...], tyro.conf.Positional]) -> None:
    """Rewrite the README's tables, and copy rows and pictures."""
    text = README.read_text()
    ROWS.mkdir(exist_ok=True)
    for report in reports:
        content = json.loads((report / RESULTS_FILE).read_text())
        results = Results.from_json(content)
        text = insert(text, results)
        # Compact, because a report has hundreds of rows.
        rows = ROWS / f"{results.env}.json"
        rows.write_text(json.dumps(content, separators=(",", ":")) + "\n")
        shutil.copy(report / PICTURE_FILE, PICTURES / f"{results.env}.png")
    README.write_text(text)


if __name__ == "__main__":
    tyro.cli(main)
