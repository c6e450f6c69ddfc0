"""One image, answered by a router at several trade-offs, and how long that takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym.classifier import RoutedClassifier
from rnr_gym.routing.preferences import Preferences, preferences_of
from rnr_gym.routing.protocols import Router
from rnr_gym.routing.rollout import route
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal

Name = TypeVar("Name", bound=Hashable)

WARM_UP = 2
RUNS = 9
"""How often something is timed, after `WARM_UP` runs that are not."""


class Answer(NamedTuple):
    """How an image was answered.

    Attributes:
        tradeoff: λ; None for the plain network.
        path: int8 `(T,)`, executed sub-paths, -1 after an exit.
        macs: MACs, the router's own included.
        compute: MACs over those of the plain network.
        probabilities: float32 `(classes,)`.
        preferences: what the router thought of the sub-paths of each layer that it reached, values
            `(T, K)`, NaN elsewhere; None if it cannot tell, and for the plain network.
    """

    tradeoff: float | None
    path: NDArray[np.int8]
    macs: int
    compute: float
    probabilities: NDArray[np.float32]
    preferences: Preferences | None

    @property
    def prediction(self) -> int:
        """The most likely class."""
        return int(self.probabilities.argmax())

    @property
    def path_key(self) -> tuple[int, ...]:
        """The path, as a key of dicts."""
        return tuple(self.path.tolist())


class Watched:
    """A router whose preferences are kept while it decides.

    Attributes:
        told: what it thought at each layer so far, values `(N, K)`.
    """

    def __init__(self, router: Router) -> None:
        self.router = router
        self.told: list[Preferences | None] = []

    def predict(
        self,
        observation: NDArray[np.float32],
        state: tuple[NDArray, ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray, tuple[NDArray, ...] | None]:
        """Decide as the router does."""
        self.told.append(preferences_of(self.router, observation, state, episode_start))
        return self.router.predict(observation, state, episode_start, deterministic)


@torch.inference_mode()
def routed_answers(
    classifier: RoutedClassifier,
    image: NDArray[np.uint8],
    tradeoffs: Sequence[float],
) -> list[Answer]:
    """The answers of a router to an image uint8 `(C, H, W)`, one for each trade-off."""
    spec = classifier.spec
    images = as_batch(image).expand(len(tradeoffs), *image.shape)
    # Not by calling the classifier, which takes one trade-off and does not tell preferences.
    start = Traversal.start(classifier.network, images, spec.exit_layers)
    watched = Watched(classifier.router)
    state = route(start, spec, watched, np.array(tradeoffs))

    decisions = (state.path >= 0).sum(1)
    macs = state.macs + classifier.decision_macs * decisions  # (N,)
    compute = spec.compute(macs)
    probabilities = state.logits.float().softmax(1).numpy()  # (N, classes)
    preferences = _by_image(watched.told, state.path, spec)

    answers = []
    for idx, tradeoff in enumerate(tradeoffs):
        answer = Answer(
            tradeoff=tradeoff,
            path=state.path[idx],
            macs=int(macs[idx]),
            compute=float(compute[idx]),
            probabilities=probabilities[idx],
            preferences=preferences[idx],
        )
        answers.append(answer)
    return answers


def plain_answer(classifier: RoutedClassifier, image: NDArray[np.uint8]) -> Answer:
    """The answer of the plain network to an image uint8 `(C, H, W)`."""
    routed = classifier(as_batch(image))
    return Answer(
        tradeoff=None,
        path=routed.path[0],
        macs=int(routed.macs[0]),
        compute=float(routed.compute[0]),
        probabilities=routed.logits.softmax(1)[0].numpy(),
        preferences=None,
    )


def milliseconds(runs: Mapping[Name, Callable[[], object]]) -> dict[Name, float]:
    """The median times of several functions, by name."""
    times: dict[Name, list[float]] = {name: [] for name in runs}
    # In turns, so that whatever else the machine does meanwhile meets them all alike.
    for turn in range(WARM_UP + RUNS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(of_name) for name, of_name in times.items()}


def as_batch(image: NDArray[np.uint8]) -> Tensor:
    """A batch of one, uint8 `(1, C, H, W)`."""
    # A copy, because torch warns of arrays that are read-only.
    return torch.from_numpy(image.copy())[None]


def run_again(
    classifier: RoutedClassifier, image: NDArray[np.uint8], answer: Answer
) -> Callable[[], object]:
    """A function that answers as a deployed classifier would: the one image by itself."""
    return partial(classifier, as_batch(image), tradeoff=answer.tradeoff)


def _by_image(
    told: list[Preferences | None], path: NDArray[np.int8], spec: RoutingSpec
) -> list[Preferences | None]:
    """What a router thought of each of N images, values `(T, K)`.

    Args:
        told: at each layer, values `(N, K)`.
        path: int8 `(N, T)`, which layers each image has reached.
        spec: the routing problem.
    """
    values = np.full((len(path), *spec.valid.shape), np.nan)  # (N, T, K)
    for layer, preferences in enumerate(told):
        if preferences is None:
            return [None] * len(path)
        # All unanswered images are at the same layer.
        shown = (path[:, layer] >= 0)[:, None] & spec.valid[layer]  # (N, K)
        values[:, layer] = np.where(shown, preferences.values, np.nan)

    last = told[-1]
    assert last is not None
    return [last._replace(values=of_image) for of_image in values]
