"""One process at a time writes to a file or folder, and what a killed one left is removed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

LOCK = ".lock"
"""Suffix of files that are locked while a file or folder is claimed."""
TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.part")
"""Names that `storage.replacing` writes to: that of the file, and the process."""

Content = TypeVar("Content")


@contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[None]:
    """Keep `path`, a file or a folder that is to be written, to this process.

    Args:
        path: what is written; it need not exist.
        wait: whether to wait for another process to finish.

    Raises `FileExistsError`, which names the other process, if there is one and `wait` is false.
    """
    file = lock_file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    # A lock of the system, which ends with the process that holds it.
    lock = FileLock(file, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise FileExistsError(
            f"`out` must not be written by another process, got {str(path)!r}, which "
            f"{_holder(file)} is writing; wait for it, or choose another"
        ) from error

    try:
        file.write_text(str(os.getpid()))
        yield
    finally:
        # While it is held, so that it is nobody else's.
        file.unlink(missing_ok=True)
        lock.release()


def check_new(path: Path) -> None:
    """Raise `FileExistsError` if there is a file already, on which other results may rest."""
    if path.exists():
        raise FileExistsError(
            f"`out` must be a new file, got {str(path)!r}, which exists; remove it or choose "
            "another"
        )


def lock_file(path: Path) -> Path:
    """The file that is locked while a process claims `path`; that of a killed process stays."""
    # Next to `path`: a folder that is not ours is left as it is.
    path = path.resolve()
    return path.parent / f".{path.name}{LOCK}"


def _holder(file: Path) -> str:
    """The process that holds a lock, for an error message."""
    try:
        return f"process {int(file.read_text())}"
    # It has just begun or ended.
    except (OSError, ValueError):
        return "another process"


def is_temporary(path: Path) -> bool:
    """Whether a file is one that `storage.replacing` was writing."""
    return TEMPORARY.fullmatch(path.name) is not None


def sweep(path: Path, *others: Path) -> None:
    """Remove what killed processes have left at files, or anywhere in a folder.

    Call it where `path` is claimed, and known to be ours.

    Args:
        path: a file or a folder.
        others: further files.
    """
    for file in (path, *others):
        for candidate in file.parent.glob(".*.part"):
            match = TEMPORARY.fullmatch(candidate.name)
            if match is not None and match["name"] == file.name:
                candidate.unlink(missing_ok=True)

    for candidate in path.rglob(".*"):
        if is_temporary(candidate) or candidate.suffix == LOCK:
            candidate.unlink(missing_ok=True)


def cached(path: Path, read: Callable[[], Content | None], make: Callable[[], Content]) -> Content:
    """What a file in the cache holds; if there is none, what `make` makes and writes to it.

    Of several processes that need it at once, one makes it and the others wait.

    Args:
        path: the file.
        read: gives what the file holds; None if there is no such file, or one that is not right.
        make: writes the file, and gives what it holds then.
    """
    content = read()
    if content is not None:
        return content

    with claimed(path, wait=True):
        content = read()
        if content is None:
            sweep(path)
            content = make()
    return content
