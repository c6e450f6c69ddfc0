"""Compute the leaderboard from the entries in `benchmarks/entries/`.

Every figure in `benchmarks/leaderboard.csv` follows from the paths in an entry; only what a router
spends on one decision is declared. Run: `python benchmarks/leaderboard.py` after an entry has been
added; `--check` fails if the file has other figures than the entries give.
"""

from __future__ import annotations

import csv
import io
from itertools import groupby
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from rnr_gym import storage
from rnr_gym.experiments import leaderboard
from rnr_gym.experiments.entries import Entry, read_entry
from rnr_gym.experiments.leaderboard import Standing
from rnr_gym.experiments.statistics import BUDGETS, Mean, mean_over_images

ENTRIES = Path(__file__).parent / "entries"
BOARD = Path(__file__).parent / "leaderboard.csv"
TOLERANCE = 0.001
"""By how much a figure may differ in a check: networks round differently on other machines."""
TEXTS = ("id", "weights", "weights_digest", "router", "author", "code", "source_digest", "entry")
"""Columns that must be the same in a check; all others are numbers."""

Row = dict[str, str]
"""One row of the file, by column."""


class Ranked(NamedTuple):
    """An entry with its figures.

    Attributes:
        file: the name of the entry's file.
        entry: what it holds.
        standing: what follows from it.
    """

    file: str
    entry: Entry
    standing: Standing

    @property
    def group(self) -> tuple[str, str]:
        """What is ranked together: id and weights."""
        return self.entry.env, self.entry.weights

    @property
    def order(self) -> tuple[str, str, float, str]:
        """By group, then by regret; where there is none, by the accuracy at the highest budget."""
        regret = self.standing.regret
        if regret is not None:
            return *self.group, regret.value, self.file
        accuracy, _ = self.standing.figures.accuracy_at[-1]
        return *self.group, -(accuracy or 0.0), self.file


def ranked(ids: tuple[str, ...], entries_dir: Path = ENTRIES) -> list[Ranked]:
    """All entries of some ids, or of all if none are named, computed and in order.

    Raises `ValueError` for an entry that does not hold.
    """
    found = []
    for path in sorted(entries_dir.glob("*.safetensors")):
        entry = read_entry(path)
        if ids and entry.env not in ids:
            continue
        try:
            standing = leaderboard.validate(entry)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error
        found.append(Ranked(path.stem, entry, standing))
    return sorted(found, key=lambda each: each.order)


def rows_of(entries: list[Ranked]) -> list[Row]:
    """The rows of entries that are in order."""
    rows = []
    for _, members in groupby(entries, key=lambda each: each.group):
        of_group = list(members)
        rows += [row(each, of_group[0]) for each in of_group]
    return rows


def row(each: Ranked, first: Ranked) -> Row:
    """The row of an entry, and how far it is from the first of its group."""
    entry = each.entry
    standing = each.standing
    accuracies = {}
    for budget, (accuracy, _) in zip(BUDGETS, standing.figures.accuracy_at, strict=True):
        accuracies[f"accuracy_at_{budget:g}"] = number(accuracy)
    return {
        "id": entry.env,
        "weights": entry.weights,
        "weights_digest": entry.weights_digest,
        "router": entry.router,
        "author": entry.author,
        "code": entry.code,
        **accuracies,
        **interval("regret", standing.regret),
        **interval("above_first", above(standing, first.standing)),
        "router_share": number(standing.router_share),
        "declared_decision_macs": str(entry.decision_macs),
        "source_digest": entry.source_digest,
        "entry": each.file,
    }


def above(standing: Standing, first: Standing) -> Mean | None:
    """The regret above that of the first, paired by images; None where there is no regret."""
    if standing is first or standing.regrets is None or first.regrets is None:
        return None
    return mean_over_images(standing.regrets - first.regrets, standing.original_id)


def number(value: float | None, decimals: int = 4) -> str:
    """A figure; nothing where there is none."""
    return "" if value is None else f"{value:.{decimals}f}"


def interval(name: str, mean: Mean | None) -> Row:
    """Three columns: a mean, and the ends of its interval."""
    # With five decimals, because good routers differ in the fourth.
    value, low, high = (number(figure, 5) for figure in mean or (None, None, None))
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def written(rows: list[Row]) -> str:
    """The content of the file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def stored(path: Path = BOARD) -> list[Row]:
    """The rows of the file; none if it is not there."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check(actual: list[Row], expected: list[Row]) -> None:
    """Raise `ValueError` unless stored rows have the figures that the entries give."""
    by_entry = {each["entry"]: each for each in actual}
    names = {each["entry"] for each in expected}
    if by_entry.keys() != names or len(actual) != len(expected):
        raise ValueError(
            f"`leaderboard.csv` must have one row for each of {', '.join(sorted(names))}, got "
            f"{', '.join(each['entry'] for each in actual)}"
        )
    for each in expected:
        check_row(by_entry[each["entry"]], each)

    regrets = [(each["id"], each["weights"], float(each["regret"] or 0)) for each in actual]
    if regrets != sorted(regrets):
        raise ValueError("`leaderboard.csv` must be sorted by id, weights and regret, got others")


def check_row(actual: Row, expected: Row) -> None:
    """Raise `ValueError` unless a stored row has the figures that its entry gives."""
    if list(actual) != list(expected):
        raise ValueError(
            f"`leaderboard.csv` must have the columns {', '.join(expected)}, got "
            f"{', '.join(map(str, actual))}"
        )
    for column, value in expected.items():
        same = actual[column] == value
        # An empty figure is no number.
        if not same and column not in TEXTS and actual[column] and value:
            same = abs(float(actual[column]) - float(value)) <= TOLERANCE
        if not same:
            raise ValueError(
                f"`{column}` of {expected['entry']} must be {value!r}, as its entry gives, got "
                f"{actual[column]!r}"
            )


def main(
    check_only: Annotated[bool, tyro.conf.arg(name="check")] = False, ids: tuple[str, ...] = ()
) -> None:
    """Write the leaderboard, or check it.

    Args:
        check_only: write nothing; fail if the file has other figures.
        ids: compute these environments only, and leave the rows of others as they are.
    """
    there = stored()
    try:
        rows = rows_of(ranked(ids))
        if check_only:
            check([each for each in there if not ids or each["id"] in ids], rows)
            print(f"{len(rows)} rows hold")
            return
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None

    # Python's sort keeps the order inside a group.
    rows += [each for each in there if ids and each["id"] not in ids]
    rows.sort(key=lambda each: (each["id"], each["weights"]))
    with storage.replacing(BOARD) as partial:
        partial.write_text(written(rows), encoding="utf-8")
    print(f"wrote {len(rows)} rows")


if __name__ == "__main__":
    tyro.cli(main)
