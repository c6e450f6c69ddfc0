"""The backbone of an environment, trained from the beginning and written to a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rnr_gym import checks, claims, data
from rnr_gym.backbones import weights, zoo
from rnr_gym.registration import registered_kwargs
from rnr_gym.training.calibration import evaluate_full_path
from rnr_gym.training.pretraining import Schedule, pretrain


def pretrain_backbone(
    env: str,
    path: Path,
    settings: Mapping[str, Any],
    device: str = "cpu",
    data_root: str | None = None,
) -> float:
    """Train an environment's backbone and write it to a new file.

    An interrupted training resumes when it is called with the same arguments again.

    Args:
        env: a registered id with a named backbone.
        path: the safetensors file to write; a checkpoint is kept next to it.
        settings: fields of `Schedule` that differ from those of the bundled weights.
        device: where to train.
        data_root: folder of the images.

    Returns:
        The accuracy of the full path on `route`, which is held out of training.

    Raises:
        FileExistsError: `path` exists, or another process is writing it.
        ValueError: the training was started with other settings.
    """
    architecture = zoo.own_architecture(registered_kwargs(env)["backbone"], "env")
    schedule = Schedule(**{**architecture.schedule, **settings})
    checks.seed(schedule.seed)
    checkpoint = weights.checkpoint_file(path)
    with claims.claimed(path):
        claims.sweep(path, checkpoint)
        if path.exists():
            # A kill between the last two lines below leaves it.
            checkpoint.unlink(missing_ok=True)
        claims.check_new(path)

        splits = {}
        for split in ("train", "route"):
            splits[split] = data.load(architecture.dataset, split, data_root)
        backbone = zoo.from_config(architecture.config, schedule.seed)
        dataset = data.dataset(architecture.dataset)
        backbone = pretrain(backbone, dataset, splits, schedule, checkpoint, device)

        accuracy = evaluate_full_path(backbone, splits["route"])
        metadata = {
            "env": env,
            "schedule": asdict(schedule),
            "full_path_accuracy_on_route": accuracy,
        }
        weights.save(backbone.cpu(), path, metadata)
        checkpoint.unlink(missing_ok=True)
    return accuracy
