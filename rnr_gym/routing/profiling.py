"""Measuring how long every part of a network takes on this machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym import checks
from rnr_gym.backbones import zoo
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.blocks import pooled_channels
from rnr_gym.backbones.inference import DTYPES, for_inference
from rnr_gym.backbones.macs import TimeTable
from rnr_gym.progress import progress_bar
from rnr_gym.routing import profiles, rollout
from rnr_gym.routing.profiles import Profile
from rnr_gym.routing.traversal import Traversal

BATCH_SIZE = 64
"""Images that are run together, unless something else is asked for."""
REPEATS = 15
"""How often each part is measured."""


class Part(NamedTuple):
    """A part of a network that is measured alone.

    Attributes:
        name: `"stem"`, `"glance"`, `"layer"`, `"exit"`, `"head"`; or `"plain"`, the whole of it.
        layer: of a layer or an exit; else 0.
        prev_sub_path: the sub-path that its input comes from; None for any.
        sub_path: of a layer; else 0.
        run: runs it on a batch.
    """

    name: str
    layer: int
    prev_sub_path: int | None
    sub_path: int
    run: Callable[[], Any]


def profile(
    backbone: str | Backbone,
    batch_size: int = BATCH_SIZE,
    device: str = "cpu",
    dtype: str = "float32",
    out: str | Path | None = None,
    progress: bool = True,
) -> Profile:
    """Measure how long every part of a backbone takes on this machine, and keep the result.

    Environments with `cost="time"` charge it. It replaces an earlier profile of the architecture.

    Args:
        backbone: a name, a file that `rnr-gym pretrain` wrote, or a `Backbone`.
        batch_size: how many images are run together.
        device: what a named backbone runs on; a `Backbone` is measured where it is.
        dtype: in what it computes features, `"float32"` or `"bfloat16"`.
        out: a file to write as well, for `cost=FILE`.
        progress: whether to show a progress bar.

    Raises `ValueError` for an unknown backbone, device or dtype, and for a number out of range.
    """
    checks.integer("batch_size", batch_size, 1)
    checks.choice("dtype", dtype, DTYPES)
    if isinstance(backbone, Backbone):
        network = backbone
    elif isinstance(backbone, str):
        # Any weights take the same time, and not every architecture has bundled ones.
        network = zoo.named(backbone, weights=None, device=device)
    else:
        raise ValueError(
            "`backbone` must be a name, a file or a `Backbone`, got " + type(backbone).__name__
        )

    measured = measure(network, batch_size, dtype, progress=progress)
    measured.save(profiles.cache_file(network.config, str(network.device), dtype))
    if out is not None:
        measured.save(out)
    return measured


def measure(
    backbone: Backbone,
    batch_size: int,
    dtype: str = "float32",
    repeats: int = REPEATS,
    progress: bool = True,
) -> Profile:
    """The profile of a backbone, as environments run it.

    Each repeat runs every part once, so that a disturbance meets all of them alike; a time is the
    median. A part is run on a whole batch: what it takes to pick the images of a mixed batch is not
    in it, nor is the scaling of pixels, which every image pays for alike. A layer's sub-paths are
    made to ascend in time, as `ascending` does.
    """
    network = for_inference(backbone, dtype)
    device = network.device
    with torch.inference_mode():
        parts = _parts(network, batch_size)
        measured = _medians([part.run for part in parts], repeats, device, progress)
    nanoseconds = measured / batch_size

    table = backbone.mac_table
    layers = np.zeros(table.layers.shape)
    exits = np.zeros(table.exits.shape)
    head = np.zeros(table.head.shape)
    single = {}
    first = backbone.first_sub_path
    for part, duration in zip(parts, nanoseconds, strict=True):
        # Where the part does not read it, any previous sub-path takes the same time.
        prev = slice(first, None) if part.prev_sub_path is None else part.prev_sub_path
        if part.name == "layer":
            layers[part.layer, prev, part.sub_path] = duration
        elif part.name == "exit":
            exits[part.layer, prev] = duration
        elif part.name == "head":
            head[prev] = duration
        else:
            single[part.name] = duration

    exits[0] = single.get("glance", 0.0)
    layers[:, first:, first:] = np.apply_along_axis(ascending, 2, layers[:, first:, first:])
    times = TimeTable(
        # A clock that is too coarse must not make a network that costs nothing.
        stem=max(1, round(single["stem"])),
        layers=np.rint(layers).astype(np.int64),
        exits=np.rint(exits).astype(np.int64),
        head=np.rint(head).astype(np.int64),
    )
    return Profile(
        times=times,
        macs=table,
        plain=max(1, round(single["plain"])),
        batch_size=batch_size,
        repeats=repeats,
        threads=torch.get_num_threads(),
        dtype=dtype,
        device=device.type,
        machine=_machine(device),
        torch=torch.__version__,
    )


def ascending(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest times `(n,)` that never fall: runs of falling ones become their mean.

    Numbers of sub-paths grow with cost, but two that take about the same time may be measured in
    the wrong order, and a wider one may even take less time on some machine.
    """
    # Pool adjacent violators: each block has the sum of its times, and their number.
    sums: list[float] = []
    counts: list[int] = []
    for value in times.tolist():
        sums.append(value)
        counts.append(1)
        while len(sums) > 1 and sums[-2] / counts[-2] > sums[-1] / counts[-1]:
            last_sum = sums.pop()
            sums[-1] += last_sum
            last_count = counts.pop()
            counts[-1] += last_count
    return np.repeat(np.array(sums) / np.array(counts), counts)


def _parts(network: Backbone, batch_size: int) -> list[Part]:
    """All parts of a network, with inputs to run them on."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, *network.image_shape)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(network.device)
    prepared = network.prepare(images)
    full_path = np.full(network.num_layers, network.full_path)

    def run_plain() -> None:
        # As a batch of an environment without exits.
        rollout.follow(Traversal.start(network, images, ()), full_path)

    parts = [
        Part("plain", 0, None, 0, run_plain),
        Part("stem", 0, None, 0, partial(network.stem, prepared)),
    ]
    context = None
    if network.glance is not None:
        glance = network.glance
        parts.append(Part("glance", 0, None, 0, partial(glance, prepared)))
        if network.exits_read_glance:
            pooled, logits = glance(prepared)
            context = torch.cat([pooled, logits.softmax(1)], 1)

    # By previous sub-path; None where the next layer does not read it, and before layer 0.
    arrived: dict[int | None, Tensor] = {None: network.stem(prepared)}
    for number, layer in enumerate(network.layers):
        for prev_sub_path, features in arrived.items():
            parts += _parts_at(network, number, prev_sub_path, features, context)

        # The shape of what arrives next depends on the last sub-path alone.
        prev_sub_path, features = arrived.popitem()
        read = _read(network, prev_sub_path)
        arrived = {}
        for sub_path in range(network.first_sub_path, network.num_paths):
            told = sub_path if network.reads_prev_sub_path else None
            arrived[told] = layer(features, sub_path, read)

    for prev_sub_path, features in arrived.items():
        run = partial(network.head, features)
        parts.append(Part("head", 0, prev_sub_path, 0, run))
    return parts


def _parts_at(
    network: Backbone,
    number: int,
    prev_sub_path: int | None,
    features: Tensor,
    context: Tensor | None,
) -> list[Part]:
    """What can run on features that arrive at a layer: its sub-paths, and its exit head."""
    layer = network.layers[number]
    read = _read(network, prev_sub_path)
    parts = []
    for sub_path in range(network.first_sub_path, network.num_paths):
        run = partial(layer, features, sub_path, read)
        parts.append(Part("layer", number, prev_sub_path, sub_path, run))

    if layer.head is not None:

        def answer() -> None:
            layer.exit(pooled_channels(features), context)

        parts.append(Part("exit", number, prev_sub_path, 0, answer))
    return parts


def _read(network: Backbone, prev_sub_path: int | None) -> int | None:
    """What a layer is told of the previous sub-path; before layer 0 it is the full path."""
    if network.reads_prev_sub_path and prev_sub_path is None:
        return network.full_path
    return prev_sub_path


def _medians(
    runs: list[Callable[[], Any]],
    repeats: int,
    device: torch.device,
    progress: bool,
) -> NDArray[np.float64]:
    """The median time of each in nanoseconds, over repeats that run all of them in turn."""

    def wait() -> None:
        # Else the clock would stop when the work has been asked for.
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    durations = np.zeros((repeats, len(runs)))
    # The first round warms up, and its durations are overwritten.
    rounds = [0, *range(repeats)]
    for repeat in progress_bar(rounds, desc="profile", unit="round", disable=not progress):
        for idx, run in enumerate(runs):
            wait()
            start = time.perf_counter_ns()
            run()
            wait()
            durations[repeat, idx] = time.perf_counter_ns() - start
    return np.median(durations, axis=0)


def _machine(device: torch.device) -> str:
    """The model of the processor or graphics card that a network runs on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # Python knows it on some systems only.
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
