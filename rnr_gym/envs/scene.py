"""What a rendering of an episode shows, and its form as text."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnr_gym.routing.preferences import Preferences
from rnr_gym.routing.spec import RoutingSpec


class Scene(NamedTuple):
    """Everything that is drawn of one episode.

    Attributes:
        image: uint8 `(C, H, W)`.
        classes: class names.
        label: the true class; None where it is not known.
        valid: bool `(T, K)`, the sub-paths that may be taken.
        names: of the K sub-paths.
        path: int8 `(T,)`, executed so far, -1 elsewhere.
        compute: compute so far.
        tradeoff: λ.
        belief: float `(classes,)`, class probabilities, uniform before the first exit has run.
        believer: whose they are: those of the exit that ran last or, where they are known, of the
            answer.
        prediction: the answer; None while the episode is active.
        preferences: what the watched router thought of the sub-paths of each layer that it has
            reached, values `(T, K)`, NaN elsewhere; None without such a router.
    """

    image: NDArray[np.uint8]
    classes: tuple[str, ...]
    label: int | None
    valid: NDArray[np.bool_]
    names: tuple[str, ...]
    path: NDArray[np.int8]
    compute: float
    tradeoff: float
    belief: NDArray[np.float32]
    believer: Literal["last exit", "answer"]
    prediction: int | None
    preferences: Preferences | None = None

    @property
    def layer(self) -> int:
        """The layer that waits for a decision; while the episode is active only."""
        return int((self.path >= 0).sum())

    @property
    def is_right(self) -> bool | None:
        """Whether the answer is the true class; None without an answer or a label."""
        if self.prediction is None or self.label is None:
            return None
        return self.prediction == self.label

    @property
    def status(self) -> str:
        """A few words: which layer waits, or what the answer is."""
        if self.prediction is None:
            return f"layer {self.layer}"

        answer = f"answer: {self.classes[self.prediction]}"
        if self.label is None:
            return answer
        if self.is_right:
            return f"{answer} (right)"
        return f"{answer} (wrong, it is {self.classes[self.label]})"


def sub_path_names(spec: RoutingSpec) -> tuple[str, ...]:
    """A short name for each sub-path of a routing problem."""
    names = [str(number) for number in range(spec.num_paths)]
    costs = spec.mac_table.layers[:, spec.full_path]  # (T, K)
    for sub_path in range(spec.num_paths):
        offered = spec.valid[:, sub_path]
        if offered.any() and not costs[offered, sub_path].any():
            names[sub_path] = "identity"
    names[-1] = "full"
    if spec.has_exits:
        names[0] = "exit"
    return tuple(names)


def text(scene: Scene) -> str:
    """The `ansi` rendering: one row per sub-path, the most expensive on top, one column per layer.

    `o` marks a sub-path that can be taken, `@` one that was taken.
    """
    names = scene.names
    width = max(map(len, names))
    lines = [f"{scene.status}   λ = {scene.tradeoff:.3g}   compute {scene.compute:.3f}"]
    for sub_path in reversed(range(len(names))):
        marks = [_mark(scene, layer, sub_path) for layer in range(len(scene.path))]
        lines.append(f"{names[sub_path]:>{width}}  {'  '.join(marks)}")
    return "\n".join(lines) + "\n"


def _mark(scene: Scene, layer: int, sub_path: int) -> str:
    if scene.path[layer] == sub_path:
        return "@"
    if scene.valid[layer, sub_path]:
        return "o"
    return "."
