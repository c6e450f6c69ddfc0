"""Progress of long work: a bar in terminals and notebooks, a line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

BAR_S = 0.5
"""Seconds between two states of a bar."""
LOG_S = 30.0
"""Seconds between two lines in a log. What takes less time leaves no line."""


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """`tqdm` over an iterable, or with `total`, written to the standard error stream.

    Where that is a file or a pipe, no state is written over the one before: each is a line.
    """
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return tqdm(iterable, mininterval=BAR_S, **options)

    return tqdm(
        iterable,
        file=_Lines(sys.stderr),
        mininterval=LOG_S,
        miniters=1,  # else a thread of tqdm's own adds lines in between
        delay=LOG_S,
        **options,
    )


class _Lines:
    """A stream that takes what is drawn over the same line again and again, and writes lines."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        # The states of a bar begin at the line's start; the end of a bar is a line without text.
        state = text.strip()
        if state:
            self.stream.write(f"{state}\n")

    def flush(self) -> None:
        self.stream.flush()
