"""Put measured figures into the README: one table and one picture per report.

A table replaces what stands between `<!-- results ENV -->` and `<!-- end -->`. The rows it comes from
go to `benchmarks/results/ENV.json`, the picture to `docs/ENV.png`.
Run after `rnr-gym compare`: `python benchmarks/readme.py reports/cifar10 reports/digits`.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Annotated, Any

import tyro

from rnr_gym.report import PICTURE, RESULTS, interval, number, percent

README = Path("README.md")
PICTURES = Path("docs")
ROWS = Path("benchmarks/results")
BUDGETS = (0.1, 0.2, 0.3, 0.45, 0.6)
RIVALS = ("static", "blind", "thresholds", "fqi")


def table(content: dict[str, Any]) -> str:
    """A report as Markdown: accuracy at budgets, regret, paired differences against `RIVALS`."""
    columns = ["router", *(f"at {budget:g}" for budget in BUDGETS)]
    if content["routers"][-1]["regret"] is not None:
        columns.append("regret")
    columns += [f"against {rival}" for rival in RIVALS]

    gains = {}
    for pair in content["differences"]:
        gains[pair["router"], pair["against"]] = interval(pair["mean"], pair["low"], pair["high"])

    lines = [row(columns), "|---" * len(columns) + "|"]
    for router in content["routers"]:
        cells = [router["router"]]
        for budget in BUDGETS:
            cells.append(percent(*router["accuracy_at"][content["budgets"].index(budget)]))
        if "regret" in columns:
            cells.append(number(router["regret"]))
        cells += [gains.get((router["router"], rival), "") for rival in RIVALS]
        lines.append(row(cells))
    return f"{heading(content)}\n\n" + "\n".join(lines)


def row(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def heading(content: dict[str, Any]) -> str:
    """What a table was measured on."""
    return (
        f"`{content['env']}`, {content['images']:,} test images, {content['seeds']} router seeds, "
        f"one backbone; its full path has {content['full_accuracy']:.1%} "
        f"(weights and images `{content['provenance']['weights and images']}`):"
    )


def insert(text: str, content: dict[str, Any]) -> str:
    """The README's text with the table of one report replaced."""
    begin = f"<!-- results {content['env']} -->\n"
    pattern = rf"(?ms){re.escape(begin)}.*?^<!-- end -->"
    replaced, count = re.subn(pattern, lambda _: f"{begin}{table(content)}\n<!-- end -->", text)
    if count != 1:
        raise SystemExit(f"README.md must have one pair of markers, {begin.strip()} and <!-- end -->")
    return replaced


def main(reports: Annotated[tuple[Path, ...], tyro.conf.Positional]) -> None:
    """Rewrite the README's tables, and copy rows and pictures."""
    text = README.read_text()
    ROWS.mkdir(exist_ok=True)
    for report in reports:
        content = json.loads((report / RESULTS).read_text())
        text = insert(text, content)
        rows = ROWS / f"{content['env']}.json"
        rows.write_text(json.dumps(content, separators=(",", ":")) + "\n")
        shutil.copy(report / PICTURE, PICTURES / f"{content['env']}.png")
    README.write_text(text)


if __name__ == "__main__":
    tyro.cli(main)
