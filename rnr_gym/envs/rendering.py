"""Pictures of an episode: the image, the path so far, and what the network believes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RENDER_MODES = ("ansi", "rgb_array", "human")
SIZE = (7.2, 2.7)
"""Width and height of a frame in inches, at `DPI` pixels per inch."""
DPI = 100
PAUSE = 0.3
"""Seconds that a window shows each step."""
SHOWN_CLASSES = 10
"""A frame shows the beliefs in the most likely classes only; more names would not fit."""
DONE = "#0b6e4f"
OPEN = "#c9d2d9"
CLOSED = "#f2f4f6"


class Scene(NamedTuple):
    """Everything that is drawn of one episode.

    Attributes:
        image: uint8 `(C, H, W)`.
        classes: class names.
        label: the true class.
        valid: bool `(T, K)`, the sub-paths that may be taken.
        has_exits: whether sub-path 0 is the exit.
        path: int8 `(T,)`, executed so far, -1 elsewhere.
        compute: compute so far.
        tradeoff: λ.
        belief: float `(classes,)`, probabilities of the exit that ran last; uniform before the
            first.
        prediction: the answer; None while the episode is active.
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
        names = [str(number) for number in range(self.valid.shape[1])]
        names[-1] = "full"
        if self.has_exits:
            names[0] = "exit"
        return names

    @property
    def caption(self) -> str:
        """One line: where the episode stands, or how it ended."""
        state = f"λ = {self.tradeoff:.3g}   compute {self.compute:.3f}"
        if self.prediction is None:
            layer = int((self.path >= 0).sum())
            return f"layer {layer}   {state}"

        verdict = "right"
        if self.prediction != self.label:
            verdict = f"wrong, it is {self.classes[self.label]}"
        return f"answer: {self.classes[self.prediction]} ({verdict})   {state}"


def text(scene: Scene) -> str:
    """The `ansi` rendering: one row per sub-path, the most expensive on top, one column per layer.

    `o` marks a sub-path that can be taken, `@` one that was taken.
    """
    names = scene.names
    width = max(map(len, names))
    lines = [scene.caption]
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


def frame(scene: Scene) -> NDArray[np.uint8]:
    """The `rgb_array` rendering, uint8 `(270, 720, 3)`."""
    # Slow to import, and needed only here.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot, which would keep the figure and might open a window.
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    image, network, belief = figure.subplots(1, 3, width_ratios=(1.0, 1.5, 1.1))
    _draw_image(image, scene)
    _draw_network(network, scene)
    _draw_belief(belief, scene)
    # Names of classes are no mathematics, whatever signs they have.
    figure.suptitle(scene.caption, fontsize=10, parse_math=False)

    canvas.draw()
    pixels = np.array(canvas.buffer_rgba(), np.uint8)  # (H, W, 4)
    return pixels[..., :3].copy()


def _draw_image(axes: Any, scene: Scene) -> None:
    pixels = np.moveaxis(scene.image, 0, -1)  # (C, H, W) -> (H, W, C)
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    # Fixed limits, or the contrast of a dark image would be stretched.
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()


def _draw_network(axes: Any, scene: Scene) -> None:
    num_layers, num_paths = scene.valid.shape
    layers, sub_paths = np.indices(scene.valid.shape)  # (T, K)
    colors = np.where(scene.valid, OPEN, CLOSED)
    axes.scatter(layers.ravel(), sub_paths.ravel(), s=90, c=colors.ravel(), zorder=2)

    taken = np.flatnonzero(scene.path >= 0)
    axes.plot(
        taken,
        scene.path[taken],
        "-o",
        color=DONE,
        markersize=10,
        linewidth=2.5,
        zorder=3,
    )

    axes.set_xticks(range(num_layers), [str(layer) for layer in range(num_layers)])
    axes.set_yticks(range(num_paths), scene.names)
    axes.set(xlabel="layer", xlim=(-0.5, num_layers - 0.5), ylim=(-0.5, num_paths - 0.5))
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)


def _draw_belief(axes: Any, scene: Scene) -> None:
    # A stable sort, so that equal beliefs keep the order of classes.
    most_likely = np.argsort(scene.belief, kind="stable")[::-1][:SHOWN_CLASSES]
    top = most_likely[::-1]  # bars are drawn from the bottom

    colors = [OPEN] * len(top)
    for bar, number in enumerate(top):
        if number == scene.label:
            colors[bar] = DONE

    axes.barh(range(len(top)), scene.belief[top], color=colors)
    names = [scene.classes[number] for number in top]
    axes.set_yticks(range(len(top)), names, parse_math=False)
    axes.set(xlim=(0, 1), xlabel="belief of the last exit")
    axes.tick_params(length=0, labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)


class Window:
    """The `human` rendering: a window, or the text form on standard output without a screen."""

    def __init__(self) -> None:
        # Here, since pyplot selects a backend when it is imported.
        import matplotlib.pyplot as plt
        from matplotlib.backends.registry import BackendFilter, backend_registry

        interactive = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
        self.plt = plt
        self.on_screen = plt.get_backend().lower() in interactive
        self.shown: Any = None

    def show(self, scene: Scene) -> None:
        """Replace what is shown."""
        if not self.on_screen:
            print(text(scene), flush=True)
            return

        if self.shown is None:
            figure, axes = self.plt.subplots(figsize=SIZE)
            axes.set_axis_off()
            figure.subplots_adjust(0, 0, 1, 1)
            self.shown = axes.imshow(frame(scene))
        else:
            self.shown.set_data(frame(scene))
        # A pause runs the event loop, without which nothing is drawn.
        self.plt.pause(PAUSE)

    def close(self) -> None:
        """Close the window if there is one."""
        if self.shown is not None:
            self.plt.close(self.shown.figure)
            self.shown = None
