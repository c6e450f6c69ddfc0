"""How learners learned, from the TensorBoard logs that they leave in a comparison."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing import event_file_loader  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]

from rnr_gym.experiments.results import LearningCurve

REWARD = "rollout/ep_rew_mean"
"""The tag of the mean return of the latest episodes, as Stable-Baselines3 names it."""
POINTS = 30
"""The most points of a curve; some learners log after every few steps."""


def learning_curve(router: str, seed: int, run_dir: Path) -> LearningCurve | None:
    """The curve of a fitted router; None where its folder has no logs of rewards.

    Args:
        router: its name.
        seed: its seed.
        run_dir: its folder.
    """
    # A resumed run has several files, and repeats the steps after its last checkpoint.
    by_step: dict[int, float] = {}
    files = (run_dir / "tensorboard").glob("events.out.tfevents.*")
    for file in sorted(files, key=_by_numbers):
        by_step.update(_rewards(file))
    if not by_step:
        return None
    steps, rewards = _thinned(sorted(by_step.items()))
    return LearningCurve(router=router, seed=seed, steps=steps, reward=rewards)


def _by_numbers(file: Path) -> list[str | int]:
    """The name of a log for sorting, with numbers as such: its time, process and count."""
    parts = re.split(r"(\d+)", file.name)
    return [int(part) if part.isdigit() else part for part in parts]


def _rewards(file: Path) -> Iterator[tuple[int, float]]:
    """Step and mean return, in the order in which they were logged."""
    for record in event_file_loader.RawEventFileLoader(str(file)).Load():
        # Most records have other tags, and to parse them all takes seconds.
        if REWARD.encode() not in record:
            continue
        event = Event.FromString(record)
        for value in event.summary.value:
            if value.tag == REWARD:
                yield event.step, _number(value)


def _number(value: Any) -> float:
    """The number of a summary's value, in either form that TensorBoard writes."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    return float(value.tensor.float_val[0])


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Means over equal intervals of steps, each at the last step that it has."""
    steps, rewards = np.array(points, np.float64).T
    # Interval 0 ends with the first of `POINTS` equal parts of all steps.
    part = np.ceil(steps / steps[-1] * POINTS).astype(np.int64)
    kept_steps = []
    kept_rewards = []
    for i in np.unique(part):
        kept_steps.append(int(steps[part == i].max()))
        kept_rewards.append(float(rewards[part == i].mean()))
    return kept_steps, kept_rewards
