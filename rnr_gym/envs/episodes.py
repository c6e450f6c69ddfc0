"""The rule of the environment, for N episodes at once, without Gymnasium's calling conventions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnr_gym.data import ImageSet
from rnr_gym.envs.rendering import Scene
from rnr_gym.routing.observations import observe
from rnr_gym.routing.protocols import Rows, Source, RoutingState
from rnr_gym.routing.rewards import check_reward, check_tradeoff, task_term
from rnr_gym.routing.spec import RoutingSpec


class Transition(NamedTuple):
    """What one step brought; arrays `(N,)`, zero for episodes that had ended before.

    Attributes:
        task: float64, the task term, given when an image is answered.
        spent: float64, compute charged in this step. An episode's first step also pays for what ran on arrival.
        ended: bool, answered in this very step.
        executed: int64, the sub-path taken.
    """

    task: NDArray[np.float64]
    spent: NDArray[np.float64]
    ended: NDArray[np.bool_]
    executed: NDArray[np.int64]


class ImageSampler:
    """One sub-environment's images, dealt without replacement, and its trade-offs; all from its own generator."""

    def __init__(self, size: int, tradeoff: tuple[float, float], random: np.random.Generator) -> None:
        self.size, self.tradeoff, self.random = size, tradeoff, random
        self.order = np.zeros(0, np.int64)

    def deal(self, index: int | None = None, tradeoff: float | None = None) -> tuple[int, float]:
        """The next image's number and trade-off; whatever is given is taken as it is, and nothing drawn for it."""
        return self._index() if index is None else index, self._tradeoff() if tradeoff is None else tradeoff

    def _index(self) -> int:
        if not len(self.order):
            self.order = self.random.permutation(self.size)
        index, self.order = int(self.order[-1]), self.order[:-1]
        return index

    def _tradeoff(self) -> float:
        low, high = self.tradeoff
        return low if low == high else float(np.exp(self.random.uniform(np.log(low), np.log(high))))


class Dealing:
    """What the scalar and the vector environment share: a source, a deck for each episode, the trade-off drawn from them.

    Attributes:
        source: what is routed.
        decks: one for each episode side by side; none before the first reset.
    """

    source: Source
    decks: list[ImageSampler]

    @property
    def tradeoff(self) -> tuple[float, float]:
        """λ as (low, high), equal where it is one number; one that is set holds from the next episode on."""
        return self._tradeoff

    @tradeoff.setter
    def tradeoff(self, value: float | tuple[float, float]) -> None:
        self._tradeoff = check_tradeoff(value)
        for deck in self.decks:
            deck.tradeoff = self._tradeoff

    @property
    def routing(self) -> RoutingSpec:
        """Decisions, costs and observation layout."""
        return self.source.spec


class Episodes:
    """N episodes over one source. `begin` some of them, then `step` all of them; those that have ended stand still."""

    def __init__(self, source: Source, reward: str, num: int) -> None:
        check_reward(reward)
        self.source, self.spec, self.reward, self.num = source, source.spec, reward, num
        self.walk: RoutingState | None = None
        self.index, self.tradeoff = np.zeros(num, np.int64), np.zeros(num)
        self.paid = np.zeros(num, np.int64)

    def begin(self, rows: Rows, indices: Rows, tradeoffs: NDArray[np.float64]) -> None:
        """Start new episodes in the places `rows`."""
        self.index[rows], self.tradeoff[rows], self.paid[rows] = indices, tradeoffs, 0
        started = self.source.start(indices)
        self.walk = started if self.walk is None else self.walk.replaced(rows, started)

    def step(self, actions: Rows) -> Transition:
        """Execute each action `(N,)`, or the nearest valid one, in every episode that is going on."""
        assert self.walk is not None
        layer, going = self.walk.layer, ~self.walk.done
        executed = np.where(going, self.spec.nearest[np.minimum(layer, self.spec.num_layers - 1), actions], 0)
        self.walk = self.walk.step(executed)
        macs, ended = self.walk.macs, going & self.walk.done
        spent = np.where(going, macs - self.paid, 0) / self.spec.plain_macs
        self.paid = np.where(going, macs, self.paid)
        task = np.zeros(self.num)
        rows = np.flatnonzero(ended)
        if len(rows):
            self._judge(rows)
            task[rows] = task_term(self.reward, self.correct, self.loss, self.spec.loss_scale)
        return Transition(task, spent, ended, executed)

    def observation(self) -> NDArray[np.float32]:
        """float32 `(N, D)`, a fresh array."""
        assert self.walk is not None
        walk = self.walk
        return observe(self.spec.layout, walk.summary(), walk.layer, walk.prev_sub_path, self.compute, self.tradeoff)

    def last_observation(self, rows: Rows) -> NDArray[np.float32]:
        """float32 `(n, D)`: the observations of ended episodes, whose summary is zero."""
        assert self.walk is not None
        nothing = np.zeros((len(rows), self.spec.layout.summary.size), np.float32)
        layer, prev_sub_path = self.walk.layer[rows], self.walk.prev_sub_path[rows]
        return observe(self.spec.layout, nothing, layer, prev_sub_path, self.compute[rows], self.tradeoff[rows])

    def scene(self, images: ImageSet, row: int) -> Scene:
        """What there is to show of one episode; belief and answer are worked out anew.

        A table of one's own may know other images than these: then the picture stays blank.
        """
        assert self.walk is not None
        index, path = self.index[[row]], self.walk.path[row]
        walk = self.source.start(index)
        for sub_path in path[: (path >= 0).sum() - int(self.walk.done[row])]:
            walk = walk.step(np.array([sub_path], np.int64))
        belief = walk.summary()[0, self.spec.layout.summary.exit_probabilities]
        prediction = int(self.source.outcome(self.walk, index, np.array([row])).prediction[0]) if self.walk.done[row] else None
        known = np.array_equal(images.labels, self.source.labels)
        image = images.images[index[0]] if known else np.zeros((1, 1, 1), np.uint8)
        classes = images.classes if known else tuple(map(str, range(self.spec.facts["classes"])))
        facts = (image, classes, int(self.source.labels[index[0]]), self.spec.valid, self.spec.has_exits)
        return Scene(*facts, path, float(self.compute[row]), float(self.tradeoff[row]), belief, prediction)

    @property
    def compute(self) -> NDArray[np.float64]:
        """float64 `(N,)`: compute so far, of an image's plain network."""
        assert self.walk is not None
        return self.walk.macs / self.spec.plain_macs

    def going_info(self) -> dict[str, NDArray]:
        """What every step's info says; arrays `(N, ...)`."""
        assert self.walk is not None
        layer = self.walk.layer
        parts: dict[str, NDArray] = {
            "action_mask": self.spec.masks[layer],
            "layer": layer.copy(),
            "compute": self.compute,
            "macs": self.walk.macs.copy(),
        }
        return parts | {"index": self.index.copy(), "tradeoff": self.tradeoff.copy()}

    def ended_info(self) -> dict[str, NDArray]:
        """What the info of the episodes that ended in the last step says beside; arrays `(n, ...)`, a row each of them."""
        assert self.walk is not None
        facts: dict[str, Any] = {"is_success": self.correct, "label": self.source.labels[self.index[self.rows]]}
        return facts | {"prediction": self.prediction, "loss": self.loss, "path": self.walk.path[self.rows]}

    def _judge(self, rows: Rows) -> None:
        assert self.walk is not None
        self.rows = rows
        self.prediction, self.loss = self.source.outcome(self.walk, self.index[rows], rows)
        self.correct = self.prediction == self.source.labels[self.index[rows]]
