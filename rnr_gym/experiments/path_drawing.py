"""A path through a network as a small SVG: layers are columns, sub-paths are rows."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

COLUMN = 26
ROW = 15
BOX = 9
"""Width and height of the space of one sub-path, and the size of an executed one, in units."""


def svg(path: Sequence[int], offered: Sequence[Sequence[int]], exits: bool, title: str) -> str:
    """An SVG element: executed sub-paths are blue and joined by a line, the others are grey.

    The most expensive sub-path is in the top row. An exit is a circle, in the last row.

    Args:
        path: sub-path by layer, -1 after an exit.
        offered: by layer, the sub-paths that may be taken.
        exits: whether sub-path 0 is an exit.
        title: what the drawing shows, for those who do not see it.
    """
    rows = 1 + max(max(sub_paths) for sub_paths in offered)
    # The rows that no layer offers are left out, such as that of exits that are switched off.
    lowest = min(min(sub_paths) for sub_paths in offered)
    width = COLUMN * len(offered)
    height = ROW * (rows - lowest)

    def centre(layer: int, sub_path: int) -> tuple[float, float]:
        return COLUMN * (layer + 0.5), ROW * (rows - 1 - sub_path + 0.5)

    skipped = []
    executed = []
    way = []
    for layer, sub_paths in enumerate(offered):
        for sub_path in sub_paths:
            x, y = centre(layer, sub_path)
            is_exit = exits and sub_path == 0
            if path[layer] == sub_path:
                way.append(f"{x:g},{y:g}")
                executed.append(_mark(x, y, BOX, is_exit, "executed"))
            else:
                skipped.append(_mark(x, y, BOX - 3, is_exit, "skipped"))
    line = f'<polyline class="way" points="{" ".join(way)}"/>' if len(way) > 1 else ""
    return (
        f'<svg class="path" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><title>{escape(title)}</title>{"".join(skipped)}{line}{"".join(executed)}</svg>'
    )


def in_words(path: Sequence[int], exits: bool) -> str:
    """`2 3 1`, or `2 exit`: the executed sub-paths in order."""
    words = []
    for sub_path in path:
        if sub_path >= 0:
            words.append("exit" if exits and sub_path == 0 else str(sub_path))
    return " ".join(words)


def _mark(x: float, y: float, size: float, is_exit: bool, kind: str) -> str:
    """A square, or a circle for an exit."""
    if is_exit:
        return f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="{size / 2:g}"/>'
    left = x - size / 2
    top = y - size / 2
    return f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="{size:g}" height="{size:g}"/>'
