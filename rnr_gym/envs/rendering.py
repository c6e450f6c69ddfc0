"""Pictures of an episode: the image, the way taken so far, and what the network believes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RENDER_MODES = ("ansi", "rgb_array", "human")
DONE, OPEN, CLOSED = "#0b6e4f", "#c9d2d9", "#f2f4f6"


class Scene(NamedTuple):
    """What there is to show of one episode.

    Attributes:
        image: uint8 `(C, H, W)`.
        classes: class names.
        label: the true class.
        valid: bool `(T, K)`, the sub-paths there are.
        has_exits: whether sub-path 0 is the exit.
        path: int8 `(T,)`, executed so far, -1 elsewhere.
        compute: compute so far.
        tradeoff: λ.
        belief: float `(classes,)`, probabilities of the exit that ran last; uniform where none did.
        prediction: the answer, None while under way.
    """

    image: NDArray[np.uint8]
    classes: tuple[str, ...]
    label: int
    valid: NDArray[np.bool_]
    has_exits: bool
    path: NDArray[np.int8]
    compute: float
    tradeoff: float
    belief: NDArray[np.float32]
    prediction: int | None

    @property
    def names(self) -> list[str]:
        """A short name for each sub-path."""
        count = self.valid.shape[1]
        first = ["exit"] if self.has_exits else []
        return [*first, *(str(number) for number in range(len(first), count - 1)), "full"]

    @property
    def caption(self) -> str:
        """One line: where the episode stands, or how it ended."""
        state = f"λ = {self.tradeoff:.3g}   compute {self.compute:.3f}"
        if self.prediction is None:
            return f"layer {int((self.path >= 0).sum())}   {state}"
        verdict = "right" if self.prediction == self.label else f"wrong, it is {self.classes[self.label]}"
        return f"answer: {self.classes[self.prediction]} ({verdict})   {state}"


def text(scene: Scene) -> str:
    """The `ansi` rendering: a row a sub-path, dearest on top, a column a layer; `o` can be taken, `@` was taken."""
    width = max(map(len, scene.names))
    lines = []
    for number in reversed(range(len(scene.names))):
        marks = ["@" if scene.path[t] == number else "o" if scene.valid[t, number] else "." for t in range(len(scene.path))]
        lines.append(f"{scene.names[number]:>{width}}  {'  '.join(marks)}")
    return "\n".join([scene.caption, *lines]) + "\n"


def frame(scene: Scene) -> NDArray[np.uint8]:
    """The `rgb_array` rendering, uint8 `(270, 720, 3)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, needed only here
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.7), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    picture, network, belief = figure.subplots(1, 3, width_ratios=(1.0, 1.5, 1.1))
    _draw_image(picture, scene)
    _draw_network(network, scene)
    _draw_belief(belief, scene)
    figure.suptitle(scene.caption, fontsize=10)
    canvas.draw()
    return np.array(canvas.buffer_rgba(), np.uint8)[..., :3].copy()


def _draw_image(axes: Any, scene: Scene) -> None:
    pixels = np.moveaxis(scene.image, 0, -1)
    axes.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()


def _draw_network(axes: Any, scene: Scene) -> None:
    layers, paths = scene.valid.shape
    grid = [(t, k) for t in range(layers) for k in range(paths)]
    axes.scatter(*zip(*grid, strict=True), s=90, c=[OPEN if scene.valid[t, k] else CLOSED for t, k in grid], zorder=2)
    taken = np.flatnonzero(scene.path >= 0)
    axes.plot(taken, scene.path[taken], "-o", color=DONE, markersize=10, linewidth=2.5, zorder=3)
    axes.set_xticks(range(layers), [f"{t}" for t in range(layers)])
    axes.set_yticks(range(paths), scene.names)
    axes.set(xlabel="layer", xlim=(-0.5, layers - 0.5), ylim=(-0.5, paths - 0.5))
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)


def _draw_belief(axes: Any, scene: Scene) -> None:
    top = np.argsort(scene.belief, kind="stable")[::-1][:10][::-1]
    axes.barh(range(len(top)), scene.belief[top], color=[DONE if number == scene.label else OPEN for number in top])
    axes.set_yticks(range(len(top)), [scene.classes[number] for number in top])
    axes.set(xlim=(0, 1), xlabel="belief of the last exit")
    axes.tick_params(length=0, labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)


class Window:
    """The `human` rendering: a window where there is a screen, the text form on standard output where there is none."""

    def __init__(self) -> None:
        import matplotlib.pyplot as plt
        from matplotlib.backends.registry import BackendFilter, backend_registry

        self.plt = plt
        self.on_screen = plt.get_backend().lower() in backend_registry.list_builtin(BackendFilter.INTERACTIVE)
        self.shown: Any = None

    def show(self, scene: Scene) -> None:
        """Replace what is shown."""
        if not self.on_screen:
            print(text(scene), flush=True)
            return
        if self.shown is None:
            figure, axes = self.plt.subplots(figsize=(7.2, 2.7))
            axes.set_axis_off()
            figure.subplots_adjust(0, 0, 1, 1)
            self.shown = axes.imshow(frame(scene))
        self.shown.set_data(frame(scene))
        self.plt.pause(0.3)

    def close(self) -> None:
        """Close the window if there is one."""
        if self.shown is not None:
            self.plt.close(self.shown.figure)
            self.shown = None
