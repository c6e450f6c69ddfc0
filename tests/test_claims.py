"""Claims: one process at a time, and nothing of a killed one remains."""

import subprocess
import sys

import pytest

from rnr_gym.claims import cached, claimed, lock_file, sweep


def test_claimed_leaves_nothing(tmp_path):
    with claimed(tmp_path / "out" / "file"):
        assert lock_file(tmp_path / "out" / "file").exists()
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


@pytest.fixture
def left(tmp_path):
    """Files that killed processes have left, and files that are none of ours, by what owns them."""
    files = {
        "file": tmp_path / ".file.12.part",
        "its checkpoint": tmp_path / ".file.part.12.part",
        "inside": tmp_path / "folder" / "inside" / ".config.json.12.part",
        "lock inside": tmp_path / "folder" / ".inside.lock",
        "of another name": tmp_path / ".file.gif.12.part",
        "checkpoint": tmp_path / "file.part",
        "user's": tmp_path / "folder" / ".notes.part",
    }
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return files


def names_left(left):
    return {name for name, file in left.items() if file.exists()}


def test_sweep_removes_what_was_left_at_a_file(tmp_path, left):
    sweep(tmp_path / "file", tmp_path / "file.part")
    assert left.keys() - names_left(left) == {"file", "its checkpoint"}


def test_sweep_removes_what_was_left_in_a_folder(tmp_path, left):
    sweep(tmp_path / "folder")
    assert left.keys() - names_left(left) == {"inside", "lock inside"}


def test_claim_alone_removes_nothing(tmp_path, left):
    """It may be somebody else's folder."""
    for name in ("file", "folder", "."):
        with claimed(tmp_path / name):
            pass
    assert names_left(left) == left.keys()


def test_cached_is_made_once(tmp_path):
    path = tmp_path / "cache" / "file"
    made = []

    def read():
        return path.read_text() if path.exists() else None

    def make():
        made.append(path)
        path.write_text("content")
        return "content"

    assert cached(path, read, make) == cached(path, read, make) == "content"
    assert made == [path]


HOLDER = """
import sys
import time
from pathlib import Path

from rnr_gym.claims import claimed

with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(600)
"""
"""Claims a path until it is killed."""


@pytest.fixture
def holder(tmp_path):
    """Another process, which claims `out`."""
    command = [sys.executable, "-c", HOLDER, tmp_path / "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def test_claimed_twice_names_the_process(tmp_path, holder):
    message = f"`out` must not be written by another process, .* which process {holder.pid} is"
    with pytest.raises(FileExistsError, match=message), claimed(tmp_path / "out"):
        pass


def test_claim_of_killed_process_does_not_hold(tmp_path, holder):
    holder.kill()
    holder.wait()
    with claimed(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []
