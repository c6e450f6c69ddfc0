"""The paper's alternation: the backbone learns under a router, then a router is fitted to it."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rnr_gym import claims, data
from rnr_gym.agents import FitConfig
from rnr_gym.backbones import weights, zoo
from rnr_gym.backbones.gallery import gallery_of
from rnr_gym.classifier import BACKBONE_FILE, ROUTER_FILE, Run
from rnr_gym.experiments import runs
from rnr_gym.training.calibration import evaluate_full_path
from rnr_gym.training.finetuning import PATH_RATE, finetune
from rnr_gym.training.pretraining import Schedule

EPOCH_SHARE = 0.1
"""Epochs of a round, as a share of those of pretraining."""
GLANCE_SHARE = 3
"""Epochs in which the glance learns, as a multiple of those of its pretraining: that of
`rnr-cifar10` went from 83.4 to 86.1 % on `test` (see its model cards)."""
RUN_DIR = "run"
"""Where the router of a round is, in the folder of the round."""


def round_dir(out: Path, number: int) -> Path:
    """The folder of a round, from 1 on."""
    return out / f"round-{number}"


def alternate(
    run_dir: Path,
    out: Path,
    rounds: int,
    epochs: int | None = None,
    glance_epochs: int | None = None,
    device: str = "cpu",
) -> Path:
    """Fine-tune the backbone of a run, then fit the run's router again, as often as asked for.

    Each round leaves a folder with `backbone.safetensors` and `run`, the router fitted to it. An
    interrupted alternation resumes when it is called again.

    Args:
        run_dir: a run, as `rnr-gym train` writes it.
        out: the folder to write.
        rounds: how often.
        epochs: passes over the training images in each round; None for `EPOCH_SHARE` of those of
            pretraining.
        glance_epochs: passes before those of the first round, in which only the glance learns; None
            for `GLANCE_SHARE` times those of pretraining.
        device: where the backbone is trained.

    Returns:
        The folder of the last round.

    Raises as `runs.load` and `runs.start_or_resume` do.
    """
    loaded = runs.load(run_dir)
    schedule = schedule_for(loaded, epochs, glance_epochs)
    config = {
        "router": runs.identity(loaded.agent, loaded.fit_config),
        "rounds": rounds,
        "schedule": asdict(schedule),
    }
    last = round_dir(out, rounds)
    with claims.claimed(out):
        finished = last.relative_to(out) / RUN_DIR / ROUTER_FILE
        runs.start_or_resume(out, config, finished_by=str(finished))
        for number in range(1, rounds + 1):
            loaded = _round(loaded, round_dir(out, number), schedule, device)
            # The glance is finished after the first round: no router's decisions change what it
            # learns.
            schedule = replace(schedule, glance_epochs=0)
    return last


def _round(run: Run, folder: Path, schedule: Schedule, device: str) -> Run:
    """Train the backbone under a run, and fit its router to it; the new run."""
    # What an interrupted alternation has finished is not done again.
    if not (folder / BACKBONE_FILE).exists():
        train_backbone(run, folder / BACKBONE_FILE, schedule, device)
    fit_config = refitted(run.fit_config, folder / BACKBONE_FILE)
    if not runs.is_finished(folder / RUN_DIR):
        runs.fit(run.agent, fit_config, folder / RUN_DIR)
    return runs.load(folder / RUN_DIR)


def schedule_for(run: Run, epochs: int | None, glance_epochs: int | None) -> Schedule:
    """How the backbone of a run is fine-tuned: as it was pretrained, but its paths more gently."""
    kwargs = run.fit_config.source_kwargs("route")
    name = kwargs["backbone"]
    if name not in zoo.ARCHITECTURES:
        raise ValueError(
            f"`run` must route a named backbone to be fine-tuned, got one that routes {name!r}"
        )
    pretraining = Schedule(**zoo.own_architecture(name, "run").schedule)
    # Its gallery holds embeddings of the weights as they are.
    if gallery_of(zoo.named(name, kwargs.get("weights", "pretrained"))) is not None:
        raise ValueError("`run` must route a backbone that classifies, got one that retrieves")
    if epochs is None:
        epochs = math.ceil(EPOCH_SHARE * pretraining.epochs)
    if glance_epochs is None:
        glance_epochs = GLANCE_SHARE * pretraining.glance_epochs

    settings: dict[str, Any] = {
        **asdict(pretraining),
        "epochs": epochs,
        "glance_epochs": glance_epochs,
        "glance_from_full_path": True,
        "path_rate": PATH_RATE,
        "seed": run.fit_config.seed,
    }
    return Schedule(**settings)


def train_backbone(run: Run, path: Path, schedule: Schedule, device: str) -> None:
    """Fine-tune the backbone of a run under its router, and write it to a file."""
    checkpoint = weights.checkpoint_file(path)
    kwargs = run.fit_config.source_kwargs("route")
    name = kwargs["backbone"]
    dataset = zoo.ARCHITECTURES[name].dataset
    splits = {}
    for split in ("train", "route"):
        splits[split] = data.load(dataset, split, kwargs.get("data_root"))

    # A copy, since named backbones are shared.
    backbone = deepcopy(zoo.named(name, kwargs.get("weights", "pretrained")))
    before = evaluate_full_path(backbone, splits["route"])
    backbone = finetune(
        backbone,
        run.router,
        exits=kwargs.get("exits", True),
        tradeoffs=run.fit_config.tradeoffs,
        dataset=data.dataset(dataset),
        splits=splits,
        schedule=schedule,
        checkpoint=checkpoint,
        device=device,
        time_table=run.fit_config.source("route").spec.time_table,
    )
    metadata = {
        "env": run.fit_config.env,
        "finetuned_under": run.agent,
        "schedule": asdict(schedule),
        "full_path_accuracy_on_route": {
            "before": before,
            "after": evaluate_full_path(backbone, splits["route"]),
        },
    }
    weights.save(backbone.cpu(), path, metadata)
    checkpoint.unlink(missing_ok=True)


def refitted(fit_config: FitConfig, backbone_file: Path) -> FitConfig:
    """A configuration by which the same router is fitted to other weights."""
    kwargs = {**fit_config.kwargs, "weights": str(backbone_file)}
    return replace(fit_config, kwargs=kwargs)
