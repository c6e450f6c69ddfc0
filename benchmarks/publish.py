"""Put measured figures into README.md and docs/results.md: one table and one picture per report.

A report is known by the name of its folder. Its rows go to `benchmarks/results/NAME.json`, from
which everything else follows: the table that stands between `<!-- results NAME -->` and
`<!-- end -->`, wherever those markers are, and the picture `docs/NAME.png` if a document shows it.
What other networks reach goes between `<!-- networks -->` and `<!-- end -->`.
Run after `rnr-gym compare`: `python benchmarks/publish.py reports/cifar10 reports/digits`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from rnr_gym.backbones import zoo
from rnr_gym.backbones.weights import BUNDLED
from rnr_gym.experiments import plots
from rnr_gym.experiments.formatting import interval, number, percent
from rnr_gym.experiments.report import RESULTS_FILE
from rnr_gym.experiments.results import Results
from rnr_gym.experiments.statistics import AccuracyCurve
from rnr_gym.registration import registered_kwargs

DOCUMENTS = (Path("README.md"), Path("docs/results.md"))
PICTURES = Path("docs")
ROWS = Path("benchmarks/results")
BUDGETS = (0.1, 0.2, 0.3, 0.45, 0.6)
RIVALS = ("static", "blind", "thresholds", "eenet")

PALETTE = 64
"""Colours of a picture."""
NETWORKS_OF = "cifar10"
"""The report whose routers are compared with networks that were trained or pruned to one cost."""
NETWORKS = {
    "narrow, trained alone": Path("benchmarks/cifar10/standalone.json"),
    "pruned": Path("benchmarks/cifar10/pruned.json"),
}
CHALLENGERS = ("thresholds", "eenet", "ppo")


def table(results: Results) -> str:
    """A report as Markdown: accuracy at budgets, regret, paired differences against `RIVALS`."""
    comparison = results.comparison
    compared = {pair.against for pair in comparison.differences}
    rivals = [rival for rival in RIVALS if rival in compared]
    columns = ["router", *(f"at {budget:g}" for budget in BUDGETS)]
    # The last router is the oracle where there is a route table, which regret needs.
    has_regret = comparison.routers[-1].regret is not None
    if has_regret:
        columns.append("regret")
    columns += [f"against {rival}" for rival in rivals]

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
        cells += [gains.get((router.router, rival), "") for rival in rivals]
        lines.append(row(cells))
    return f"{heading(results)}\n\n" + "\n".join(lines)


def networks(results: Results) -> str:
    """What narrow and pruned networks reach, and the compute by which routers reach the same."""
    plain_macs = plain_macs_of(results)
    columns = ["network", "compute", "accuracy", *(f"{name} needs" for name in CHALLENGERS)]
    lines = [row(columns), "|---" * len(columns) + "|"]
    for title, path in NETWORKS.items():
        if not path.exists():
            continue
        for network in json.loads(path.read_text()):
            compute = network["macs"] / plain_macs
            accuracy = network["test_accuracy"]
            cells = [title, f"{compute:.2f}", f"{accuracy:.1%}"]
            for name in CHALLENGERS:
                needed = mean_curve(results, name).needed(accuracy)
                cells.append(f"{needed:.2f}, {needed / compute:.2f} of it")
            lines.append(row(cells))
    return "\n".join(lines)


def plain_macs_of(results: Results) -> int:
    """The MACs of the plain network that a report's compute is a share of."""
    backbone = zoo.named(registered_kwargs(results.env)["backbone"], weights=None)
    return int(backbone.mac_table.plain)


def mean_curve(results: Results, router: str) -> AccuracyCurve:
    """A router's accuracy and compute at each trade-off, each the mean over its seeds."""
    by_tradeoff: dict[float, list[tuple[float, float]]] = {}
    for figures in results.comparison.rows:
        if figures.router == router:
            pair = (figures.compute, figures.accuracy)
            by_tradeoff.setdefault(figures.tradeoff, []).append(pair)
    means = sorted(np.mean(pairs, 0).tolist() for pairs in by_tradeoff.values())
    compute, accuracy = np.array(means).T
    return AccuracyCurve(accuracy=accuracy, compute=compute)


def row(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def heading(results: Results) -> str:
    """What a table was measured on."""
    weights = results.arguments.get("weights", "pretrained")
    shown = f"{weights} weights" if weights in BUNDLED else f"weights of `{weights}`"
    exits = "" if results.arguments.get("exits", True) else "without exits and glance, "
    return (
        f"`{results.env}`, {shown}, {exits}{results.images:,} test images, "
        f"{results.seeds} router seeds, one backbone; its full path has "
        f"{results.comparison.full_accuracy:.1%} "
        f"(weights and images `{results.provenance['weights and images']}`):"
    )


def draw(results: Results, picture: Path) -> None:
    """The picture of a report, as PNG."""
    plots.save_png(plots.front(results.comparison, plots.WIDE), picture)
    # With a palette a picture has a third of the size; it has few colours, and git keeps each one.
    with Image.open(picture) as drawn:
        reduced = drawn.convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
    reduced.save(picture, optimize=True)


def insert(text: str, name: str, content: str) -> str:
    """A document with what stands between one pair of markers replaced."""
    begin = f"<!-- {name} -->\n"
    pattern = rf"(?ms)^{re.escape(begin)}.*?^<!-- end -->"
    # A function, because a plain replacement would read backslashes in the table as escapes.
    return re.sub(pattern, lambda _: f"{begin}{content}\n<!-- end -->", text)


def main(reports: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()) -> None:
    """Copy the rows of these reports; then make all tables and pictures from all rows.

    Args:
        reports: folders that `rnr-gym compare` wrote; none to only make tables and pictures again.
    """
    ROWS.mkdir(exist_ok=True)
    for report in reports:
        stored = json.loads((report / RESULTS_FILE).read_text())
        # Compact, because a report has hundreds of rows.
        content = json.dumps(stored, separators=(",", ":")) + "\n"
        (ROWS / f"{report.name}.json").write_text(content)

    contents = {}
    texts = {document: document.read_text() for document in DOCUMENTS}
    for rows in sorted(ROWS.glob("*.json")):
        results = Results.from_json(json.loads(rows.read_text()))
        contents[f"results {rows.stem}"] = table(results)
        if rows.stem == NETWORKS_OF:
            contents["networks"] = networks(results)
        picture = PICTURES / f"{rows.stem}.png"
        if any(f"{picture.name})" in text for text in texts.values()):
            draw(results, picture)

    for name, content in contents.items():
        if not any(f"<!-- {name} -->\n" in text for text in texts.values()):
            raise SystemExit(f"no document has the marker <!-- {name} -->")
        texts = {document: insert(text, name, content) for document, text in texts.items()}
    for document, text in texts.items():
        document.write_text(text)


if __name__ == "__main__":
    tyro.cli(main)
