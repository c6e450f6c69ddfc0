"""Processes that fit routers side by side, and what happens when one is killed."""

import os
import subprocess
import sys
import time

import pytest

PARENT = """
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

from rnr_gym.experiments.workers import _start_worker

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, context, _start_worker, (context.Event(),))
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""
"""Starts a worker as a comparison does, prints its number, and waits to be killed."""


def test_workers_end_with_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()

    for _ in range(100):
        try:
            # Signal 0 only asks whether the process is there.
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker is still running")


UNGUARDED = """
from pathlib import Path

from rnr_gym.agents import FitConfig
from rnr_gym.experiments.comparison import compare

compare(FitConfig("RNR-Digits-v0", progress=False), ["full"], 1, 1, Path("report"))
"""
"""A script that every worker would run again."""


def test_compare_in_unguarded_script_says_what_is_missing(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ChildProcessError: workers could not start")
    assert '`if __name__ == "__main__":`' in last


KILLED_WORKER = """
import os
import signal
from pathlib import Path

from rnr_gym import agents
from rnr_gym.agents import FitConfig
from rnr_gym.experiments.comparison import fit_routers


def killed(fit_config):
    if not Path("second time").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return agents.AGENTS["full"].fit(fit_config)


agents.AGENTS["random"] = agents.AGENTS["random"]._replace(
    fit=killed, from_state_dict=agents.AGENTS["full"].from_state_dict
)

if __name__ == "__main__":
    fit_routers(["random", "full"], FitConfig("RNR-Digits-v0", progress=False), 1, Path("."), 1)
"""
"""Fits a router whose worker is killed the first time."""


def test_killed_worker_is_named_and_fitted_again(tmp_path):
    (tmp_path / "script.py").write_text(KILLED_WORKER)
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    message = "a worker was killed while it fitted random seed 0, perhaps for want of memory"
    assert message in done.stderr.splitlines()[-1]

    (tmp_path / "second time").touch()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    names = sorted(file.name for file in (tmp_path / "routers").iterdir())
    assert names == ["full-0", "random-0"]
