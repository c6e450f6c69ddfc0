"""A fitted router in a folder: written once, resumed if it was interrupted, loaded again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rnr_gym import agents, checks, claims, storage
from rnr_gym.agents import FitConfig
from rnr_gym.agents.base import CHECKPOINT
from rnr_gym.agents.static import StaticRouter
from rnr_gym.claims import is_temporary
from rnr_gym.classifier import CONFIG_FILE, ROUTER_FILE, Run
from rnr_gym.classifier import load_run as load
from rnr_gym.experiments.evaluation import measure_curve
from rnr_gym.routing.protocols import FittedRouter, RoutingSource
from rnr_gym.routing.sources import digest_of

__all__ = [
    "Run",
    "fit",
    "identity",
    "is_finished",
    "load",
    "remove_spent_checkpoint",
    "start_or_resume",
]


def identity(agent: str, fit_config: FitConfig) -> dict[str, Any]:
    """What distinguishes one run from another, as JSON holds it.

    Raises `ValueError` for arguments that JSON cannot hold, such as a `RouteTable`.
    """
    try:
        json.dumps(fit_config.kwargs)
    except TypeError as error:
        raise ValueError(
            f"`kwargs` must be what JSON can hold, to be written to a run, got {error}"
        ) from error
    return {
        "agent": agent,
        "env": fit_config.env,
        "arguments": dict(fit_config.kwargs),
        "seed": fit_config.seed,
        "steps": fit_config.steps,
        "tradeoffs": list(fit_config.tradeoffs),
        # The same names may stand for other weights or images later.
        "source": digest_of(fit_config.source("route")),
    }


def start_or_resume(run_dir: Path, config: dict[str, Any], finished_by: str) -> None:
    """Start work in a folder, or resume unfinished work with the same configuration.

    Args:
        run_dir: a new or empty folder, or that of unfinished work.
        config: JSON-able; written when the work starts, and compared when it resumes.
        finished_by: the name of the file that finished work has.

    Raises:
        FileExistsError: the work is finished, or `run_dir` has something else.
        ValueError: the work was started with another configuration.
    """
    if (run_dir / finished_by).exists():
        remove_spent_checkpoint(run_dir)
        raise FileExistsError(
            f"`out` must be a new folder or unfinished work, got {str(run_dir)!r}, which is "
            "finished; choose another"
        )

    config_file = run_dir / CONFIG_FILE
    if config_file.exists():
        started = storage.load_json(config_file)
        if started != config:
            names = sorted(started.keys() | config.keys())
            differences = [name for name in names if started.get(name) != config.get(name)]
            raise ValueError(
                f"`out` must be resumed with the settings that it was started with, got "
                f"{str(run_dir)!r}, where {', '.join(differences)} differ; choose another"
            )
        claims.sweep(run_dir)
        return

    # Work is only started where no file can be overwritten.
    if run_dir.exists() and (not run_dir.is_dir() or not all(map(is_temporary, run_dir.iterdir()))):
        raise FileExistsError(
            f"`out` must be a new folder, got {str(run_dir)!r}, which exists and holds something "
            "else; choose another"
        )
    # A kill may have left the first file half-written.
    claims.sweep(run_dir)
    storage.save_json(config_file, config)


def is_finished(run_dir: Path) -> bool:
    """Whether a folder has a finished run."""
    return (run_dir / CONFIG_FILE).exists() and (run_dir / ROUTER_FILE).exists()


def remove_spent_checkpoint(run_dir: Path) -> None:
    """Remove the checkpoint of a finished run, which a kill at the last moment leaves."""
    if is_finished(run_dir):
        (run_dir / CHECKPOINT).unlink(missing_ok=True)


def fit(agent: str, fit_config: FitConfig, run_dir: str | Path) -> Path:
    """Fit a router and write it to a folder, from its checkpoint if it was interrupted.

    Returns the router's file.

    Raises:
        ValueError: there is no such agent, it cannot be fitted here, or the folder has a run
            with other settings.
        FileExistsError: the folder has a finished run, or something else, or another process is
            writing it.
    """
    run_dir = Path(checks.path("run_dir", run_dir))
    agents.check(agent, fit_config)
    config = identity(agent, fit_config)
    with claims.claimed(run_dir):
        start_or_resume(run_dir, config, finished_by=ROUTER_FILE)
        router = agents.agent(agent).fit(replace(fit_config, run_dir=run_dir))
        _save(router, config, fit_config.source("route"), run_dir)
    return run_dir / ROUTER_FILE


def _save(
    router: FittedRouter,
    config: dict[str, Any],
    source: RoutingSource,
    run_dir: Path,
) -> None:
    # A static router jumps from path to path, so that most budgets have no trade-off.
    curve = None
    if not isinstance(router, StaticRouter):
        curve = measure_curve(source, router)._asdict()
    metadata = {**config, "problem": source.spec.digest, "curve": curve}
    agents.save(router, run_dir / ROUTER_FILE, metadata)
    # Not before the router's file is there, or an interruption here would cost the whole run.
    (run_dir / CHECKPOINT).unlink(missing_ok=True)
