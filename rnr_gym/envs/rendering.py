"""Pictures of an episode: the image, the path so far, its cost, and what the network believes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rnr_gym.envs.scene import Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RENDER_MODES = ("ansi", "rgb_array", "human")
SIZE = (9.6, 5.4)
"""Width and height of a frame in inches, at `DPI` pixels per inch."""
DPI = 100
FONT = 15
"""Size of text in points: legible where a frame is shown at half its width."""
SHOWN_CLASSES = 6
"""A frame shows the beliefs in the most likely classes only; more names would not fit."""
NAME_LENGTH = 13
"""Longer names of classes are cut."""
MOST_LABELLED_LAYERS = 10
"""In a deeper network, every second layer is numbered, or every third, and so on."""
MOST_LAYERS_WITH_NUMBERS = 6
"""In a deeper network, numbers inside the boxes would overlap."""

# Colours of Okabe and Ito, which colour-blind people tell apart.
TAKEN = "#0072b2"
RIGHT = "#009e73"
WRONG = "#d55e00"
SKIPPED = "#d7dce1"
INK = "#1f2933"
FAINT = "#8b96a1"


def frame(scene: Scene) -> NDArray[np.uint8]:
    """The `rgb_array` rendering, uint8 `(540, 960, 3)`."""
    # Slow to import, and needed only here.
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Whoever renders may have settings of their own, for other pictures.
    with mpl.rc_context():
        mpl.rcdefaults()
        canvas = FigureCanvasAgg(figure(scene))
        canvas.draw()
    pixels = np.array(canvas.buffer_rgba(), np.uint8)  # (H, W, 4)
    return pixels[..., :3].copy()


def figure(scene: Scene) -> Figure:
    """The picture of which `frame` has the pixels."""
    from matplotlib.figure import Figure

    scene = scene._replace(classes=tuple(map(_shortened, scene.classes)))
    # Without pyplot, which would keep the figure and might open a window.
    picture = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
    # Left, bottom, width and height, as shares of the picture.
    _draw_image(picture.add_axes((0.02, 0.36, 0.28, 0.50)), scene)
    _draw_compute(picture.add_axes((0.025, 0.11, 0.27, 0.09)), scene)
    _draw_network(picture.add_axes((0.388, 0.11, 0.335, 0.75)), scene)
    _draw_belief(picture.add_axes((0.86, 0.22, 0.125, 0.64)), scene)
    _draw_status(picture, scene)
    return picture


def _draw_status(picture: Figure, scene: Scene) -> None:
    color = INK
    mark = ""
    if scene.is_right is not None:
        color = RIGHT if scene.is_right else WRONG
        mark = "✓ " if scene.is_right else "✗ "
    # Names of classes are no mathematics, whatever signs they have.
    picture.text(
        0.02,
        0.925,
        mark + scene.status,
        color=color,
        fontsize=FONT + 3,
        fontweight="bold",
        parse_math=False,
    )
    picture.text(0.985, 0.925, f"λ = {scene.tradeoff:.3g}", ha="right", color=INK, fontsize=FONT)


def _draw_image(axes: Axes, scene: Scene) -> None:
    pixels = np.moveaxis(scene.image, 0, -1)  # (C, H, W) -> (H, W, C)
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    # Fixed limits, or the contrast of a dark image would be stretched.
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()


def _draw_compute(axes: Axes, scene: Scene) -> None:
    """A bar that fills up to the MACs of the plain network, 1."""
    # Glance, exits and head cost something that the plain network does not pay.
    full = max(1.0, scene.compute)
    axes.barh(0, full, color=SKIPPED, height=1.0)
    axes.barh(0, scene.compute, color=TAKEN, height=1.0)
    axes.set(xlim=(0, full), ylim=(-0.5, 0.5), yticks=[])
    axes.set_xticks([0, 1], ["0", "plain\nnetwork"], color=INK)
    axes.get_xticklabels()[1].set_horizontalalignment("right")
    axes.set_title(f"compute {scene.compute:.3f}", fontsize=FONT, color=INK)
    axes.tick_params(length=0, labelsize=FONT - 2)
    axes.spines[:].set_visible(False)


def _draw_network(axes: Axes, scene: Scene) -> None:
    """Layers as columns of boxes, a box for each sub-path; the path so far runs through them."""
    num_layers, num_paths = scene.valid.shape
    for layer, sub_path in np.argwhere(scene.valid).tolist():
        _draw_box(axes, scene, layer, sub_path)

    taken = np.flatnonzero(scene.path >= 0)
    x = [-0.85, *taken.tolist()]
    y = [(num_paths - 1) / 2, *scene.path[taken].tolist()]
    left_early = scene.names[scene.path[taken[-1]]] == "exit" if len(taken) else False
    if scene.prediction is not None and not left_early:
        # Through the last layer, to the head.
        x.append(num_layers - 0.15)
        y.append((num_paths - 1) / 2)
    axes.plot(x, y, color=TAKEN, linewidth=5, solid_joinstyle="round", zorder=1)
    if scene.prediction is None:
        # The layer that waits for a decision.
        axes.axvspan(scene.layer - 0.5, scene.layer + 0.5, color="#fff3c4", zorder=0)

    every = -(-num_layers // MOST_LABELLED_LAYERS)
    axes.set_xticks(range(0, num_layers, every))
    axes.set_yticks(range(num_paths), scene.names)
    axes.set(xlim=(-0.85, num_layers - 0.15), ylim=(-0.6, num_paths - 0.4))
    axes.set_xlabel("layer", fontsize=FONT, color=INK)
    if scene.preferences is not None:
        axes.set_title(_explained(scene.preferences.kind), fontsize=FONT - 1, color=INK)
    axes.tick_params(length=0, labelsize=FONT - 1, labelcolor=INK)
    axes.spines[:].set_visible(False)


def _draw_box(axes: Axes, scene: Scene, layer: int, sub_path: int) -> None:
    from matplotlib.patches import FancyBboxPatch

    is_taken = scene.path[layer] == sub_path
    is_over = scene.prediction is not None
    is_skipped = not is_taken and (is_over or layer < scene.layer)
    fill = "white"
    if is_taken:
        fill = TAKEN
    elif is_skipped:
        fill = SKIPPED
    axes.add_patch(
        FancyBboxPatch(
            (layer - 0.34, sub_path - 0.24),
            0.68,
            0.48,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=fill,
            edgecolor=TAKEN if is_taken else FAINT,
            linewidth=1.5,
            # So that what was skipped is told by more than its colour.
            linestyle=":" if is_skipped else "-",
            zorder=2,
        )
    )

    preferences = scene.preferences
    if preferences is None or len(scene.path) > MOST_LAYERS_WITH_NUMBERS:
        return
    value = preferences.values[layer, sub_path]
    if np.isnan(value):
        return
    number = f"{100 * value:.0f}" if preferences.kind == "probability" else f"{value:.2f}"
    axes.text(
        layer,
        sub_path,
        number.replace("-", "−").replace("0.", "."),
        ha="center",
        va="center_baseline",
        fontsize=FONT - 1,
        color="white" if is_taken else INK,
        fontweight="bold" if is_taken else "normal",
        zorder=3,
    )


def _explained(kind: str) -> str:
    """What the numbers in the boxes are."""
    if kind == "probability":
        return "probability, in %"
    if kind == "Q-value":
        return "Q: expected return"
    return "expected return, less the mean"


def _draw_belief(axes: Axes, scene: Scene) -> None:
    # A stable sort, so that equal beliefs keep the order of classes.
    most_likely = np.argsort(scene.belief, kind="stable")[::-1][:SHOWN_CLASSES]
    top = most_likely[::-1]  # bars are drawn from the bottom

    is_true = [number == scene.label for number in top]
    colors = [RIGHT if true else FAINT for true in is_true]
    axes.barh(range(len(top)), scene.belief[top], color=colors, height=0.7)

    names = [scene.classes[number] for number in top]
    axes.set_yticks(range(len(top)), names, parse_math=False)
    for name, true in zip(axes.get_yticklabels(), is_true, strict=True):
        name.set_fontweight("bold" if true else "normal")
    axes.set(xlim=(0, 1), ylim=(-0.6, SHOWN_CLASSES - 0.4))
    axes.set_xticks([0, 1], ["0", "1"])
    axes.set_xlabel(f"probability\n({scene.believer})", fontsize=FONT - 1, color=INK)
    axes.tick_params(length=0, labelsize=FONT - 2, labelcolor=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _shortened(name: str) -> str:
    if len(name) <= NAME_LENGTH:
        return name
    return name[: NAME_LENGTH - 1] + "…"
