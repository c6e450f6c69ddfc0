"""Routers that are fitted side by side by processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.synchronize import Event
from pathlib import Path

from rnr_gym import claims
from rnr_gym.agents import FitConfig
from rnr_gym.experiments import runs
from rnr_gym.experiments.report import router_dir


def connected() -> AbstractContextManager[None]:
    """Nothing to connect to."""
    return nullcontext()


def fit_all(
    tasks: Sequence[tuple[str, FitConfig]],
    report_dir: Path,
    jobs: int | None,
) -> Iterator[str]:
    """Fit routers into `report_dir`, and name each when it is there.

    Args:
        tasks: agents with what they are fitted to, in the order in which they are begun.
        report_dir: the folder of the report.
        jobs: how many at a time; None for as many as there are cores.

    Raises:
        ChildProcessError: a worker was killed, or could not start.
    """
    # Spawned, because forked workers would inherit torch's threads in an undefined state.
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    others = set(multiprocessing.active_children())
    if jobs is None:
        jobs = os.cpu_count() or 1
    with ProcessPoolExecutor(jobs, context, _start_worker, (started,)) as pool:
        futures = {}
        try:
            for name, fit_config in tasks:
                future = pool.submit(_fit, name, fit_config, report_dir)
                futures[future] = f"{name} seed {fit_config.seed}"
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool:
            raise ChildProcessError(_what_broke(tasks, report_dir, started.is_set())) from None
        except BaseException:
            # Leave at once, also on Ctrl-C: what is running resumes from its checkpoint. Not before
            # the workers have ended, which would write to folders that nobody claims.
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
                worker.join()
            raise


def _what_broke(
    tasks: Sequence[tuple[str, FitConfig]],
    report_dir: Path,
    started: bool,
) -> str:
    """The error message for workers that have ended without a result."""
    if not started:
        return (
            "workers could not start; a script that compares routers must do so below "
            '`if __name__ == "__main__":`, since every worker imports it'
        )
    # The claims of workers that were killed are still there.
    interrupted = []
    for name, fit_config in tasks:
        if claims.lock_file(router_dir(report_dir, name, fit_config.seed)).exists():
            interrupted.append(f"{name} seed {fit_config.seed}")
    when = f"while it fitted {' or '.join(interrupted)}" if interrupted else "before it began"
    return (
        f"a worker was killed {when}, perhaps for want of memory; run the same command to resume, "
        "with fewer `jobs` if it happens again"
    )


def _start_worker(started: Event) -> None:
    """Let a worker end when its parent does, even if that was killed.

    No file is left half-written: routers and checkpoints are written atomically.
    """
    started.set()

    # A parent that is killed cannot tell its workers, so they wait for its end.
    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _fit(name: str, fit_config: FitConfig, report_dir: Path) -> None:
    """What a worker does."""
    runs.fit(name, fit_config, router_dir(report_dir, name, fit_config.seed))
