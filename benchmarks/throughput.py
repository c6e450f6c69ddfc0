"""Speed as ratios: everything is measured in one run, in turn, and compared with the plain network.

Run: `make bench`, or `python benchmarks/throughput.py --out FILE.json`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

import rnr_gym  # noqa: F401
from rnr_gym import data
from rnr_gym.backbones import zoo
from rnr_gym.backbones.folding import folded
from rnr_gym.backbones.inference import DTYPES
from rnr_gym.progress import progress_bar
from rnr_gym.registration import registered_kwargs
from rnr_gym.sb3 import make_vec_env
from rnr_gym.storage import save_json

PLAIN = "plain network"
FOLDED = "plain network, batch-norms folded"
MAX_SCALAR_ENVS = 64
"""Most sub-environments of the contestants that step them one by one."""


@dataclass
class Args:
    """What to measure."""

    env: str = "RNR-Digits-v0"
    num_envs: int = 256
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In what features are computed, by the plain network as well."""
    repeats: int = 9
    """Alternating repeats of every contestant, after one warm-up."""
    seconds: float = 0.7
    """Least duration of a repeat."""
    out: Path | None = None
    """Where to write the figures as JSON."""


class Work(NamedTuple):
    """What was done.

    Attributes:
        steps: environment steps.
        images: MACs that the network ran, over those of the plain network; 0 if nothing is known.
    """

    steps: int
    images: float = 0.0


Contestant = Callable[[], Work]


def stepped(make: Callable[[], Any], actions: Callable[[Any], Any]) -> Contestant:
    """A contestant that takes one step of a vector environment."""
    env = make()
    if isinstance(env, gym.vector.VectorEnv):
        env.reset(seed=0)
    else:
        env.reset()

    def once() -> Work:
        env.step(actions(env))
        return Work(int(env.num_envs))

    return once


def routed(env: gym.vector.VectorEnv, actions: Callable[[Any], Any]) -> Contestant:
    """The same for the native environment, which tells what its network has run."""
    env.reset(seed=0)
    plain_macs = env.unwrapped.routing_spec.plain_macs

    def once() -> Work:
        _, _, ended, _, infos = env.step(actions(env))
        macs = 0
        # An image is counted when it is answered. In the long run that is the same.
        if ended.any():
            macs = int(infos["final_info"]["macs"][ended].sum())
        return Work(int(env.num_envs), macs / plain_macs)

    return once


def contestants(args: Args) -> dict[str, Contestant]:
    """Name to a call that does some work and returns how much it was."""
    kwargs = registered_kwargs(args.env)
    backbone = zoo.named(kwargs["backbone"])
    route = data.load(kwargs["dataset"], "route")
    # A copy, because torch warns of arrays that are read-only, as shared images are.
    images = torch.from_numpy(route.images[: args.num_envs].copy())  # (N, C, H, W)
    plain = backbone.plain().eval()
    dtype = DTYPES[args.dtype]
    random = np.random.default_rng(0)
    few = min(MAX_SCALAR_ENVS, args.num_envs)

    def run_plain(network: nn.Module) -> Contestant:
        def once() -> Work:
            with torch.inference_mode():
                network(backbone.prepare(images).to(dtype))
            # A full path is as many steps.
            return Work(len(images) * backbone.num_layers, len(images))

        return once

    def full_path(env: Any) -> Any:
        return np.full(env.num_envs, backbone.full_path)

    def mixed(env: Any) -> Any:
        return random.integers(backbone.first_sub_path, backbone.num_paths, env.num_envs)

    def leaving(share: float) -> Callable[[Any], Any]:
        """A share of the images answers at the glance, the others take the full path."""

        def actions(env: Any) -> Any:
            at_glance = env.unwrapped.episodes.state.layer == 0
            leaves = at_glance & (random.random(env.num_envs) < share)
            return np.where(leaves, 0, backbone.full_path)

        return actions

    def native(**more: Any) -> gym.vector.VectorEnv:
        # Same-step autoreset, as learners use it.
        mode = gym.vector.AutoresetMode.SAME_STEP
        kwargs = {"dtype": args.dtype, **more}
        return gym.make_vec(args.env, args.num_envs, autoreset_mode=mode, **kwargs)

    def sync() -> gym.vector.VectorEnv:
        return gym.make_vec(args.env, few, vectorization_mode="sync", dtype=args.dtype)

    def adapter(**more: Any) -> Any:
        return make_vec_env(args.env, few, env_kwargs={"dtype": args.dtype, **more})

    def dummy(**more: Any) -> DummyVecEnv:
        return DummyVecEnv([lambda: gym.make(args.env, dtype=args.dtype, **more)] * few)

    runners = {
        PLAIN: run_plain(deepcopy(plain).to(dtype)),
        FOLDED: run_plain(folded(plain).to(dtype)),
        "native, full path": routed(native(), full_path),
        "native, mixed widths": routed(native(), mixed),
        "native, half leave at the glance": routed(native(), leaving(0.5)),
        "native, three quarters leave at the glance": routed(native(), leaving(0.75)),
        "SyncVectorEnv, mixed widths": stepped(sync, mixed),
        "SB3 adapter, mixed widths": stepped(adapter, mixed),
        "SB3 DummyVecEnv, mixed widths": stepped(dummy, mixed),
    }
    # Elsewhere a table takes minutes to build and gigabytes to hold.
    if kwargs["dataset"] == "digits":
        runners |= {
            "native on the table, mixed widths": stepped(lambda: native(backend="table"), mixed),
            "SB3 adapter on the table, mixed widths": stepped(
                lambda: adapter(backend="table"), mixed
            ),
            "SB3 DummyVecEnv on the table, mixed widths": stepped(
                lambda: dummy(backend="table"), mixed
            ),
        }
    return runners


def rate(contestant: Contestant, seconds: float) -> Work:
    """Work per second, over at least `seconds`."""
    start = time.perf_counter()
    steps = 0
    images = 0.0
    while (elapsed := time.perf_counter() - start) < seconds:
        work = contestant()
        steps += work.steps
        images += work.images
    return Work(steps / elapsed, images / elapsed)


def main(args: Args) -> None:
    """Measure all contestants in turn, print medians and spread, write JSON."""
    runners = contestants(args)
    rates: dict[str, list[Work]] = {name: [] for name in runners}
    # In turn, so that a load that comes and goes meets all of them.
    for repeat in progress_bar(range(args.repeats + 1), desc="repeats"):
        for name, contestant in runners.items():
            measured = rate(contestant, args.seconds)
            if repeat > 0:
                rates[name].append(measured)

    # The faster of the two, repeat by repeat.
    plain = np.maximum(np.array(rates[PLAIN]), np.array(rates[FOLDED]))  # (repeats, 2)
    content: dict[str, Any] = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "env": args.env,
        "num_envs": args.num_envs,
        "dtype": args.dtype,
    }
    print(content)
    content["contestants"] = {}
    table = Table("contestant", "steps / s", "of the plain network", "time over predicted")
    for name, works in rates.items():
        steps, images = np.array(works).T
        ratios = steps / plain[:, 0]
        over = plain[:, 1] / images if images.all() else None
        content["contestants"][name] = {
            "steps_per_second": steps.tolist(),
            "of_plain": ratios.tolist(),
            "time_over_predicted": None if over is None else over.tolist(),
        }
        table.add_row(
            name,
            f"{np.median(steps):,.0f}",
            spread(ratios),
            "" if over is None else spread(over),
        )
    Console().print(table)
    if args.out is not None:
        save_json(args.out, content)


def spread(values: np.ndarray) -> str:
    """The median and the range."""
    return f"{np.median(values):.3g} ({values.min():.3g} to {values.max():.3g})"


if __name__ == "__main__":
    main(tyro.cli(Args))
