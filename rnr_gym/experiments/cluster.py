"""Routers that are fitted by the machines of a Ray cluster."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import rnr_gym
from rnr_gym import checks, claims, storage
from rnr_gym.agents import FitConfig
from rnr_gym.classifier import CONFIG_FILE, ROUTER_FILE
from rnr_gym.experiments import runs
from rnr_gym.experiments.report import router_dir

Files = dict[str, bytes]
"""Contents of a folder by their path inside it."""
CONNECT_S = 5.0
"""Seconds that a machine has to answer."""


@contextmanager
def connected() -> Iterator[None]:
    """Connect to the Ray cluster that runs here, or that `RAY_ADDRESS` names.

    A connection that this process has already is used, and left open.

    Raises:
        ValueError: Ray is not installed.
        ConnectionError: there is no cluster.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError('`engine="ray"` needs Ray: pip install "rnr-gym[ray]"') from error

    if ray.is_initialized():
        yield
        return

    try:
        _check_address()
        ray.init(address="auto", log_to_driver=False, logging_level="warning")
    except (OSError, RuntimeError, ValueError) as error:
        raise ConnectionError(
            f'`engine="ray"` needs a Ray cluster, and none was found ({error}); start one with '
            "`ray start --head`, and further machines with `ray start --address=HOST:PORT`"
        ) from error
    try:
        yield
    finally:
        # Ends what is still running for this process, too.
        ray.shutdown()


def _check_address() -> None:
    """Raise `OSError` if nobody listens at `RAY_ADDRESS`; Ray itself would try for minutes."""
    address = os.environ.get("RAY_ADDRESS", "auto")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), CONNECT_S).close()
        except OSError as error:
            raise ConnectionError(f"RAY_ADDRESS is {address!r}: {error}") from error


def fit_all(
    tasks: Sequence[tuple[str, FitConfig]],
    report_dir: Path,
    jobs: int | None,
) -> Iterator[str]:
    """Fit routers on the cluster, write them to `report_dir`, and name each when it is there.

    Every machine needs this package, the images and the weights; no folder is shared. A router
    that was interrupted is fitted from the start.

    Args:
        tasks: agents with what they are fitted to, in the order in which they are begun.
        report_dir: the folder of the report.
        jobs: how many at a time; None for as many as the cluster has cores.

    Raises:
        ChildProcessError: a worker was killed, or its machine was lost.
        ValueError: a machine has other images or weights than this one.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    # A fit that was killed would be killed again: most want more memory than there is.
    fit = ray.remote(num_cpus=1, max_retries=0)(_fit)
    waiting = list(tasks)
    running: dict[Any, tuple[str, FitConfig]] = {}
    try:
        while waiting or running:
            while waiting and (jobs is None or len(running) < jobs):
                name, fit_config = waiting.pop(0)
                running[fit.remote(name, fit_config, rnr_gym.__version__)] = (name, fit_config)

            (finished, *_), _ = ray.wait(list(running))
            name, fit_config = running.pop(finished)
            _write(ray.get(finished), name, fit_config, report_dir)
            yield f"{name} seed {fit_config.seed}"
    except RayTaskError as error:
        # What went wrong there, as if it had happened here.
        raise error.cause from None
    except RayError as error:
        raise ChildProcessError(
            f"a worker of the cluster was killed while it fitted {name} seed {fit_config.seed} "
            f"({checks.shortened(error)}); run the same command to resume"
        ) from error
    finally:
        for future in running:
            ray.cancel(future, force=True)


def _fit(name: str, fit_config: FitConfig, version: str) -> Files:
    """What a worker does: fit a router, and return the files of its run."""
    if rnr_gym.__version__ != version:
        raise RuntimeError(
            f"all machines of the cluster must have rnr-gym {version}, one has "
            f"{rnr_gym.__version__}"
        )
    # As workers of one machine, because the number of threads changes the rounding.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        runs.fit(name, fit_config, run_dir)
        files = sorted(file for file in run_dir.rglob("*") if file.is_file())
        return {file.relative_to(run_dir).as_posix(): file.read_bytes() for file in files}


def _write(files: Files, name: str, fit_config: FitConfig, report_dir: Path) -> None:
    """Write a run, its router last, because with it a run counts as finished."""
    run_dir = router_dir(report_dir, name, fit_config.seed)
    ours = runs.identity(name, fit_config)
    theirs = json.loads(files[CONFIG_FILE])
    if theirs != ours:
        names = sorted(key for key in ours if theirs.get(key) != ours[key])
        raise ValueError(
            f"all machines of the cluster must have the same images and weights, one differs in "
            f"{', '.join(names)}"
        )
    with claims.claimed(run_dir):
        runs.start_or_resume(run_dir, ours, ROUTER_FILE)
        # What another fit has left, logs among others.
        shutil.rmtree(run_dir)
        for path in sorted(files, key=lambda path: path == ROUTER_FILE):
            with storage.replacing(run_dir / path) as partial:
                partial.write_bytes(files[path])
