"""Put measured figures into the README: one table a report, between its markers, and the picture of the first report.

Run after `rnr-gym compare`: `python benchmarks/readme.py reports/digits reports/digits-channels`.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Annotated, Any

import tyro

from rnr_gym.report import PICTURE, RESULTS, interval, number, percent

README, SHOWN = Path("README.md"), Path("docs/quickstart.png")
BUDGETS = (0.1, 0.2, 0.3, 0.45)


def table(content: dict[str, Any]) -> str:
    """A report as Markdown: accuracy at budgets, regret, paired differences against static and blind."""
    lines = [f"| router | {' | '.join(f'at {budget:g}' for budget in BUDGETS)} | regret | against static | against blind |"]
    lines.append("|---" * (len(BUDGETS) + 4) + "|")
    gains = {(pair["router"], pair["against"]): interval(pair["mean"], pair["low"], pair["high"]) for pair in content["differences"]}
    for router in content["routers"]:
        accuracy = [percent(*router["accuracy_at"][content["budgets"].index(budget)]) for budget in BUDGETS]
        against = [gains.get((router["router"], rival), "") for rival in ("static", "blind")]
        lines.append(f"| {' | '.join([router['router'], *accuracy, number(router['regret']), *against])} |")
    facts = content["provenance"]
    head = f"`{content['env']}`, {content['images']:,} test images, {content['seeds']} router seeds, one backbone"
    return f"{head} (weights and images `{facts['weights and images']}`):\n\n" + "\n".join(lines)


def main(reports: Annotated[tuple[Path, ...], tyro.conf.Positional]) -> None:
    """Rewrite what stands between `<!-- results -->` and `<!-- end -->`."""
    contents = [json.loads((report / RESULTS).read_text()) for report in reports]
    body = "\n\n".join(map(table, contents))
    text, count = re.subn(r"(?s)(<!-- results -->\n).*?(\n<!-- end -->)", lambda found: found[1] + body + found[2], README.read_text())
    if count != 1:
        raise SystemExit("README.md must have one pair of markers, <!-- results --> and <!-- end -->")
    README.write_text(text)
    shutil.copy(reports[0] / PICTURE, SHOWN)


if __name__ == "__main__":
    tyro.cli(main)
