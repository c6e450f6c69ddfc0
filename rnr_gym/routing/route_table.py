"""The outcome of every path for every image: routing as a table, and its exact optimum."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rnr_gym import checks, storage
from rnr_gym.backbones.base import BATCH_SIZE, Backbone
from rnr_gym.backbones.macs import MOST, MacTable, TimeTable
from rnr_gym.data import ImageSet
from rnr_gym.progress import progress_bar
from rnr_gym.routing import fronts
from rnr_gym.routing.observations import quantisation_steps
from rnr_gym.routing.path_tree import PathTree, num_prefixes
from rnr_gym.routing.protocols import Indices, Outcome
from rnr_gym.routing.rewards import task_term
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal

LIMIT = 1_500_000
"""The most prefixes x images that a table may hold; with 470 values per summary, 2.8 GB."""


class StoredFile(NamedTuple):
    """A file as it was when it was read.

    Attributes:
        path: absolute.
        size: in bytes.
        modified: in nanoseconds.
    """

    path: str
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> StoredFile:
        """The file as it is now."""
        status = path.stat()
        return cls(str(path.resolve()), status.st_size, status.st_mtime_ns)

    def is_unchanged(self) -> bool:
        """Whether it is still there as it was."""
        path = Path(self.path)
        return path.is_file() and self.of(path) == self


@dataclass(frozen=True, eq=False)
class RouteTable:
    """A `RoutingSource` that knows what every path of a backbone does with each of N images.

    There are M prefixes, E whole paths and S values in a summary.

    Attributes:
        spec: the routing problem.
        labels: int64 `(N,)`.
        summary: float32 `(M, N, S)`, the summary at every prefix.
        prediction: int16 `(E, N)`, the top class of every answer.
        loss: float32 `(E, N)`, the cross-entropy of every answer in nats.
        origin: digest of the weights and images that it was computed from; empty for other tables.
        tree: the tree of paths, which follows from `spec`.
        file: where it was loaded from; None for other tables.

    A table is never changed, so copies are the table itself. One that was loaded from a file is
    pickled as the name of that file, since it may have hundreds of megabytes.
    """

    spec: RoutingSpec
    labels: NDArray[np.int64]
    summary: NDArray[np.float32]
    prediction: NDArray[np.int16]
    loss: NDArray[np.float32]
    origin: str = ""
    tree: PathTree = field(init=False)
    file: StoredFile | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tree", PathTree.of(self.spec))

    def __copy__(self) -> RouteTable:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> RouteTable:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        if self.file is None or not self.file.is_unchanged():
            return super().__reduce_ex__(protocol)
        return _reopened, (self.file, self.spec.time_table)

    def timed(self, time_table: TimeTable) -> RouteTable:
        """The same outcomes, where time is charged instead of MACs."""
        table = replace(self, spec=self.spec.timed(time_table))
        object.__setattr__(table, "file", self.file)
        return table

    @property
    def num_prefixes(self) -> int:
        """M: nodes of the tree from here on are answers."""
        return len(self.summary)

    @property
    def batch_size(self) -> int:
        """Most images that should start together; summaries of so many are made at once."""
        return BATCH_SIZE

    def prefetch(self, image_idx: Indices) -> None:
        """Do nothing: a table has no images to prepare."""

    def start(self, image_idx: Indices) -> TableState:
        """The images `(N,)` of this table, waiting at layer 0."""
        image_idx = np.asarray(image_idx)
        return TableState(self, image_idx, np.zeros(len(image_idx), np.int64))

    def outcome(self, state: TableState, image_idx: Indices, batch_idx: Indices) -> Outcome:
        """The outcome of images `image_idx`, which are at positions `batch_idx` of a state."""
        answer = state.node[batch_idx] - self.num_prefixes
        return Outcome(
            prediction=self.prediction[answer, image_idx].astype(np.int64),
            loss=self.loss[answer, image_idx].astype(np.float64),
        )

    @property
    def paths(self) -> NDArray[np.int8]:
        """int8 `(E, T)`: every whole path."""
        return self.tree.path[self.num_prefixes :]

    @property
    def compute(self) -> NDArray[np.float64]:
        """float64 `(E,)`: what the environment charges for each whole path."""
        return self.spec.compute(self.tree.cost[self.num_prefixes :])

    @property
    def correct(self) -> NDArray[np.bool_]:
        """bool `(E, N)`: whether a path's top class is right."""
        return self.prediction == self.labels

    def returns(
        self,
        tradeoff: float | NDArray[np.float64],
        reward: str = "accuracy",
    ) -> NDArray[np.float64]:
        """float64 `(E, N)`: an episode's return for every whole path and image.

        The trade-off is one number, or an array `(N,)` with one for each image.
        """
        # Static networks are compared at any trade-off, also above those of environments.
        if isinstance(tradeoff, np.ndarray):
            tradeoff = checks.numbers("tradeoff", tradeoff, self.labels.shape, 0.0)
        else:
            tradeoff = checks.number("tradeoff", tradeoff, 0.0)
        loss = self.loss.astype(np.float64)
        task = task_term(reward, self.correct, loss, self.spec.loss_scale)
        return task - tradeoff * self.compute[:, None]

    def oracle(
        self,
        tradeoff: float | NDArray[np.float64],
        reward: str = "accuracy",
    ) -> NDArray[np.int8]:
        """int8 `(N, T)`: the best path of each image, given its label.

        Of two paths with equal returns it takes the cheaper one. Trade-offs are as for `returns`.
        """
        # In order of compute, so that argmax takes the cheapest of equal returns.
        order = np.argsort(self.compute, kind="stable")
        best = self.returns(tradeoff, reward)[order].argmax(0)
        paths: NDArray[np.int8] = self.paths[order[best]]
        return paths

    def regret(
        self,
        paths: NDArray[np.int8],
        tradeoff: float,
        reward: str = "accuracy",
    ) -> float:
        """Mean return that the paths `(N, T)` lose against the oracle's; 0 or above."""
        return float(self.regrets(paths, tradeoff, reward).mean())

    def regrets(
        self,
        paths: NDArray[np.int8],
        tradeoff: float,
        reward: str = "accuracy",
    ) -> NDArray[np.float64]:
        """float64 `(N,)`: the return that each image's path `(N, T)` loses against the oracle's."""
        returns = self.returns(tradeoff, reward)  # (E, N)
        taken = returns[self.path_index(paths), np.arange(len(self.labels))]
        regrets: NDArray[np.float64] = returns.max(0) - taken
        return regrets

    def path_index(self, paths: NDArray[np.integer]) -> NDArray[np.int64]:
        """int64 `(N,)`: the index of each whole path `(N, T)` in `self.paths`.

        Raises:
            ValueError: a path ends early, or is not valid.
        """
        paths = checks.whole_numbers("paths", paths, (None, self.spec.num_layers))
        node = np.zeros(len(paths), np.int64)
        for layer in range(self.spec.num_layers):
            active = np.flatnonzero(node < self.num_prefixes)
            node[active] = self.tree.reached(node[active], paths[active, layer])
            # -1 would be taken for a prefix in the next round.
            if (node < 0).any():
                break

        if (node < self.num_prefixes).any():
            raise ValueError(
                "`paths` must be whole paths of this backbone, got one that ends early or is not "
                "valid"
            )
        return node - self.num_prefixes

    def front(self, gamma: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The exact accuracy-compute front of all choices of one path per image.

        With a discount below 1, what step t (from 0) charges, or earns by its answer, counts
        `gamma ** t`.

        Returns:
            Mean compute and the highest accuracy at it, float64 `(n,)` each, ascending.
        """
        gamma = checks.number("gamma", gamma, 0.0)
        last_step = (self.paths >= 0).sum(1) - 1  # (E,)
        task = gamma ** last_step[:, None] * self.correct  # (E, N)
        return fronts.front(task, self._discounted_compute(gamma))

    def _discounted_compute(self, gamma: float) -> NDArray[np.float64]:
        """float64 `(E,)`: the compute of each whole path, step t weighted by `gamma ** t`."""
        tree = self.tree
        discounted = np.zeros(len(tree.layer))
        # Parents come before their children.
        for parent, children in enumerate(tree.child):
            layer = tree.layer[parent]
            # What ran on arrival is charged with the first step.
            before = tree.cost[parent] if layer > 0 else 0
            nodes = children[children >= 0]
            charged = gamma**layer * (tree.cost[nodes] - before)
            discounted[nodes] = discounted[parent] + charged
        return discounted[self.num_prefixes :] / self.spec.plain_cost

    def take(self, idx: NDArray[np.integer] | NDArray[np.bool_]) -> RouteTable:
        """The table of the chosen images, in the order given."""
        # Without `origin`: it stands for all images of the table.
        return RouteTable(
            spec=self.spec,
            labels=self.labels[idx],
            summary=self.summary[:, idx],
            prediction=self.prediction[:, idx],
            loss=self.loss[:, idx],
        )

    def save(self, path: str | Path) -> None:
        """Write the table as one safetensors file; quantised summaries take one byte per value.

        Without times, which belong to a machine: the table that is read again charges MACs.
        """
        summary = self.summary
        # Quantised values are whole steps by construction, so a byte loses nothing.
        if self.spec.quantised:
            step = quantisation_steps(summary.shape[-1], self.spec.pooled_width)
            summary = np.rint(summary / step).astype(np.int8)

        arrays = {
            "labels": self.labels,
            "summary": summary,
            "prediction": self.prediction,
            "loss": self.loss,
            "valid": self.spec.valid,
            "macs.layers": self.spec.mac_table.layers,
            "macs.exits": self.spec.mac_table.exits,
            "macs.head": self.spec.mac_table.head,
        }
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        metadata = {
            "spec": _scalars(self.spec),
            "stem": self.spec.mac_table.stem,
            "origin": self.origin,
        }
        storage.save_tensors(Path(checks.path("path", path)), tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> RouteTable:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or no route table of this version.
        """
        path = Path(checks.path("path", path))
        tensors, metadata = storage.load_tensors(path)
        try:
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            table = cls._from_arrays(arrays, metadata)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"`path` must be a route table as this version writes it, got {str(path)!r}"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"`path` must be a whole route table, got {str(path)!r} ({error})"
            ) from error
        object.__setattr__(table, "file", StoredFile.of(path))
        return table

    @classmethod
    def _from_arrays(cls, arrays: dict[str, NDArray], metadata: dict[str, Any]) -> RouteTable:
        check_arrays(arrays, metadata)
        spec = _spec_of(arrays, metadata)
        summary = arrays["summary"]
        if spec.quantised:
            summary = summary * quantisation_steps(summary.shape[-1], spec.pooled_width)
        return cls(
            spec=spec,
            labels=arrays["labels"],
            summary=summary,
            prediction=arrays["prediction"],
            loss=arrays["loss"],
            origin=metadata["origin"],
        )


def _reopened(file: StoredFile, time_table: TimeTable | None) -> RouteTable:
    """The table of a file, which charges time if there is a time table."""
    table = _read(file)
    if time_table is None:
        return table
    return table.timed(time_table)


@lru_cache(maxsize=8)
def _read(file: StoredFile) -> RouteTable:
    """The table of a file, once per process; raises `ValueError` if it was changed."""
    if not file.is_unchanged():
        raise ValueError(
            f"a route table was sent as the file {file.path!r}, which is not here, or was changed"
        )
    return RouteTable.load(file.path)


def check_arrays(arrays: dict[str, NDArray], metadata: dict[str, Any]) -> None:
    """Raise `ValueError` unless the arrays and numbers of a file are those of a route table.

    Before the tree of paths is made, which has as many nodes as `valid` declares.
    """
    num_layers, num_paths = np.atleast_2d(arrays["valid"]).shape
    num_images = len(arrays["labels"])
    checks.integer("stem", metadata["stem"], 0)
    for name, shape in {
        "macs.layers": (num_layers, num_paths, num_paths),
        "macs.exits": (num_layers, num_paths),
        "macs.head": (num_paths,),
    }.items():
        checks.numbers(name, arrays[name], shape, 0, MOST)
        if arrays[name].dtype != np.int64:
            raise ValueError(f"`{name}` must be int64, got {arrays[name].dtype}")
    if arrays["valid"].dtype != np.bool_:
        raise ValueError(f"`valid` must be bool (T, K), got {arrays['valid'].dtype}")

    spec = _spec_of(arrays, metadata)
    for name, low in {"num_classes": 2, "pooled_width": 1, "glance_width": 0}.items():
        checks.integer(name, getattr(spec, name), low, arrays["summary"].nbytes)
    for name in ("has_exits", "quantised", "exits_read_glance"):
        checks.flag(name, getattr(spec, name))
    checks.numbers("loss_scale", spec.loss_scale, (), 0.0)
    # A route without a valid continuation, or that costs nothing, is not routed.
    if not spec.valid[:, spec.first_sub_path :].any(1).all() or spec.plain_macs <= 0:
        raise ValueError(
            "`valid` must have a sub-path at every layer, and they must cost something"
        )

    num_nodes = num_prefixes(spec)
    shape = (num_nodes, num_images, spec.layout.summary.size)
    if arrays["summary"].shape != shape:
        raise ValueError(f"`summary` must have shape {shape}, got {arrays['summary'].shape}")
    highest = spec.num_classes - 1
    answers = (None, num_images)
    checks.whole_numbers("labels", arrays["labels"], (None,), 0, highest)
    checks.whole_numbers("prediction", arrays["prediction"], answers, 0, highest)
    checks.numbers("loss", arrays["loss"], answers, 0.0)
    if not np.isfinite(arrays["summary"]).all():
        raise ValueError("`summary` must be finite, got NaN or infinity")
    num_answers = len(PathTree.of(spec).layer) - num_nodes
    for name in ("prediction", "loss"):
        if len(arrays[name]) != num_answers:
            raise ValueError(f"`{name}` must have {num_answers} rows, got {len(arrays[name])}")


def _spec_of(arrays: dict[str, NDArray], metadata: dict[str, Any]) -> RoutingSpec:
    """The spec of a stored table."""
    mac_table = MacTable(
        stem=metadata["stem"],
        layers=arrays["macs.layers"],
        exits=arrays["macs.exits"],
        head=arrays["macs.head"],
    )
    return RoutingSpec(valid=arrays["valid"], mac_table=mac_table, **metadata["spec"])


def _scalars(spec: RoutingSpec) -> dict[str, Any]:
    """The fields of a spec that JSON can hold; the others are arrays."""
    fields = asdict(spec)
    del fields["valid"]
    del fields["mac_table"]
    del fields["time_table"]
    return fields


@dataclass(frozen=True, eq=False)
class TableState:
    """N images in progress through a table: a `RoutingState` without a network.

    Attributes:
        table: the table.
        image_idx: int64 `(N,)`, the images.
        node: int64 `(N,)`, where each is in the tree of paths.
    """

    table: RouteTable
    image_idx: Indices
    node: Indices

    @property
    def layer(self) -> Indices:
        """int64 `(N,)`: the decision that an image waits for; T once it has been answered."""
        return self.table.tree.layer[self.node]

    @property
    def prev_sub_path(self) -> Indices:
        """int64 `(N,)`: the sub-path executed last; K - 1 at layer 0."""
        return self.table.tree.prev_sub_path[self.node]

    @property
    def macs(self) -> Indices:
        """int64 `(N,)`: MACs charged so far."""
        return self.table.tree.macs[self.node]

    @property
    def path(self) -> NDArray[np.int8]:
        """int8 `(N, T)`: executed sub-paths, -1 where none was."""
        return self.table.tree.path[self.node]

    @property
    def done(self) -> NDArray[np.bool_]:
        """bool `(N,)`: which images have been answered."""
        return self.node >= self.table.num_prefixes

    def step(self, sub_paths: Indices) -> TableState:
        """Move every unanswered image by its own sub-path `(N,)`; other entries are ignored.

        Raises:
            ValueError: a sub-path is not valid at its layer.
        """
        sub_paths = checks.whole_numbers("sub_paths", sub_paths, (len(self.node),))
        active = np.flatnonzero(~self.done)
        node = self.node.copy()
        node[active] = self.table.tree.reached(self.node[active], sub_paths[active])
        if (node < 0).any():
            raise ValueError(
                f"`sub_paths` must be valid at their layers {self.layer[active].tolist()}, got "
                f"{sub_paths[active].tolist()}"
            )
        return TableState(self.table, self.image_idx, node)

    def replaced(self, batch_idx: Indices, other: TableState) -> TableState:
        """This batch with `other`'s images, in order, at the positions `batch_idx`."""
        image_idx = self.image_idx.copy()
        image_idx[batch_idx] = other.image_idx
        node = self.node.copy()
        node[batch_idx] = other.node
        return TableState(self.table, image_idx, node)

    def summary(self, features: bool = True) -> NDArray[np.float32]:
        """float32 `(N, S)`; zeros for answered images. It always has the pooled features."""
        # Answers have no summary; any prefix does for the lookup, since its row is cleared.
        done = self.done
        node = np.where(done, 0, self.node)
        summary: NDArray[np.float32] = self.table.summary[node, self.image_idx]
        summary[done] = 0.0
        return summary


def fits(spec: RoutingSpec, num_images: int) -> bool:
    """Whether a table of so many images stays within `LIMIT`."""
    return num_prefixes(spec) * num_images <= LIMIT


def build(
    backbone: Backbone,
    images: ImageSet,
    spec: RoutingSpec,
    progress: bool = True,
) -> RouteTable:
    """Send every image down every path.

    Raises:
        ValueError: prefixes x images exceed `LIMIT`.
    """
    num_images = len(images)
    if not fits(spec, num_images):
        raise ValueError(
            f'`backend="table"` holds at most {LIMIT:,} prefixes x images, got '
            f'{num_prefixes(spec):,} x {num_images:,}; use `backend="live"`'
        )

    builder = _Builder(spec, num_images)
    batch_size = backbone.batch_size
    batches = range(0, num_images, batch_size)
    with torch.inference_mode():
        bar = progress_bar(
            batches, desc="route table", unit="batch", disable=not progress, leave=False
        )
        for low in bar:
            batch = slice(low, min(low + batch_size, num_images))
            pixels = torch.from_numpy(np.array(images.images[batch])).to(backbone.device)
            labels = torch.from_numpy(np.array(images.labels[batch])).to(backbone.device)
            # Decoded while this batch goes down all paths.
            images.prefetch(np.arange(batch.stop, min(batch.stop + batch_size, num_images)))
            start = Traversal.start(backbone, pixels, spec.exit_layers)
            builder.visit(start, 0, batch, labels)

    return RouteTable(
        spec=spec,
        labels=np.array(images.labels),
        summary=builder.summary,
        prediction=builder.prediction,
        loss=builder.loss,
    )


class _Builder:
    """The arrays of a table while it is built."""

    def __init__(self, spec: RoutingSpec, num_images: int) -> None:
        self.spec = spec
        self.tree = PathTree.of(spec)
        self.num_prefixes = len(self.tree.child)
        num_answers = len(self.tree.layer) - self.num_prefixes
        summary_shape = (self.num_prefixes, num_images, spec.layout.summary.size)
        self.summary = np.zeros(summary_shape, np.float32)
        self.prediction = np.zeros((num_answers, num_images), np.int16)
        self.loss = np.zeros((num_answers, num_images), np.float32)

    def visit(self, state: Traversal, node: int, batch: slice, labels: Tensor) -> None:
        """Store the summary of a prefix, then visit everything below it, depth first."""
        self.summary[node, batch] = state.summary()
        children = self.tree.child[node]
        for sub_path in np.flatnonzero(children >= 0).tolist():
            child = int(children[sub_path])
            if self.spec.has_exits and sub_path == 0:
                # The exit head has run on arrival.
                self._store_answer(child, batch, state.exit_logits, labels)
                continue

            # Depth first, so that the features of at most T prefixes are in memory.
            next_state = state.step(np.full(len(labels), sub_path))
            if child >= self.num_prefixes:
                self._store_answer(child, batch, next_state.logits, labels)
            else:
                self.visit(next_state, child, batch, labels)

    def _store_answer(self, node: int, batch: slice, logits: Tensor, labels: Tensor) -> None:
        answer = node - self.num_prefixes
        loss = F.cross_entropy(logits.float(), labels, reduction="none")
        self.prediction[answer, batch] = logits.argmax(1).cpu().numpy()
        self.loss[answer, batch] = loss.cpu().numpy()
