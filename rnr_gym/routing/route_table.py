"""Every path of a small backbone, worked out once for every image: routing as a table, and its exact optimum."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from tqdm import tqdm

from rnr_gym import storage
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.macs import MacTable
from rnr_gym.data import ImageSet
from rnr_gym.routing.observations import steps
from rnr_gym.routing.path_tree import PathTree, num_prefixes
from rnr_gym.routing.protocols import Outcome, Rows
from rnr_gym.routing.rewards import task_term
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal

LIMIT = 1_500_000
"""The most prefixes times images that a table may hold; at 470 summary values under three gigabytes."""


@dataclass(frozen=True, eq=False)
class RouteTable:
    """What every path of a backbone would do with every image.

    Attributes:
        spec: the routing problem.
        labels: int64 `(N,)`.
        summary: float32 `(M, N, S)`, the summary at every prefix.
        prediction: int16 `(E, N)`, the top class at every answer.
        loss: float32 `(E, N)`, its cross-entropy in nats.
        origin: digest of the weights and images it was worked out from; empty for a table made otherwise.
        places: the tree of paths, worked out from `spec`.
    """

    spec: RoutingSpec
    labels: NDArray[np.int64]
    summary: NDArray[np.float32]
    prediction: NDArray[np.int16]
    loss: NDArray[np.float32]
    origin: str = ""
    places: PathTree = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", places(self.spec))

    def start(self, indices: Rows) -> TableState:
        """Images by number `(N,)`, each waiting at layer 0."""
        return TableState(self, np.asarray(indices), np.zeros(len(indices), np.int64))

    def outcome(self, walk: TableState, indices: Rows, rows: Rows) -> Outcome:
        answer = walk.place[rows] - len(self.summary)
        return Outcome(self.prediction[answer, indices].astype(np.int64), self.loss[answer, indices].astype(np.float64))

    @property
    def paths(self) -> NDArray[np.int8]:
        """int8 `(E, T)`: every whole path."""
        return self.tree.path[len(self.summary) :]

    @property
    def compute(self) -> NDArray[np.float64]:
        """float64 `(E,)`: what the environment charges for each whole path."""
        return self.tree.macs[len(self.summary) :] / self.spec.plain_macs

    @property
    def correct(self) -> NDArray[np.bool_]:
        """bool `(E, N)`: whether a path's top class is right."""
        return self.prediction == self.labels

    def returns(self, tradeoff: float, reward: str = "accuracy") -> NDArray[np.float64]:
        """float64 `(E, N)`: an episode's return for every whole path and image."""
        task = task_term(reward, self.correct, self.loss.astype(np.float64), self.spec.loss_scale)
        return task - tradeoff * self.compute[:, None]

    def oracle(self, tradeoff: float, reward: str = "accuracy") -> NDArray[np.int8]:
        """int8 `(N, T)`: the best path of each image, knowing its label; the cheaper one of two equals."""
        order = np.argsort(self.compute, kind="stable")
        best = self.returns(tradeoff, reward)[order].argmax(0)
        paths: NDArray[np.int8] = self.paths[order[best]]
        return paths

    def regret(self, paths: NDArray[np.int8], tradeoff: float, reward: str = "accuracy") -> float:
        """How much less return than the oracle's the paths `(N, T)` bring, a mean over the images; 0 or above."""
        returns = self.returns(tradeoff, reward)
        taken = returns[self.answers(paths), np.arange(len(self.labels))]
        return float((returns.max(0) - taken).mean())

    def answers(self, paths: NDArray[np.int8]) -> NDArray[np.int64]:
        """int64 `(N,)`: the number, among `paths`, of each given whole path `(N, T)`."""
        place = np.zeros(len(paths), np.int64)
        for layer in range(self.spec.num_layers):
            going = np.flatnonzero(place < len(self.summary))
            place[going] = self.tree.reached(place[going], paths[going, layer])
            if (place < 0).any():
                break
        if (place < len(self.summary)).any():
            raise ValueError("`paths` must be whole paths of this backbone, got one that ends early or is not valid")
        return place - len(self.summary)

    def front(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The exact accuracy-compute front: the most accuracy that any per-image choice of paths has at a mean compute.

        Returns compute and accuracy, each float64 `(n,)`, ascending: first everybody's cheapest path, then, dearest last,
        each image whose cheapest right answer costs more than its cheapest answer.
        """
        cost = np.where(self.correct, self.compute[:, None], np.inf).min(0)
        least = self.compute.min()
        extra = np.sort(cost[np.isfinite(cost)] - least)
        count = len(self.labels)
        return least + np.concatenate([[0.0], np.cumsum(extra)]) / count, np.arange(len(extra) + 1) / count

    def take(self, rows: NDArray[np.bool_] | Rows) -> RouteTable:
        """The table of the chosen images, in the order given."""
        parts = (self.summary[:, rows], self.prediction[:, rows], self.loss[:, rows])
        return RouteTable(self.spec, self.labels[rows], *parts)

    def save(self, path: Path) -> None:
        """Write the table as one safetensors file; quantised summaries in one byte a value."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ("labels", "summary", "prediction", "loss")}
        arrays |= {"valid": self.spec.valid, **{f"macs.{name}": part for name, part in self.spec.mac_table._asdict().items() if name != "stem"}}
        if self.spec.quantised:
            arrays["summary"] = np.rint(self.summary / steps(self.summary.shape[-1], self.spec.facts["pooled"])).astype(np.int8)
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        storage.save_tensors(path, tensors, {"spec": self.spec.facts, "stem": self.spec.mac_table.stem, "origin": self.origin})

    @classmethod
    def load(cls, path: Path) -> RouteTable:
        """Read what `save` wrote."""
        tensors, facts = storage.load_tensors(path)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        macs = MacTable(facts["stem"], *(arrays[f"macs.{name}"] for name in ("layers", "exits", "head")))
        parts, spec = {name: arrays[name] for name in ("labels", "summary", "prediction", "loss")}, RoutingSpec(facts["spec"], arrays["valid"], macs)
        if spec.quantised:
            parts["summary"] = parts["summary"] * steps(parts["summary"].shape[-1], spec.facts["pooled"])
        return cls(spec, **parts, origin=facts["origin"])


@dataclass(frozen=True, eq=False)
class TableState:
    """N images under way through a table: `rnr_gym.routing.protocols.RoutingState` without a network."""

    table: RouteTable
    index: Rows
    place: Rows

    @property
    def layer(self) -> Rows:
        return self.table.tree.layer[self.place]

    @property
    def prev_sub_path(self) -> Rows:
        return self.table.tree.prev_sub_path[self.place]

    @property
    def macs(self) -> Rows:
        return self.table.tree.macs[self.place]

    @property
    def path(self) -> NDArray[np.int8]:
        return self.table.tree.path[self.place]

    @property
    def done(self) -> NDArray[np.bool_]:
        return self.place >= len(self.table.summary)

    def step(self, sub_paths: Rows) -> TableState:
        """Move every unanswered image by its own sub-path `(N,)`; entries of answered ones are ignored."""
        going, place = np.flatnonzero(~self.done), self.place.copy()
        place[going] = self.table.tree.reached(self.place[going], sub_paths[going])
        if (place < 0).any():
            raise ValueError(f"`sub_paths` must be valid at their layers {self.layer[going].tolist()}, got {sub_paths[going].tolist()}")
        return TableState(self.table, self.index, place)

    def replaced(self, rows: Rows, other: TableState) -> TableState:
        """This batch with `other`'s images, in order, in the places `rows`."""
        index, place = self.index.copy(), self.place.copy()
        index[rows], place[rows] = other.index, other.place
        return TableState(self.table, index, place)

    def summary(self) -> NDArray[np.float32]:
        """float32 `(N, S)`; zeros for answered images."""
        done = self.done
        summary: NDArray[np.float32] = self.table.summary[np.where(done, 0, self.place), self.index]
        summary[done] = 0.0
        return summary


def build(backbone: Backbone, images: ImageSet, spec: RoutingSpec, batch_size: int = 512, progress: bool = True) -> RouteTable:
    """Send every image down every path. A `ValueError` where prefixes times images exceed `LIMIT`."""
    tree, count = places(spec) if num_prefixes(spec) * len(images) <= LIMIT else None, len(images)
    if tree is None:
        raise ValueError(f'`backend="table"` holds at most {LIMIT:,} prefixes x images, got {num_prefixes(spec):,} x {count:,}; use `backend="live"`')
    inner, answers = len(tree.child), len(tree.layer) - len(tree.child)
    summary = np.zeros((inner, count, spec.layout.summary.size), np.float32)
    prediction, loss = np.zeros((answers, count), np.int16), np.zeros((answers, count), np.float32)
    exits = backbone.exit_layers if spec.has_exits and spec.valid[:, 0].any() else frozenset()
    device = backbone.image_mean.device

    def answer(number: int, rows: slice, logits: torch.Tensor, labels: torch.Tensor) -> None:
        prediction[number, rows] = logits.argmax(1).cpu().numpy()
        loss[number, rows] = F.cross_entropy(logits.float(), labels, reduction="none").cpu().numpy()

    def visit(walk: Traversal, place: int, rows: slice, labels: torch.Tensor) -> None:
        summary[place, rows] = walk.summary()
        for sub_path in np.flatnonzero(tree.child[place] >= 0).tolist():
            target = int(tree.child[place, sub_path])
            if spec.has_exits and sub_path == 0:
                answer(target - inner, rows, walk.exit_logits, labels)
                continue
            further = walk.step(np.full(len(labels), sub_path))
            if target >= inner:
                answer(target - inner, rows, further.logits, labels)
            else:
                visit(further, target, rows, labels)

    with torch.inference_mode():
        for low in tqdm(range(0, count, batch_size), desc="route table", unit="batch", disable=not progress, leave=False):
            rows = slice(low, min(low + batch_size, count))
            labels = torch.from_numpy(np.array(images.labels[rows])).to(device)
            pixels = torch.from_numpy(np.array(images.images[rows])).to(device)
            visit(Traversal.start(backbone, pixels, exits), 0, rows, labels)
    return RouteTable(spec, np.array(images.labels), summary, prediction, loss)
