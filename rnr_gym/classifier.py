"""A router and a backbone as one thing to deploy."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym import agents, storage
from rnr_gym.backbones import Backbone, zoo
from rnr_gym.routing.protocols import FittedRouter, Router
from rnr_gym.routing.rewards import check_one_tradeoff
from rnr_gym.routing.rollout import decision_macs, route
from rnr_gym.routing.traversal import Traversal

BACKBONE, ROUTER = "backbone.safetensors", "router.safetensors"


class Routed(NamedTuple):
    """What a classifier says of N images.

    Attributes:
        logits: float32 `(N, classes)`.
        path: int8 `(N, T)`, executed sub-paths, -1 after an exit.
        macs: int64 `(N,)`, the router's own included.
        compute: float64 `(N,)`, MACs over those of the plain network.
    """

    logits: Tensor
    path: NDArray[np.int8]
    macs: NDArray[np.int64]
    compute: NDArray[np.float64]


class BudgetCurve(NamedTuple):
    """Mean compute (router included) on `route` at ascending trade-offs: what a budget is translated by."""

    tradeoff: list[float]
    compute: list[float]

    def tradeoff_for(self, compute: float) -> float:
        """The trade-off at which the mean compute on `route` was `compute`, or the dearest measured where that spends less.

        A `ValueError` below the cheapest that was measured and above 1, or above the most that was measured where that is more.
        """
        falling = np.minimum.accumulate(np.array(self.compute))
        kept = np.concatenate([[True], np.diff(falling) < 0])
        low, high = float(falling[-1]), float(falling[0])
        most = max(1.0, high)
        if not low <= compute <= most:
            raise ValueError(f"`compute` must lie in {low:.3f} (the cheapest that this router was measured at) to {most:.4g}, got {compute!r}")
        return float(np.exp(np.interp(-min(compute, high), -falling[kept], np.log(self.tradeoff)[kept])))


class RoutedClassifier(ModelHubMixin):
    """A backbone with a router that chooses each image's path.

    >>> routed = classifier(images, compute=0.4)   # a mean budget; or tradeoff=0.3, or neither for the plain network

    `save_pretrained(folder)`, `push_to_hub(name)` and `RoutedClassifier.from_pretrained(folder_or_name)` keep the two
    together, as safetensors.

    Args:
        backbone: in evaluation mode, on the device it is to run on.
        router: anything with `predict`.
        exits: as the router was fitted.
        curve: needed for `compute=`.
        agent: the name the router was fitted by; needed for saving.
    """

    def __init__(self, backbone: Backbone, router: Router, exits: bool = True, curve: BudgetCurve | None = None, agent: str | None = None) -> None:
        self.backbone, self.router, self.exits, self.curve, self.agent = backbone, router, exits, curve, agent
        self.spec = backbone.spec(exits)
        self.decision_macs = decision_macs(router, self.spec)

    @torch.inference_mode()
    def __call__(self, images: Tensor, compute: float | None = None, tradeoff: float | None = None) -> Routed:
        """Classify images `(N, C, H, W)`, uint8 or float 0..1, at a mean compute or a trade-off; the plain network with neither."""
        if compute is not None and tradeoff is not None:
            raise ValueError(f"`compute` and `tradeoff` exclude each other, got {compute!r} and {tradeoff!r}")
        if compute is not None:
            if self.curve is None:
                raise ValueError("`compute` needs a router whose curve was measured; pass `tradeoff`, or fit it with `rnr-gym train`")
            tradeoff = self.curve.tradeoff_for(compute)
        if tradeoff is None:
            return self._plain(images)
        exits = np.flatnonzero(self.spec.valid[:, 0]).tolist() if self.spec.has_exits else ()
        walk = route(self._start(images, exits), self.spec, self.router, check_one_tradeoff(tradeoff))
        macs = walk.macs + self.decision_macs * (walk.path >= 0).sum(1)
        return Routed(walk.logits.float(), walk.path, macs, macs / self.spec.plain_macs)

    def _plain(self, images: Tensor) -> Routed:
        walk = self._start(images, ())
        for _ in range(self.spec.num_layers):
            walk = walk.step(np.full(len(images), self.spec.full_path))
        return Routed(walk.logits.float(), walk.path, walk.macs, walk.macs / self.spec.plain_macs)

    def _start(self, images: Tensor, exits: Collection[int]) -> Traversal:
        if tuple(images.shape[1:]) != self.backbone.image_shape or not (images.dtype == torch.uint8 or images.is_floating_point()):
            wanted = f"uint8 or float (N, {', '.join(map(str, self.backbone.image_shape))})"
            raise ValueError(f"`images` must be {wanted}, got {images.dtype} {tuple(images.shape)}")
        return Traversal.start(self.backbone, images.to(self.backbone.image_mean.device), exits)

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.agent is None:
            raise ValueError("`agent` must name how the router was fitted before it can be saved, got None")
        zoo.save(self.backbone, save_directory / BACKBONE)
        facts = {"agent": self.agent, "problem": self.spec.digest, "exits": self.exits}
        agents.save(cast(FittedRouter, self.router), save_directory / ROUTER, {**facts, "curve": self.curve._asdict() if self.curve else None})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, agent: str | None = None, device: str = "cpu", **where: Any
    ) -> RoutedClassifier:
        """A classifier by name: one that ships with the package, else a folder, else a model of the Hugging Face hub.

        Args:
            pretrained_model_name_or_path: `"rnr-cifar10"` and the like, a folder, or a model's id on the hub.
            agent: which of the shipped routers, `"ppo"` (the default) or `"dqn"`; for shipped classifiers only.
            device: where it runs.
            where: `revision`, `cache_dir`, `token` and what else the hub takes.
        """
        name = str(pretrained_model_name_or_path)
        router = zoo.bundled(name, f"frozen.{agent or 'ppo'}")
        if name == Path(name).name and router.is_file():
            return cls._of_files(zoo.bundled(name), router, device)
        if agent is not None:
            raise ValueError(f"`agent` must be that of a classifier that ships, {', '.join(shipped())}, got {agent!r} of {name!r}")
        classifier: RoutedClassifier = super().from_pretrained(name, device=device, **where)
        return classifier

    @classmethod
    def _from_pretrained(cls, *, model_id: str, device: str = "cpu", **where: Any) -> RoutedClassifier:
        files = [_fetched(model_id, name, **where) for name in (BACKBONE, ROUTER)]
        return cls._of_files(files[0], files[1], device)

    @classmethod
    def _of_files(cls, network: Path, decisions: Path, device: str) -> RoutedClassifier:
        zoo.check_device(device)
        backbone = zoo.load(network).to(device).to(memory_format=torch.channels_last)
        exits = storage.load_tensors(decisions)[1]["exits"]
        router, facts = agents.load(decisions, backbone.spec(exits))
        return cls(backbone, router, exits, BudgetCurve(**facts["curve"]) if facts["curve"] else None, facts["agent"])


def shipped() -> list[str]:
    """The classifiers that come with the package, as `name (agents)`."""
    found = {name: sorted(set(agents.AGENTS) & {file.name.split(".")[2] for file in zoo.FOLDER.glob(f"{name}.frozen.*.safetensors")})
             for name in zoo.ARCHITECTURES}  # fmt: skip
    return [f"{name} ({', '.join(names)})" for name, names in found.items() if names]


def _fetched(model_id: str, name: str, **where: Any) -> Path:
    """A file of a saved classifier: from a folder, else from the hub."""
    if Path(model_id).is_dir():
        return Path(model_id) / name
    known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
    return Path(hf_hub_download(model_id, name, **{key: value for key, value in where.items() if key in known}))
