"""How long every part of a network takes on a machine: what is charged for `cost="time"`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rnr_gym import checks, storage
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.inference import DTYPES
from rnr_gym.backbones.macs import MOST, CostTable, MacTable, TimeTable
from rnr_gym.routing.route_table import StoredFile
from rnr_gym.routing.spec import RoutingSpec


@dataclass(frozen=True, eq=False)
class Profile:
    """Times of one architecture on one machine, measured by `rnr_gym.profile`.

    Attributes:
        times: nanoseconds per image; of the sub-paths that a layer offers, a later one never takes
            less time than an earlier one.
        macs: the MACs of the same parts, by which the architecture is known.
        plain: nanoseconds per image of the plain network, run as one.
        batch_size: images that were run together.
        repeats: how often each part was measured; its time is the median.
        threads: of torch.
        dtype: in what features were computed, a name in `inference.DTYPES`.
        device: `"cpu"` or `"cuda"`, what it was measured on.
        machine: the model of the processor or of the graphics card.
        torch: the version of torch.
    """

    times: TimeTable
    macs: MacTable
    plain: int
    batch_size: int
    repeats: int
    threads: int
    dtype: str
    device: str
    machine: str
    torch: str

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with any of it."""
        return storage.short_hash(json.dumps(self.to_json(), sort_keys=True).encode())

    def __str__(self) -> str:
        return (
            f"{self.digest}: {self.machine}, {self.device}, {self.threads} threads, batches of "
            f"{self.batch_size}, {self.dtype}, torch {self.torch}"
        )

    def check_fits(self, spec: RoutingSpec) -> None:
        """Raise `ValueError` unless it was measured on the architecture of a routing problem."""
        exits = np.where(spec.mac_table.exits > 0, self.macs.exits, 0)
        expected = spec.mac_table.to_json()
        if self.macs._replace(exits=exits).to_json() != expected:
            raise ValueError(
                f'`cost` must be "macs", or a profile of the backbone that is routed, got one of '
                f"another backbone: its plain network has {self.macs.plain:,} MACs and "
                f"{len(self.macs.layers)} layers, that of the one that is routed "
                f"{spec.plain_macs:,} and {spec.num_layers}"
            )

    def to_json(self) -> dict[str, Any]:
        """What a file holds."""
        return {
            "device": self.device,
            "machine": self.machine,
            "threads": self.threads,
            "torch": self.torch,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "repeats": self.repeats,
            "plain": self.plain,
            "nanoseconds": self.times.to_json(),
            "macs": self.macs.to_json(),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Profile:
        """Undo `to_json`; raises `ValueError` if it is something else."""
        try:
            macs = CostTable.from_json("macs", content["macs"])
            times = CostTable.from_json("nanoseconds", content["nanoseconds"])
            if times.layers.shape != macs.layers.shape:
                raise ValueError(
                    f"`nanoseconds` must have the shape of `macs`, {macs.layers.shape}, got "
                    f"{times.layers.shape}"
                )
            if (np.diff(times.layers, axis=2) < 0).any():
                raise ValueError("`nanoseconds` must not fall from one sub-path to the next")
            return cls(
                times=times,
                macs=macs,
                plain=_count("plain", content),
                batch_size=_count("batch_size", content),
                repeats=_count("repeats", content),
                threads=_count("threads", content),
                dtype=checks.choice("dtype", content["dtype"], DTYPES),
                device=_text("device", content),
                machine=_text("machine", content),
                torch=_text("torch", content),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"it must have {error}") from error

    def save(self, path: str | Path) -> None:
        """Write it as JSON, atomically."""
        storage.save_json(Path(checks.path("path", path)), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or no profile.
        """
        path = Path(checks.path("path", path))
        content = storage.load_json(path)
        try:
            return cls.from_json(content)
        except ValueError as error:
            raise ValueError(
                f"`path` must be a profile that `rnr-gym profile` wrote, got {str(path)!r} "
                f"({error})"
            ) from error


def _count(name: str, content: dict[str, Any]) -> int:
    return checks.integer(name, content[name], 1, MOST)


def _text(name: str, content: dict[str, Any]) -> str:
    if not isinstance(content[name], str):
        raise ValueError(f"`{name}` must be text, got {content[name]!r}")
    return str(content[name])


def cache_file(config: dict[str, Any], device: str, dtype: str) -> Path:
    """Where the profile of an architecture is kept, on a device of this machine and in a dtype.

    Times follow from the architecture and the machine, not from the weights: pretrained and
    fine-tuned weights share a profile.
    """
    architecture = storage.short_hash(json.dumps(config, sort_keys=True).encode())
    # Of several graphics cards one is like another.
    kind = device.split(":")[0]
    return storage.cache_dir() / "profiles" / f"{architecture}-{kind}-{dtype}.json"


def of_backbone(
    backbone: str | Backbone, config: dict[str, Any], device: str, dtype: str
) -> Profile:
    """The profile that `rnr_gym.profile` measured of a backbone on this machine.

    Args:
        backbone: as the user named it, for the error.
        config: its architecture.
        device: what it runs on.
        dtype: in what it computes features.

    Raises `FileNotFoundError`, with what to do, if there is none.
    """
    path = cache_file(config, device, dtype)
    if not path.is_file():
        argument = "" if dtype == "float32" else f', dtype="{dtype}"'
        what_to_do = f"call `rnr_gym.profile(backbone{argument})`"
        if isinstance(backbone, str):
            options = "" if device == "cpu" else f" --device {device}"
            options += "" if dtype == "float32" else f" --dtype {dtype}"
            what_to_do = f"run `rnr-gym profile {backbone}{options}`"
        raise FileNotFoundError(
            f'`cost="time"` needs a profile of the backbone, which was not measured on this '
            f"machine: {what_to_do}"
        )
    return _read(StoredFile.of(path))


def of_file(path: str) -> Profile:
    """The profile of a file, once per process while the file is unchanged."""
    return _read(StoredFile.of(Path(path)))


@lru_cache(maxsize=8)
def _read(file: StoredFile) -> Profile:
    return Profile.load(file.path)
