"""How time and memory grow with the work, and what does not grow: long runs and the import.

Run: `python benchmarks/scaling.py --out benchmarks/scaling.json`. It needs Linux, since it reads
the memory of processes from `/proc`, and CIFAR-10. It takes some minutes.
"""

from __future__ import annotations

import math
import multiprocessing
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import rnr_gym as rnr
from rnr_gym.backbones import zoo
from rnr_gym.backbones.inference import for_inference
from rnr_gym.progress import progress_bar
from rnr_gym.routing import route_table
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.storage import save_json

ENV = "RNR-CIFAR10-v0"
TABLE_ENV = "RNR-CIFAR10-Table-v0"
CLASSIFIER = "rnr-cifar10"
COMPUTE = 0.5
"""Mean budget of the classifier, the router's own share included."""
NUM_ENVS = 256
"""Sub-environments of the long runs."""
SUB_PATH_IMAGES = 128
"""Images of the tables that differ in their paths."""
BRANCHES = {
    2: (0.2, 1.0),
    3: (0.2, 0.6, 1.0),
    4: (0.2, 0.4, 0.8, 1.0),
    5: (0.2, 0.4, 0.6, 0.8, 1.0),
}
"""Inner widths of the branches of a layer, by their number. The mean is the same for all."""
FOUR_LAYERS = {
    "kind": "multipath",
    "image_shape": [1, 12, 12],
    "classes": 10,
    "widths": [40],
    "blocks": [4],
}
"""A network whose layers cost the same, without exits; its branches are added."""
LIBRARIES = ("gymnasium", "rnr_gym")
MEGABYTE = 2**20


@dataclass
class Args:
    """How often to measure."""

    repeats: int = 5
    """Alternating repeats of every measurement, after one warm-up."""
    seconds: float = 0.2
    """Least duration of a repeat."""
    table_steps: int = 1_000_000
    """Environment steps of the long run on a route table."""
    live_steps: int = 20_000
    """The same where the network runs."""
    imports: int = 9
    """Fresh processes for each library."""
    out: Path | None = None
    """Where to write the figures as JSON."""


Run = Callable[[], object]
"""Does the work once and returns what it has made."""


class Series(NamedTuple):
    """Work of one kind, in several sizes.

    Attributes:
        unit: what a size counts.
        sizes: ascending.
        make: gives the call that does the work of a size.
    """

    unit: str
    sizes: tuple[int, ...]
    make: Callable[[int], Run]


# The work


def all_series() -> dict[str, Series]:
    """Everything that is measured by its size."""
    at_once = (1, 16, 256, 4096)
    # Made here, so that the memory of a table is without that of its network.
    networks = {}
    for count, inner in BRANCHES.items():
        backbone = zoo.from_config(FOUR_LAYERS | {"inner": inner})
        networks[sub_paths_run(count)] = for_inference(backbone)
    digits = for_inference(zoo.named("rnr-digits"))

    return {
        "vector environment, full path": Series("images", at_once, full_path),
        "vector environment, mixed widths": Series("images", at_once, mixed_widths),
        "RoutedClassifier": Series("images", at_once, classified),
        "route table, by images": Series(
            "images",
            (256, 512, 1024, 2048, 4096),
            lambda size: building(digits, size),
        ),
        "route table, by sub-paths": Series(
            "sub-paths",
            tuple(networks),
            lambda size: building(networks[size], SUB_PATH_IMAGES),
        ),
    }


def full_path(size: int) -> Run:
    """All images of a vector environment take the full path."""
    return episodes(size, lambda env: np.full(size, env.unwrapped.routing_spec.full_path))


def mixed_widths(size: int) -> Run:
    """Each takes sub-paths at random among those that are no exit."""
    random = np.random.default_rng(0)

    def actions(env: gym.vector.VectorEnv) -> NDArray[np.int64]:
        spec = env.unwrapped.routing_spec
        return random.integers(spec.first_sub_path, spec.num_paths, size)

    return episodes(size, actions)


def episodes(size: int, actions: Callable[[gym.vector.VectorEnv], NDArray[np.int64]]) -> Run:
    """One episode in each of `size` sub-environments, without exits."""
    env = gym.make_vec(ENV, size, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    env.reset(seed=0)

    def once() -> None:
        for _ in range(env.unwrapped.routing_spec.num_layers):
            env.step(actions(env))

    return once


def classified(size: int) -> Run:
    """A classifier with a router, given all images at once."""
    classifier = bundled_classifier()
    images = torch.from_numpy(rnr.load_images("cifar10", "route").images[:size].copy())
    return lambda: classifier(images, compute=COMPUTE)


@cache
def bundled_classifier() -> rnr.RoutedClassifier:
    """Loaded once for all sizes."""
    return rnr.RoutedClassifier.from_pretrained(CLASSIFIER)


def sub_paths_run(count: int) -> int:
    """How many branches a table of `count` branches per layer runs, each on all images.

    A sub-path runs once for each prefix that leads to it. The identity computes nothing, so it only
    counts as a prefix.
    """
    layers = FOUR_LAYERS["blocks"][0]
    prefixes = sum((count + 1) ** layer for layer in range(layers))
    return prefixes * count


def building(network: rnr.Backbone, num_images: int) -> Run:
    """Sends the first images of the digits down every path of a network."""
    images = rnr.load_images("digits", "route").take(np.arange(num_images))
    spec = RoutingSpec.of(network)
    return lambda: route_table.build(network, images, spec, progress=False)


# Time


def seconds_of(run: Run, least: float) -> float:
    """Mean seconds of a run, over at least `least` seconds."""
    start = time.perf_counter()
    count = 0
    while (elapsed := time.perf_counter() - start) < least:
        run()
        count += 1
    return elapsed / count


def measured_seconds(series: dict[str, Series], args: Args) -> dict[str, NDArray[np.float64]]:
    """Seconds of every size of every series, float64 `(repeats, sizes)` each."""
    runs = {name: [each.make(size) for size in each.sizes] for name, each in series.items()}
    rounds: dict[str, list[list[float]]] = {name: [] for name in series}
    # In turn, so that a load that comes and goes meets all of them.
    for repeat in progress_bar(range(args.repeats + 1), desc="repeats"):
        for name, sizes in runs.items():
            measured = [seconds_of(run, args.seconds) for run in sizes]
            if repeat > 0:
                rounds[name].append(measured)
    return {name: np.array(measured) for name, measured in rounds.items()}


def exponents(sizes: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 `(repeats,)`: the p of time ~ size ** p, by least squares of the logarithms.

    Args:
        sizes: `(sizes,)`.
        seconds: `(repeats, sizes)`.
    """
    slopes: NDArray[np.float64] = np.polyfit(np.log(sizes), np.log(seconds).T, 1)[0]
    return slopes


# Memory


class Peak(NamedTuple):
    """Memory of one size.

    Attributes:
        peak: megabytes above what the process had when everything was loaded.
        result: megabytes of a route table that was made; 0 for other work.
    """

    peak: float
    result: float


def peaks(name: str) -> list[Peak]:
    """The memory of each size of a series; for a fresh process."""
    series = all_series()[name]
    # Images and weights are shared by all sizes, and loading them takes more for a moment.
    series.make(series.sizes[0])
    base = resident("VmRSS")

    measured = []
    for size in series.sizes:
        forget_peak()
        result = series.make(size)()
        made = 0
        if isinstance(result, rnr.RouteTable):
            made = result.summary.nbytes + result.prediction.nbytes + result.loss.nbytes
        measured.append(Peak(resident("VmHWM") - base, made / MEGABYTE))
        del result
    return measured


class LongRun(NamedTuple):
    """Memory over many steps.

    Attributes:
        steps: environment steps, of all sub-environments together.
        megabytes: of the process at the start, and after each tenth of the steps.
    """

    steps: int
    megabytes: list[float]


def long_run(env_id: str, at_random: bool, steps: int) -> LongRun:
    """Steps of a vector environment; for a fresh process.

    Args:
        env_id: which environment.
        at_random: whether actions are drawn; else all images take the full path.
        steps: environment steps; rounded up, so that a tenth of them is whole full paths.
    """
    env = gym.make_vec(env_id, NUM_ENVS, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    env.action_space.seed(0)
    env.reset(seed=0)
    spec = env.unwrapped.routing_spec
    actions = np.full(NUM_ENVS, spec.full_path)
    # Features differ in size between layers, so memory is read where images wait at the first.
    full_paths = math.ceil(steps / 10 / NUM_ENVS / spec.num_layers)
    calls = full_paths * spec.num_layers

    megabytes = [resident("VmRSS")]
    for _ in range(10):
        for _ in range(calls):
            if at_random:
                actions = env.action_space.sample()
            env.step(actions)
        megabytes.append(resident("VmRSS"))
    return LongRun(10 * calls * NUM_ENVS, megabytes)


def resident(field: str) -> float:
    """Megabytes of this process in main memory: `VmRSS` now, or `VmHWM` at their peak.

    Not `resource.getrusage`, which counts the process that started this one as well.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024


def forget_peak() -> None:
    """The peak is what there is now."""
    Path("/proc/self/clear_refs").write_text("5")


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, computed by a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(function, *args).result()


# Imports


def import_seconds(library: str) -> float:
    """What a fresh process needs for an import, and for all that this imports."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {library}"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    # `import time: self | cumulative | name`, in microseconds; the library itself is last.
    _, cumulative, _ = process.stderr.splitlines()[-1].split("|")
    return int(cumulative) / 1e6


def measured_imports(count: int) -> dict[str, list[float]]:
    """Seconds of each library's import, in turn."""
    seconds: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    for _ in progress_bar(range(count), desc="imports"):
        for library in LIBRARIES:
            seconds[library].append(import_seconds(library))
    return seconds


# The whole


def main(args: Args) -> None:
    """Measure everything, print medians and spread, write JSON."""
    start = time.perf_counter()
    series = all_series()
    imports = measured_imports(args.imports)
    memory = {}
    for name in progress_bar(series, desc="memory"):
        memory[name] = in_fresh_process(peaks, name)
    long_runs = {}
    for name, (env_id, at_random, steps) in {
        "on the table, actions at random": (TABLE_ENV, True, args.table_steps),
        "live, actions at random": (ENV, True, args.live_steps),
        "live, full path": (ENV, False, args.live_steps),
    }.items():
        long_runs[name] = in_fresh_process(long_run, env_id, at_random, steps)._asdict()
    seconds = measured_seconds(series, args)

    content: dict[str, Any] = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "repeats": args.repeats,
        "images together": route_table.BATCH_SIZE,
    }
    print(content)
    content["series"] = []
    for name, each in series.items():
        entry = entry_of(name, each, seconds[name], memory[name])
        content["series"].append(entry)
    content["long_runs"] = long_runs
    content["import_seconds"] = imports
    show(content)
    print(f"This took {time.perf_counter() - start:.0f} seconds.")
    if args.out is not None:
        save_json(args.out, content)


def entry_of(
    name: str,
    series: Series,
    seconds: NDArray[np.float64],
    memory: list[Peak],
) -> dict[str, Any]:
    """A series as it is stored."""
    sizes = np.array(series.sizes, np.float64)
    return {
        "name": name,
        "unit": series.unit,
        "sizes": list(series.sizes),
        "seconds": seconds.T.tolist(),
        "peak_megabytes": [size.peak for size in memory],
        "result_megabytes": [size.result for size in memory],
        "exponent": exponents(sizes, seconds).tolist(),
        "exponent_of_largest": exponents(sizes[-2:], seconds[:, -2:]).tolist(),
    }


def show(content: dict[str, Any]) -> None:
    """Print what was measured."""
    sizes = Table("work", "size", "seconds", "per second", "peak MB", "table MB")
    growth = Table("work", "exponent", "exponent of the two largest sizes")
    for entry in content["series"]:
        for position, size in enumerate(entry["sizes"]):
            seconds = np.array(entry["seconds"][position])
            sizes.add_row(
                entry["name"],
                f"{size:,}",
                f"{np.median(seconds):.3g}",
                f"{size / np.median(seconds):,.0f}",
                f"{entry['peak_megabytes'][position]:,.0f}",
                f"{entry['result_megabytes'][position]:,.0f}",
            )
        growth.add_row(
            entry["name"],
            spread(np.array(entry["exponent"])),
            spread(np.array(entry["exponent_of_largest"])),
        )

    runs = Table("long run", "steps", "MB after a tenth", "MB at the end")
    for name, run in content["long_runs"].items():
        megabytes = run["megabytes"]
        runs.add_row(name, f"{run['steps']:,}", f"{megabytes[1]:.1f}", f"{megabytes[-1]:.1f}")
    imports = Table("import", "seconds")
    for library, seconds in content["import_seconds"].items():
        imports.add_row(library, spread(np.array(seconds)))
    added = np.subtract(
        content["import_seconds"]["rnr_gym"], content["import_seconds"]["gymnasium"]
    )
    imports.add_row("the difference", spread(added))

    console = Console()
    for table in (sizes, growth, runs, imports):
        console.print(table)


def spread(values: NDArray[np.float64]) -> str:
    """The median and the range."""
    return f"{np.median(values):.3g} ({values.min():.3g} to {values.max():.3g})"


if __name__ == "__main__":
    main(tyro.cli(Args))
