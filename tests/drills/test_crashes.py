"""Killed at any event of the file system, the same command resumes and ends as if nothing had been.

`pretrain`, `train` and `compare`; the count of events is printed with `pytest -s`.
"""

import re
import shutil
import sys

import pytest

from rnr_gym import cli
from rnr_gym.experiments import gallery, plots, report
from rnr_gym.training import pretraining
from tests.drills import crash
from tests.fixtures.comparisons import compare_quickly
from tests.fixtures.digits import ENV

COMMANDS = {
    "pretrain": ["pretrain", ENV, "--epochs", "1", "--glance-epochs", "1", "--no-bf16"],
    "train": ["train", ENV, "--agent", "ppo", "--steps", "512"],
    "compare": ["compare", ENV, "--agents", "static", "random", "--seeds", "1", "--jobs", "1"],
}
OUT = {"pretrain": "backbone.safetensors", "train": "run", "compare": "report"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Few digits, no worker processes, pictures that are written as fast as they are read."""
    compare_quickly(monkeypatch)
    monkeypatch.setattr(plots, "front", lambda *_: None)
    monkeypatch.setattr(plots, "save_png", quick_picture)
    monkeypatch.setattr(gallery, "save", quick_picture)
    monkeypatch.setattr(report, "stored_page", lambda *_: "page")
    # After every epoch.
    run = pretraining.run
    monkeypatch.setattr(
        pretraining,
        "run",
        lambda training, checkpoint, title, _: run(training, checkpoint, title, 0.0),
    )


def quick_picture(*args):
    """As `plots` does, without drawing."""
    path = next(arg for arg in args if hasattr(arg, "suffix"))
    with report.storage.replacing(path) as partial:
        partial.write_bytes(b"picture")


def command_line(monkeypatch, name, folder):
    """The command as a function without arguments."""
    argv = ["rnr-gym", *COMMANDS[name], "--out", str(folder / OUT[name])]
    monkeypatch.setattr(sys, "argv", argv)
    return cli.main


def content(folder):
    """What a command leaves, without what differs from run to run: times, and logs of learning."""
    files = {}
    for name, data in crash.files_below(folder).items():
        if "tensorboard" in name:
            continue
        if name.endswith(("results.json", "report.html")):
            data = re.sub(rb'("seconds": )[0-9.e-]+|<td>[0-9.]+ s</td>', b"", data)
        files[name] = data
    return files


@pytest.mark.parametrize("name", COMMANDS)
def test_every_crash_point_is_survived(name, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    whole.mkdir()
    # Built once, in the cache that forks share.
    status, events = crash.run(command_line(monkeypatch, name, whole), whole)
    assert status == 0
    expected = content(whole)
    assert expected
    assert not any(name.endswith((".part", ".lock")) for name in expected)

    for point, event in enumerate(events):
        folder = tmp_path / str(point)
        folder.mkdir()
        command = command_line(monkeypatch, name, folder)
        status, _ = crash.run(command, folder, kill_at=point)
        assert status == crash.KILLED, event

        status, _ = crash.run(command, folder)
        # Where the kill came after the last file was in place, there is nothing left to do.
        finished = status == 2
        assert finished or status == 0, event
        assert content(folder).keys() == expected.keys(), event
        differing = [file for file, data in content(folder).items() if data != expected[file]]
        assert differing == [], event
        shutil.rmtree(folder)
    print(f"{name}: {len(events)} crash points survived")
