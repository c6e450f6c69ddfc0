"""Speed as ratios: everything is measured side by side in one run, in turn, and compared with the plain network.

Run: `make testbed`, or `python benchmarks/throughput.py --out FILE.json`.
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
from tqdm import tqdm

import rnr_gym  # noqa: F401
from rnr_gym import data
from rnr_gym.backbones import zoo
from rnr_gym.registration import registered_kwargs
from rnr_gym.sb3 import vec_env


@dataclass
class Args:
    """What to measure."""

    env: str = "RNR-Digits-v0"
    num_envs: int = 256
    repeats: int = 7
    """Alternating repeats of every contestant, after one warm-up."""
    seconds: float = 0.7
    """At least this long a repeat."""
    out: Path | None = None
    """Where to write the figures as JSON."""


def stepped(make: Callable[[], Any], actions: Callable[[Any], Any]) -> Callable[[], int]:
    """A contestant that takes one step of a vector environment; returns how many environment steps that was."""
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
    """Name to a call that does some work and returns its amount: images for the plain network, steps for the others."""
    arguments = registered_kwargs(args.env)
    backbone = zoo.named(arguments["backbone"])
    layers, full = backbone.num_layers, backbone.full_path
    images = torch.from_numpy(data.load(arguments["dataset"], "route").images[: args.num_envs].copy())
    plain = backbone.plain().eval()
    random = np.random.default_rng(0)

    def network() -> int:
        with torch.inference_mode():
            plain(backbone.prepare(images))
        return len(images) * layers  # a full path is as many steps

    def full_path(env: Any) -> Any:
        return np.full(env.num_envs, full)

    def mixed(env: Any) -> Any:
        return random.integers(1, backbone.num_paths, env.num_envs)

    mode = gym.vector.AutoresetMode.SAME_STEP
    few = min(64, args.num_envs)
    return {
        "plain network": network,
        "native, full path": stepped(lambda: gym.make_vec(args.env, args.num_envs, autoreset_mode=mode), full_path),
        "native, mixed widths": stepped(lambda: gym.make_vec(args.env, args.num_envs, autoreset_mode=mode), mixed),
        "SyncVectorEnv, mixed": stepped(lambda: gym.make_vec(args.env, few, vectorization_mode="sync"), mixed),
        "SB3 adapter, mixed": stepped(lambda: vec_env(args.env, few), mixed),
        "SB3 DummyVecEnv, mixed": stepped(lambda: DummyVecEnv([lambda: gym.make(args.env)] * few), mixed),
        "native on the table": stepped(lambda: gym.make_vec(args.env, args.num_envs, autoreset_mode=mode, backend="table"), mixed),
        "SB3 adapter on the table": stepped(lambda: vec_env(args.env, few, backend="table"), mixed),
        "SB3 DummyVecEnv on the table": stepped(lambda: DummyVecEnv([lambda: gym.make(args.env, backend="table")] * few), mixed),
    }


def rate(work: Callable[[], int], seconds: float) -> float:
    """Steps a second over at least so long."""
    begun, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - begun) < seconds:
        done += work()
    return done / spent


def main(args: Args) -> None:
    """Measure all contestants in turn, print medians and spread, write JSON."""
    runners = contestants(args)
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for repeat in tqdm(range(args.repeats + 1), desc="repeats"):
        for name, work in runners.items():
            measured = rate(work, args.seconds)
            if repeat:
                rates[name].append(measured)
    table = Table("contestant", "steps / s, median", "min", "max", "of the plain network")
    for name, found in rates.items():
        ratios = np.array(found) / np.array(rates["plain network"])
        table.add_row(name, *(f"{value:,.0f}" for value in (np.median(found), min(found), max(found))), f"{np.median(ratios):.2f}")
    Console().print(table)
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}
    print(machine)
    if args.out:
        args.out.write_text(json.dumps({**machine, "env": args.env, "num_envs": args.num_envs, "rates": rates}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
