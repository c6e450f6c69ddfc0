"""Speed as ratios: everything is measured in one run, in turn, and compared with the plain network.

Run: `make bench`, or `python benchmarks/throughput.py --out FILE.json`.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.vec_env import DummyVecEnv

import rnr_gym  # noqa: F401
from rnr_gym import data
from rnr_gym.backbones import zoo
from rnr_gym.progress import progress_bar
from rnr_gym.registration import registered_kwargs
from rnr_gym.sb3 import make_vec_env

MAX_SCALAR_ENVS = 64
"""Most sub-environments of the contestants that step them one by one."""


@dataclass
class Args:
    """What to measure."""

    env: str = "RNR-Digits-v0"
    num_envs: int = 256
    repeats: int = 7
    """Alternating repeats of every contestant, after one warm-up."""
    seconds: float = 0.7
    """Least duration of a repeat."""
    out: Path | None = None
    """Where to write the figures as JSON."""


def stepped(make: Callable[[], Any], actions: Callable[[Any], Any]) -> Callable[[], int]:
    """A contestant that takes one step of a vector environment.

    Calling it returns how many environment steps that was.
    """
    env = make()
    if isinstance(env, gym.vector.VectorEnv):
        env.reset(seed=0)
    else:
        env.reset()

    def once() -> int:
        env.step(actions(env))
        return int(env.num_envs)

    return once


def contestants(args: Args) -> dict[str, Callable[[], int]]:
    """Name to a call that does some work and returns how many environment steps it was."""
    kwargs = registered_kwargs(args.env)
    backbone = zoo.named(kwargs["backbone"])
    route = data.load(kwargs["dataset"], "route")
    # A copy, because torch warns of arrays that are read-only, as shared images are.
    images = torch.from_numpy(route.images[: args.num_envs].copy())  # (N, C, H, W)
    plain = backbone.plain().eval()
    random = np.random.default_rng(0)
    few = min(MAX_SCALAR_ENVS, args.num_envs)

    def network() -> int:
        with torch.inference_mode():
            plain(backbone.prepare(images))
        return len(images) * backbone.num_layers  # a full path is as many steps

    def full_path(env: Any) -> Any:
        return np.full(env.num_envs, backbone.full_path)

    def mixed(env: Any) -> Any:
        return random.integers(1, backbone.num_paths, env.num_envs)

    def native(**more: Any) -> gym.vector.VectorEnv:
        # Same-step autoreset, as learners use it.
        mode = gym.vector.AutoresetMode.SAME_STEP
        return gym.make_vec(args.env, args.num_envs, autoreset_mode=mode, **more)

    def sync() -> gym.vector.VectorEnv:
        return gym.make_vec(args.env, few, vectorization_mode="sync")

    def adapter(**more: Any) -> Any:
        return make_vec_env(args.env, few, env_kwargs=more)

    def dummy(**more: Any) -> DummyVecEnv:
        return DummyVecEnv([lambda: gym.make(args.env, **more)] * few)

    return {
        "plain network": network,
        "native, full path": stepped(native, full_path),
        "native, mixed widths": stepped(native, mixed),
        "SyncVectorEnv, mixed": stepped(sync, mixed),
        "SB3 adapter, mixed": stepped(adapter, mixed),
        "SB3 DummyVecEnv, mixed": stepped(dummy, mixed),
        "native on the table": stepped(lambda: native(backend="table"), mixed),
        "SB3 adapter on the table": stepped(lambda: adapter(backend="table"), mixed),
        "SB3 DummyVecEnv on the table": stepped(lambda: dummy(backend="table"), mixed),
    }


def rate(work: Callable[[], int], seconds: float) -> float:
    """Environment steps per second, over at least `seconds`."""
    start = time.perf_counter()
    steps = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        steps += work()
    return steps / elapsed


def main(args: Args) -> None:
    """Measure all contestants in turn, print medians and spread, write JSON."""
    runners = contestants(args)
    rates: dict[str, list[float]] = {name: [] for name in runners}
    # In turn, so that a load that comes and goes meets all of them.
    for repeat in progress_bar(range(args.repeats + 1), desc="repeats"):
        for name, work in runners.items():
            measured = rate(work, args.seconds)
            if repeat > 0:
                rates[name].append(measured)

    table = Table("contestant", "steps / s, median", "min", "max", "of the plain network")
    for name, measured_rates in rates.items():
        ratios = np.array(measured_rates) / np.array(rates["plain network"])
        table.add_row(
            name,
            f"{np.median(measured_rates):,.0f}",
            f"{min(measured_rates):,.0f}",
            f"{max(measured_rates):,.0f}",
            f"{np.median(ratios):.2f}",
        )
    Console().print(table)

    machine = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(machine)
    if args.out is not None:
        content = {**machine, "env": args.env, "num_envs": args.num_envs, "rates": rates}
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
